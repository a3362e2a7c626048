"""A load that goes on while something is changed: what was answered, when, and what was not."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from eval.load import Connection, RequestError, percentile

Body = Callable[[int], tuple[str, dict[str, Any]]]  # a request's number -> its path and body


@dataclass
class Steady:
    """Each request: when it ended (s from `began`), how long it took (ms), and why it failed or what it lacked."""

    began: float = field(default_factory=time.perf_counter)
    ended: list[tuple[float, float]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Counts and latencies."""
        times = [took for _, took in self.ended]
        return {
            "answered": len(self.ended),
            "failed": dict(self.failed),
            "degraded": dict(self.degraded),
            "models": dict(self.models),
            "p50_ms": percentile(times, 50),
            "p99_ms": percentile(times, 99),
        }


@asynccontextmanager
async def steady_load(url: str, clients: int, body: Body) -> AsyncIterator[Steady]:
    """`clients` ask one after the other, all the time, while the block runs; those under way are then ended."""
    found, going = Steady(), True
    numbers = iter(range(10**9))

    async def work(connection: Connection) -> None:
        while going:
            path, asked = body(next(numbers))
            sent = time.perf_counter()
            try:
                answer = await connection.post_json(path, asked)
            except RequestError as error:
                found.failed[f"{error} {error.detail}".strip()] += 1
                await asyncio.sleep(0.2)  # a refusal is answered at once: not to be asked a thousand times
                continue
            now = time.perf_counter()
            found.ended.append((now - found.began, (now - sent) * 1000))
            found.degraded.update(answer["degraded"])
            with suppress(KeyError):
                found.models[answer["model"]] += 1

    connections = [Connection(url, timeout_s=120.0) for _ in range(clients)]
    tasks = [asyncio.create_task(work(one)) for one in connections]
    try:
        yield found
    finally:
        going = False
        await asyncio.gather(*tasks)
        for one in connections:
            one.close()


def searches(questions: Sequence[str]) -> Body:
    """Searches that no cache knows: each is a question with a number of its own."""
    return lambda number: ("/search", {"query": f"{questions[number % len(questions)]} {number}", "top_k": 5})


def asks(questions: Sequence[str]) -> Body:
    """The same of questions."""
    return lambda number: ("/ask", {"question": f"{questions[number % len(questions)]} {number}"})


def mixed(questions: Sequence[str]) -> Body:
    """Five searches to a question."""
    ask, search = asks(questions), searches(questions)
    return lambda number: (search if number % 6 else ask)(number)
