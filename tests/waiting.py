"""Waiting in a test for what another task does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def wait_until(fulfilled: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not fulfilled():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.005)
