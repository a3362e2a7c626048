"""What eval.bench measures over HTTP: routes, the embedding stage, `/ask`, and its stages."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from eval.bench_service import BenchError
from eval.load import Connection, Event, Load, RequestError, percentile, run_load

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CONCURRENCY = (1, 8, 32)
WARM_UP_TOKENS = 4
MANY = 1_000_000  # requests of a run that only its time bounds


def say(sentence: str) -> None:
    """Progress, to stderr."""
    print(f"bench: {sentence}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured; seconds bound when the last request of a run may start."""

    questions: int
    asks: dict[int, int]  # requests by concurrency
    ask_limit_s: float
    route_s: float
    search_s: float
    encode_s: float
    max_tokens: int | None  # None: the settings'


class Asked(NamedTuple):
    """One streamed answer."""

    ttft_ms: float
    response: dict[str, Any]


Call = Callable[[Connection, int], Awaitable[Any]]


def read_questions(path: Path) -> list[str]:
    """The questions of a file: its lines, without empty ones and those that start with #."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def example_questions(count: int = MANY) -> list[str]:
    """At most `count` questions, evenly from all of examples/questions.txt, so that both languages are among them."""
    questions = read_questions(EXAMPLES / "questions.txt")
    count = min(count, len(questions))
    return [questions[index * len(questions) // count] for index in range(count)]


async def load_route(
    url: str, call: Call, concurrency: int, *, requests: int, limit_s: float, warm_up: Call
) -> Load[Any]:
    """A closed loop of `concurrency` connections after a warm-up of one request on each."""
    connections = [Connection(url, timeout_s=120.0) for _ in range(concurrency)]

    def workers(one: Call) -> Sequence[Callable[[int], Awaitable[Any]]]:
        return [lambda number, connection=connection: one(connection, number) for connection in connections]  # type: ignore[misc]

    try:
        await run_load(workers(warm_up), requests=concurrency, limit_s=limit_s)
        return await run_load(workers(call), requests=requests, limit_s=limit_s)
    finally:
        for connection in connections:
            connection.close()


async def ask_first(url: str, questions: list[str], body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each question once, one after the other, with its passages; those that reached the LLM."""
    connection = Connection(url, timeout_s=120.0)
    answers = [
        (question, await connection.post_json("/ask", {**body, "question": question, "explain": True}))
        for question in questions
    ]
    connection.close()
    generated = [(question, answer) for question, answer in answers if answer["usage"]["completion_tokens"]]
    if not generated:
        raise BenchError("no example question reached the LLM: is examples/corpus in the collection `default`?")
    return generated


async def measure_service(url: str, plan: Plan) -> dict[str, Any]:
    """Everything that is measured over HTTP."""
    all_questions = example_questions()
    probe = Connection(url)

    def search(rerank: bool, queries: list[str]) -> Call:
        async def call(connection: Connection, number: int) -> dict[str, Any]:
            body = {"query": queries[number % len(queries)], "rerank": rerank}
            return await connection.post_json("/search", body)

        return call

    async def healthz(connection: Connection, _: int) -> bytes:
        return await connection.request("GET", "/healthz")

    # Which queries are embedded: one in a language that the embedder does not know is searched by its words.
    plain = search(False, all_questions)
    embedded = [
        query for number, query in enumerate(all_questions) if "embed" in (await plain(probe, number))["timings_ms"]
    ]
    probe.close()
    routes: dict[str, list[dict[str, Any]]] = {"/healthz": [], "/search": []}
    embed = []
    for concurrency in CONCURRENCY:
        say(f"routes at {concurrency} connections")
        for route, call, seconds in (
            ("/healthz", healthz, plan.route_s),
            ("/search", search(True, all_questions), plan.search_s),
        ):
            load = await load_route(url, call, concurrency, requests=MANY, limit_s=seconds, warm_up=call)
            routes[route].append({**load.summary(), "degraded": degraded(load.results) if route == "/search" else {}})
        only = search(False, embedded)
        load = await load_route(url, only, concurrency, requests=MANY, limit_s=plan.search_s, warm_up=only)
        stage_ms = [found["timings_ms"]["embed"] for found in load.results]
        stage = {"embed_stage_p50_ms": percentile(stage_ms, 50), "embed_stage_p95_ms": percentile(stage_ms, 95)}
        embed.append({**load.summary(), **stage, "texts_per_s_at_least": round(load.per_s, 2)})
    limits = {"max_tokens": plan.max_tokens} if plan.max_tokens else {}
    say("each question for the first time")
    first = await ask_first(url, example_questions(plan.questions), limits)
    asks, stages = [], {}
    for concurrency, requests in plan.asks.items():
        say(f"/ask at {concurrency} connections")
        ask, short = (asking([one for one, _ in first], one) for one in (limits, {"max_tokens": WARM_UP_TOKENS}))
        load = await load_route(url, ask, concurrency, requests=requests, limit_s=plan.ask_limit_s, warm_up=short)
        asks.append(ask_rates(load))
        if concurrency == 1:
            stages = stage_timings([one.response for one in load.results])
    return {
        "embedded_texts": embedded,
        "first": first,
        "embed": embed,
        "routes": routes,
        "ask": asks,
        "stages_ms": stages,
        "stages_first_ms": stage_timings([answer for _, answer in first]),
    }


def asking(questions: list[str], body: dict[str, Any]) -> Call:
    """A call of `/ask` as a stream."""

    async def call(connection: Connection, number: int) -> Asked:
        question = questions[number % len(questions)]
        events = await connection.post_for_events("/ask", {**body, "question": question, "stream": True})
        return to_asked(events)

    return call


def to_asked(events: list[Event]) -> Asked:
    """Raises RequestError for a stream that was broken off."""
    ttft_ms = [event.after_ms for event in events if event.name == "token"]
    if not ttft_ms or events[-1].name != "done":
        raise RequestError("stream ended without done")
    return Asked(ttft_ms[0], events[-1].data)


def ask_rates(load: Load[Asked]) -> dict[str, Any]:
    """A run of `/ask` in the units of the raw LLM's."""
    responses = [one.response for one in load.results]
    tokens = sum(response["usage"]["completion_tokens"] for response in responses)
    ttft_ms = [one.ttft_ms for one in load.results]
    return {
        "concurrency": load.concurrency,
        "requests": len(responses),
        "output_tokens": tokens,
        "output_tokens_per_s": round(tokens / load.seconds, 2),
        "ttft_p50_ms": percentile(ttft_ms, 50),
        "ttft_p95_ms": percentile(ttft_ms, 95),
        "e2e_p50_ms": percentile(load.latencies_ms, 50),
        "e2e_p95_ms": percentile(load.latencies_ms, 95),
        "prompt_tokens_p50": percentile([response["usage"]["prompt_tokens"] for response in responses], 50),
        "answer_sources": dict(Counter(str(response["answer_source"]) for response in responses)),
        "degraded": degraded(responses),
        "errors": dict(load.errors),
    }


def degraded(responses: list[dict[str, Any]]) -> dict[str, int]:
    """How many responses each stage was left out of."""
    return dict(Counter(stage for response in responses for stage in response["degraded"]))


def stage_timings(responses: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Median and p95 of each stage, over the responses that had it."""
    by_stage: dict[str, list[float]] = {}
    for response in responses:
        for stage, spent_ms in response["timings_ms"].items():
            by_stage.setdefault(stage, []).append(spent_ms)
    return {
        stage: {"p50_ms": percentile(spent, 50), "p95_ms": percentile(spent, 95), "answers": len(spent)}
        for stage, spent in by_stage.items()
    }
