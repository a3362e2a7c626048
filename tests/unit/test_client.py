from __future__ import annotations

import asyncio
import json
import pickle
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, get_type_hints

import pytest

from deployments.schemas import answer_body
from deployments.sse import encode_event, encode_events
from rag.calls import AskOptions, CallOptions, SearchOptions, UploadOptions
from rag.client import AsyncClient, Client
from rag.document_wire import UploadFields
from rag.errors import DeadlineError, InputError, RagError, StoreUnavailableError
from rag.pipeline import stream_answer
from rag.problems import ProblemError, problem_error
from rag.types import Question
from rag.wire import (
    AnswerBody,
    AskRequest,
    CitationEvent,
    DoneEvent,
    Problem,
    RetrievalEvent,
    SearchRequest,
    TokenEvent,
    Turn,
    WarningEvent,
)
from tests.client_calls import BOTH, Ask
from tests.http_fake import EVENTS, INFO, JSON, Reply, answered, found, hit, problem, reply, serving, stream
from tests.pipeline_fakes import make_settings, make_steps, says

HTML = Reply(b"<html>It works!</html>", kind="text/html")
both_clients = pytest.mark.parametrize("call", BOTH)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


# --- what is sent and read --------------------------------------------------------------------------------------------


@both_clients
def test_a_request_is_sent_and_its_response_given(call: Ask) -> None:
    health = {"status": "not ready", "stages": {"embedder": "gone"}, "required": ["embedder"]}
    replies = {"ask": answered(), "search": found(hit()), "info": INFO}
    with serving(**{path: reply(one) for path, one in replies.items()}, readyz=reply(health, 503)) as service:
        url = service.url + "/"
        answer = call(url, "ask", "Why?", collection="docs", conversation=[Turn(role="user", content="Hm")])
        assert (answer.answer, answer.usage.prompt_tokens) == ("The service listens on port 8000. [1]", 8)
        assert call(url, "search", "x", top_k=3).hits[0].scores.rerank == 0.98
        assert call(url, "info").models.reranker.kind == "maxsim"
        assert call(url, "health").stages == {"embedder": "gone"}
    conversation = [{"role": "user", "content": "Hm"}]
    assert service.asked == [
        ("/ask", {"question": "Why?", "collection": "docs", "conversation": conversation}),
        ("/search", {"query": "x", "top_k": 3}),
        ("/info", None),
        ("/readyz", None),
    ]


@both_clients
def test_a_request_carries_the_id_that_it_is_given(call: Ask) -> None:
    with serving(ask=reply(answered()), info=reply(INFO)) as service:
        call(service.url, "ask", "Why?", request_id="job-7")
        call(service.url, "info", request_id="job-8")
        call(service.url, "info")
    assert [head.get("x-request-id") for _, head in service.heads] == ["job-7", "job-8", None]
    assert service.asked[0] == ("/ask", {"question": "Why?"})


@both_clients
def test_fields_of_a_newer_service_are_kept(call: Ask) -> None:
    body = answered(new=1, citations=[], usage={"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 3})
    with serving(ask=reply(body)) as service:
        answer = call(service.url, "ask", "Why?")
    assert answer.as_sent() == body
    assert answer.model_extra == {"new": 1}


@both_clients
@pytest.mark.parametrize(
    ("method", "argument", "options", "part"),
    [
        ("ask", "", {}, "question: "),
        ("stream", "Why?", {"top_k": 0}, "top_k: "),
        ("ask", "Why?", {"colection": "x"}, "colection: "),
        ("search", "Why?", {"rerank": "no"}, "rerank: "),
        ("get_job", "", {}, "is no name"),
        ("delete_collection", "..", {}, "is no name"),
        ("create_collection", "a b", {}, "name: "),
        ("ask", "Why?", {"request_id": "가"}, "request id"),
        ("ask", "Why?", {"request_id": "a\r\nx: y"}, "request id"),
    ],
)
def test_what_the_service_would_refuse_is_not_sent(
    call: Ask, method: str, argument: str, options: dict[str, Any], part: str
) -> None:
    with serving() as service, pytest.raises(InputError, match=part):
        call(service.url, method, argument, **options)
    assert service.asked == []


def test_the_options_are_the_fields_of_the_service_s_own_models() -> None:
    """What the clients' signatures say, beside the models that both sides have."""
    for options, kind, given in (
        (AskOptions, AskRequest, {"question", "stream"}),
        (SearchOptions, SearchRequest, {"query"}),
        (UploadOptions, UploadFields, set[str]()),
    ):
        assert set(get_type_hints(options)) - set(get_type_hints(CallOptions)) == set(kind.model_fields) - given


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(Client) - {"close"} == methods(AsyncClient) - {"aclose"}


# --- streams ----------------------------------------------------------------------------------------------------------


async def wire_of(question: str, *sentences: str) -> tuple[bytes, dict[str, Any]]:
    """The service's own events of an answer, and its response object."""
    steps = make_steps(says(*sentences))
    done: list[dict[str, Any]] = []

    def body(event: Any) -> dict[str, Any]:
        done.append(answer_body(event.answer, "ans_1", "req_1", explain=True))
        return done[0]

    events = encode_events(stream_answer(Question(question), steps, make_settings()), body, "req_1", "/ask")
    return "".join([text async for text in events]).encode(), done[0]


@both_clients
def test_the_service_s_events_are_given_with_their_types_in_order(call: Ask) -> None:
    wire, done = asyncio.run(wire_of("Which port does the service listen on?", "The service listens on port 8000."))
    with serving(ask=Reply(wire, kind=EVENTS)) as service:
        events = call(service.url, "stream", "Which port does the service listen on?")
    first, *middle, last = events
    assert service.asked == [("/ask", {"question": "Which port does the service listen on?", "stream": True})]
    assert isinstance(first, RetrievalEvent)
    assert first.passages[0].source == "ports.md"
    assert "".join(event.text for event in middle if isinstance(event, TokenEvent)) == done["answer"]
    assert [event.quote for event in middle if isinstance(event, CitationEvent)] == [
        "The service listens on port 8000."
    ]
    assert isinstance(last, DoneEvent)
    assert last.as_sent() == done


@both_clients
def test_an_event_of_a_name_that_is_not_known_is_left_out(call: Ask) -> None:
    events = [("token", {"text": "5"}), ("thought", {"x": 1}), ("warning", {"degraded": ["rerank"], "new": 1})]
    with serving(ask=stream(*events, ("done", answered("5")))) as service:
        got = call(service.url, "stream", "Why?")
    assert [type(event) for event in got] == [TokenEvent, WarningEvent, DoneEvent]


@both_clients
def test_line_separators_within_a_text_do_not_break_a_stream(call: Ask) -> None:
    texts = ["a\u2028b", "c\u2029d", "e\x85f"]
    body = "".join(encode_event(1, "token", {"text": text}) for text in texts) + encode_event(4, "done", answered())
    with serving(ask=Reply(body.encode(), kind=EVENTS)) as service:
        got = call(service.url, "stream", "Why?")
    assert [event.text for event in got if isinstance(event, TokenEvent)] == texts


def test_an_error_within_a_stream_is_raised_after_what_came_before() -> None:
    error = json.loads(problem(503, "Gone", "the store is gone").body)
    with serving(ask=stream(("token", {"text": "So "}), ("error", error))) as service, Client(service.url) as client:
        events = client.stream("Why?")
        assert next(events) == TokenEvent(text="So ")
        with pytest.raises(StoreUnavailableError, match="Gone: the store is gone"):
            next(events)


@both_clients
@pytest.mark.parametrize("cut", [False, True], ids=["ended", "cut"])
def test_a_stream_that_ends_without_done_is_an_error(call: Ask, cut: bool) -> None:
    with (
        serving(ask=stream(("token", {"text": "So "}), ("token", {"text": "it "}), cut=cut)) as service,
        pytest.raises(StoreUnavailableError, match="ask again"),
    ):
        call(service.url, "stream", "Why?")
    assert len(service.asked) == 1  # never asked again by itself: a part of the answer was given out


class Endless:
    """A service that streams until its client leaves; `gone` says when that was."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        try:
            while True:
                writer.write(b'event: token\ndata: {"text": "x"}\n\n')
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            self.gone.set()
        finally:
            writer.close()


@pytest.fixture
async def endless() -> AsyncIterator[tuple[str, asyncio.Event]]:
    service = Endless()
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", service.gone


async def test_a_stream_that_is_closed_lets_the_service_know(endless: tuple[str, asyncio.Event]) -> None:
    url, gone = endless
    async with AsyncClient(url) as client, aclosing(client.stream("Why?")) as events:
        assert await anext(events) == TokenEvent(text="x")
        assert not gone.is_set()
        await events.aclose()
        await asyncio.wait_for(gone.wait(), 10)


async def test_a_stream_that_is_closed_lets_the_service_know_from_a_thread_too(
    endless: tuple[str, asyncio.Event],
) -> None:
    url, gone = endless

    def read_one() -> object:
        with Client(url) as client:
            events = client.stream("Why?")
            first = next(events)
            events.close()
            return first

    assert await asyncio.to_thread(read_one) == TokenEvent(text="x")
    await asyncio.wait_for(gone.wait(), 10)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@both_clients
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InputError),
        (404, InputError),
        (413, InputError),
        (422, InputError),
        (429, StoreUnavailableError),
        (500, StoreUnavailableError),
        (503, StoreUnavailableError),
        (504, DeadlineError),
    ],
)
@pytest.mark.parametrize("method", ["ask", "stream"])
def test_a_problem_becomes_an_error_of_ours_that_carries_it(
    call: Ask, status: int, kind: type[RagError], method: str
) -> None:
    with serving(ask=problem(status, "Odd", "say more")) as service:
        with pytest.raises(ProblemError, match=r"^Odd: say more$") as raised:
            call(service.url, method, "Why?")
        assert isinstance(raised.value, kind)
        assert (raised.value.problem.status, raised.value.problem.request_id) == (status, "req-1")
        assert len(service.asked) == 1


def test_an_error_with_its_problem_survives_pickling() -> None:
    error = problem_error(Problem.model_validate_json(problem(404).body))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.problem) == (type(error), str(error), error.problem)


@both_clients
@pytest.mark.parametrize(
    "given",
    [
        HTML,
        Reply(b"<html>Not here</html>", 404, "text/html"),
        Reply(b'{"detail": "Not Found"}', 404),
        Reply(b"", 204, "text/plain"),
        Reply(b"{}", 302),
    ],
    ids=["page", "page_not_found", "json_not_found", "nothing", "redirect"],
)
def test_another_program_at_that_address_is_said_to_be_none_of_ours(call: Ask, given: Reply) -> None:
    with serving(ask=given, info=given) as service:
        for method, *arguments in (("ask", "Why?"), ("stream", "Why?"), ("info",)):
            with pytest.raises(StoreUnavailableError, match="is no rag service; check --url"):
                call(service.url, method, *arguments)


@both_clients
@pytest.mark.parametrize(
    ("given", "part"),
    [
        (reply({"answer": "5"}), "status: Field required"),
        (reply(answered(citations=None)), "citations: Input should be"),
        (Reply(b"{"), "Invalid JSON"),
        (Reply(b'{"title": "x"}', 404, "application/problem+json"), "detail: Field required"),
    ],
    ids=["fields", "type", "cut", "problem"],
)
def test_a_response_that_cannot_be_read_is_said_to(call: Ask, given: Reply, part: str) -> None:
    with serving(ask=given) as service, pytest.raises(StoreUnavailableError, match=part):
        call(service.url, "ask", "Why?")


@both_clients
def test_json_where_a_stream_was_asked_for_is_none_of_ours(call: Ask) -> None:
    with serving(ask=Reply(b"{}", kind=JSON)) as service, pytest.raises(StoreUnavailableError, match="no rag service"):
        call(service.url, "stream", "Why?")


@both_clients
@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://127.0.0.1:{port}", id="closed_port"),
        pytest.param("127.0.0.1:{port}", id="no_scheme"),
        pytest.param("http://no-such-host.invalid:{port}", id="no_host"),
        pytest.param("http://127.0.0.1:999999", id="no_port"),
        pytest.param("http://[::1", id="no_url"),
        pytest.param("", id="empty"),
    ],
)
def test_an_address_where_nothing_answers_is_named_with_what_to_do(call: Ask, url: str) -> None:
    for method, *arguments in (("ask", "Why?"), ("stream", "Why?"), ("info",)):
        with pytest.raises(StoreUnavailableError, match="start one with `rag serve`, or set --url"):
            call(url.format(port=closed_port()), method, *arguments)


@both_clients
def test_an_answer_that_does_not_come_in_time_is_a_deadline(call: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeadlineError, match="did not answer in time"):
            call(url, "ask", "Why?", timeout_s=0.2)


def test_a_client_that_is_closed_has_no_connection_left() -> None:
    with serving(info=reply(INFO)) as service:
        with Client(service.url) as client:
            assert isinstance(client.info().version, str)
        with pytest.raises(RuntimeError, match="closed"):
            client.info()


def test_an_answer_has_its_type_for_a_type_checker_too() -> None:
    assert get_type_hints(Client.ask)["return"] is AnswerBody
