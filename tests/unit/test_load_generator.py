from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from eval.bench_http import to_asked
from eval.load import Connection, Event, RequestError, percentile, run_load

EVENTS = (
    b'id: 1\nevent: retrieval\ndata: {"passages": []}\n\n',
    ': still working\n\nid: 2\nevent: token\ndata: {"text": "포트: 8000"}\n\n'.encode(),
    b'id: 3\nevent: done\ndata: {"status": "answered"}\n\n',
)


@dataclass
class Server:
    """A tiny HTTP server on the loopback that counts what it sees."""

    port: int = 0
    connections: int = 0
    requests: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ")[1].decode()
                length = next(
                    (int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), 0
                )
                body = await reader.readexactly(length)
                self.requests.append((path, body))
                if not await self.answer(path, body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open."""
        if path == "/echo":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        elif path == "/third-fails":
            status = b"503 Busy" if len(self.requests) % 3 == 0 else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nok")
        elif path == "/slow":
            await asyncio.sleep(5)
        elif path == "/broken":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
            return False
        elif path == "/last":
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        elif path in ("/events", "/cut-events", "/error-event"):
            await self.send_events(path, writer)
            return path == "/events"
        else:
            problem = json.dumps({"title": "Not found", "detail": f"no {path}"}).encode()
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(problem), problem))
        await writer.drain()
        return True

    async def send_events(self, path: str, writer: asyncio.StreamWriter) -> None:
        """Chunks that end anywhere, also within a letter; the last event 0.1 s after the others."""
        events = EVENTS
        if path == "/error-event":
            events = (b'id: 1\nevent: error\ndata: {"title": "Deadline passed"}\n\n',)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events:
            if event is EVENTS[-1]:
                await asyncio.sleep(0.1)
            for at in range(0, len(event), 7):
                writer.write(b"%x\r\n" % len(event[at : at + 7]) + event[at : at + 7] + b"\r\n")
                await writer.drain()
        if path != "/cut-events":
            writer.write(b"0\r\n\r\n")
        await writer.drain()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    listening.close()


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([15, 20, 35, 40, 50], 50, 35),
        ([50, 15, 40, 20, 35], 30, 20),  # ceil(0.3 * 5) = 2nd smallest
        ([15, 20, 35, 40, 50], 95, 50),
        (list(range(1, 21)), 95, 19),
        ([7], 5, 7),
        ([], 50, None),
    ],
)
def test_percentile_is_by_nearest_rank(values: list[float], percent: float, expected: float | None) -> None:
    assert percentile(values, percent) == expected


class TestRunLoad:
    async def test_each_request_is_sent_once_and_no_more_than_workers_are_under_way(self) -> None:
        under_way, most = 0, 0

        async def work(number: int) -> int:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.002)
            under_way -= 1
            return number

        load = await run_load([work] * 3, requests=20, limit_s=10)
        assert sorted(load.results) == list(range(20))
        assert len(load.latencies_ms) == 20
        assert most == load.concurrency == 3

    async def test_rates_and_latencies_are_those_of_a_known_wait(self) -> None:
        async def wait(_: int) -> None:
            await asyncio.sleep(0.05)

        load = await run_load([wait] * 2, requests=8, limit_s=10)
        assert 0.2 <= load.seconds < 2  # 8 waits of 0.05 s, two at once
        assert load.per_s == pytest.approx(8 / load.seconds)
        assert all(50 <= one < 1000 for one in load.latencies_ms)
        summary = load.summary()
        assert summary["p50_ms"] in [round(one, 3) for one in load.latencies_ms]
        assert summary["requests"] == 8

    async def test_no_request_starts_after_the_time_is_up(self) -> None:
        starts: list[float] = []
        began = time.perf_counter()

        async def wait(_: int) -> None:
            starts.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)

        load = await run_load([wait] * 2, requests=10**9, limit_s=0.2)
        assert 2 <= len(load.results) == len(starts) <= 10
        assert max(starts) < 0.5
        assert load.seconds < 2

    async def test_failures_are_counted_by_reason_and_have_no_latency(self, server: Server) -> None:
        connection = Connection(server.url)
        load = await run_load([lambda _: connection.request("GET", "/third-fails")], requests=9, limit_s=10)
        connection.close()
        assert load.errors == {"HTTP 503": 3}
        assert load.results == [b"ok"] * 6
        assert len(load.latencies_ms) == 6
        assert load.summary()["errors"] == {"HTTP 503": 3}

    async def test_a_bug_in_a_worker_ends_the_run(self) -> None:
        async def broken(_: int) -> None:
            raise KeyError("bug")

        with pytest.raises(ExceptionGroup) as caught:
            await run_load([broken], requests=3, limit_s=1)
        assert caught.group_contains(KeyError)


class TestConnection:
    async def test_one_connection_serves_many_requests(self, server: Server) -> None:
        connection = Connection(server.url)
        sent = [{"question": f"포트 {number}?"} for number in range(5)]
        assert [await connection.post_json("/echo", body) for body in sent] == sent
        connection.close()
        assert server.connections == 1
        assert [json.loads(body) for _, body in server.requests] == sent

    async def test_a_server_that_closes_is_connected_to_again(self, server: Server) -> None:
        connection = Connection(server.url)
        assert [await connection.request("GET", "/last") for _ in range(2)] == [b"ok", b"ok"]
        connection.close()
        assert server.connections == 2

    async def test_events_come_in_order_with_the_time_of_their_arrival(self, server: Server) -> None:
        connection = Connection(server.url)
        events = await connection.post_for_events("/events", {"stream": True})
        assert [event.name for event in events] == ["retrieval", "token", "done"]
        assert events[1].data == {"text": "포트: 8000"}
        assert 0 <= events[0].after_ms <= events[1].after_ms
        assert events[2].after_ms - events[1].after_ms >= 90
        assert await connection.post_json("/echo", {"left": "clean"}) == {"left": "clean"}
        connection.close()
        assert server.connections == 1

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("/nothing", "HTTP 404"),
            ("/broken", "connection failed (IncompleteReadError)"),
            ("/cut-events", "connection failed (IncompleteReadError)"),
            ("/error-event", "error event: Deadline passed"),
            ("/slow", "no answer within 1 s"),
        ],
    )
    async def test_a_failure_names_its_reason_and_the_next_request_works(
        self, server: Server, path: str, reason: str
    ) -> None:
        connection = Connection(server.url, timeout_s=1)
        with pytest.raises(RequestError) as caught:
            await connection.post_for_events(path, {})
        assert str(caught.value) == reason
        assert caught.value.detail == ("no /nothing" if path == "/nothing" else "")
        if path != "/error-event":  # a whole response: the connection is as good as before
            assert await connection.post_json("/echo", {"a": 1}) == {"a": 1}
        connection.close()

    async def test_a_closed_port_is_a_counted_failure(self, server: Server) -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        listening.close()
        connection = Connection(f"http://127.0.0.1:{port}")
        load = await run_load([lambda _: connection.request("GET", "/echo")], requests=4, limit_s=5)
        assert load.errors == {"connection failed (ConnectionRefusedError)": 4}
        assert load.results == []
        assert load.summary()["p50_ms"] is None


class TestToAsked:
    def test_ttft_is_the_first_token_event(self) -> None:
        events = [
            Event("retrieval", {}, 5.0),
            Event("token", {"text": "a"}, 80.0),
            Event("token", {"text": "b"}, 90.0),
            Event("done", {"status": "answered"}, 99.0),
        ]
        assert to_asked(events) == (80.0, {"status": "answered"})

    @pytest.mark.parametrize("names", [[], ["token"], ["retrieval", "done"]])
    def test_a_stream_without_token_or_done_is_a_failure(self, names: list[str]) -> None:
        with pytest.raises(RequestError, match="without done"):
            to_asked([Event(name, {}, 1.0) for name in names])
