from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import pytest

from deployments import watch
from deployments.watch import NOT_ASKED, Watch
from rag.errors import StageError
from tests.waiting import wait_until


class Stage:
    """Counts how often it was asked; `answer` decides what it says."""

    def __init__(self, answer: Callable[[], None] = lambda: None) -> None:
        self.asked = 0
        self.answer = answer
        self.open = asyncio.Event()
        self.open.set()

    async def ready(self) -> None:
        self.asked += 1
        await self.open.wait()
        self.answer()


def fail() -> None:
    raise StageError("store", "nobody listens there")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PERIOD_S", 0.02)
    monkeypatch.setattr(watch, "IDLE_PERIOD_S", 60.0)


async def test_a_stage_is_not_up_before_it_was_asked() -> None:
    slow, down, up = Stage(), Stage(fail), Stage()
    slow.open.clear()
    watching = Watch({"slow": slow.ready, "down": down.ready, "up": up.ready})
    assert watching.states() == dict.fromkeys(("slow", "down", "up"), NOT_ASKED)
    await wait_until(lambda: watching.states()["up"] == "ok" and "nobody" in watching.states()["down"])
    assert watching.states()["slow"] == NOT_ASKED
    slow.open.set()
    await wait_until(lambda: watching.states()["slow"] == "ok")


async def test_a_stage_that_was_not_asked_yet_is_tried() -> None:
    stage = Stage()
    async with Watch({"stage": stage.ready}).unless_down("stage", "rerank"):
        pass


async def test_a_stage_that_is_up_is_asked_again_only_while_it_is_used() -> None:
    stage = Stage()
    watching = Watch({"stage": stage.ready})
    await wait_until(lambda: stage.asked == 1)
    await asyncio.sleep(0.2)
    assert stage.asked == 1
    async with watching.unless_down("stage", "rerank"):
        await wait_until(lambda: stage.asked >= 4)
    await asyncio.sleep(0.2)
    asked = stage.asked
    await asyncio.sleep(0.2)
    assert stage.asked == asked


async def test_a_stage_that_is_up_and_idle_is_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "IDLE_PERIOD_S", 0.05)
    stage = Stage()
    watching = Watch({"stage": stage.ready})
    await wait_until(lambda: stage.asked >= 3)
    stage.answer = fail
    await wait_until(lambda: "nobody" in watching.states()["stage"])


async def test_a_stage_that_is_down_is_refused_and_asked_until_it_is_up() -> None:
    stage = Stage(fail)
    watching = Watch({"stage": stage.ready})
    await wait_until(lambda: stage.asked >= 3)
    with pytest.raises(StageError, match="the stage is down"):
        async with watching.unless_down("stage", "rerank"):
            raise AssertionError("the block was entered")
    stage.answer = lambda: None
    await wait_until(lambda: watching.states() == {"stage": "ok"})


REQUEST = contextvars.ContextVar("request", default="none")


async def test_a_stage_is_asked_in_no_request_s_name() -> None:
    asked_for: list[str] = []

    async def ready() -> None:
        asked_for.append(REQUEST.get())

    REQUEST.set("the first one")
    Watch({"stage": ready})
    await wait_until(lambda: bool(asked_for))
    assert set(asked_for) == {"none"}


async def test_a_stage_whose_asking_is_cancelled_is_down_and_asked_again() -> None:
    stage = Stage()
    watching = Watch({"stage": stage.ready})
    await wait_until(lambda: watching.states()["stage"] == "ok")

    def cancel() -> None:
        raise asyncio.CancelledError

    stage.answer = cancel
    async with watching.unless_down("stage", "rerank"):
        pass  # a stage in use is asked at once
    await wait_until(lambda: "cancelled" in watching.states()["stage"])
    with pytest.raises(StageError, match="the stage is down"):
        async with watching.unless_down("stage", "rerank"):
            raise AssertionError("the block was entered")
    stage.answer = lambda: None
    await wait_until(lambda: watching.states()["stage"] == "ok")


async def test_a_watch_that_is_cancelled_ends() -> None:
    slow, quick = Stage(), Stage()
    slow.open.clear()
    watching = Watch({"slow": slow.ready, "quick": quick.ready})
    await wait_until(lambda: quick.asked > 0 and slow.asked > 0)
    for task in watching._tasks:
        task.cancel()
    done, _ = await asyncio.wait(watching._tasks, timeout=10)
    assert {task.cancelled() for task in done} == {True}
    assert len(done) == 2
    assert watching.states()["slow"] == NOT_ASKED


async def test_a_block_ends_when_its_stage_goes_down() -> None:
    stage = Stage()
    watching = Watch({"stage": stage.ready})
    await wait_until(lambda: watching.states() == {"stage": "ok"})
    stage.answer = fail
    with pytest.raises(StageError, match="went down"):
        async with watching.unless_down("stage", "rerank"):
            await asyncio.sleep(10)
