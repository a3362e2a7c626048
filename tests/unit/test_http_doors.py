from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import Message as AsgiMessage

from deployments.errors import problem, problem_response
from deployments.http import JSON, BodyLimit, RequestGate
from deployments.ingress import create_api
from rag.errors import (
    FilterError,
    ModelError,
    OverloadedError,
    RagError,
    StageError,
    StoreUnavailableError,
)
from rag.serve_settings import ServeSettings
from rag.wire import AskRequest
from tests.error_table import ERRORS

PROBLEM = "application/problem+json"
MAX_BODY = 2000
LIMITS = [BodyLimit(JSON, MAX_BODY, "serve.max_body_bytes")]

RETRYABLE = (StoreUnavailableError, ModelError, StageError, OverloadedError)


def make_api(error: Exception | None = None) -> FastAPI:
    """The service's application, with routes that need no graph."""
    api = create_api(ServeSettings(max_body_bytes=MAX_BODY))

    @api.post("/read")
    async def read(body: AskRequest, request: Request) -> dict[str, Any]:
        return {"question": body.question, "request_id": request.state.request_id}

    @api.get("/fail")
    async def fail() -> None:
        assert error is not None
        raise error

    return api


async def send(api: FastAPI, method: str = "POST", path: str = "/read", **request: Any) -> httpx.Response:
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.request(method, path, **request)


def check_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:rag:problem:")
    assert body["title"]
    assert body["detail"]
    assert body["request_id"]
    assert isinstance(body["retryable"], bool)
    assert "Traceback" not in response.text
    return body


# --- the gate ---------------------------------------------------------------------------------------------------------


async def test_a_request_is_known_by_the_id_that_it_carries() -> None:
    response = await send(make_api(), json={"question": "Why?"}, headers={"X-Request-ID": "abc-1"})
    assert response.json() == {"question": "Why?", "request_id": "abc-1"}
    refused = await send(make_api(), content=b"x", headers={"X-Request-ID": "abc-2", "content-type": "text/plain"})
    assert check_problem(refused, 415)["request_id"] == "abc-2"


async def test_a_request_without_id_gets_one_of_its_own() -> None:
    responses = [await send(make_api(), json={"question": "Why?"}) for _ in range(2)]
    first, second = (response.json()["request_id"] for response in responses)
    assert first
    assert first != second


async def test_a_body_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    body = json.dumps({"question": "Why?"}).encode()
    headers = {"content-type": "application/json"}
    assert (await send(make_api(), content=body.ljust(MAX_BODY), headers=headers)).status_code == 200
    refused = await send(make_api(), content=body.ljust(MAX_BODY + 1), headers=headers)
    assert "serve.max_body_bytes" in check_problem(refused, 413)["detail"]


async def test_a_body_announced_as_too_large_is_refused_before_it_is_read() -> None:
    taken = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b" " * 1000

    headers = {"content-type": "application/json", "content-length": "1000000"}
    check_problem(await send(make_api(), content=pieces(), headers=headers), 413)
    assert taken == 0


async def test_a_body_that_turns_out_too_large_is_refused_while_it_comes() -> None:
    taken = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b" " * 1000

    check_problem(await send(make_api(), content=pieces(), headers={"content-type": "application/json"}), 413)
    assert taken <= 4


async def test_a_body_in_pieces_is_put_together() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in json.dumps({"question": "왜?"}, ensure_ascii=False).encode():
            yield bytes([byte])

    response = await send(make_api(), content=pieces(), headers={"content-type": "application/json"})
    assert response.json()["question"] == "왜?"


@pytest.mark.parametrize("length", ["abc", "-1", "1e3", "²", "9" * 5000, ""])
async def test_a_length_that_is_no_number_is_malformed(length: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", length.encode("latin-1"))]
    scope = {"type": "http", "method": "POST", "path": "/read", "headers": headers}
    sent: list[AsgiMessage] = []

    async def receive() -> AsgiMessage:
        raise AssertionError("the body was read")

    async def keep(message: AsgiMessage) -> None:
        sent.append(message)

    async def app(*_: object) -> None:
        raise AssertionError("the request passed")

    await RequestGate(app, LIMITS, {})(scope, receive, keep)
    assert sent[0]["status"] == 400


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp", ""],
)
async def test_another_content_type_is_refused(kind: str) -> None:
    response = await send(make_api(), content=b'{"question": "Why?"}', headers={"content-type": kind})
    assert "application/json" in check_problem(response, 415)["detail"]


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/json ;x=y"])
async def test_json_is_known_with_parameters_and_in_any_case(kind: str) -> None:
    response = await send(make_api(), content=b'{"question": "Why?"}', headers={"content-type": kind})
    assert response.status_code == 200


async def test_a_client_that_leaves_before_its_body_is_whole_reaches_no_route() -> None:
    messages: list[AsgiMessage] = [
        {"type": "http.request", "body": b'{"question": "Why?"}', "more_body": True},
        {"type": "http.disconnect"},
    ]
    reached = False

    async def app(*_: object) -> None:
        nonlocal reached
        reached = True

    async def receive() -> AsgiMessage:
        return messages.pop(0)

    async def keep(message: AsgiMessage) -> None:
        raise AssertionError("nobody is there")

    scope = {"type": "http", "method": "POST", "path": "/ask", "headers": [(b"content-type", b"application/json")]}
    await RequestGate(app, LIMITS, {})(scope, receive, keep)
    assert not reached


async def test_a_route_hears_of_the_disconnect_after_the_body() -> None:
    messages: list[AsgiMessage] = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]
    heard: list[AsgiMessage] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.extend([await receive(), await receive()])

    async def receive() -> AsgiMessage:
        return messages.pop(0)

    async def keep(message: AsgiMessage) -> None:
        raise AssertionError("nothing was to be sent")

    scope = {"type": "http", "method": "POST", "path": "/ask", "headers": [(b"content-type", b"application/json")]}
    await RequestGate(app, LIMITS, {})(scope, receive, keep)
    assert heard == [{"type": "http.request", "body": b"{}", "more_body": False}, {"type": "http.disconnect"}]


async def test_what_is_no_http_request_passes_untouched() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    async def nothing(*_: object) -> Any:
        raise AssertionError("not to be called")

    await RequestGate(app, LIMITS, {})({"type": "lifespan"}, nothing, nothing)
    assert seen == [{"type": "lifespan"}]


# --- problems ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param(b"{", 400, id="cut"),
        pytest.param(b"question=Why", 400, id="form"),
        pytest.param(b"\xff\xfe", 400, id="no_text"),
        pytest.param(b"[" * 1999, 400, id="deeply_nested"),
        pytest.param(b'{"question": "Why?", "top_k": %s}' % (b"9" * 1900), 422, id="huge_number"),
        pytest.param(b"", 422, id="empty"),
        pytest.param(b"null", 422, id="null"),
        pytest.param(b'["Why?"]', 422, id="array"),
        pytest.param(b'{"question": ""}', 422, id="empty_question"),
        pytest.param(b'{"question": "\\ud800"}', 422, id="lone_surrogate"),
        pytest.param(b'{"question": "Why?", "\\ud800": 1}', 422, id="surrogate_in_a_name"),
        pytest.param(b'{"question": "Why?", "deadline_s": NaN}', 422, id="not_a_number"),
    ],
)
async def test_a_body_that_cannot_be_used_is_a_problem(content: bytes, status: int) -> None:
    response = await send(make_api(), content=content, headers={"content-type": "application/json"})
    assert check_problem(response, status)["instance"] == "/read"


async def test_each_wrong_field_is_named() -> None:
    response = await send(make_api(), json={"question": 5, "top_k": 0, "qestion": "x"})
    body = check_problem(response, 422)
    assert {one["field"] for one in body["errors"]} == {"question", "top_k", "qestion"}
    assert all(one["message"] for one in body["errors"])
    assert "qestion" in body["detail"]


async def test_unknown_paths_and_methods_are_problems() -> None:
    assert check_problem(await send(make_api(), "GET", "/nothing"), 404)["instance"] == "/nothing"
    assert check_problem(await send(make_api(), "GET", "/read"), 405)["retryable"] is False


@pytest.mark.parametrize(("error", "status"), ERRORS, ids=lambda value: type(value).__name__)
async def test_every_error_has_its_status(error: RagError, status: int) -> None:
    response = await send(make_api(error), "GET", "/fail")
    body = check_problem(response, status)
    assert body["detail"] == str(error)
    assert body["instance"] == "/fail"
    assert body["retryable"] is isinstance(error, RETRYABLE)
    assert ("retry-after" in response.headers) is isinstance(error, RETRYABLE)
    assert body.get("stage") == getattr(error, "stage", None)


async def test_a_mistake_in_a_filter_is_told_with_its_column() -> None:
    body = check_problem(await send(make_api(FilterError(6, "write ==")), "GET", "/fail"), 422)
    assert body["detail"] == "the filter, at column 6: write =="
    assert body["errors"] == [{"field": "filter", "message": "write ==", "column": 6}]


async def test_retry_after_is_the_error_s_own_where_it_says_one() -> None:
    response = await send(make_api(OverloadedError("full", retry_after_s=7)), "GET", "/fail")
    assert response.headers["retry-after"] == "7"


async def test_a_bug_is_a_plain_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    response = await send(make_api(KeyError("secret internals")), "GET", "/fail", headers={"X-Request-ID": "abc-3"})
    body = check_problem(response, 500)
    assert "secret" not in response.text
    assert body["request_id"] == "abc-3"
    assert "abc-3" in caplog.text
    assert "secret internals" in caplog.text


def test_a_problem_within_a_stream_has_the_same_shape() -> None:
    body = problem("id-1", "/ask", StageError("dense", "gone"))
    request = Request(
        {"type": "http", "path": "/ask", "headers": [], "state": {"request_id": "id-1"}, "server": ("s", 1)}
    )
    assert json.loads(bytes(problem_response(request, StageError("dense", "gone")).body)) == body
    assert (body["stage"], body["status"], body["request_id"]) == ("dense", 503, "id-1")
