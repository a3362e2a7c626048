"""The load generator: closed loops over HTTP, bounded by a count and by time.

In a closed loop each worker sends its next request when the last one is answered, so `concurrency` requests are under
way all the time. The client is its own, over asyncio's streams: a general one would take more of the machine's cores
than the routes that it measures.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")


class RequestError(Exception):
    """A request failed; the text is the reason under which it is counted, `detail` what the service said besides."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event and when it came, in ms after the request was sent."""

    name: str
    data: dict[str, Any]
    after_ms: float


@dataclass(frozen=True, slots=True)
class Load(Generic[T]):
    """What a run of requests gave: `latencies_ms[i]` belongs to `results[i]`; failures are counted by reason."""

    concurrency: int
    seconds: float  # from the first request's start to the last one's end, failed ones included
    latencies_ms: list[float]
    results: list[T]
    errors: Counter[str]

    @property
    def per_s(self) -> float:
        """Requests answered in a second."""
        return len(self.results) / self.seconds

    def summary(self) -> dict[str, Any]:
        """Rate, latencies and failures, each key with its unit."""
        return {
            "concurrency": self.concurrency,
            "requests": len(self.results),
            "requests_per_s": round(self.per_s, 2),
            "p50_ms": percentile(self.latencies_ms, 50),
            "p95_ms": percentile(self.latencies_ms, 95),
            "errors": dict(self.errors),
        }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least `percent` of all are not above (nearest rank), to 3 places; None of none."""
    if not values:
        return None
    return round(sorted(values)[max(math.ceil(percent / 100 * len(values)), 1) - 1], 3)


async def run_load(workers: Sequence[Callable[[int], Awaitable[T]]], *, requests: int, limit_s: float) -> Load[T]:
    """Calls each worker again and again with the request's number (from 0) until `requests` were started in all.

    None is started after `limit_s` seconds; those under way are finished. A RequestError is counted; any other
    exception ends the run.
    """
    numbers = iter(range(requests))
    latencies_ms: list[float] = []
    results: list[T] = []
    errors: Counter[str] = Counter()
    began = time.perf_counter()

    async def work(call: Callable[[int], Awaitable[T]]) -> None:
        for number in numbers:
            started = time.perf_counter()
            if started - began >= limit_s:
                return
            try:
                result = await call(number)
            except RequestError as error:
                errors[str(error)] += 1
                continue
            latencies_ms.append((time.perf_counter() - started) * 1000)
            results.append(result)

    async with asyncio.TaskGroup() as group:
        for call in workers:
            group.create_task(work(call))
    return Load(len(workers), time.perf_counter() - began, latencies_ms, results, errors)


class Connection:
    """One kept-alive HTTP/1.1 connection, for one request at a time; opened when needed, closed by a failure.

    Every method raises RequestError for any status but 200, a lost or refused connection, and `timeout_s` passed.
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The response's body."""
        pieces: list[bytes] = []
        await self._exchange(method, path, body, pieces.append)
        return b"".join(pieces)

    async def post_json(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The response's JSON object."""
        found: dict[str, Any] = json.loads(await self.request("POST", path, body))
        return found

    async def post_for_events(self, path: str, body: dict[str, Any]) -> list[Event]:
        """The response's server-sent events in order. Raises RequestError also for an `error` event."""
        events: list[Event] = []
        text = b""
        sent = time.perf_counter()

        def take(piece: bytes) -> None:
            nonlocal text
            *blocks, text = (text + piece).split(b"\n\n")
            after_ms = (time.perf_counter() - sent) * 1000
            for block in blocks:
                fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
                if b"event" in fields:  # else a comment
                    events.append(Event(fields[b"event"].decode(), json.loads(fields[b"data"]), after_ms))

        await self._exchange("POST", path, body, take)
        for event in events:
            if event.name == "error":
                raise RequestError(f"error event: {event.data.get('title')}")
        return events

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None, take: Callable[[bytes], None]
    ) -> None:
        """Sends a request and hands each piece of the response's body to `take` as it comes."""
        complete = False
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self._host, self._port)
                reader, writer = self._streams
                writer.write(self._head_and_body(method, path, body))
                await writer.drain()
                status, headers = await _read_head(reader)
                if status != 200:
                    said: list[bytes] = []
                    await _read_body(reader, headers, said.append)
                    raise RequestError(f"HTTP {status}", _detail(b"".join(said)))
                await _read_body(reader, headers, take)
                complete = headers.get("connection", "").lower() != "close"
        except TimeoutError as error:
            raise RequestError(f"no answer within {self._timeout_s:g} s") from error
        except (OSError, EOFError) as error:
            raise RequestError(f"connection failed ({type(error).__name__})") from error
        finally:
            if not complete:
                self.close()

    def _head_and_body(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        payload = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + payload


def _detail(body: bytes) -> str:
    """Of a problem its `detail`; of anything else its beginning."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """The status and the headers, their names in lower case. Raises EOFError when the connection ends before them."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str], take: Callable[[bytes], None]) -> None:
    """Gives the body piece by piece, of either framing. Raises EOFError when the connection ends within it."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        if "content-length" not in headers:
            raise RequestError("a response of unknown length")
        take(await reader.readexactly(int(headers["content-length"])))
        return
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        chunk = await reader.readexactly(size + 2)  # with the line end after it
        if not size:
            return
        take(chunk[:-2])
