"""The orchestrator: HTTP routes over the question flow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.responses import Response

from deployments.admission import Admission
from deployments.documents import DocumentDoors, upload_limits
from deployments.documents import router as document_router
from deployments.errors import bug_problem, call_stage, json_problem, problem_body, problem_response
from deployments.http import JSON, BodyLimit, RequestGate
from deployments.intake import Intake
from deployments.jobs import JobStore
from deployments.metrics import note_index_version, note_stages, refresh_gauges
from deployments.observe import RequestCount, tell_answer, watched
from deployments.openai import ChatDoors
from deployments.openai import router as openai_router
from deployments.responses import EVENT_NAMES, Responses, problems, streamed
from deployments.schemas import (
    answer_body,
    answer_id,
    degraded_header,
    search_body,
    sticky_key,
    to_question,
    with_llm,
)
from deployments.sse import begin, encode_events, event_stream
from deployments.steps import build_steps, generator_stage
from deployments.watch import Watch
from rag.analyze import terms
from rag.clock import RequestClock
from rag.config import Settings
from rag.errors import RagError, StageError
from rag.events import Done, Event
from rag.filter_language import parse_filter
from rag.filters import Filter
from rag.pipeline import answer, stream_answer
from rag.retrieve import retrieve
from rag.serve_settings import ServeSettings
from rag.step_settings import DeadlineSettings
from rag.types import Chunk, Groups, Hit, Question, Scores, SearchResult
from rag.wire import MAX_QUESTION_CHARS, AnswerBody, AskRequest, HealthBody, InfoBody, SearchBody, SearchRequest

VERSION = version("rag")  # a look into the disk

router = APIRouter()

ASKED: Responses = {
    200: {"model": AnswerBody, "content": streamed(EVENT_NAMES)},
    **problems(400, 404, 409, 413, 415, 422, 503, 504),
}
REQUIRED = ("embedder", "retriever")  # without the others answers go on, degraded
INDEX_VERSIONS_S = 15.0  # a call of the store for each collection, each some milliseconds
WARM_UP_DEADLINE_S = 120.0
WARM_UP_QUESTION = "Which port does the service listen on?"
WARM_UP_TEXT = "The service listens on port 8000. Another port is chosen with the option --port."


class Orchestrator:
    """Composes the stages' handles into the question flow; nothing else knows their order."""

    def __init__(
        self,
        settings: Settings,
        embedder: DeploymentHandle,
        retriever: DeploymentHandle,
        reranker: DeploymentHandle,
        generators: dict[str, DeploymentHandle],  # by model_id
        indexer: DeploymentHandle,
    ) -> None:
        self._started_with = self._settings = settings
        stages = {"embedder": embedder, "retriever": retriever, "reranker": reranker}
        llms = {generator_stage(name, settings): handle for name, handle in generators.items()}
        self._handles = {**stages, **llms, "indexer": indexer}
        jobs = JobStore(settings.data_dir)
        self.documents = DocumentDoors(
            Intake(settings.serve, jobs, settings.store.metadata_fields),
            jobs,
            indexer,
            self._watch,
            frozenset(settings.serve.anonymous_groups),
        )
        self.chat = ChatDoors(
            tuple(settings.llms), self._groups(), self.with_llm, self._answer, self._events, self._index_versions
        )
        self._watching: Watch | None = None
        self._admission = Admission(settings.serve.max_inflight, settings.serve.max_queued)
        self._steps = build_steps(settings, self._watch, **stages, generators=generators)
        # What the flow logs becomes lines of this replica's log, as its own are: with level, request id and stage.
        logging.getLogger("rag").parent = logging.getLogger("ray.serve")
        terms("준비")  # loads the Korean model before the first question waits for it

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes what may change live from now on, see Settings.with_live; Serve calls it with the `user_config`.

        What it does not name is again as the replica was started. Raises SettingsError.
        """
        self._settings = self._started_with.with_live(user_config)

    async def check_health(self) -> None:
        """Called by Serve every few seconds."""
        refresh_gauges()

    def with_llm(self, question: Question, key: str) -> Question:
        """The question with the LLM that is to answer it, by the shares of now. Raises UnknownModelError."""
        return with_llm(question, key, self._settings.shares, self._settings.llms)

    def _watch(self) -> Watch:
        """Made with the first call, on the event loop that serves."""
        if self._watching is None:
            self._watching = Watch({name: handle.ready.remote for name, handle in self._handles.items()})
        return self._watching

    @router.post("/ask", response_model=None, responses=ASKED)
    async def ask(self, body: AskRequest, request: Request) -> Response:
        """Answers one question, whole or as server-sent events."""
        request_id = request.state.request_id
        question = to_question(body, self._groups(), self._parse_filter(body.filter))
        question = self.with_llm(question, sticky_key(body, request_id))

        def content(done: Done) -> dict[str, Any]:
            return answer_body(done.answer, answer_id(), request_id, explain=body.explain)

        if body.stream or "text/event-stream" in request.headers.get("accept", ""):
            events = await begin(self._events(question))
            return event_stream(encode_events(events, content, request_id, request.url.path))
        done = await self._answer(request, question)
        if done is None:
            return Response(status_code=499)  # the client is gone: nobody reads this
        return JSONResponse(content(done), headers=degraded_header(done.answer.degraded))

    @router.post(
        "/search",
        response_model=None,
        responses={200: {"model": SearchBody}, **problems(400, 404, 409, 413, 415, 422, 503, 504)},
    )
    async def search(self, body: SearchRequest) -> Response:
        """Retrieval only."""
        where = self._parse_filter(body.filter)
        with watched("search") as tell:
            deadline_s = self._settings.deadlines.total_s
            async with self._admission.permit(deadline_s) as queue_s:
                clock = RequestClock(deadline_s, queue_s, self._steps.trace)
                found = await retrieve(
                    body.query,
                    body.collection,
                    self._steps.search,
                    self._settings,
                    clock,
                    groups=self._groups(),
                    where=where,
                    top_k=max(body.top_k, self._settings.retrieval.top_k),
                    rerank=body.rerank,
                )
            clock.mark("total")
            note_stages(clock.timings_ms, clock.degraded)
            note_index_version(body.collection, found.index_version)
            tell("found", degraded=clock.degraded, collection=body.collection, timings_ms=clock.timings_ms)
        found = replace(found, hits=found.hits[: body.top_k])
        content = search_body(found, list(clock.degraded), clock.timings_ms)
        return JSONResponse(content, headers=degraded_header(clock.degraded))

    @router.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """200 while this process lives."""
        return {"status": "ok"}

    @router.get("/readyz", response_model=None, responses={200: {"model": HealthBody}, 503: {"model": HealthBody}})
    async def readyz(self) -> Response:
        """200 when every required stage answers; the state of each stage either way."""
        states = self._watch().states()
        ready = all(states[name] == "ok" for name in REQUIRED)
        content = {"status": "ready" if ready else "not ready", "stages": states, "required": list(REQUIRED)}
        return JSONResponse(content, 200 if ready else 503, headers={} if ready else {"Retry-After": "5"})

    @router.get("/info", response_model=None, responses={200: {"model": InfoBody}, **problems(503)})
    async def info(self) -> dict[str, Any]:
        """Versions, models, limits and each collection's index version."""
        settings = self._settings
        return {
            "version": VERSION,
            "profile": settings.profile,
            "models": {
                "embedder": settings.embedder.model,
                "reranker": {"kind": settings.reranker.kind, "model": settings.reranker_model},
                "generators": list(settings.llms),
                "split": self._settings.shares,
            },
            "limits": {
                "question_chars": MAX_QUESTION_CHARS,
                "body_bytes": settings.serve.max_body_bytes,
                "upload_bytes": settings.serve.max_upload_bytes,
                "upload_files": settings.serve.max_upload_files,
                "max_inflight": settings.serve.max_inflight,
                "max_queued": settings.serve.max_queued,
                "deadline_s": settings.deadlines.total_s,
                "max_deadline_s": settings.deadlines.max_s,
                "max_tokens": settings.generator.max_tokens,
            },
            "index_versions": await self._index_versions(),
        }

    async def warm_up(self) -> dict[str, float]:
        """Answers a question over a passage of our own through every stage. Raises StageError when one is left out.

        It is asked of each LLM in turn. Each stage may take all the time there is: a model's first use is its slowest,
        more so on a busy machine.
        Returns the last answer's timings in ms.
        """
        await call_stage("retriever", lambda: self._handles["retriever"].ready.remote())
        search = replace(self._steps.search, dense_search=_own_hit, lexical_search=_own_hit)
        steps = replace(self._steps, search=search, answers=None, trace=None)
        patient = DeadlineSettings(**dict.fromkeys(DeadlineSettings.model_fields, WARM_UP_DEADLINE_S))
        settings = self._settings.model_copy(update={"deadlines": patient})
        for name in settings.llms:
            done = await answer(Question(WARM_UP_QUESTION, model=name), steps, settings)
            if done.degraded:
                raise StageError(done.degraded[0], "left out of the warm-up question")
        return dict(done.timings_ms)

    async def _index_versions(self) -> dict[str, str]:
        """Each collection's current index version."""
        remote = self._handles["retriever"].index_versions.remote
        versions: dict[str, str] = await self._watch().call("retriever", remote, INDEX_VERSIONS_S)
        for name, index_version in versions.items():
            note_index_version(name, index_version)
        return versions

    def _groups(self) -> Groups:
        """The caller's groups: until there are keys, every caller is anonymous."""
        return frozenset(self._settings.serve.anonymous_groups)

    def _parse_filter(self, expression: str | None) -> Filter | None:
        return None if expression is None else parse_filter(expression, self._settings.store.metadata_fields)

    async def _events(self, question: Question) -> AsyncGenerator[Event, None]:
        """The flow's events, under a permit."""
        limits = self._settings.deadlines
        with watched("question") as tell:
            async with self._admission.permit(min(question.deadline_s or limits.total_s, limits.max_s)) as queue_s:
                events = stream_answer(question, self._steps, self._settings, queue_s=queue_s)
                async with aclosing(events):
                    async for event in events:
                        if isinstance(event, Done):
                            tell_answer(tell, event.answer)
                        yield event

    async def _answer(self, request: Request, question: Question) -> Done | None:
        """The answer, under a permit; None when the client left before its end."""

        async def work() -> Done:
            async with aclosing(self._events(question)) as events:
                async for event in events:
                    if isinstance(event, Done):
                        return event
            raise AssertionError("the flow ended without Done")

        return await _until_disconnect(request, work())


def create_api(serving: ServeSettings) -> FastAPI:
    """The ASGI application: routes, the request gate and a problem response for every error."""
    api = FastAPI(
        title="rag",
        version=VERSION,
        redoc_url=None,
        exception_handlers={
            RagError: _on_rag_error,
            RequestValidationError: _on_invalid,
            HTTPException: _on_http_error,
            Exception: _on_bug,
        },
    )
    api.include_router(router)
    api.include_router(document_router)
    api.include_router(openai_router)
    limits = [BodyLimit(JSON, serving.max_body_bytes, "serve.max_body_bytes")]
    api.add_middleware(RequestGate, limits=limits, own_limits=upload_limits(serving))
    api.add_middleware(RequestCount)  # outside of the gate: what that refuses counts, too
    return api


async def _on_rag_error(request: Request, error: RagError) -> Response:
    return problem_response(request, error)


async def _on_invalid(request: Request, error: RequestValidationError) -> Response:
    malformed = any(one["type"] == "json_invalid" for one in error.errors())
    details = [
        {"field": ".".join(str(part) for part in one["loc"][1:]), "message": one["msg"]} for one in error.errors()
    ]
    if malformed:
        status, kind, title = 400, "malformed", "Malformed request"
        detail = f"the body is not JSON: {error.errors()[0].get('ctx', {}).get('error', 'cannot be parsed')}"
    else:
        status, kind, title = 422, "invalid-request", "Invalid request"
        detail = "; ".join(f"{one['field'] or 'body'}: {one['message']}" for one in details)
    body = problem_body(status, kind, title, detail, request.state.request_id, request.url.path)
    return json_problem({**body, "errors": details})


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    title = {404: "Not found", 405: "Method not allowed"}.get(error.status_code, "Refused")
    body = problem_body(
        error.status_code,
        f"http-{error.status_code}",
        title,
        str(error.detail),
        request.state.request_id,
        request.url.path,
    )
    return json_problem(body, dict(error.headers or {}))


async def _on_bug(request: Request, error: Exception) -> Response:
    return json_problem(bug_problem(request.state.request_id, request.url.path, error))


async def _own_hit(collection: str, *_: object, **__: object) -> SearchResult:
    """The warm-up's stand-in for both searches."""
    chunk = Chunk("warm-up", "warm-up", "0", 0, WARM_UP_TEXT, 0, len(WARM_UP_TEXT))
    return SearchResult((Hit(chunk, "Warm-up", collection, 1.0, Scores(dense=1.0, lexical=1.0)),), "warm-up")


async def _until_disconnect(request: Request, work: Any) -> Done | None:
    """The work's result; None when the client went away first, and the work is then cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
