"""A bounded number of questions at work and a bounded number waiting; the rest is refused at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rag.errors import OverloadedError


class Admission:
    """`async with admission.permit() as queue_s`: a place among those worked on; `queue_s` is how long it waited."""

    def __init__(self, max_inflight: int, max_queued: int) -> None:
        self._places = asyncio.Semaphore(max_inflight)
        self._max_inflight = max_inflight
        self._max_present = max_inflight + max_queued
        self._present = 0

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[float]:
        """Raises OverloadedError when the queue is full."""
        if self._present >= self._max_present:
            raise OverloadedError(
                f"{self._max_inflight} questions are worked on and {self._present - self._max_inflight} wait; try again"
            )
        self._present += 1
        arrived = time.perf_counter()
        try:
            async with self._places:
                yield time.perf_counter() - arrived
        finally:
            self._present -= 1
