"""The stages around the LLM: a batch's answers are the service's, and a row that fails is a row."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from deployments.batch_stages import PASSES, Columns, Finish, Prepare, Tokenize
from deployments.schemas import AskRequest, answer_body
from rag.batch_file import BatchRow
from rag.config import Settings
from rag.errors import InputError, StageError, StoreUnavailableError
from rag.pipeline import Steps, answer
from rag.retrieve import SearchSteps
from rag.types import GeneratedText, Usage
from tests.pipeline_fakes import ScriptedLLM, WordScorer, make_search, make_settings, make_steps, raising

PORT = "Which port does the service listen on?"
RIGHT = "The service listens on port 8000."
SECOND = "Another port is chosen with the option --port."
WRONG = "It was written by Grace Hopper in 1987."
OF_ITS_OWN = ("timings_ms", "id", "request_id")  # no two answers have them alike


class Engine:
    """Writes the same text for every prompt that reaches it, as Ray's processor hands it on."""

    def __init__(self, text: str = RIGHT, *, tokens: int = 9, error: str = "") -> None:
        self._text, self._tokens, self._error = text, tokens, error
        self.asked: list[dict[str, Any]] = []

    def __call__(self, columns: Columns) -> Columns:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for row in rows:
            if not row[PASSES]:
                self.asked.append(row)
                row |= {"generated_text": self._text, "num_generated_tokens": self._tokens}
                row |= {"num_input_tokens": 100, "time_taken_llm": 0.5, PASSES: self._error}
        names = list(dict.fromkeys(name for row in rows for name in row))
        return {name: as_column([row.get(name) for row in rows]) for name in names}


def as_column(values: list[Any]) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def run(
    rows: Mapping[str, Any], engine: Engine, settings: Settings, search: SearchSteps | None = None
) -> dict[str, dict[str, Any]]:
    """What becomes of rows, by id."""

    def load(_: Settings) -> tuple[Steps, Tokenize]:
        llm = ScriptedLLM([AssertionError("the LLM is asked between the stages")])
        return make_steps(llm, search), lambda messages: [len(message.content) for message in messages]

    packed = [pickle.dumps(BatchRow(row_id, fields, "hash")) for row_id, fields in rows.items()]
    prepared = Prepare(settings, load)({"row": as_column(packed)})
    finished = Finish(settings, load)(engine({name: as_column(list(values)) for name, values in prepared.items()}))
    return {row_id: json.loads(body) for row_id, body in zip(finished["row_id"], finished["body"], strict=True)}


def served(fields: dict[str, Any], llm: ScriptedLLM, settings: Settings) -> dict[str, Any]:
    """What `/ask` answers."""
    asked = AskRequest.model_validate(fields)
    given = asyncio.run(answer(asked.to_question(frozenset(), None), make_steps(llm), settings))
    body = json.loads(json.dumps(answer_body(given, "", "", explain=asked.explain)))
    return {name: value for name, value in body.items() if name not in OF_ITS_OWN}


@pytest.mark.parametrize("reader", ["strong", "weak"])
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"question": PORT}, id="answered"),
        pytest.param({"question": PORT, "explain": True, "rerank_top_k": 2, "top_k": 5}, id="explained"),
        pytest.param({"question": "서비스의 기본 포트는 무엇입니까?"}, id="korean"),
        pytest.param({"question": "Who wrote the symphony?"}, id="abstained"),
        pytest.param(
            {"question": "Which one?", "conversation": [{"role": "user", "content": PORT}]}, id="after_another_question"
        ),
    ],
)
@pytest.mark.parametrize("text", [f"{RIGHT} [1] {SECOND}", WRONG, f"{WRONG} {RIGHT}", "The documents do not say.", ""])
def test_an_answer_is_the_services(fields: dict[str, Any], text: str, reader: str) -> None:
    settings = make_settings(reader)
    (given,) = run({"a": fields}, Engine(text), settings).values()
    timings = given.pop("timings_ms")
    expected = served(fields, ScriptedLLM([GeneratedText(text, "stop", Usage(100, 9))]), settings)
    assert given == expected
    assert timings["total"] >= timings.get("generate", 0)


def test_the_engine_is_asked_by_tokens_and_as_the_row_says() -> None:
    engine = Engine()
    rows = {"a": {"question": PORT}, "b": {"question": PORT, "max_tokens": 5, "temperature": 0.5}}
    given = run(rows, engine, make_settings(generator={"max_tokens": 48, "temperature": 0.25}))
    asked = {row["row_id"]: row["sampling_params"] for row in engine.asked}
    assert asked == {"a": {"max_tokens": 48, "temperature": 0.25}, "b": {"max_tokens": 5, "temperature": 0.5}}
    assert all(len(row["tokenized_prompt"]) == 2 for row in engine.asked)
    assert given["a"]["usage"] == {"prompt_tokens": 100, "completion_tokens": 9}
    assert 500 <= given["a"]["timings_ms"]["generate"] < given["a"]["timings_ms"]["total"]


def test_a_sentence_that_the_token_limit_cut_off_is_left_out() -> None:
    text = f"{RIGHT} Another port is"
    cut = run({"a": {"question": PORT, "max_tokens": 9}}, Engine(text, tokens=9), make_settings())["a"]
    ended = run({"a": {"question": PORT, "max_tokens": 10}}, Engine(text, tokens=9), make_settings())["a"]
    assert cut["answer"] == f"{RIGHT} [1]"
    assert ended["answer"].startswith(f"{RIGHT} [1] Another port is")


def test_rows_that_need_no_llm_never_reach_it() -> None:
    engine = Engine()
    rows = {"right": {"question": PORT}, "none": {"question": "Who wrote the symphony?"}, "wrong": {"top_k": 0}}
    given = run(rows, engine, make_settings())
    assert [row["row_id"] for row in engine.asked] == ["right"]
    assert [given[name].get("status") for name in rows] == ["answered", "abstained", None]
    engine = Engine()
    given = run({"right": {"question": PORT}}, engine, make_settings(generator={"languages": ()}))
    assert engine.asked == []
    assert given["right"]["answer_source"] == "extracted"


@pytest.mark.parametrize(
    ("fields", "kind", "detail"),
    [
        ({"question": PORT, "colour": "red"}, "invalid-input", "colour: Extra inputs are not permitted"),
        ({"question": PORT, "stream": True}, "invalid-input", "a row of a batch has no stream; leave it out"),
        ({"question": PORT, "deadline_s": 3}, "invalid-input", "a row of a batch has no deadline_s; leave it out"),
        ({"question": " "}, "invalid-input", "question: "),
        ({}, "invalid-input", "question: Field required"),
        ({"question": PORT, "filter": "colour == 1"}, "invalid-input", "the filter, at column 1"),
        ({"question": PORT, "model": "gpt"}, "unknown-model", "no LLM is served as 'gpt'"),
        ({"question": PORT, "collection": "none"}, "unknown-collection", "there is no collection 'none'"),
        (InputError("the row is no JSON"), "invalid-input", "the row is no JSON"),
    ],
)
def test_a_row_that_cannot_be_asked_is_its_problem_and_the_others_go_on(fields: Any, kind: str, detail: str) -> None:
    given = run({"wrong": fields, "right": {"question": PORT}}, Engine(), make_settings())
    (error,) = given["wrong"].values()
    assert error["type"] == f"urn:rag:problem:{kind}"
    assert detail in error["detail"]
    assert {"title", "status", "retryable"} < set(error)
    assert given["right"]["answer"] == f"{RIGHT} [1]"


def test_a_question_for_which_the_engine_fails_is_its_problem() -> None:
    given = run({"a": {"question": PORT}}, Engine(error="ValueError: the prompt is too long"), make_settings())["a"]
    assert given["error"]["stage"] == "generate"
    assert given["error"]["detail"] == "generate: ValueError: the prompt is too long"


def test_a_store_that_does_not_answer_is_each_rows_problem() -> None:
    down = raising(StoreUnavailableError("Milvus does not answer"))
    search = make_search(dense_search=down, lexical_search=down)
    given = run({"a": {"question": PORT}, "b": {"question": PORT}}, Engine(), make_settings(), search)
    assert [given[name]["error"]["type"] for name in "ab"] == ["urn:rag:problem:store-unavailable"] * 2
    assert given["a"]["error"]["retryable"]


def test_a_fault_of_ours_is_that_rows_problem_without_its_text() -> None:
    search = make_search(lexical_search=raising(ZeroDivisionError("a secret")))
    given = run({"a": {"question": PORT}}, Engine(), make_settings(), search)["a"]
    assert given["error"]["status"] == 500
    assert "secret" not in json.dumps(given)


def test_a_stage_that_is_left_out_is_named_as_by_the_service() -> None:
    search = make_search(score=WordScorer(StageError("rerank", "gone")))
    given = run({"a": {"question": PORT}}, Engine(), make_settings(), search)["a"]
    assert given["degraded"] == ["rerank", "ground"]
    assert given["status"] == "answered"
