from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.cache import QueryEmbeddings, Recent
from rag.errors import StageError
from rag.types import TextKind
from tests.fakes import HashEmbedder


class Embedder:
    """Keeps what it was asked; `errors` are raised first."""

    def __init__(self, *errors: Exception) -> None:
        self.asked: list[str] = []
        self._errors = list(errors)

    async def __call__(self, texts: list[str], kind: TextKind) -> np.ndarray:
        self.asked.extend(texts)
        await asyncio.sleep(0)
        if self._errors:
            raise self._errors.pop()
        return await HashEmbedder().embed(texts, kind)


def ignore(hits: int, misses: int) -> None:
    return None


@given(st.integers(0, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=40))
def test_the_entries_used_last_are_kept(size: int, uses: list[tuple[bool, int]]) -> None:
    recent: Recent[int, str] = Recent(size)
    order: list[int] = []  # used last at the end
    for writes, key in uses:
        if writes:
            recent.put(key, str(key))
        else:
            assert recent.get(key) == (str(key) if key in order else None)
        if writes or key in order:
            order = [*(other for other in order if other != key), key][max(0, len({*order, key}) - size) :]
    assert [key for key, _ in recent.items()] == order


def test_a_later_value_takes_the_place_of_the_former() -> None:
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1)
    recent.put("a", 2)
    assert recent.items() == [("a", 2)]
    recent.drop("a")
    recent.drop("a")
    assert recent.get("a") is None


@given(
    st.integers(0, 3), st.lists(st.lists(st.sampled_from(["port", "ports", "Port", "포트"]), max_size=4), max_size=8)
)
def test_vectors_are_those_of_the_embedder_whatever_is_remembered(size: int, calls: list[list[str]]) -> None:
    async def check() -> None:
        embed = QueryEmbeddings(Embedder(), size, ignore)
        for texts in calls:
            np.testing.assert_array_equal(await embed(texts, "query"), HashEmbedder().encode(texts, "query"))

    asyncio.run(check())


async def test_a_query_is_embedded_once_while_it_is_among_the_last() -> None:
    embedder = Embedder()
    lookups: list[tuple[int, int]] = []
    embed = QueryEmbeddings(embedder, 2, lambda hits, misses: lookups.append((hits, misses)))
    for text in ("a", "a", "b", "a", "c", "a", "b"):
        await embed([text], "query")
    assert embedder.asked == ["a", "b", "c", "b"]
    assert lookups == [(0, 1), (1, 0), (0, 1), (1, 0), (0, 1), (1, 0), (0, 1)]


async def test_passages_are_not_remembered() -> None:
    embedder = Embedder()
    embed = QueryEmbeddings(embedder, 2, ignore)
    await embed(["a"], "query")
    await embed(["a"], "passage")
    await embed(["a"], "passage")
    assert embedder.asked == ["a"] * 3


async def test_a_failure_is_not_remembered() -> None:
    embed = QueryEmbeddings(Embedder(StageError("embed", "down")), 2, ignore)
    with pytest.raises(StageError):
        await embed(["a"], "query")
    assert (await embed(["a"], "query")).shape == (1, 64)


async def test_a_caller_that_leaves_costs_the_others_of_the_same_query_nothing() -> None:
    embed = QueryEmbeddings(Embedder(), 2, ignore)
    first, second = (asyncio.ensure_future(embed(["a"], "query")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    np.testing.assert_array_equal(await second, HashEmbedder().encode(["a"], "query"))


async def test_what_a_caller_does_to_its_vectors_stays_with_it() -> None:
    embed = QueryEmbeddings(Embedder(), 2, ignore)
    for _ in range(2):
        found = await embed(["a"], "query")
        found *= 0
    np.testing.assert_array_equal(await embed(["a"], "query"), HashEmbedder().encode(["a"], "query"))
