"""The stages of `rag ask-batch` around the LLM, an actor of Ray Data each: rows to prompts, what is written to answers.

    row -> Prepare -> vLLM's engine processor -> Finish -> what the answers' file gets

The flow is the service's own (rag.pipeline), cut where the LLM is asked. A row that fails, and one that needs no LLM,
is finished by Prepare; the engine lets it pass.
"""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic import ValidationError

from deployments.errors import bug_problem, problem
from deployments.retriever import Retriever
from deployments.schemas import AskRequest, answer_body
from rag.analyze import terms
from rag.batch_file import BatchRow
from rag.config import Settings
from rag.errors import InputError, RagError, StageError, UnknownModelError
from rag.filter_language import parse_filter
from rag.local_steps import Models
from rag.models import load_chat_template, load_token_counter, locate_model
from rag.pipeline import Done, Flow, Steps, begin
from rag.retrieve import SearchSteps
from rag.step_settings import DeadlineSettings
from rag.types import Generate, GeneratedText, Message, Question, Usage

# Nobody waits for a single answer, and a stage that is late would be left out of it.
PATIENT_S = 3600.0
# Ray's processor lets rows pass that have something in this column (ray.data.llm, `should_continue_on_error`).
PASSES = "__inference_error__"
# What a request for an answer at once has, and a batch does not.
_NOT_ASKED_FOR = ("stream", "deadline_s")
_ELSEWHERE = ("steps", "settings")

Columns = dict[str, Any]
Body = dict[str, Any]
Tokenize = Callable[[list[Message]], list[int]]
LoadParts = Callable[[Settings], tuple[Steps, Tokenize]]


@dataclass(frozen=True, slots=True)
class Pending:
    """A question on its way through the engine: its flow without steps and settings, both of the actor's own."""

    flow: Mapping[str, Any]
    explain: bool


def patient(settings: Settings) -> Settings:
    """The settings with time enough for every stage."""
    deadlines = DeadlineSettings(**dict.fromkeys(DeadlineSettings.model_fields, PATIENT_S))
    return settings.model_copy(update={"deadlines": deadlines})


def load_parts(settings: Settings) -> tuple[Steps, Tokenize]:
    """The flow's steps in this process, the LLM aside, and its chat template.

    Raises ModelError and StoreUnavailableError.
    """
    models, retriever = Models(settings), Retriever(settings)
    search = SearchSteps(
        models.embed, retriever.dense_search, retriever.lexical_search, models.score, terms, retriever.token_vectors
    )
    llm = locate_model(settings.generator.model, settings.cache_dir)
    return Steps(search, _no_llm, load_token_counter(llm)), load_chat_template(llm)


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
    if asked.model not in (None, settings.generator.model_id):
        raise UnknownModelError(f"no LLM is served as {asked.model!r}; there is {settings.generator.model_id!r}")
    where = None if asked.filter is None else parse_filter(asked.filter, settings.store.metadata_fields)
    return asked.to_question(frozenset(settings.serve.anonymous_groups), where), asked.explain


class Prepare:
    """Rows -> prompts, or bodies where there is nothing to be written."""

    def __init__(self, settings: Settings, load: LoadParts = load_parts) -> None:
        self._settings = patient(settings)
        self._steps, self._tokenize = load(settings)
        self._runner = asyncio.Runner()

    def __call__(self, columns: Columns) -> Columns:
        """`row` -> `row_id`, `body` or `pending`, `tokenized_prompt` and `sampling_params`, and PASSES."""
        rows: list[BatchRow] = [pickle.loads(packed) for packed in columns["row"]]
        prepared = self._runner.run(_all(self._prepare, rows))
        return {name: [one[name] for one in prepared] for name in prepared[0]}

    async def _prepare(self, row: BatchRow) -> dict[str, Any]:
        flow, explain, body = None, False, None
        try:
            question, explain = read_question(row, self._settings)
            flow = await begin(question, self._steps, self._settings)
            await flow.judge()
            if not flow.needs_llm:
                body = await _finish(flow, explain)
        except Exception as error:  # noqa: BLE001  # the edge of a row: the others go on
            body = error_body(row.row_id, error)
        if body is not None or flow is None or flow.prompt is None:
            # Columns are alike for all rows; nobody reads the last two of this one.
            nothing = {"tokenized_prompt": [0], "sampling_params": {"max_tokens": 1, "temperature": 0.0}}
            return {"row_id": row.row_id, "body": json.dumps(body), "pending": b"", PASSES: "finished", **nothing}
        return {
            "row_id": row.row_id,
            "body": "",
            "pending": pickle.dumps(Pending(pack_flow(flow), explain)),
            PASSES: "",
            "tokenized_prompt": self._tokenize(flow.prompt.messages),
            "sampling_params": flow.sampling,
        }


class Finish:
    """What the engine wrote -> bodies."""

    def __init__(self, settings: Settings, load: LoadParts = load_parts) -> None:
        self._settings = patient(settings)
        self._steps, _ = load(settings)
        self._runner = asyncio.Runner()

    def __call__(self, columns: Columns) -> Columns:
        """The engine's columns -> `row_id`, `body`."""
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        bodies = self._runner.run(_all(self._finish, rows))
        return {"row_id": columns["row_id"], "body": bodies}

    async def _finish(self, row: Mapping[str, Any]) -> str:
        if row["body"]:
            return str(row["body"])
        try:
            if row[PASSES]:
                raise StageError("generate", str(row[PASSES]))
            pending: Pending = pickle.loads(row["pending"])
            flow = Flow(steps=self._steps, settings=self._settings, **pending.flow)
            flow.steps = replace(self._steps, generate=replay(row, flow.sampling["max_tokens"]))
            flow.clock.add("generate", float(row["time_taken_llm"]))
            return json.dumps(await _finish(flow, pending.explain))
        except Exception as error:  # noqa: BLE001  # the edge of a row: the others go on
            return json.dumps(error_body(row["row_id"], error))


def replay(row: Mapping[str, Any], max_tokens: int) -> Generate:
    """The step `generate` that gives what the engine wrote."""
    written = int(row["num_generated_tokens"])
    # Ray's processor does not say why the engine stopped.
    reason = "length" if written >= max_tokens else "stop"
    piece = GeneratedText(str(row["generated_text"]), reason, Usage(int(row["num_input_tokens"]), written))

    async def generate(*_: object, **__: object) -> AsyncGenerator[GeneratedText, None]:
        yield piece

    return generate


def pack_flow(flow: Flow) -> dict[str, Any]:
    """A flow for the way to another process, where it gets its steps and settings again.

    Only the kept hits take their token vectors with them.
    """
    light = replace(flow.found, hits=tuple(replace(hit, token_vectors=b"") for hit in flow.found.hits))
    kept = {field.name: getattr(flow, field.name) for field in fields(flow) if field.name not in _ELSEWHERE}
    return {**kept, "found": light}


def error_body(row_id: str, error: Exception) -> Body:
    """The problem object of a row that failed, as `/ask` would give it."""
    found = problem(row_id, "", error) if isinstance(error, RagError) else bug_problem(row_id, "", error)
    return {"error": {name: value for name, value in found.items() if name not in ("instance", "request_id")}}


async def _finish(flow: Flow, explain: bool) -> Body:
    async for event in flow.finish():
        if isinstance(event, Done):
            body = answer_body(event.answer, "", "", explain=explain)
            return {name: value for name, value in body.items() if name not in ("id", "request_id")}
    raise AssertionError("the flow ended without Done")


async def _all(work: Callable[[Any], Awaitable[Any]], rows: Iterable[Any]) -> Sequence[Any]:
    return await asyncio.gather(*map(work, rows))


def _no_llm(*_: object, **__: object) -> Any:
    """See rag.types.Generate."""
    raise StageError("generate", "the LLM is a stage of its own")
