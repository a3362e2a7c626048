"""One deadline for a request, a budget for each stage, and what each stage took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rag.errors import DeadlineError, StageTimeoutError
from rag.types import Stage

T = TypeVar("T")
TraceStage = Callable[[str, float], None]  # a stage that has just ended, and its seconds

NOT_STAGES = ("ttft", "total")  # in a request's timings, but no stage's
# An optional stage never takes all the time that is left: the answer still has to be made without it.
OPTIONAL_SHARE = 0.8


class RequestClock:
    """Starts when made; `queue_s` is what the request waited before. `timings_ms` grows stage by stage, and `trace` is
    told each stage as it ends: one that is entered again, such as grounding, each time.

    Pickled it stands still, until it is unpickled: a request of a batch goes from one process to another.
    """

    def __init__(self, deadline_s: float, queue_s: float = 0.0, trace: TraceStage | None = None) -> None:
        self._started = time.perf_counter() - queue_s
        self._deadline_s = deadline_s
        self.timings_ms: dict[str, float] = {"queue": round(queue_s * 1000, 3)}
        self.degraded: list[str] = []
        self._trace = trace
        if trace is not None:
            trace("queue", queue_s)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_started": self.elapsed_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _started=time.perf_counter() - state["_started"])

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    @property
    def left_s(self) -> float:
        return self._deadline_s - self.elapsed_s

    def limit_s(self, budget_s: float, *, optional: bool) -> float:
        """What a stage may take now, in seconds."""
        return min(budget_s, self.left_s * (OPTIONAL_SHARE if optional else 1.0))

    def check_deadline(self, stage: str) -> None:
        """Raises DeadlineError when no time is left for `stage`."""
        if self.left_s <= 0:
            raise DeadlineError(
                f"the deadline of {self._deadline_s:g} s passed before {stage}; ask with a longer deadline_s"
            )

    async def run(
        self, stage: Stage, call: Callable[[], Awaitable[T]], budget_s: float, *, optional: bool = False
    ) -> T:
        """The call's result within its limit. Raises StageTimeoutError, or DeadlineError when no time is left."""
        self.check_deadline(stage)
        limit_s = self.limit_s(budget_s, optional=optional)
        with self.timed(stage):
            try:
                async with asyncio.timeout(limit_s):
                    return await call()
            except TimeoutError as error:
                self.check_deadline(stage)
                raise StageTimeoutError(stage, f"no result within {limit_s:.1f} s") from error

    async def iterate(self, stage: Stage, pieces: AsyncIterator[T], budget_s: float) -> AsyncGenerator[T, None]:
        """An optional stage's pieces as they come; closing it closes them. Raises StageTimeoutError after its limit."""
        limit_s = self.limit_s(budget_s, optional=True)
        ends_at = asyncio.get_running_loop().time() + limit_s
        began = time.perf_counter()
        try:
            while True:
                with self._timed(stage):
                    try:
                        async with asyncio.timeout_at(ends_at):
                            piece = await anext(pieces)
                    except StopAsyncIteration:
                        return
                    except TimeoutError as error:
                        raise StageTimeoutError(stage, f"not finished within {limit_s:.1f} s") from error
                yield piece
        finally:
            self._tell(stage, began)
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `timings_ms[name]`."""
        began = time.perf_counter()
        try:
            with self._timed(name):
                yield
        finally:
            self._tell(name, began)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """The same of a part of a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - began) * 1000
            self.timings_ms[name] = round(self.timings_ms.get(name, 0.0) + spent, 3)

    def _tell(self, name: str, began: float) -> None:
        if self._trace is not None:
            self._trace(name, time.perf_counter() - began)

    def mark(self, name: str) -> None:
        """Notes the time since the start under `name`, unless it is there already."""
        self.timings_ms.setdefault(name, round(self.elapsed_s * 1000, 3))

    def leave_out(self, stage: Stage, llm: str | None = None) -> None:
        """Names a stage that the answer had to do without, or with `llm` that one alone, as `stage:llm`."""
        name = stage if llm is None else f"{stage}:{llm}"
        if name not in self.degraded:
            self.degraded.append(name)
