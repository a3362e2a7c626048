"""The routes of documents over ASGI for tests: the real intake and job store, an indexer that is a fake."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI

from deployments.documents import DocumentDoors, current_doors
from deployments.ingress import create_api
from deployments.intake import Intake
from deployments.jobs import JobStore
from deployments.watch import Watch
from rag.errors import UnknownCollectionError, UnknownDocumentError
from rag.serve_settings import ServeSettings

PROBLEM = "application/problem+json"
BOUNDARY = "x1x"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
DOCUMENT = {
    "document_id": "d1",
    "source": "upload/a.md",
    "title": "A",
    "revision": "r1",
    "chunks": 2,
    "pages": None,
    "acl": [],
    "metadata": {"year": 2024},
    "updated_at": "2026-01-01",
}


class FakeIndexer:
    """Knows one document, d1 of the collection `default`, and remembers what it was asked.

    Without a replica no call is answered and, as Serve has it, none fails; `silent`: only that it is ready is said.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.replica = asyncio.Event()
        self.replica.set()
        self.silent = False
        self.ready = SimpleNamespace(remote=self.replica.wait)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self, f"_{name}")

        async def remote(*arguments: Any) -> Any:
            await asyncio.sleep(0)
            self.asked.append((name, *arguments))
            await (asyncio.Event() if self.silent else self.replica).wait()
            return method(*arguments)

        return SimpleNamespace(remote=remote)

    def _list_documents(self, collection: str, groups: Any, cursor: str | None, limit: int) -> Any:
        if collection != "default":
            raise UnknownCollectionError(collection)
        return [DOCUMENT][:limit], None if cursor == "next" else "next"

    def _find_document(self, collection: str, document_id: str, groups: Any) -> Any:
        if document_id != "d1":
            raise UnknownDocumentError(f"no document {document_id}")
        return DOCUMENT

    def _delete_document(self, collection: str, document_id: str, groups: Any) -> None:
        self._find_document(collection, document_id, groups)

    def _list_collections(self) -> Any:
        return [{"name": "default", "index_version": "v1"}]

    def _create_collection(self, name: str) -> Any:
        return name != "default", {"name": name, "index_version": "v1"}

    def _delete_collection(self, name: str) -> None:
        if name != "default":
            raise UnknownCollectionError(name)


class Doors:
    def __init__(self, data_dir: Path, groups: frozenset[str] = frozenset(), **limits: Any) -> None:
        self.settings = ServeSettings(**limits)
        self.jobs = JobStore(data_dir)
        self.uploads = data_dir / "uploads"
        self.indexer = FakeIndexer()
        indexer: Any = self.indexer
        self._watching: Watch | None = None
        intake = Intake(self.settings, self.jobs, {"year": "integer"})
        doors = DocumentDoors(intake, self.jobs, indexer, self.watch, groups)
        self.api: FastAPI = create_api(self.settings)
        self.api.dependency_overrides[current_doors] = lambda: doors

    def watch(self) -> Watch:
        """Made on the event loop that serves, as the orchestrator has it."""
        if self._watching is None:
            self._watching = Watch({"indexer": self.indexer.ready.remote})
        return self._watching

    async def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **request)

    async def post(self, **request: Any) -> httpx.Response:
        return await self.send("POST", "/documents", **request)

    def stored(self) -> dict[str, bytes]:
        files = [path for path in self.uploads.rglob("*") if path.is_file()]
        return {path.relative_to(self.uploads).as_posix(): path.read_bytes() for path in files}


def check_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["detail"]
    assert "Traceback" not in response.text
    return body


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def text_request(**changes: Any) -> dict[str, Any]:
    return {"text": "The lamp burns oil.", "title": "Lamp", "source": "https://wiki/lamp"} | changes
