"""The handles as the flow's callables; the handles are fakes, the watch over the LLM is the real one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import watch
from deployments.steps import build_steps
from deployments.watch import Watch
from rag.errors import StageError
from rag.pipeline import Steps
from rag.types import GeneratedText, Message
from tests.orchestrator_fakes import MODEL, settings_in
from tests.waiting import wait_until


class Stream:
    """What a streaming call gives: two pieces, or none while `silent`."""

    def __init__(self, *, silent: bool) -> None:
        self._pieces = iter(() if silent else ("One. ", "Two."))
        self.cancelled = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> GeneratedText:
        for text in self._pieces:
            return GeneratedText(text)
        await asyncio.Event().wait()
        raise AssertionError("nothing ends this")

    def cancel(self) -> None:
        self.cancelled = True


class LLM:
    """An LLM's handle; `streams` are the calls that were sent."""

    def __init__(self) -> None:
        self.up = True
        self.silent = False
        self.streams: list[Stream] = []
        self.generate = SimpleNamespace(remote=self._generate)

    def options(self, **_: Any) -> LLM:
        return self

    def _generate(self, messages: list[Message], **_: Any) -> Stream:
        self.streams.append(Stream(silent=self.silent))
        return self.streams[-1]

    async def ready(self) -> None:
        if not self.up:
            raise StageError("generate", "its replica is gone")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PERIOD_S", 0.01)
    monkeypatch.setattr(watch, "IDLE_PERIOD_S", 0.02)


def steps_over(llm: LLM, folder: Path) -> tuple[Steps, Watch]:
    watching = Watch({"generator": llm.ready})
    other: Any = None
    generators: Any = {MODEL: llm}
    return build_steps(settings_in(folder), lambda: watching, other, other, other, generators), watching


def write(steps: Steps) -> Any:
    return steps.generate([Message("user", "Why?")], model=MODEL, max_tokens=5, temperature=0.0)


async def test_an_llm_that_is_down_is_sent_no_call(tmp_path: Path) -> None:
    llm = LLM()
    llm.up = False
    steps, watching = steps_over(llm, tmp_path)
    await wait_until(lambda: "gone" in watching.states()["generator"])
    for _ in range(3):
        with pytest.raises(StageError, match="the generator is down"):
            await anext(write(steps))
    assert llm.streams == []


async def test_a_call_is_sent_with_the_first_piece_and_closing_cancels_it(tmp_path: Path) -> None:
    llm = LLM()
    steps, _ = steps_over(llm, tmp_path)
    pieces = write(steps)
    assert llm.streams == []
    assert (await anext(pieces)).text == "One. "
    await pieces.aclose()
    (sent,) = llm.streams
    assert sent.cancelled


async def test_a_call_whose_llm_goes_down_before_the_first_piece_is_cancelled(tmp_path: Path) -> None:
    llm = LLM()
    llm.silent = True
    steps, watching = steps_over(llm, tmp_path)
    await wait_until(lambda: watching.states()["generator"] == "ok")
    first = asyncio.ensure_future(anext(write(steps)))
    await wait_until(lambda: len(llm.streams) == 1)
    llm.up = False
    with pytest.raises(StageError, match="the generator went down"):
        await first
    assert llm.streams[0].cancelled


async def test_a_call_whose_question_is_cancelled_is_cancelled(tmp_path: Path) -> None:
    llm = LLM()
    llm.silent = True
    steps, _ = steps_over(llm, tmp_path)
    first = asyncio.ensure_future(anext(write(steps)))
    await wait_until(lambda: len(llm.streams) == 1)
    first.cancel()
    await asyncio.wait({first})
    assert first.cancelled()
    assert llm.streams[0].cancelled
