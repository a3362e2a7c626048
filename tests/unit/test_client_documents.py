"""The clients at the service's own routes of documents: the real intake and job store, an indexer that is a fake."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn

from rag.document_wire import DocumentBody
from rag.errors import InputError
from rag.problems import RefusedError
from tests.client_calls import BOTH, Ask
from tests.document_doors import DOCUMENT, Doors

both_clients = pytest.mark.parametrize("call", BOTH)


@contextmanager
def running(doors: Doors) -> Iterator[str]:
    """The routes on a port of their own."""
    server = uvicorn.Server(uvicorn.Config(doors.api, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "it does not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Doors:
    return Doors(tmp_path_factory.mktemp("doors"))


@pytest.fixture(scope="module")
def url(doors: Doors) -> Iterator[str]:
    with running(doors) as url:
        yield url


@both_clients
def test_files_become_a_job_and_their_fields_reach_it(call: Ask, url: str, doors: Doors, tmp_path: Path) -> None:
    file = tmp_path / "메모.md"
    file.write_bytes(b"# One")
    fields = {"collection": "docs", "acl": ["staff", "boss"], "metadata": {"year": 2024}}
    job = call(url, "upload_files", [file, ("b.txt", b"two")], **fields)
    assert [one.source for one in job.documents] == ["upload/메모.md", "upload/b.txt"]
    assert (job.state, job.finished_at) == ("queued", None)
    assert {doors.stored()[f"{job.id}/{name}"] for name in ("0.md", "1.txt")} == {b"# One", b"two"}
    stored = doors.jobs.find(job.id)
    assert (stored.collection, stored.acl, stored.metadata) == ("docs", ("staff", "boss"), {"year": 2024})


@both_clients
def test_a_file_may_be_given_another_source(call: Ask, url: str) -> None:
    job = call(url, "upload_files", [("a.html", b"x")], source="https://wiki/a")
    assert [one.source for one in job.documents] == ["https://wiki/a"]


@both_clients
def test_a_text_becomes_a_job_that_is_waited_for(call: Ask, url: str, doors: Doors) -> None:
    job = call(url, "upload_text", "The lamp burns oil.", title="Lamp", source="https://wiki/lamp", acl=["staff"])
    stored = doors.jobs.find(job.id)
    assert stored.acl == ("staff",)
    done = [replace(one, state="done", chunks=1) for one in stored.documents]
    doors.jobs.finish(stored, "done", done)
    finished = call(url, "wait_for_job", job.id)
    assert (finished.state, finished.documents[0].chunks) == ("done", 1)


@both_clients
def test_documents_are_listed_page_by_page_found_and_deleted(call: Ask, url: str, doors: Doors) -> None:
    document = DocumentBody.model_validate(DOCUMENT)
    assert call(url, "list_documents") == [document, document]
    assert call(url, "get_document", "d1") == document
    assert call(url, "delete_document", "d1", "default") is None
    with pytest.raises(RefusedError, match="no document d 2") as raised:
        call(url, "get_document", "d 2")
    assert (raised.value.problem.status, raised.value.problem.type) == (404, "urn:rag:problem:unknown-document")
    groups = doors.indexer.asked[0][2]
    assert doors.indexer.asked[-5:] == [
        ("list_documents", "default", groups, None, 100),
        ("list_documents", "default", groups, "next", 100),
        ("find_document", "default", "d1", groups),
        ("delete_document", "default", "d1", groups),
        ("find_document", "default", "d 2", groups),
    ]


@both_clients
def test_collections_are_made_listed_and_deleted(call: Ask, url: str) -> None:
    assert call(url, "create_collection", "docs").name == "docs"
    assert call(url, "create_collection", "default").index_version == "v1"
    assert [one.name for one in call(url, "list_collections")] == ["default"]
    assert call(url, "delete_collection", "default") is None
    with pytest.raises(RefusedError) as raised:
        call(url, "delete_collection", "nope")
    assert raised.value.problem.status == 404


@both_clients
def test_what_an_upload_may_not_say_is_an_error_with_its_reason(call: Ask, url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.md cannot be read"):
        call(url, "upload_files", [tmp_path / "nothing.md"])
    with pytest.raises(InputError, match="no file to upload"):
        call(url, "upload_files", [])
    with pytest.raises(InputError, match="a path of a machine"):
        call(url, "upload_text", "x", title="x", source="/etc/passwd")
    with pytest.raises(RefusedError, match="two files are called"):
        call(url, "upload_files", [("a", b"1"), ("a", b"2")])
    with pytest.raises(RefusedError, match="year"):
        call(url, "upload_files", [("a", b"1")], metadata={"year": "last"})
