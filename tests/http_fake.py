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
    headers: dict[str, str] = field(default_factory=dict)


def reply(content: object, status: int = 200) -> Reply:
    """A JSON response."""
    return Reply(json.dumps(content).encode(), status)


def problem(status: int, title: str = "Title", detail: str = "the detail", **headers: str) -> Reply:
    """A problem response."""
    content = {"type": "urn:rag:problem:x", "title": title, "status": status, "detail": detail}
    content |= {"instance": "/ask", "request_id": "req-1", "retryable": status in (429, 503)}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps(content).encode(), status, PROBLEM, headers=headers)


def citation(**changes: Any) -> dict[str, Any]:
    """A citation as the wire has it."""
    own = {"marker": 1, "answer_start": 0, "answer_end": 33, "quote": "The service listens on port 8000."}
    own |= {"verified": True, "document_id": "d1", "chunk_id": "c1", "title": "Ports", "source": "docs/ports.pdf"}
    return own | {"page": 3, "char_start": 0, "char_end": 33, "score": 0.98} | changes


def answered(text: str = "The service listens on port 8000. [1]", **changes: Any) -> dict[str, Any]:
    """The response object of `/ask`."""
    own = {"id": "ans_1", "request_id": "req-1", "status": "answered", "answer": text, "answer_source": "generated"}
    own |= {"citations": [], "unsupported": [], "confidence": 0.9, "degraded": [], "collection": "default"}
    own |= {"index_version": "v1", "model": "llm", "usage": {"prompt_tokens": 8, "completion_tokens": 2}}
    return own | {"timings_ms": {"total": 3.0}} | changes


def hit(**changes: Any) -> dict[str, Any]:
    """A hit of `/search`."""
    own = {"chunk_id": "c1", "document_id": "d1", "title": "Ports", "source": "ports.md", "heading": "", "page": None}
    own |= {"char_start": 0, "char_end": 20, "text": "The service\nlistens.", "score": 0.98}
    return own | {"scores": {"dense": 0.5, "lexical": None, "fused": 0.1, "rerank": 0.98}} | changes


def found(*hits: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The response object of `/search`."""
    return {"hits": list(hits), "degraded": [], "timings_ms": {"total": 3.0}, "index_version": "v1"} | changes


INFO: dict[str, Any] = {
    "version": "9.9",
    "profile": "gpu",
    "models": {
        "embedder": "e",
        "reranker": {"kind": "maxsim", "model": "e"},
        "generators": ["llm"],
        "split": {"llm": 1.0},
    },
    "limits": {"question_chars": 4000, "deadline_s": 60.0},
    "index_versions": {"default": "v1"},
}


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
    """`replies` by path, a list in turn; `asked` keeps (path, body) and `heads` (method, headers) of each request."""

    url: str
    replies: dict[str, Reply | list[Reply]]
    asked: list[tuple[str, Any]] = field(default_factory=list)
    heads: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@contextmanager
def serving(port: int = 0, /, **replies: Reply | list[Reply]) -> Iterator[Service]:
    """A service that answers `/ask`, `/search`, `/info` and so on with the replies of these names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            self._reply(None)

        do_DELETE = do_GET  # noqa: N815

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self._reply(json.loads(body) if self.headers["content-type"] == JSON else body)

        def log_message(self, *_: object) -> None:
            return

        def _reply(self, body: Any) -> None:
            service.asked.append((self.path, body))
            service.heads.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
            reply = service.replies[self.path.removeprefix("/").partition("?")[0]]
            if isinstance(reply, list):
                reply = reply.pop(0)
            self.send_response(reply.status)
            self.send_header("content-type", reply.kind)
            self.send_header("content-length", str(len(reply.body) + (100 if reply.cut else 0)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(reply.body)

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    service = Service(f"http://127.0.0.1:{server.server_port}", replies)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
