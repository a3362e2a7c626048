"""A service of one's own making: an HTTP server on a free port that answers as told and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JSON, PROBLEM, EVENTS = "application/json", "application/problem+json", "text/event-stream"


@dataclass
class Reply:
    """What a path answers; `cut` ends the connection before the announced length is reached."""

    body: bytes
    status: int = 200
    kind: str = JSON
    cut: bool = False


def problem(status: int, title: str = "Title", detail: str = "the detail") -> Reply:
    """A problem response."""
    content = {"type": "urn:rag:problem:x", "title": title, "status": status, "detail": detail}
    return Reply(json.dumps(content).encode(), status, PROBLEM)


def stream(*events: tuple[str, dict[str, Any]], cut: bool = False) -> Reply:
    """Server-sent events, with a comment among them."""
    blocks = [
        f"id: {number}\nevent: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
        for number, (name, data) in enumerate(events, start=1)
    ]
    blocks.insert(1, ": still working\n\n")
    return Reply("".join(blocks).encode(), kind=f"{EVENTS}; charset=utf-8", cut=cut)


@dataclass
class Service:
    """`replies` by path; `asked` keeps (path, body)."""

    url: str
    replies: dict[str, Reply]
    asked: list[tuple[str, Any]] = field(default_factory=list)


@contextmanager
def serving(**replies: Reply) -> Iterator[Service]:
    """A service that answers `/ask`, `/search`, `/info` with the replies of these names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def log_message(self, *_: object) -> None:
            return

        def _reply(self, body: Any) -> None:
            service.asked.append((self.path, body))
            reply = service.replies[self.path.removeprefix("/")]
            self.send_response(reply.status)
            self.send_header("content-type", reply.kind)
            self.send_header("content-length", str(len(reply.body) + (100 if reply.cut else 0)))
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(reply.body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service = Service(f"http://127.0.0.1:{server.server_port}", replies)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
