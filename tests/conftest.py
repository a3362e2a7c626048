"""What has to be so before any test module is imported."""

import os

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from deployments.environment import FAST_PATH

# Serve reads these when it is imported, which the collection of the tests already does.
os.environ.update(FAST_PATH)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


LONGEST_FIRST = ("test_service", "contract", "e2e", "serve")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the files (`make test`) none is left with a long one at the end."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    places = (item.path.stem, item.path.parent.name)
    return next((turn for turn, name in enumerate(LONGEST_FIRST) if name in places), len(LONGEST_FIRST))


class OneProcessForAFile(LoadFileScheduling):
    """A file's tests in one process, and those over the stores' servers in one together, which start once there."""

    def _split_scope(self, nodeid: str) -> str:
        contract = "tests/contract/"
        return contract if nodeid.startswith(contract) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneProcessForAFile:
    return OneProcessForAFile(config, log)
