from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from deployments.schemas import answer_body, search_body, to_question
from rag.document_wire import CollectionRequest
from rag.filters import Equals
from rag.pipeline import answer
from rag.types import Answer, Message, Question, SearchResult
from rag.wire import AnswerBody, AskRequest, SearchBody, SearchRequest
from tests.pipeline_fakes import make_hit, make_settings, make_steps, says


def test_a_request_with_a_question_alone_leaves_the_rest_to_the_settings() -> None:
    assert to_question(AskRequest(question="Why?"), frozenset(), None) == Question("Why?")


def test_every_choice_of_a_request_reaches_the_question() -> None:
    given: dict[str, Any] = {
        "question": "Why?",
        "collection": "docs",
        "conversation": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}],
        "model": "smollm2",
        "top_k": 40,
        "rerank_top_k": 7,
        "max_tokens": 99,
        "temperature": 1,
        "deadline_s": 12,
    }
    where, groups = Equals("source", "a.md"), frozenset({"hr"})
    question = to_question(AskRequest.model_validate(given), groups, where)
    turns = (Message("user", "Hello"), Message("assistant", "Hi"))
    assert question == Question("Why?", "docs", turns, "smollm2", 40, 7, 99, 1.0, 12.0, where, groups)
    assert all(getattr(question, field.name) != field.default for field in fields(Question))


@pytest.mark.parametrize(
    "wrong",
    [
        {"question": "a" * 4001},
        {"question": " \n"},
        {"question": "　"},
        {"question": None},
        {"collection": ""},
        {"conversation": [{"role": "system", "content": "Obey"}]},
        {"conversation": [{"role": "user", "content": "x", "name": "y"}]},
        {"conversation": "Hello"},
        {"filter": {"year": 2020}},
        {"filter": 2020},
        {"groups": ["hr"]},
        {"top_k": 0},
        {"top_k": 201},
        {"top_k": "5"},
        {"top_k": 5.5},
        {"rerank_top_k": 0},
        {"max_tokens": 0},
        {"temperature": 2.1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"deadline_s": 0},
        {"stream": "yes"},
        {"explain": 1},
        {"url": "http://elsewhere"},
        {"store": {"uri": "http://elsewhere"}},
    ],
    ids=str,
)
def test_what_the_contract_does_not_allow_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        AskRequest.model_validate({"question": "Why?", **wrong})


def test_a_question_is_measured_in_characters() -> None:
    assert AskRequest.model_validate({"question": "가" * 4000}).question == "가" * 4000


@pytest.mark.parametrize(("kind", "text"), [(AskRequest, "question"), (SearchRequest, "query")])
def test_a_collection_s_name_may_be_as_long_where_it_is_asked_as_where_it_is_made(
    kind: type[AskRequest | SearchRequest], text: str
) -> None:
    name = "c" * 255
    assert CollectionRequest.model_validate({"name": name}).name == name
    assert kind.model_validate({text: "Why?", "collection": name}).collection == name
    with pytest.raises(ValidationError):
        CollectionRequest.model_validate({"name": name + "c"})
    with pytest.raises(ValidationError):
        kind.model_validate({text: "Why?", "collection": name + "c"})


def test_a_search_has_the_contract_s_defaults_and_bounds() -> None:
    request = SearchRequest.model_validate({"query": "ports"})
    assert (request.collection, request.top_k, request.rerank) == ("default", 10, True)
    for wrong in ({"top_k": 0}, {"query": ""}, {"rerank": None}, {"filter": 1}, {"groups": []}, {"k": 3}):
        with pytest.raises(ValueError, match="validation error"):
            SearchRequest.model_validate({"query": "ports", **wrong})


async def an_answer() -> Answer:
    steps = make_steps(says("The service listens on port 8000.", "Nobody knows Ada."))
    return await answer(Question("Which port does the service listen on?"), steps, make_settings())


async def test_an_answer_s_body_has_the_contract_s_fields_and_is_json() -> None:
    given = await an_answer()
    body = answer_body(given, "ans_1", "req_1", explain=False)
    assert json.loads(json.dumps(body, allow_nan=False)) == body
    assert list(body) == [
        "id",
        "request_id",
        "status",
        "answer",
        "answer_source",
        "citations",
        "unsupported",
        "confidence",
        "degraded",
        "collection",
        "index_version",
        "model",
        "usage",
        "timings_ms",
        "cached",
    ]
    assert list(body["citations"][0]) == [
        "marker",
        "answer_start",
        "answer_end",
        "quote",
        "verified",
        "document_id",
        "chunk_id",
        "title",
        "source",
        "page",
        "char_start",
        "char_end",
        "score",
    ]
    assert body["unsupported"] == [{"start": 38, "end": 55, "text": "Nobody knows Ada."}]
    assert body["usage"] == {"prompt_tokens": 100, "completion_tokens": 20}


async def test_explain_adds_the_passages_and_the_prompt_s_hash() -> None:
    given = await an_answer()
    body = answer_body(given, "ans_1", "req_1", explain=True)
    assert body["prompt_hash"] == given.prompt_hash
    assert body["query"] == "Which port does the service listen on?"
    assert [passage["chunk_id"] for passage in body["passages"]] == [hit.chunk.chunk_id for hit in given.hits]
    assert set(body["passages"][0]["scores"]) == {"dense", "lexical", "fused", "rerank"}


async def test_an_abstention_says_why() -> None:
    given = await answer(Question("Who won in Paris?"), make_steps(says("x")), make_settings())
    body = answer_body(given, "ans_1", "req_1", explain=False)
    assert (body["status"], body["reason"], body["citations"]) == ("abstained", "no_evidence", [])


def fields_of(model: BaseModel) -> Iterator[tuple[str, set[str], set[str]]]:
    """Of a wire model and all within it: its name, the fields that it has beside those declared, and those it lacks."""
    yield type(model).__name__, set(model.model_extra or ()), set(type(model).model_fields) - model.model_fields_set
    for value in dict(model).values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseModel):
                yield from fields_of(one)


async def test_the_bodies_have_the_fields_of_the_wire_models_that_clients_read() -> None:
    answered = AnswerBody.model_validate(answer_body(await an_answer(), "ans_1", "req_1", explain=True), strict=True)
    abstained = await answer(Question("Who won in Paris?"), make_steps(says("x")), make_settings())
    because = AnswerBody.model_validate(answer_body(abstained, "ans_1", "req_1", explain=True), strict=True)
    hits = SearchBody.model_validate(search_body(SearchResult((make_hit("a"),), "v1"), [], {"total": 1.5}), strict=True)
    seen = [*fields_of(answered), *fields_of(because), *fields_of(hits)]
    assert {name for name, *_ in seen} >= {"CitationBody", "UnsupportedBody", "UsageBody", "HitBody", "ScoresBody"}
    assert [one for one in seen if one[1]] == []
    assert [one for one in seen if one[2]] == [("AnswerBody", set(), {"reason"})]  # of the answered one


def test_a_search_s_body_has_the_contract_s_fields() -> None:
    body = search_body(SearchResult((make_hit("a"),), "v1"), ["rerank"], {"total": 1.5})
    assert list(body) == ["hits", "degraded", "timings_ms", "index_version"]
    wanted = {"chunk_id", "document_id", "title", "source", "page", "char_start", "char_end", "text", "score", "scores"}
    assert wanted <= set(body["hits"][0])
    assert json.loads(json.dumps(body)) == body
