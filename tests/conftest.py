"""What has to be so before any test module is imported."""

import os

import pytest

from deployments.launch import FAST_PATH

# Serve reads these when it is imported, which the collection of the tests already does.
os.environ.update(FAST_PATH)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The contract tests last: the Milvus servers that they keep would take a fifth of a core from what follows."""
    items.sort(key=lambda item: "contract" in item.path.parts)
