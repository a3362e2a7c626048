from __future__ import annotations

import asyncio
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


async def test_a_block_ends_when_its_stage_goes_down() -> None:
    stage = Stage()
    watching = Watch({"stage": stage.ready})
    await wait_until(lambda: watching.states() == {"stage": "ok"})
    stage.answer = fail
    with pytest.raises(StageError, match="went down"):
        async with watching.unless_down("stage", "rerank"):
            await asyncio.sleep(10)
