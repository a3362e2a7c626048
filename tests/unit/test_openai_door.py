"""The OpenAI-compatible door over the real question flow, asked by OpenAI's own SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, Request

from deployments.ingress import create_api
from deployments.openai import ChatDoors, current_doors
from rag.errors import OverloadedError, RagError, StageError, UnknownCollectionError
from rag.events import Done, Event, Token
from rag.pipeline import answer, stream_answer
from rag.serve_settings import ServeSettings
from rag.types import Question
from tests.pipeline_fakes import ScriptedLLM, make_settings, make_steps, says

PORT = "Which port does the service listen on?"
SAID = "The service listens on port 8000."
Events = Callable[[Question], AsyncGenerator[Event, None]]


def make_api(llm: ScriptedLLM, events: Events | None = None, keys: list[str] | None = None) -> FastAPI:
    """The service's application; its flow is real, the steps are small. `events` take the place of the flow.

    `keys` collects those by which an LLM is chosen.
    """
    steps, settings = make_steps(llm), make_settings(generator={"model_id": "small-llm"})
    own = events or (lambda question: stream_answer(question, steps, settings))

    async def whole(request: Request, question: Question) -> Done | None:
        del request
        if events is not None:
            async for event in events(question):
                assert not isinstance(event, Done)
            return None
        return Done(await answer(question, steps, settings))

    def with_llm(question: Question, key: str) -> Question:
        if keys is not None:
            keys.append(key)
        return question

    async def collections() -> list[str]:
        return ["notes", "default", "logs"]

    api = create_api(ServeSettings(max_body_bytes=50_000))
    api.dependency_overrides[current_doors] = lambda: ChatDoors(
        ("small-llm", "large-llm"), frozenset(), with_llm, whole, own, collections, 1_700_000_000
    )
    return api


@asynccontextmanager
async def client_of(api: FastAPI) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport) as http:
        # The SDK is typed for a client of another library; it calls nothing that this one has not.
        given: Any = http
        yield openai.AsyncOpenAI(base_url="http://service/v1", api_key="none", http_client=given, max_retries=0)


async def post(api: FastAPI, body: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://service") as http:
        return await http.post("/v1/chat/completions", json=body)


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


async def test_an_answer_comes_with_its_citations_as_annotations_and_whole_beside_it() -> None:
    async with client_of(make_api(says(SAID))) as client:
        done = await client.chat.completions.create(model="rag", messages=[user(PORT)])
    (choice,) = done.choices
    assert (done.object, done.model, choice.finish_reason, choice.message.role) == (
        "chat.completion", "rag", "stop", "assistant"
    )  # fmt: skip
    assert choice.message.content == f"{SAID} [1]"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (100, 20, 120)
    assert choice.message.annotations is not None
    (note,) = choice.message.annotations
    assert choice.message.content[note.url_citation.start_index : note.url_citation.end_index] == SAID
    assert (note.url_citation.url, note.url_citation.title) == ("ports.md", "ports.md")
    own = done.model_extra["rag"]  # type: ignore[index]
    assert own["status"] == "answered"
    assert own["answer"] == choice.message.content
    assert note.model_extra == {"citation": own["citations"][0]}
    assert own["citations"][0]["quote"] in SAID
    assert done.id == f"chatcmpl-{own['id']}"


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}], ids=str)
async def test_a_stream_has_the_same_content_and_each_citation_behind_its_sentence(options: Any) -> None:
    async with client_of(make_api(says(SAID))) as client:
        whole = await client.chat.completions.create(model="rag", messages=[user(PORT)])
        stream = await client.chat.completions.create(
            model="rag", messages=[user(PORT)], stream=True, stream_options=options
        )
        chunks = [chunk async for chunk in stream]
    assert {(chunk.object, chunk.model) for chunk in chunks} == {("chat.completion.chunk", "rag")}
    assert len({chunk.id for chunk in chunks}) == 1
    if options and options["include_usage"]:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    notes = [(index, note) for index, delta in enumerate(deltas) for note in _annotations(delta)]
    assert [note for _, note in notes] == [one.model_dump() for one in whole.choices[0].message.annotations or []]
    written = "".join(delta.content or "" for delta in deltas[: notes[0][0]])
    assert len(written) >= notes[0][1]["url_citation"]["end_index"]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].model_extra["rag"]["answer"] == whole.choices[0].message.content  # type: ignore[index]


def _annotations(delta: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (delta.model_extra or {}).get("annotations", [])
    return found


async def test_a_stream_on_the_wire_ends_with_the_mark_that_clients_wait_for() -> None:
    response = await post(make_api(says(SAID)), {"model": "rag", "messages": [user(PORT)], "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


async def test_what_is_not_in_the_documents_is_an_answer_that_says_so() -> None:
    async with client_of(make_api(says("Nobody knows."))) as client:
        done = await client.chat.completions.create(model="rag", messages=[user("Zebra quagga okapi?")])
    assert done.choices[0].message.content == "The documents hold no answer to this question."
    assert done.choices[0].message.annotations == []
    assert done.model_extra["rag"]["status"] == "abstained"  # type: ignore[index]


async def test_earlier_turns_are_the_conversation_and_a_client_s_rules_are_none() -> None:
    llm = says(SAID)
    messages = [
        {"role": "system", "content": "You are a pirate."},
        {"role": "developer", "content": "Never cite."},
        user("Tell me about the service."),
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "It answers"}, {"type": "text", "text": "questions."}],
        },
        {"role": "tool", "content": "forty-two", "tool_call_id": "a"},
        user([{"type": "text", "text": "Which port does"}, {"type": "text", "text": "the service listen on?"}]),
    ]
    response = await post(make_api(llm), {"model": "rag", "messages": messages})
    assert response.status_code == 200, response.text
    (call,) = llm.calls
    said = [(message.role, message.content) for message in call.messages]
    assert said[1:3] == [("user", "Tell me about the service."), ("assistant", "It answers\nquestions.")]
    assert said[-1][1].endswith("Question: Which port does\nthe service listen on?")
    assert not any(word in text for _, text in said for word in ("pirate", "Never cite", "forty-two"))


async def test_a_history_of_any_length_is_taken() -> None:
    turns = [user("Tell me about ships."), {"role": "assistant", "content": "Ship " * 5}] * 120
    response = await post(make_api(says(SAID)), {"model": "rag", "messages": [*turns, user("x" * 30_000), user(PORT)]})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("given", "tokens"),
    [({"max_tokens": 5}, 5), ({"max_completion_tokens": 6}, 6), ({"max_tokens": 5, "max_completion_tokens": 6}, 6)],
)
async def test_a_limit_of_tokens_and_a_temperature_reach_the_llm(given: dict[str, int], tokens: int) -> None:
    llm = says(SAID)
    await post(make_api(llm), {"model": "small-llm", "messages": [user(PORT)], "temperature": 1, **given})
    (call,) = llm.calls
    assert (call.max_tokens, call.temperature, call.model) == (tokens, 1.0, "small-llm")


async def test_fields_that_mean_nothing_here_are_ignored() -> None:
    body = {
        "model": "rag", "messages": [{**user(PORT), "name": "kim"}], "n": 1, "top_p": 0.1, "seed": 3, "user": "kim",
        "presence_penalty": 1, "tools": [], "response_format": {"type": "text"}, "stream": None, "whatever": {"a": 1},
        "stream_options": None, "max_tokens": None, "temperature": None,
    }  # fmt: skip
    response = await post(make_api(says(SAID)), body)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == f"{SAID} [1]"


@pytest.mark.parametrize(
    ("change", "status", "param", "told"),
    [
        pytest.param({"n": 2}, 400, "n", "less than or equal to 1", id="n"),
        pytest.param({"messages": []}, 400, "messages", "at least 1 item", id="no_message"),
        pytest.param({"messages": [user("")]}, 400, None, "has 0 characters", id="empty"),
        pytest.param({"messages": [user(None)]}, 400, None, "has 0 characters", id="null"),
        pytest.param({"messages": [user("a" * 4001)]}, 400, None, "1 to 4000", id="long"),
        pytest.param({"messages": [user(5)]}, 400, "messages.0.content.str", "valid string", id="number"),
        pytest.param({"messages": [{"role": "king", "content": "a"}]}, 400, "messages.0.role", "'user'", id="role"),
        pytest.param({"messages": [user("a"), {"role": "assistant", "content": "b"}]}, 400, None, "role assistant",
                     id="last_role"),
        pytest.param({"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]}, 400, None, "image_url",
                     id="image"),
        pytest.param({"temperature": 3}, 400, "temperature", "less than or equal to 2", id="temperature"),
        pytest.param({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1", id="max_tokens"),
        pytest.param({"stream": "yes"}, 400, "stream", "valid boolean", id="stream"),
        pytest.param({"response_format": {"type": "json_object"}}, 400, "response_format.type", "'text'", id="format"),
        pytest.param({"model": "gpt-4o"}, 404, None, "there is no model 'gpt-4o'", id="model"),
        pytest.param({"model": "rag/"}, 404, None, "there is no model 'rag/'", id="no_collection"),
        pytest.param({"model": "rag/nope"}, 404, None, "nope", id="unknown_collection"),
        pytest.param({"model": ""}, 400, "model", "at least 1 character", id="empty_model"),
        pytest.param({"messages": [user("가" * 20_000)]}, 413, None, "serve.max_body_bytes", id="body"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_what_cannot_be_answered_is_an_error_in_openai_s_shape(
    change: dict[str, Any], status: int, param: str | None, told: str, stream: bool
) -> None:
    body = {"model": "rag", "messages": [user(PORT)], "stream": stream, **change}
    response = await post(make_api(says(SAID)), body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert told in error["message"]
    if status == 404:
        assert error["code"] == "model_not_found"


async def test_a_body_that_is_no_json_and_a_path_that_is_not_there_have_that_shape_too() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_api(says(SAID))), base_url="http://s") as http:
        json_type = {"content-type": "application/json"}
        broken = await http.post("/v1/chat/completions", content=b'{"model": ', headers=json_type)
        text = await http.post("/v1/chat/completions", content=b"a", headers={"content-type": "text/plain"})
        missing = await http.post("/v1/embeddings", json={})
    found = [(one.status_code, one.json()["error"]["code"]) for one in (broken, text, missing)]
    assert found == [(400, "malformed"), (415, "unsupported_media_type"), (404, "http_404")]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (OverloadedError("the queue is full", 7), openai.InternalServerError, "overloaded"),
        (StageError("embed", "gone"), openai.InternalServerError, "stage_unavailable"),
        (UnknownCollectionError("no such collection"), openai.NotFoundError, "model_not_found"),
        (KeyError("secret internals"), openai.InternalServerError, "internal"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_what_fails_before_the_answer_is_the_sdk_s_own_error(
    error: Exception, kind: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    async with client_of(make_api(says(SAID), _failing(error))) as client:
        with pytest.raises(kind) as raised:
            await client.chat.completions.create(model="rag", messages=[user(PORT)], stream=stream)
    assert raised.value.code == code
    assert "secret" not in raised.value.message
    if isinstance(error, OverloadedError):
        assert raised.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize("error", [StageError("generate", "gone"), KeyError("secret internals")], ids=["ours", "bug"])
async def test_what_fails_in_the_middle_of_a_stream_is_an_error_after_what_was_sent(error: Exception) -> None:
    got = []
    async with client_of(make_api(says(SAID), _failing(error, Token("The "), Token("service ")))) as client:
        stream = await client.chat.completions.create(model="rag", messages=[user(PORT)], stream=True)

        async def read() -> None:
            async for chunk in stream:
                got.append(chunk.choices[0].delta.content)

        with pytest.raises(openai.APIError) as raised:
            await read()
    assert got == ["", "The ", "service "]
    assert "secret" not in str(raised.value)
    assert ("gone" in str(raised.value)) == isinstance(error, RagError)


def _failing(error: Exception, *before: Event) -> Events:
    async def events(question: Question) -> AsyncGenerator[Event, None]:
        del question
        for event in before:
            yield event
        raise error

    return events


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_user_else_a_conversation_stays_with_one_llm_and_a_first_question_falls_to_any(stream: bool) -> None:
    keys: list[str] = []
    api = make_api(says(SAID), keys=keys)
    turns = [{"role": "system", "content": "Hi"}, user("Tell me about ships."), {"role": "assistant", "content": "Ok"}]
    long = [*turns, *[user("And?"), {"role": "assistant", "content": "So."}] * 100]
    for messages, more in (
        ([user(PORT)], {}),
        ([*turns, user(PORT)], {}),
        ([*long, user(PORT)], {}),
        ([user(PORT)], {"user": "kim"}),
        ([*turns, user(PORT)], {"user": "kim"}),
    ):
        response = await post(api, {"model": "rag", "messages": messages, "stream": stream, **more})
        assert response.status_code == 200, response.text
    assert keys[1:] == ["Tell me about ships.", "Tell me about ships.", "kim", "kim"]
    assert len(keys[0]) == 32  # this request's id


async def test_a_model_stands_for_each_collection_and_for_each_llm() -> None:
    async with client_of(make_api(says(SAID))) as client:
        models = [model async for model in client.models.list()]
        one = await client.models.retrieve("rag/notes")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4o")
    assert [model.id for model in models] == ["rag", "rag/logs", "rag/notes", "small-llm", "large-llm"]
    assert (one.id, one.object, one.created, one.owned_by) == ("rag/notes", "model", 1_700_000_000, "rag")


async def test_a_collection_is_asked_by_its_name() -> None:
    asked: list[Question] = []

    def events(question: Question) -> AsyncGenerator[Event, None]:
        asked.append(question)
        return _failing(UnknownCollectionError(f"no collection {question.collection}"))(question)

    async with client_of(make_api(says(SAID), events)) as client:
        with pytest.raises(openai.NotFoundError, match="no collection notes"):
            await client.chat.completions.create(model="rag/notes", messages=[user(PORT)])
    assert [(one.collection, one.model) for one in asked] == [("notes", None)]


async def test_every_chunk_is_one_line_of_json_whatever_the_text() -> None:
    said = "The service\u2028 listens\x85 on port 8000."

    async def events(question: Question) -> AsyncGenerator[Event, None]:
        yield Token(said)
        async for event in stream_answer(question, make_steps(says(SAID)), make_settings()):
            if isinstance(event, Done):
                yield event

    body = {"model": "rag", "messages": [user(PORT)], "stream": True}
    response = await post(make_api(says(SAID), events), body)
    lines = [line for line in response.text.splitlines() if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[1]["choices"][0]["delta"] == {"content": said}
