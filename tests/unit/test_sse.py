from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import pytest

from deployments.sse import encode_event, encode_events, event_name_and_data, with_comments
from rag.errors import StageError
from rag.events import Cited, Degraded, Done, Retrieved, Token
from rag.pipeline import answer, stream_answer
from rag.types import Question
from tests.pipeline_fakes import make_settings, make_steps, says


def decode(text: str) -> tuple[int, str, Any]:
    """One event as a client reads it: lines end where any client may think that they end."""
    number, name, data = text.rstrip("\n").splitlines()
    return (
        int(number.removeprefix("id: ")),
        name.removeprefix("event: "),
        json.loads(data.removeprefix("data: ")),
    )


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "두 줄\nhere\r\n",
        "a\u2028b\u2029c\x85d",
        'quotes " and \\ and 🙂',
        "\x00\x0b\x0c\x1c",
        "data: x\n\nevent: y",
    ],
    ids=ascii,
)
def test_an_event_carries_any_text_on_one_line(text: str) -> None:
    encoded = encode_event(3, "token", {"text": text})
    assert encoded.endswith("\n\n")
    assert decode(encoded) == (3, "token", {"text": text})


async def test_every_event_has_its_name_and_its_data() -> None:
    done = await answer(
        Question("Which port does the service listen on?"),
        make_steps(says("The service listens on port 8000.")),
        make_settings(),
    )
    (citation,) = done.citations
    name, data = event_name_and_data(Retrieved(done.hits))
    assert name == "retrieval"
    assert data["passages"][0] == {
        "chunk_id": "ports.md:1",
        "title": "ports.md",
        "source": "ports.md",
        "scores": asdict(done.hits[0].scores),
    }
    assert event_name_and_data(Token("Some ")) == ("token", {"text": "Some "})
    assert event_name_and_data(Cited(citation)) == ("citation", asdict(citation))
    assert event_name_and_data(Degraded(("rerank",))) == ("warning", {"degraded": ["rerank"]})
    with pytest.raises(ValueError, match="ingress"):
        event_name_and_data(Done(done))


async def events(*script: str | float | Exception, closed: list[bool]) -> AsyncGenerator[str, None]:
    """Texts, pauses in seconds, errors; `closed` grows when it ends."""
    try:
        for step in script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield step
    finally:
        closed.append(True)


async def broken(error: Exception) -> AsyncGenerator[Any, None]:
    yield Token("The default ")
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        pytest.param(StageError("generate", "gone"), 503, "generate: gone", id="ours"),
        pytest.param(KeyError("secret internals"), 500, "an internal error", id="bug"),
    ],
)
async def test_what_goes_wrong_in_the_middle_is_the_last_event(
    error: Exception, status: int, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    def no_body(_: Done) -> dict[str, Any]:
        raise AssertionError("there is no answer")

    written = [decode(text) async for text in encode_events(broken(error), no_body, "abc-1", "/ask")]
    assert [(number, name) for number, name, _ in written] == [(1, "token"), (2, "error")]
    problem = written[1][2]
    assert (problem["status"], problem["request_id"], problem["instance"]) == (status, "abc-1", "/ask")
    assert detail in problem["detail"]
    assert "secret" not in str(written)
    assert ("abc-1" in caplog.text and "secret internals" in caplog.text) is (status == 500)


async def test_an_answer_s_stream_ends_with_its_body_and_closing_it_closes_the_flow() -> None:
    llm = says("The port is 8000. [1]")
    steps, settings = make_steps(generate=llm), make_settings()

    def events() -> AsyncGenerator[str, None]:
        flow = stream_answer(Question("Which port does the service listen on?"), steps, settings)
        return encode_events(flow, lambda done: {"answer": done.answer.answer}, "abc-1", "/ask")

    written = [decode(text) async for text in events()]
    assert [number for number, _, _ in written] == list(range(1, len(written) + 1))
    assert written[-1][1:] == ("done", {"answer": "The port is 8000. [1]"})
    async with aclosing(events()) as stream:
        assert "event: retrieval" in await anext(stream)
        assert "event: token" in await anext(stream)
    assert llm.closed == len(llm.calls) == 2


async def test_silence_is_broken_by_comments_and_nothing_is_lost() -> None:
    closed: list[bool] = []
    got = [text async for text in with_comments(events("a", 0.2, "b", "c", closed=closed), silence_s=0.05)]
    assert [text for text in got if not text.startswith(":")] == ["a", "b", "c"]
    comments = [text for text in got if text.startswith(":")]
    assert 1 <= len(comments) <= 4
    assert all(text.endswith("\n\n") for text in comments)
    assert got[1].startswith(":")
    assert closed == [True]


async def test_without_silence_there_is_no_comment() -> None:
    got = [text async for text in with_comments(events("a", "b", closed=[]))]
    assert got == ["a", "b"]


async def test_an_error_comes_through_after_what_was_before() -> None:
    stream = with_comments(events("a", StageError("dense", "gone"), closed=[]))
    assert await anext(stream) == "a"
    with pytest.raises(StageError):
        await anext(stream)


@pytest.mark.parametrize("script", [("a", 60.0), ("a", "b")], ids=["while_waiting", "between_events"])
async def test_closing_ends_the_work_behind(script: tuple[Any, ...]) -> None:
    closed: list[bool] = []
    async with aclosing(with_comments(events(*script, closed=closed), silence_s=0.01)) as stream:
        assert await anext(stream) == "a"
        if script[1] != "b":
            assert (await anext(stream)).startswith(":")
    assert closed == [True]


async def test_cancelling_ends_the_work_behind() -> None:
    closed: list[bool] = []

    async def read() -> None:
        async for _ in with_comments(events("a", 60.0, closed=closed)):
            continue

    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == [True]
