from __future__ import annotations

import asyncio
import time

import pytest

from deployments.admission import Admission
from rag.errors import DeadlineError, OverloadedError, StageError


class Visitors:
    """Tasks that hold a permit until they are told to leave."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.leave = asyncio.Event()
        self.inside: list[str] = []
        self.waited_s: dict[str, float] = {}

    async def visit(self, name: str, error: Exception | None = None, deadline_s: float = 60.0) -> None:
        async with self._admission.permit(deadline_s) as queue_s:
            self.waited_s[name] = queue_s
            self.inside.append(name)
            try:
                await self.leave.wait()
                if error is not None:
                    raise error
            finally:
                self.inside.remove(name)

    async def arrive(self, *names: str, error: Exception | None = None) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.visit(name, error)) for name in names]
        for _ in range(5):
            await asyncio.sleep(0)
        return tasks


async def test_so_many_are_worked_on_the_next_wait_and_the_rest_is_refused_at_once() -> None:
    visitors = Visitors(Admission(max_inflight=2, max_queued=1))
    tasks = await visitors.arrive("a", "b", "c")
    assert visitors.inside == ["a", "b"]
    with pytest.raises(OverloadedError, match="2 questions are worked on and 1 wait") as caught:
        await visitors.visit("d")
    assert caught.value.retry_after_s >= 1
    visitors.leave.set()
    await asyncio.gather(*tasks)
    assert sorted(visitors.waited_s) == ["a", "b", "c"]


async def test_who_waited_is_told_how_long() -> None:
    visitors = Visitors(Admission(max_inflight=1, max_queued=1))
    tasks = await visitors.arrive("a", "b")
    await asyncio.sleep(0.05)
    visitors.leave.set()
    await asyncio.gather(*tasks)
    assert visitors.waited_s["a"] < 0.04
    assert visitors.waited_s["b"] >= 0.05


async def test_without_a_queue_the_second_is_refused() -> None:
    visitors = Visitors(Admission(max_inflight=1, max_queued=0))
    (task,) = await visitors.arrive("a")
    with pytest.raises(OverloadedError):
        await visitors.visit("b")
    visitors.leave.set()
    await task


async def check_free(admission: Admission, places: int) -> None:
    """All places can be had at once."""
    visitors = Visitors(admission)
    tasks = await visitors.arrive(*(str(number) for number in range(places)))
    assert len(visitors.inside) == places
    visitors.leave.set()
    await asyncio.gather(*tasks)


async def test_an_error_frees_the_place() -> None:
    admission = Admission(max_inflight=1, max_queued=0)
    visitors = Visitors(admission)
    (task,) = await visitors.arrive("a", error=StageError("dense", "gone"))
    visitors.leave.set()
    with pytest.raises(StageError):
        await task
    await check_free(admission, 1)


async def test_cancelling_frees_the_place_of_who_works_and_of_who_waits() -> None:
    admission = Admission(max_inflight=2, max_queued=2)
    visitors = Visitors(admission)
    tasks = await visitors.arrive("a", "b", "c", "d")
    tasks[2].cancel()  # waits
    tasks[0].cancel()  # works
    await asyncio.wait([tasks[0], tasks[2]])
    assert tasks[0].cancelled()
    assert tasks[2].cancelled()
    more = await visitors.arrive("e")
    assert sorted(visitors.inside) == ["b", "d"]
    visitors.leave.set()
    await asyncio.gather(tasks[1], tasks[3], *more)
    await check_free(admission, 2)


async def test_a_refusal_takes_no_place() -> None:
    admission = Admission(max_inflight=1, max_queued=0)
    visitors = Visitors(admission)
    (task,) = await visitors.arrive("a")
    for _ in range(3):
        with pytest.raises(OverloadedError):
            await visitors.visit("b")
    visitors.leave.set()
    await task
    await check_free(admission, 1)


async def test_who_waits_leaves_the_queue_with_its_deadline() -> None:
    admission = Admission(max_inflight=1, max_queued=1)
    visitors = Visitors(admission)
    (task,) = await visitors.arrive("a")
    for name in ("b", "c"):  # the place in the queue is free again each time
        began = time.perf_counter()
        with pytest.raises(DeadlineError, match=r"deadline of 0\.05 s passed before .* place"):
            await visitors.visit(name, deadline_s=0.05)
        assert 0.04 < time.perf_counter() - began < 5
    visitors.leave.set()
    await task
    await check_free(admission, 1)


async def test_who_has_its_place_is_not_hurried() -> None:
    visitors = Visitors(Admission(max_inflight=1, max_queued=0))
    task = asyncio.create_task(visitors.visit("a", deadline_s=0.01))
    await asyncio.sleep(0.1)
    assert visitors.inside == ["a"]
    visitors.leave.set()
    await task


async def test_a_place_that_comes_with_the_deadline_is_lost_to_nobody() -> None:
    for _ in range(50):
        admission = Admission(max_inflight=1, max_queued=1)
        visitors = Visitors(admission)
        first = await visitors.arrive("a")
        late = asyncio.create_task(visitors.visit("b", deadline_s=0.002))
        await asyncio.sleep(0.002)
        visitors.leave.set()
        await asyncio.gather(late, *first, return_exceptions=True)
        await check_free(admission, 1)
