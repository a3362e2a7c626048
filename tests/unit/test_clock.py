from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from rag.clock import RequestClock
from rag.errors import DeadlineError, StageError, StageTimeoutError
from tests.pipeline_fakes import late


async def value() -> int:
    await asyncio.sleep(0)
    return 5


async def test_a_stage_gives_its_result_and_its_time() -> None:
    clock = RequestClock(10)
    assert await clock.run("embed", value, 1) == 5
    assert 0 < clock.timings_ms["embed"] < 1000
    assert clock.degraded == []


async def test_a_stage_that_runs_twice_adds_up() -> None:
    async def nap() -> None:
        await asyncio.sleep(0.02)

    clock = RequestClock(10)
    await clock.run("ground", nap, 1)
    once = clock.timings_ms["ground"]
    await clock.run("ground", nap, 1)
    assert clock.timings_ms["ground"] >= once + 19


async def test_a_stage_above_its_budget_is_named_and_timed() -> None:
    clock = RequestClock(10)
    with pytest.raises(StageTimeoutError, match=r"^rerank: no result within 0\.1 s$") as caught:
        await clock.run("rerank", lambda: late(5)(), 0.1)
    assert caught.value.stage == "rerank"
    assert 95 <= clock.timings_ms["rerank"] < 2000


async def test_a_stage_is_cancelled_when_its_time_is_up() -> None:
    cancelled = asyncio.Event()

    async def stage() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(StageTimeoutError):
        await RequestClock(10).run("dense", stage, 0.01)
    assert cancelled.is_set()


async def test_a_stages_pieces_come_until_its_time_is_up_and_are_then_closed() -> None:
    closed = asyncio.Event()

    async def count() -> AsyncGenerator[int, None]:
        try:
            for number in range(3):
                yield number
            await asyncio.sleep(60)
        finally:
            closed.set()

    clock = RequestClock(10)
    pieces = clock.iterate("generate", count(), 0.1)
    assert [await anext(pieces) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StageTimeoutError, match=r"^generate: not finished within 0\.1 s$"):
        await anext(pieces)
    assert closed.is_set()
    assert clock.timings_ms["generate"] > 0


async def test_a_stages_pieces_are_closed_with_their_reader() -> None:
    closed = asyncio.Event()

    async def count() -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    async with aclosing(RequestClock(10).iterate("generate", count(), 1)) as pieces:
        assert await anext(pieces) == 1
        assert not closed.is_set()
    assert closed.is_set()


async def test_the_deadline_ends_a_stage_with_a_larger_budget() -> None:
    with pytest.raises(DeadlineError, match=r"deadline of 0\.05 s passed before embed; ask with a longer deadline_s"):
        await RequestClock(0.05).run("embed", lambda: late(5)(), 10)


async def test_an_optional_stage_leaves_time_for_the_rest() -> None:
    clock = RequestClock(0.5)
    with pytest.raises(StageTimeoutError):
        await clock.run("rerank", lambda: late(5)(), 10, optional=True)
    assert clock.left_s > 0.02


async def test_no_stage_starts_after_the_deadline() -> None:
    called = []

    async def stage() -> None:
        called.append(True)

    with pytest.raises(DeadlineError):
        await RequestClock(1.0, queue_s=1.0).run("embed", stage, 1)
    assert called == []


async def test_what_a_stage_raises_is_passed_on_and_timed() -> None:
    async def stage() -> None:
        raise StageError("dense", "down")

    clock = RequestClock(10)
    with pytest.raises(StageError, match="dense: down"):
        await clock.run("dense", stage, 1)
    assert "dense" in clock.timings_ms


async def test_a_timeout_inside_a_stage_is_the_stage_s() -> None:
    async def stage() -> None:
        raise TimeoutError("a socket")

    with pytest.raises(StageTimeoutError, match="lexical"):
        await RequestClock(10).run("lexical", stage, 1)


async def test_cancelling_from_outside_is_no_timeout() -> None:
    clock = RequestClock(10)
    task = asyncio.create_task(clock.run("embed", lambda: late(60)(), 5))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_waiting_in_the_queue_counts() -> None:
    clock = RequestClock(10, queue_s=4)
    assert clock.timings_ms == {"queue": 4000}
    assert 4 <= clock.elapsed_s < 5
    assert 5 < clock.left_s <= 6
    assert clock.limit_s(100, optional=False) == pytest.approx(6, abs=0.5)
    assert clock.limit_s(100, optional=True) == pytest.approx(4.8, abs=0.5)
    assert clock.limit_s(2, optional=True) == 2


def test_a_mark_is_set_once() -> None:
    clock = RequestClock(10)
    clock.mark("ttft")
    first = clock.timings_ms["ttft"]
    time.sleep(0.002)
    clock.mark("ttft")
    assert clock.timings_ms["ttft"] == first


def test_a_stage_is_left_out_once_and_in_order() -> None:
    clock = RequestClock(10)
    clock.leave_out("lexical")
    clock.leave_out("rerank")
    clock.leave_out("lexical")
    assert clock.degraded == ["lexical", "rerank"]


def test_a_pickled_clock_stands_still_and_keeps_what_it_knows() -> None:
    clock = RequestClock(10, queue_s=1.0)
    clock.mark("ttft")
    clock.leave_out("rerank")
    packed = pickle.dumps(clock)
    time.sleep(0.2)
    again = pickle.loads(packed)
    assert 1.0 < again.elapsed_s < clock.elapsed_s
    assert (again.timings_ms, again.degraded) == (clock.timings_ms, ["rerank"])
    assert again.left_s > clock.left_s
