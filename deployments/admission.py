"""A bounded number of questions at work and a bounded number waiting; the rest is refused at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deployments.metrics import set_gauge
from rag.errors import DeadlineError, OverloadedError


class Admission:
    """`async with admission.permit(deadline_s) as queue_s`: a place among those worked on, after `queue_s` seconds."""

    def __init__(self, max_inflight: int, max_queued: int) -> None:
        self._places = asyncio.Semaphore(max_inflight)
        self._max_inflight = max_inflight
        self._max_present = max_inflight + max_queued
        self._present = self._running = 0

    @asynccontextmanager
    async def permit(self, deadline_s: float) -> AsyncIterator[float]:
        """Raises OverloadedError when the queue is full, and DeadlineError when no place came within `deadline_s`.

        What is done at the place is not limited here.
        """
        if self._present >= self._max_present:
            raise OverloadedError(
                f"{self._max_inflight} questions are worked on and {self._present - self._max_inflight} wait; try again"
            )
        arrived = time.perf_counter()
        self._note(present=1)
        try:
            await self._take_place(deadline_s)
            self._note(running=1)
            try:
                yield time.perf_counter() - arrived
            finally:
                self._note(running=-1)
                self._places.release()
        finally:
            self._note(present=-1)

    async def _take_place(self, deadline_s: float) -> None:
        try:
            async with asyncio.timeout(deadline_s):
                await self._places.acquire()
        except TimeoutError as error:
            raise DeadlineError(
                f"the deadline of {deadline_s:g} s passed before one of {self._max_inflight} places was free; "
                "ask with a longer deadline_s, or later"
            ) from error

    def _note(self, *, present: int = 0, running: int = 0) -> None:
        self._present += present
        self._running += running
        set_gauge("rag_questions_running", self._running)
        set_gauge("rag_questions_waiting", self._present - self._running)
