"""The stages around the LLM: a batch's answers are the service's, and a row that fails is a row."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from deployments.batch_stages import PASSES, Prepare, finish_packed, patient
from deployments.schemas import answer_body, to_question
from rag.batch_file import BatchRow
from rag.config import Settings
from rag.errors import InputError, StageError, StoreUnavailableError
from rag.pipeline import Steps, answer
from rag.retrieve import SearchSteps
from rag.serve_settings import OtherGenerator
from rag.split import choose_llm
from rag.types import GeneratedText, Usage
from rag.wire import AskRequest
from tests.pipeline_fakes import ScriptedLLM, WordScorer, make_search, make_settings, make_steps, raising

PORT = "Which port does the service listen on?"
RIGHT = "The service listens on port 8000."
SECOND = "Another port is chosen with the option --port."
WRONG = "It was written by Grace Hopper in 1987."
COLUMNS = ("row_id", "body", "pending", PASSES)
OF_ITS_OWN = ("timings_ms", "id", "request_id")  # no two answers have them alike


def as_column(values: Sequence[Any]) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def writes(text: str) -> ScriptedLLM:
    """An LLM that writes a text letter by letter and ends by itself."""
    return ScriptedLLM([*text, GeneratedText("", "stop", Usage(100, 9))])


def run(
    rows: Mapping[str, Any], llm: ScriptedLLM, settings: Settings, search: SearchSteps | None = None
) -> dict[str, dict[str, Any]]:
    """What becomes of rows, by id: those that wait for the LLM are finished as the engine's actor does it."""

    def load(_: Settings) -> Steps:
        return make_steps(ScriptedLLM([AssertionError("Prepare asked the LLM")]), search)

    packed = [pickle.dumps(BatchRow(row_id, fields, "hash")) for row_id, fields in rows.items()]
    prepared = Prepare(settings, load)({"row": as_column(packed)})
    found = {}
    for row_id, body, pending, passes in zip(*(prepared[name] for name in COLUMNS), strict=True):
        assert (body == "") == bool(pending) == (passes == "")
        body = body or asyncio.run(finish_packed(pending, make_steps(llm, search), patient(settings)))
        found[row_id] = json.loads(body)
    return found


def served(fields: dict[str, Any], llm: ScriptedLLM, settings: Settings) -> dict[str, Any]:
    """What `/ask` answers."""
    asked = AskRequest.model_validate(fields)
    given = asyncio.run(answer(to_question(asked, frozenset(), None), make_steps(llm), settings))
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
    (given,) = run({"a": fields}, writes(text), settings).values()
    timings = given.pop("timings_ms")
    assert given == served(fields, writes(text), settings)
    assert timings["total"] >= timings.get("generate", 0)


def test_the_llm_is_asked_as_the_row_says_and_no_further_than_it_is_read() -> None:
    llm = ScriptedLLM([f"{RIGHT} ", 30.0])
    settings = make_settings("weak", generator={"max_tokens": 48, "temperature": 0.25}, grounding={"max_sentences": 1})
    rows = {"a": {"question": PORT}, "b": {"question": PORT, "max_tokens": 5, "temperature": 0.5}}
    assert [body["answer"] for body in run(rows, llm, settings).values()] == [f"{RIGHT} [1]"] * 2
    assert [(call.max_tokens, call.temperature) for call in llm.calls] == [(48, 0.25), (5, 0.5)]
    assert llm.closed == 2


def test_rows_that_need_no_llm_never_wait_for_it() -> None:
    llm = writes(RIGHT)
    rows = {"right": {"question": PORT}, "none": {"question": "Who wrote the symphony?"}, "wrong": {"top_k": 0}}
    given = run(rows, llm, make_settings())
    assert len(llm.calls) == 1
    assert [given[name].get("status") for name in rows] == ["answered", "abstained", None]
    llm = writes(RIGHT)
    given = run({"right": {"question": PORT}}, llm, make_settings(generator={"languages": ()}))
    assert llm.calls == []
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
    given = run({"wrong": fields, "right": {"question": PORT}}, writes(RIGHT), make_settings())
    (error,) = given["wrong"].values()
    assert error["type"] == f"urn:rag:problem:{kind}"
    assert detail in error["detail"]
    assert {"title", "status", "retryable"} < set(error)
    assert given["right"]["answer"] == f"{RIGHT} [1]"


def test_of_several_llms_a_batch_asks_the_first_and_a_row_of_another_is_its_problem() -> None:
    settings = make_settings()
    other = OtherGenerator(model="/models/any", model_id="other")
    own = settings.generator.model_id
    several = settings.model_copy(update={"generators": (other,), "split": {"other": 1.0}})
    llm = writes(RIGHT)
    rows = {"split": None, "named": "other", "own": own, "none": "no"}
    given = run({name: {"question": PORT, "model": model} for name, model in rows.items()}, llm, several)
    for name, chosen in (("split", "the split gives the row to"), ("named", "the row names")):
        assert given[name]["error"]["detail"].startswith(f"{chosen} the LLM 'other'; a batch starts '{own}' alone")
    assert given["own"]["model"] == own
    assert given["none"]["error"]["detail"] == f"no LLM is served as 'no'; there are: {own}, other"
    assert [call.model for call in llm.calls] == [own]


def test_the_split_chooses_by_the_id_or_as_the_service_by_a_conversations_first_question() -> None:
    settings = make_settings()
    other = OtherGenerator(model="/models/any", model_id="other")
    split = {settings.generator.model_id: 1.0, "other": 1.0}
    settings = settings.model_copy(update={"generators": (other,), "split": split})
    ids = [f"row {number}" for number in range(20)]
    given = run({row_id: {"question": PORT} for row_id in ids}, writes(RIGHT), settings)
    answered = [row_id for row_id in ids if "error" not in given[row_id]]
    assert answered == [row_id for row_id in ids if choose_llm(row_id, split) == settings.generator.model_id]
    assert 0 < len(answered) < len(ids)
    asked = {"question": "Which one?", "conversation": [{"role": "user", "content": PORT}]}
    given = run(dict.fromkeys(ids, asked), writes(RIGHT), settings)
    assert len({"error" in body for body in given.values()}) == 1


def test_a_batch_starts_no_engine_to_fall_back_on() -> None:
    settings = make_settings()
    other = OtherGenerator(model="/models/any", model_id="other")
    first = settings.generator.model_copy(update={"fallback": ("other",)})
    settings = settings.model_copy(update={"generators": (other,), "generator": first})
    llm = ScriptedLLM([StageError("generate", "gone")])
    with pytest.raises(StageError, match="generate: the LLM failed"):
        run({"a": {"question": PORT}}, llm, settings)
    assert [call.model for call in llm.calls] == [first.model_id]


def test_an_llm_that_fails_is_not_left_out_as_by_the_service() -> None:
    with pytest.raises(StageError, match="generate: the LLM failed"):
        run({"a": {"question": PORT}}, ScriptedLLM([StageError("generate", "gone")]), make_settings())


def test_a_store_that_does_not_answer_is_each_rows_problem() -> None:
    down = raising(StoreUnavailableError("Milvus does not answer"))
    search = make_search(dense_search=down, lexical_search=down)
    given = run({"a": {"question": PORT}, "b": {"question": PORT}}, writes(RIGHT), make_settings(), search)
    assert [given[name]["error"]["type"] for name in "ab"] == ["urn:rag:problem:store-unavailable"] * 2
    assert given["a"]["error"]["retryable"]


def test_a_fault_of_ours_is_that_rows_problem_without_its_text() -> None:
    search = make_search(lexical_search=raising(ZeroDivisionError("a secret")))
    given = run({"a": {"question": PORT}}, writes(RIGHT), make_settings(), search)["a"]
    assert given["error"]["status"] == 500
    assert "secret" not in json.dumps(given)


def test_a_stage_that_is_left_out_is_named_as_by_the_service() -> None:
    search = make_search(score=WordScorer(StageError("rerank", "gone")))
    given = run({"a": {"question": PORT}}, writes(RIGHT), make_settings(), search)["a"]
    assert given["degraded"] == ["rerank", "ground"]
    assert given["status"] == "answered"
