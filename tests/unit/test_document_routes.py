"""The routes of jobs, documents and collections over ASGI, and their description."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments import documents, watch
from tests.document_doors import (
    DOCUMENT,
    PROBLEM,
    Doors,
    check_problem,
    text_request,
)
from tests.waiting import wait_until


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    return Doors(tmp_path)


# --- jobs, documents, collections ---


async def test_a_job_tells_what_became_of_each_document(doors: Doors) -> None:
    await doors.post(files=[("file", ("a.md", b"x")), ("file", ("b.md", b"y"))])
    job = doors.jobs.start_next()
    assert job is not None
    good = replace(job.documents[0], state="done", pages=None, chunks=3)
    bad = replace(job.documents[1], state="failed", reason="it is empty")
    doors.jobs.finish(job, "done", [good, bad])
    body = (await doors.send("GET", f"/jobs/{job.job_id}")).json()
    assert body["state"] == "done"
    assert body["documents"] == [
        {"source": "upload/a.md", "state": "done", "reason": None, "pages": None, "chunks": 3},
        {"source": "upload/b.md", "state": "failed", "reason": "it is empty", "pages": None, "chunks": None},
    ]
    assert body["started_at"] <= body["finished_at"]


@pytest.mark.parametrize("job_id", ["job_nope", "..", "%2e%2e", "a'; DROP TABLE jobs; --"])
async def test_an_unknown_job_is_a_404(doors: Doors, job_id: str) -> None:
    check_problem(await doors.send("GET", f"/jobs/{job_id}"), 404)


async def test_documents_are_listed_as_the_caller_may_see_them(tmp_path: Path) -> None:
    doors = Doors(tmp_path, groups=frozenset({"staff"}))
    response = await doors.send("GET", "/documents", params={"cursor": "abc", "limit": 7})
    assert response.json() == {"documents": [DOCUMENT], "next_cursor": "next"}
    assert (await doors.send("GET", "/documents/d1")).json() == DOCUMENT
    assert (await doors.send("DELETE", "/documents/d1?collection=default")).status_code == 204
    assert doors.indexer.asked == [
        ("list_documents", "default", frozenset({"staff"}), "abc", 7),
        ("find_document", "default", "d1", frozenset({"staff"})),
        ("delete_document", "default", "d1", frozenset({"staff"})),
    ]


async def test_a_job_knows_its_sender_s_groups(tmp_path: Path) -> None:
    doors = Doors(tmp_path, groups=frozenset({"staff", "boss"}))
    for upload in ({"files": {"file": ("a.md", b"x")}}, {"json": text_request()}):
        response = await doors.post(**upload)
        assert doors.jobs.find(response.json()["id"]).caller_groups == ("boss", "staff")


async def test_a_caller_without_a_key_is_in_no_group(doors: Doors) -> None:
    await doors.send("GET", "/documents")
    assert doors.indexer.asked == [("list_documents", "default", frozenset(), None, 100)]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/documents?collection=nope", 404),
        ("GET", "/documents/d2", 404),
        ("DELETE", "/documents/d2", 404),
        ("DELETE", "/collections/nope", 404),
        ("GET", "/documents?limit=0", 422),
        ("GET", "/documents?limit=1001", 422),
        ("GET", "/documents?limit=x", 422),
        ("GET", "/documents?collection=", 422),
        ("PUT", "/documents/d1", 415),
        ("PATCH", "/collections", 415),
        ("DELETE", "/documents", 405),
    ],
)
async def test_what_is_not_there_or_wrong_is_a_problem(doors: Doors, method: str, path: str, status: int) -> None:
    check_problem(await doors.send(method, path), status)


async def test_collections_are_listed_made_and_deleted(doors: Doors) -> None:
    listed = (await doors.send("GET", "/collections")).json()
    assert listed == {"collections": [{"name": "default", "index_version": "v1"}]}
    made = await doors.send("POST", "/collections", json={"name": "docs"})
    assert (made.status_code, made.json()) == (201, {"name": "docs", "index_version": "v1"})
    assert (await doors.send("POST", "/collections", json={"name": "default"})).status_code == 200
    assert (await doors.send("DELETE", "/collections/default")).status_code == 204
    for wrong in ({"name": "a b"}, {"name": ""}, {}, {"name": "a", "path": "x"}):
        check_problem(await doors.send("POST", "/collections", json=wrong), 422)


# --- an indexer that is gone or says nothing ---

CALLS = [
    ("GET", "/documents", {}),
    ("GET", "/documents/d1", {}),
    ("DELETE", "/documents/d1", {}),
    ("GET", "/collections", {}),
    ("POST", "/collections", {"json": {"name": "docs"}}),
    ("DELETE", "/collections/default", {}),
]
every_call = pytest.mark.parametrize(("method", "path", "sent"), CALLS, ids=lambda value: str(value))


@every_call
async def test_without_an_indexer_every_call_is_refused_and_may_come_again(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, method: str, path: str, sent: dict[str, Any]
) -> None:
    monkeypatch.setattr(watch, "TIMEOUT_S", 0.05)
    doors.indexer.replica.clear()
    async with asyncio.timeout(10):
        # Asked before the watch knows it, then after.
        for _ in range(2):
            response = await doors.send(method, path, **sent)
            assert check_problem(response, 503)["stage"] == "indexer"
            assert int(response.headers["retry-after"]) >= 1
    doors.indexer.replica.set()
    await wait_until(lambda: doors.watch().states()["indexer"] == "ok")
    assert (await doors.send(method, path, **sent)).is_success


@every_call
async def test_an_indexer_that_does_not_answer_is_not_waited_for_without_end(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, method: str, path: str, sent: dict[str, Any]
) -> None:
    monkeypatch.setattr(documents, "INDEXER_S", 0.05)
    doors.indexer.silent = True
    async with asyncio.timeout(10):
        response = await doors.send(method, path, **sent)
    assert check_problem(response, 503)["type"] == "urn:rag:problem:stage-timeout"
    assert int(response.headers["retry-after"]) >= 1


async def test_an_upload_needs_no_indexer(doors: Doors) -> None:
    doors.indexer.replica.clear()
    assert (await doors.post(json=text_request())).status_code == 202


# --- the description ---


def test_the_openapi_description_tells_what_the_routes_take_and_answer(doors: Doors) -> None:
    paths = doors.api.openapi()["paths"]
    upload = paths["/documents"]["post"]
    assert set(upload["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"file", "collection", "acl", "metadata", "source"}
    text = upload["requestBody"]["content"]["application/json"]["schema"]
    assert set(text["required"]) == {"text", "title", "source"}
    assert set(upload["responses"]) == {"202", "400", "413", "415", "422", "429", "503"}
    assert "Location" in upload["responses"]["202"]["headers"]
    assert set(paths["/jobs/{job_id}"]["get"]["responses"]) == {"200", "404", "422"}
    assert set(paths["/documents/{document_id}"]["delete"]["responses"]) == {"204", "404", "422", "503"}
    assert set(paths["/collections"]["post"]["responses"]) >= {"200", "201", "409"}
    for path, methods in paths.items():
        if path.startswith(("/documents", "/jobs", "/collections")):
            for method in methods.values():
                refusals = [answer for status, answer in method["responses"].items() if status >= "400"]
                assert refusals
                assert all(set(answer["content"]) == {PROBLEM} for answer in refusals)
