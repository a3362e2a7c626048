"""The OpenAI-compatible door: the question flow for clients that know no other.

Plain functions beside the orchestrator's methods, as deployments.documents has them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from ray import serve
from starlette.responses import Response

from deployments.errors import bug_problem, openai_error, problem
from deployments.openai_schemas import (
    MODEL,
    ChatRequest,
    Completion,
    CompletionBody,
    ModelBody,
    ModelListBody,
    model_body,
    models_body,
)
from deployments.responses import openai_errors, streamed
from deployments.schemas import answer_body, answer_id, degraded_header
from deployments.sse import begin, encode_data, event_stream
from rag.errors import RagError, UnknownModelError
from rag.events import Cited, Done, Event, Token
from rag.types import Groups, Question

router = APIRouter(prefix="/v1")


@dataclass(frozen=True, slots=True)
class ChatDoors:
    """What the routes work with. `answer` gives None when the client left before the end."""

    llms: tuple[str, ...]
    groups: Groups
    with_llm: Callable[[Question, str], Question]  # by a key that stays with one LLM
    answer: Callable[[Request, Question], Awaitable[Done | None]]
    events: Callable[[Question], AsyncGenerator[Event, None]]
    collections: Callable[[], Awaitable[Iterable[str]]]  # their names
    started: int = field(default_factory=lambda: int(time.time()))


async def current_doors() -> ChatDoors:
    """The doors of the replica that this process is."""
    doors: ChatDoors = serve.get_replica_context().servable_object.chat
    return doors


Doors = Annotated[ChatDoors, Depends(current_doors)]


@router.post(
    "/chat/completions",
    response_model=None,
    responses={
        200: {"model": CompletionBody, "content": streamed()},
        **openai_errors("4XX", 503, 504),
    },
)
async def complete_chat(body: ChatRequest, request: Request, doors: Doors) -> Response:
    """Answers the last message, whole or as a stream of chunks."""
    request_id = request.state.request_id
    question = doors.with_llm(body.to_question(doors.groups, doors.llms), body.sticky_key(request_id))
    own_id = answer_id()
    completion = Completion(own_id, int(time.time()), body.model)
    if body.stream:
        wanted = body.stream_options is not None and bool(body.stream_options.include_usage)
        chunks = _chunks(await begin(doors.events(question)), completion, own_id, request, include_usage=wanted)
        return event_stream(chunks)
    done = await doors.answer(request, question)
    if done is None:
        return Response(status_code=499)  # the client is gone: nobody reads this
    own = answer_body(done.answer, own_id, request_id, explain=False)
    return JSONResponse(completion.whole(done.answer, own), headers=degraded_header(done.answer.degraded))


@router.get("/models", response_model=None, responses={200: {"model": ModelListBody}, **openai_errors(503)})
async def list_models(doors: Doors) -> dict[str, Any]:
    """A model for each collection, and for each LLM."""
    return models_body(await doors.collections(), doors.llms, doors.started)


@router.get(
    "/models/{name:path}", response_model=None, responses={200: {"model": ModelBody}, **openai_errors("4XX", 503)}
)
async def get_model(name: str, doors: Doors) -> dict[str, Any]:
    """One of them."""
    known = models_body(await doors.collections(), doors.llms, doors.started)["data"]
    if name not in {model["id"] for model in known}:
        raise UnknownModelError(f"there is no model {name!r}; GET /v1/models lists them, {MODEL!r} among them")
    return model_body(name, doors.started)


async def _chunks(
    events: AsyncGenerator[Event, None], completion: Completion, own_id: str, request: Request, *, include_usage: bool
) -> AsyncGenerator[str, None]:
    """The events on the wire; what is raised on the way becomes a last one, an error. Closing it closes `events`."""
    request_id = request.state.request_id
    async with aclosing(events):
        try:
            yield encode_data(completion.start())
            async for event in events:
                match event:
                    case Token(text):
                        yield encode_data(completion.text(text))
                    case Cited(citation):
                        yield encode_data(completion.citation(citation))
                    case Done(answer):
                        own = answer_body(answer, own_id, request_id, explain=False)
                        yield encode_data(completion.end(own))
                        if include_usage:
                            yield encode_data(completion.usage(answer))
                        yield "data: [DONE]\n\n"
        except RagError as error:
            yield encode_data(openai_error(problem(request_id, request.url.path, error)))
        except Exception as error:  # noqa: BLE001  # the process's edge: a stream merely cut off tells its client nothing
            yield encode_data(openai_error(bug_problem(request_id, request.url.path, error)))
