"""What has to be so before any test module is imported."""

import os

import pytest

from deployments.launch import FAST_PATH

# Serve reads these when it is imported, which the collection of the tests already does.
os.environ.update(FAST_PATH)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


LONGEST_FIRST = ("test_service", "e2e", "serve", "contract", "process", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What long groups are begun with, so that none is left for the end, and which tests stay in one process.

    Where several processes run the tests (`make test`) a file's share its servers. All contract tests share theirs: the
    standalone Milvus has a fixed port, and idle servers take a fifth of a core.
    """
    items.sort(key=_turn)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("contract" if "contract" in item.path.parts else item.path.stem))


def _turn(item: pytest.Item) -> int:
    places = (item.path.stem, *item.path.parts)
    return next((turn for turn, name in enumerate(LONGEST_FIRST) if name in places), len(LONGEST_FIRST))
