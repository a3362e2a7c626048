"""The question flow of `rag ask-batch`, cut where the LLM is asked: rows become prompts, pending flows become answers.

    row -> Prepare -> vLLM's engine, which answers (deployments.batch_engine) -> what the answers' file gets

The flow is the service's own (rag.pipeline). A row that fails, and one that needs no LLM, is finished by Prepare; Ray's
processor lets it pass.
"""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from pydantic import ValidationError

from deployments.errors import bug_problem, problem
from deployments.retriever import Retriever
from deployments.schemas import answer_body, sticky_key, to_question, with_llm
from rag.analyze import terms
from rag.batch_file import BatchRow
from rag.config import Settings
from rag.errors import InputError, RagError, StageError
from rag.events import Done
from rag.filter_language import parse_filter
from rag.local_steps import Models
from rag.models import load_prompt_counter
from rag.pipeline import Flow, Steps, begin
from rag.retrieve import SearchSteps
from rag.step_settings import DeadlineSettings
from rag.types import Question
from rag.wire import AskRequest

# Nobody waits for a single answer, and a stage that is late would be left out of it.
PATIENT_S = 3600.0
# Ray's processor lets rows pass that have something in this column (ray.data.llm, `should_continue_on_error`).
PASSES = "__inference_error__"
# What a request for an answer at once has, and a batch does not.
_NOT_ASKED_FOR = ("stream", "deadline_s")
_ELSEWHERE = ("steps", "settings")

Columns = dict[str, Any]
LoadSteps = Callable[[Settings], Steps]


def patient(settings: Settings) -> Settings:
    """The settings with time enough for every stage, and without a `fallback`, of which a batch starts no engine."""
    deadlines = DeadlineSettings(**dict.fromkeys(DeadlineSettings.model_fields, PATIENT_S))
    alone = settings.generator.model_copy(update={"fallback": ()})
    return settings.model_copy(update={"deadlines": deadlines, "generator": alone})


def load_steps(settings: Settings) -> Steps:
    """The flow's steps in this process, the LLM aside. Raises ModelError and StoreUnavailableError."""
    models, retriever = Models(settings), Retriever(settings)
    search = SearchSteps(
        models.embed,
        retriever.dense_search,
        retriever.lexical_search,
        models.score,
        terms,
        retriever.token_vectors,
        models.answerability,
    )
    return Steps(search, _no_llm, load_prompt_counter(settings))


def read_question(row: BatchRow, settings: Settings) -> tuple[Question, bool]:
    """What a row asks, as `/ask` would read it of a caller without a key, and its `explain`. Raises InputError."""
    if isinstance(row.fields, InputError):
        raise row.fields
    if unfit := [name for name in _NOT_ASKED_FOR if name in row.fields]:
        raise InputError(f"a row of a batch has no {' and no '.join(unfit)}; leave it out")
    try:
        asked = AskRequest.model_validate(dict(row.fields))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc'])) or 'row'}: {one['msg']}" for one in error.errors()]
        raise InputError("; ".join(wrong)) from error
    where = None if asked.filter is None else parse_filter(asked.filter, settings.store.metadata_fields)
    question = to_question(asked, frozenset(settings.serve.anonymous_groups), where)
    question = with_llm(question, sticky_key(asked, row.row_id), settings.shares, settings.llms)
    own = settings.generator.model_id
    if question.model != own:
        chosen = "the row names" if asked.model else "the split gives the row to"
        raise InputError(
            f'{chosen} the LLM {question.model!r}; a batch starts {own!r} alone: write "model": {json.dumps(own)} '
            "into the row, or ask the service"
        )
    return question, asked.explain


class Prepare:
    """Rows -> flows that wait for the LLM, or bodies where it is not needed."""

    def __init__(self, settings: Settings, load: LoadSteps = load_steps) -> None:
        self._settings = patient(settings)
        self._steps = load(settings)
        self._runner = asyncio.Runner()  # one loop for all batches: the store's client belongs to it

    def __call__(self, columns: Columns) -> Columns:
        """`row` -> `row_id`, `body` or `pending`, and PASSES."""
        prepared = self._runner.run(self._prepare_all([pickle.loads(packed) for packed in columns["row"]]))
        return {name: [one[name] for one in prepared] for name in prepared[0]}

    async def _prepare_all(self, rows: Sequence[BatchRow]) -> list[dict[str, Any]]:
        return await asyncio.gather(*map(self._prepare, rows))

    async def _prepare(self, row: BatchRow) -> dict[str, Any]:
        try:
            question, explain = read_question(row, self._settings)
            flow = await begin(question, self._steps, self._settings)
            await flow.rerank()
            await flow.judge()
            if flow.writers:
                return {"row_id": row.row_id, "body": "", "pending": pack_flow(flow, explain), PASSES: ""}
            body = await finish_flow(flow, explain)
        except Exception as error:  # noqa: BLE001  # the edge of a row: the others go on
            body = error_body(row.row_id, error)
        return {"row_id": row.row_id, "body": body, "pending": b"", PASSES: "it needs no LLM"}


def pack_flow(flow: Flow, explain: bool) -> bytes:
    """A flow, less its steps and settings, for the way to another process.

    Only the kept hits take their token vectors with them.
    """
    light = replace(flow.found, hits=tuple(replace(hit, token_vectors=b"") for hit in flow.found.hits))
    kept = {field.name: getattr(flow, field.name) for field in fields(flow) if field.name not in _ELSEWHERE}
    return pickle.dumps(({**kept, "found": light}, explain))


async def finish_packed(packed: bytes, steps: Steps, settings: Settings) -> str:
    """The answer's body, by the steps of this process. Raises what they raise, where the flow does not go on without.

    A batch can ask again, so that the LLM, unlike in the service, is not to be left out: StageError.
    """
    kept, explain = pickle.loads(packed)
    flow = Flow(steps=steps, settings=settings, **kept)
    body = await finish_flow(flow, explain)
    if "generate" in flow.clock.degraded:
        raise StageError("generate", "the LLM failed; the log has more")
    return body


async def finish_flow(flow: Flow, explain: bool) -> str:
    """The response of `/ask` as JSON, without the ids that a batch has none of."""
    async for event in flow.finish():
        if isinstance(event, Done):
            body = answer_body(event.answer, "", "", explain=explain)
            return json.dumps({name: value for name, value in body.items() if name not in ("id", "request_id")})
    raise AssertionError("the flow ended without Done")


def error_body(row_id: str, error: Exception) -> str:
    """The problem object of a row that failed, as `/ask` would give it."""
    found = problem(row_id, "", error) if isinstance(error, RagError) else bug_problem(row_id, "", error)
    return json.dumps({"error": {name: found[name] for name in found if name not in ("instance", "request_id")}})


def _no_llm(*_: object, **__: object) -> Any:
    """See rag.types.Generate."""
    raise StageError("generate", "the LLM is a stage of its own")
