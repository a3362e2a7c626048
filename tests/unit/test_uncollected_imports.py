"""Python's garbage collector while libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from rag.imports import without_collection


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    was_on = gc.isenabled()
    yield
    (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_is_off_inside_and_as_before_afterwards(was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()
    with without_collection():
        assert not gc.isenabled()
    assert gc.isenabled() is was_on


def test_an_import_that_fails_leaves_it_on() -> None:
    gc.enable()
    with pytest.raises(ModuleNotFoundError), without_collection():
        import nowhere_to_be_found  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()
