"""What has to be so before any test module is imported."""

import os

import pytest

from deployments.launch import FAST_PATH

# Serve reads these when it is imported, which the collection of the tests already does.
os.environ.update(FAST_PATH)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


LONGEST_FIRST = ("test_service", "e2e", "serve", "contract")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the files (`make test`) none is left with a long one at the end."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    places = (item.path.stem, item.path.parent.name)
    return next((turn for turn, name in enumerate(LONGEST_FIRST) if name in places), len(LONGEST_FIRST))
