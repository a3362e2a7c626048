"""The service's OpenAPI description: what it declares is what is answered. `eval/fuzz_api` asks a running service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ray import serve

from deployments.errors import openai_error, problem
from deployments.http import JSON
from deployments.ingress import Orchestrator, create_api
from deployments.openai_schemas import Completion, CompletionBody, ModelListBody, models_body
from deployments.schemas import answer_body
from deployments.sse import encode_events
from ingest.documents import next_page
from rag.pipeline import stream_answer
from rag.serve_settings import ServeSettings
from rag.types import Answer, Question, StoredDocument
from tests.document_doors import DOCUMENT, Doors, check_problem
from tests.error_table import ERRORS
from tests.pipeline_fakes import make_settings, make_steps, says

PROBLEM, EVENTS = "application/problem+json", "text/event-stream"


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    """As the running service has it: Serve makes the orchestrator's methods its routes."""
    api = create_api(ServeSettings())
    serve.ingress(api)(Orchestrator)
    document: dict[str, Any] = json.loads(json.dumps(api.openapi()))
    return document


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(one)


def statuses(description: dict[str, Any], method: str, path: str) -> dict[str, list[str]]:
    responses = description["paths"][path][method]["responses"]
    return {status: sorted(response.get("content", ())) for status, response in responses.items()}


def test_every_reference_leads_somewhere(description: dict[str, Any]) -> None:
    known = {f"#/components/schemas/{name}" for name in description["components"]["schemas"]}
    assert {node["$ref"] for node in nodes(description["paths"]) if "$ref" in node} <= known
    assert {node["$ref"] for node in nodes(description["components"]) if isinstance(node.get("$ref"), str)} <= known


@pytest.mark.parametrize(
    ("method", "path", "well", "refused"),
    [
        ("post", "/ask", {"200": [JSON, EVENTS]}, "400 404 409 413 415 422 503 504"),
        ("post", "/search", {"200": [JSON]}, "400 404 409 413 415 422 503 504"),
        ("get", "/healthz", {"200": [JSON]}, ""),
        ("get", "/readyz", {"200": [JSON], "503": [JSON]}, ""),
        ("get", "/info", {"200": [JSON]}, "503"),
        ("post", "/documents", {"202": [JSON]}, "400 413 415 422 429 503"),
        ("get", "/documents", {"200": [JSON]}, "404 422 503"),
        ("get", "/documents/{document_id}", {"200": [JSON]}, "404 422 503"),
        ("delete", "/documents/{document_id}", {"204": []}, "404 422 503"),
        ("get", "/jobs/{job_id}", {"200": [JSON]}, "404 422"),
        ("get", "/collections", {"200": [JSON]}, "503"),
        ("post", "/collections", {"200": [JSON], "201": [JSON]}, "400 409 413 415 422 503"),
        ("delete", "/collections/{name}", {"204": []}, "404 422 503"),
    ],
)
def test_every_status_is_declared_with_its_content(
    description: dict[str, Any], method: str, path: str, well: dict[str, list[str]], refused: str
) -> None:
    assert statuses(description, method, path) == well | {status: [PROBLEM] for status in refused.split()}


@pytest.mark.parametrize(
    ("method", "path", "well", "refused"),
    [
        ("post", "/v1/chat/completions", [JSON, EVENTS], "4XX 503 504"),
        ("get", "/v1/models", [JSON], "503"),
        ("get", "/v1/models/{name}", [JSON], "4XX 503"),
    ],
)
def test_the_openai_door_declares_its_own_errors(
    description: dict[str, Any], method: str, path: str, well: list[str], refused: str
) -> None:
    expected = {"200": well} | {status: [JSON] for status in refused.split()}
    assert statuses(description, method, path) == expected


def test_no_operation_is_left_out_of_these_tests(description: dict[str, Any]) -> None:
    assert sum(len(methods) for methods in description["paths"].values()) == 16


def test_every_error_has_the_shape_that_is_declared(description: dict[str, Any]) -> None:
    ask = description["paths"]["/ask"]["post"]["responses"]["503"]
    chat = description["paths"]["/v1/chat/completions"]["post"]["responses"]["4XX"]
    assert set(ask["headers"]) == {"Retry-After"}
    for error, _ in ERRORS:
        body = problem("req-1", "/ask", error)
        jsonschema.validate(body, ask["content"][PROBLEM]["schema"])
        jsonschema.validate(openai_error(body), chat["content"][JSON]["schema"])


async def test_every_event_has_the_shape_that_is_declared(description: dict[str, Any]) -> None:
    schema = description["paths"]["/ask"]["post"]["responses"]["200"]["content"][EVENTS]["schema"]
    events = stream_answer(Question("Which port?"), make_steps(says("The service listens.")), make_settings())
    blocks = [text async for text in encode_events(events, lambda _: {"answer": "5"}, "req-1", "/ask")]
    assert len(blocks) >= 2
    for block in blocks:
        jsonschema.validate(dict(line.split(": ", 1) for line in block.strip().splitlines()), schema)


async def test_the_openai_door_s_bodies_have_the_fields_that_are_declared() -> None:
    events = [event async for event in stream_answer(Question("Why?"), make_steps(says("x")), make_settings())]
    given: Answer = events[-1].answer  # type: ignore[union-attr]
    own = answer_body(given, "ans_1", "req-1", explain=False)
    whole = CompletionBody.model_validate(Completion("ans_1", 1, "rag").whole(given, own), strict=True)
    assert whole.rag.as_sent() == own
    assert whole.model_extra == whole.choices[0].model_extra == whole.choices[0].message.model_extra == {}
    assert ModelListBody.model_validate(models_body(["a"], "llm", 1), strict=True).data[1].id == "rag/a"


async def test_a_cursor_of_another_alphabet_is_refused_and_one_that_was_given_is_taken(tmp_path: Path) -> None:
    doors = Doors(tmp_path)
    check_problem(await doors.send("GET", "/documents", params={"cursor": "가"}), 422)
    stored = [StoredDocument(str(n), f"메모/{n}?~\x7f.md", "t", "r", 1, None, (), {}, "") for n in range(2)]
    _, cursor = next_page(stored, None, 1)
    assert (await doors.send("GET", "/documents", params={"cursor": cursor})).json()["documents"] == [DOCUMENT]
