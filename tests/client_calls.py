"""Both clients called the same way, for tests; and a time of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rag.client import AsyncClient, Client

Ask = Callable[..., Any]


@dataclass
class Time:
    """Passes only where somebody sleeps; `slept` keeps how long each did."""

    at: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds

    async def sleep_async(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.sleep(seconds)


def call_sync(url: str, method: str, *arguments: Any, time: Time | None = None, **options: Any) -> Any:
    """The method's result; a list of those that it yields."""
    time = time or Time()
    settings = options.pop("client", {})
    with Client(url, sleep=time.sleep, now=time.now, **settings) as client:
        result = getattr(client, method)(*arguments, **options)
        return list(result) if hasattr(result, "__next__") else result


def call_async(url: str, method: str, *arguments: Any, time: Time | None = None, **options: Any) -> Any:
    """The same by the other client."""
    time = time or Time()
    settings = options.pop("client", {})

    async def call() -> Any:
        async with AsyncClient(url, sleep=time.sleep_async, now=time.now, **settings) as client:
            result = getattr(client, method)(*arguments, **options)
            return [one async for one in result] if hasattr(result, "__anext__") else await result

    return asyncio.run(call())


BOTH: list[Ask] = [call_sync, call_async]
