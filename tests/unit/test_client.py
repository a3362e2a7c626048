from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from deployments.sse import encode_event
from rag.client import ServiceClient
from rag.errors import DeadlineError, InputError, RagError, StoreUnavailableError
from tests.http_fake import EVENTS, JSON, Reply, problem, serving, stream

BODY = {"question": "Why?"}
HTML = Reply(b"<html>It works!</html>", kind="text/html")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def test_a_request_is_sent_and_its_response_given() -> None:
    with serving(
        ask=Reply(b'{"answer": "5"}'), search=Reply(b'{"hits": []}'), info=Reply(b'{"version": "1"}')
    ) as service:
        client = ServiceClient(service.url + "/")
        assert client.ask(BODY) == {"answer": "5"}
        assert client.search({"query": "x"}) == {"hits": []}
        assert client.info() == {"version": "1"}
    assert service.asked == [("/ask", BODY), ("/search", {"query": "x"}), ("/info", None)]


def test_a_stream_gives_its_events_in_order() -> None:
    events: list[tuple[str, dict[str, Any]]] = [
        ("retrieval", {"passages": []}),
        ("token", {"text": "5 포트"}),
        ("done", {"answer": "5 포트"}),
    ]
    with serving(ask=stream(*events)) as service:
        assert list(ServiceClient(service.url).stream(BODY)) == events
    assert service.asked == [("/ask", {**BODY, "stream": True})]


def test_line_separators_within_a_text_do_not_break_a_stream() -> None:
    texts = ["a\u2028b", "c\u2029d", "e\x85f"]
    body = "".join(encode_event(1, "token", {"text": text}) for text in texts) + encode_event(4, "done", {})
    with serving(ask=Reply(body.encode(), kind=EVENTS)) as service:
        got = list(ServiceClient(service.url).stream(BODY))
    assert [data["text"] for name, data in got if name == "token"] == texts


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InputError),
        (404, InputError),
        (413, InputError),
        (422, InputError),
        (500, StoreUnavailableError),
        (503, StoreUnavailableError),
        (504, DeadlineError),
    ],
)
def test_a_problem_becomes_an_error_of_ours(status: int, kind: type[RagError]) -> None:
    with serving(ask=problem(status, "Odd", "say more")) as service:
        client = ServiceClient(service.url)
        with pytest.raises(kind, match=r"^Odd: say more$"):
            client.ask(BODY)
        with pytest.raises(kind, match=r"^Odd: say more$"):
            list(client.stream(BODY))


def test_an_error_within_a_stream_is_raised_after_what_came_before() -> None:
    error = json.loads(problem(503, "Gone", "the store is gone").body)
    with serving(ask=stream(("token", {"text": "So "}), ("error", error))) as service:
        events = ServiceClient(service.url).stream(BODY)
        assert next(events) == ("token", {"text": "So "})
        with pytest.raises(StoreUnavailableError, match="Gone: the store is gone"):
            next(events)


@pytest.mark.parametrize("cut", [False, True], ids=["ended", "cut"])
def test_a_stream_that_ends_without_done_is_an_error(cut: bool) -> None:
    with (
        serving(ask=stream(("token", {"text": "So "}), ("token", {"text": "it "}), cut=cut)) as service,
        pytest.raises(StoreUnavailableError, match="ask again"),
    ):
        list(ServiceClient(service.url).stream(BODY))


@pytest.mark.parametrize(
    "reply",
    [
        HTML,
        Reply(b"<html>Not here</html>", 404, "text/html"),
        Reply(b'{"detail": "Not Found"}', 404),
        Reply(b"", 204, "text/plain"),
        Reply(b"{}", 302),
    ],
    ids=["page", "page_not_found", "json_not_found", "nothing", "redirect"],
)
def test_another_program_at_that_address_is_said_to_be_none_of_ours(reply: Reply) -> None:
    with serving(ask=reply, info=reply) as service:
        client = ServiceClient(service.url)
        with pytest.raises(StoreUnavailableError, match="is no rag service; check --url"):
            client.ask(BODY)
        with pytest.raises(StoreUnavailableError, match="is no rag service; check --url"):
            list(client.stream(BODY))
        with pytest.raises(StoreUnavailableError, match="is no rag service; check --url"):
            client.info()


def test_json_where_a_stream_was_asked_for_is_none_of_ours() -> None:
    with serving(ask=Reply(b"{}", kind=JSON)) as service, pytest.raises(StoreUnavailableError, match="no rag service"):
        list(ServiceClient(service.url).stream(BODY))


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
def test_an_address_where_nothing_answers_is_named_with_what_to_do(url: str) -> None:
    client = ServiceClient(url.format(port=closed_port()))
    for call in (lambda: client.ask(BODY), lambda: list(client.stream(BODY)), client.info):
        with pytest.raises(StoreUnavailableError, match="start one with `rag serve`, or set --url"):
            call()
