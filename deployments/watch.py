"""Knows which stages answer, so that no question waits for one that is down."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from deployments.errors import call_stage
from deployments.metrics import set_gauge
from rag.errors import RagError, StageError, StageTimeoutError

T = TypeVar("T")
logger = logging.getLogger("ray.serve")

PERIOD_S = 1.0
IDLE_PERIOD_S = 5.0  # of a stage that is up and that no question uses: each asking is a line in its log
NOT_ASKED = "not asked yet"
# `ready` only looks; a replica that does not answer it in this time is gone, and its router waits for the next one.
TIMEOUT_S = 5.0


class Watch:
    """Asks each stage again and again whether it is ready; one that has not answered yet is neither up nor down."""

    def __init__(self, stages: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        self._answered: set[str] = set()
        self._down: dict[str, str] = {}
        self._used = {name: asyncio.Event() for name in stages}
        self._scopes: dict[str, set[asyncio.Timeout]] = {name: set() for name in stages}
        # In a context of their own: Serve cancels what was sent in a request's when that request is cancelled.
        self._tasks = [
            asyncio.create_task(self._ask(name, ready), context=contextvars.Context()) for name, ready in stages.items()
        ]

    def states(self) -> dict[str, str]:
        """`ok`, `not asked yet` or why a stage is down, by stage."""
        return {name: self._down.get(name, "ok" if name in self._answered else NOT_ASKED) for name in self._scopes}

    @asynccontextmanager
    async def unless_down(self, name: str, stage: str) -> AsyncIterator[None]:
        """Raises StageError for `stage` when `name` is down or goes down inside the block.

        Serve itself would keep a call waiting for the next replica. The block stays in its own task, as a timeout's
        does: a call that another task awaits was seen to outlive its cancelled caller.
        """
        if name in self._down:
            raise StageError(stage, f"the {name} is down ({self._down[name]})")
        self._used[name].set()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scopes[name].add(scope)
                try:
                    yield
                finally:
                    self._scopes[name].discard(scope)
        except TimeoutError as error:
            if scope.expired():
                raise StageError(stage, f"the {name} went down") from error
            raise

    async def call(self, name: str, call: Callable[[], Awaitable[T]], limit_s: float) -> T:
        """What the stage answers, for a call that no request's deadline limits.

        Raises StageError as `unless_down` does, StageTimeoutError after `limit_s`, and what the stage raises.
        """
        async with self.unless_down(name, name):
            try:
                async with asyncio.timeout(limit_s):
                    return await call_stage(name, call)
            except TimeoutError as error:
                raise StageTimeoutError(name, f"no answer within {limit_s:g} s; try again") from error

    async def _ask(self, name: str, ready: Callable[[], Awaitable[None]]) -> None:
        while True:
            probe = asyncio.ensure_future(call_stage(name, ready))
            done, _ = await asyncio.wait({probe}, timeout=TIMEOUT_S)
            if not done:
                self._mark(name, f"no answer within {TIMEOUT_S:g} s")
                # Never cancelled: a router of Serve's that lost such a call while it had no replica was seen to give
                # no later call to the replica that came. This one is answered by that replica.
                await asyncio.wait({probe})
            try:
                probe.result()
            except RagError as error:
                self._mark(name, str(error))
            except asyncio.CancelledError:  # of the probe alone: what cancels this task ends a wait, here there is none
                self._mark(name, "the call that asks it was cancelled")
            else:
                self._mark(name, None)
            await asyncio.sleep(PERIOD_S)
            if name not in self._down and not self._scopes[name]:
                await self._use_or_idle(name)

    async def _use_or_idle(self, name: str) -> None:
        """Returns when a stage is used, or when it has been idle for its time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE_PERIOD_S - PERIOD_S):
                await self._used[name].wait()
        self._used[name].clear()

    def _mark(self, name: str, reason: str | None) -> None:
        """Notes that a stage is down, or with None that it is up."""
        if (name in self._down) != (reason is not None):
            logger.warning("the %s is %s", name, f"down: {reason}" if reason else "up again")
        set_gauge("rag_stage_up", float(reason is None), stage=name)
        if reason is None:
            self._answered.add(name)
            self._down.pop(name, None)
            return
        self._down[name] = reason
        for scope in self._scopes[name]:
            scope.reschedule(asyncio.get_running_loop().time())
