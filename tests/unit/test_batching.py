from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.batching import Joined, token_bounded_batches

lengths = st.lists(st.integers(0, 600), max_size=60)
limits = st.integers(1, 2000)


@given(lengths, limits)
def test_each_index_appears_once(lengths: list[int], max_tokens: int) -> None:
    batches = list(token_bounded_batches(lengths, max_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@given(lengths, limits)
def test_no_padded_batch_is_above_the_bound_but_a_single_text(lengths: list[int], max_tokens: int) -> None:
    for batch in token_bounded_batches(lengths, max_tokens):
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= max_tokens


@given(lengths, limits)
def test_lengths_rise_and_equal_ones_keep_their_order(lengths: list[int], max_tokens: int) -> None:
    order = [index for batch in token_bounded_batches(lengths, max_tokens) for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda index: (lengths[index], index))


@given(lengths, limits)
def test_no_two_neighbouring_batches_would_fit_into_one(lengths: list[int], max_tokens: int) -> None:
    batches = list(token_bounded_batches(lengths, max_tokens))
    for batch, following in pairwise(batches):
        assert lengths[following[0]] * (len(batch) + 1) > max_tokens


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "expected"),
    [
        pytest.param([], 10, [], id="nothing"),
        pytest.param([5], 10, [[0]], id="one"),
        pytest.param([50], 10, [[0]], id="one_too_long"),
        pytest.param([2, 2, 2, 2, 2], 4, [[0, 1], [2, 3], [4]], id="equal"),
        pytest.param([9, 1, 5, 1], 10, [[1, 3], [2], [0]], id="mixed"),
        pytest.param([50, 60, 1], 10, [[2], [0], [1]], id="two_too_long"),
    ],
)
def test_known_cases(lengths: list[int], max_tokens: int, expected: list[list[int]]) -> None:
    assert list(token_bounded_batches(lengths, max_tokens)) == expected


class Recorder:
    """Doubles numbers, once it may; keeps what each call was given."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.may = asyncio.Event()

    async def __call__(self, inputs: list[int]) -> list[int]:
        self.calls.append(inputs)
        await self.may.wait()
        if 13 in inputs:
            raise ValueError("13")
        return [2 * one for one in inputs]


async def started(joined: Joined[int, int], *inputs: list[int]) -> list[asyncio.Task[list[int]]]:
    tasks = [asyncio.create_task(joined(one)) for one in inputs]
    await asyncio.sleep(0.01)
    return tasks


async def test_calls_that_come_while_one_is_at_work_are_made_together_and_each_gets_its_own() -> None:
    work = Recorder()
    joined = Joined(work)
    tasks = [*await started(joined, [1, 2]), *await started(joined, [3]), *await started(joined, [], [4, 5])]
    work.may.set()
    assert await asyncio.gather(*tasks) == [[2, 4], [6], [], [8, 10]]
    assert work.calls == [[1, 2], [3, 4, 5]]


async def test_what_the_work_raises_every_call_of_it_raises_and_no_other() -> None:
    work = Recorder()
    joined = Joined(work)
    tasks = [*await started(joined, [1]), *await started(joined, [2], [13])]
    work.may.set()
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert first == [2]
    assert [type(one) for one in others] == [ValueError, ValueError]
    assert await joined([5]) == [10]


async def test_a_call_that_is_cancelled_leaves_the_others_alone() -> None:
    work = Recorder()
    joined = Joined(work)
    first, second, third = [*await started(joined, [1]), *await started(joined, [2], [3])]
    first.cancel()
    second.cancel()
    await asyncio.sleep(0)
    work.may.set()
    assert await third == [6]
    assert first.cancelled()
    assert second.cancelled()
