"""Uploads over ASGI: the real intake and job store, an indexer of fakes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deployments import intake
from deployments.jobs import JobStore
from tests.document_doors import (
    BOUNDARY,
    FORM,
    Doors,
    check_problem,
    files_below,
    text_request,
)

# Metadata that JSON can say and no store can hold.
UNSTORABLE = [
    '{"a": "\\ud800"}',
    '{"a\\ud800": 1}',
    '{"a": [{"b": ["\\udfff"]}]}',
    '{"a": NaN}',
    '{"a": [-Infinity]}',
    '{"a": {"b": 1e999}}',
]


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    return Doors(tmp_path)


# --- uploads that are taken ---


async def test_files_become_a_job_that_is_on_the_disk_with_them(doors: Doors, tmp_path: Path) -> None:
    files = [("file", ("메모.md", b"# One")), ("file", ("b.PDF", b"%PDF-"))]
    data = {"collection": "docs", "acl": ["staff", "boss"], "metadata": '{"year": 2024}'}
    response = await doors.post(files=files, data=data)
    assert response.status_code == 202, response.text
    body = response.json()
    assert response.headers["location"] == f"/jobs/{body['id']}"
    waiting = {"state": "queued", "reason": None, "pages": None, "chunks": None}
    assert body["documents"] == [{"source": "upload/메모.md", **waiting}, {"source": "upload/b.PDF", **waiting}]
    assert (body["state"], body["started_at"], body["finished_at"]) == ("queued", None, None)
    job = JobStore(tmp_path).find(body["id"])
    assert (job.collection, job.acl, job.metadata) == ("docs", ("staff", "boss"), {"year": 2024})
    assert job.bytes >= 10
    assert doors.stored() == {f"{job.job_id}/0.md": b"# One", f"{job.job_id}/1.pdf": b"%PDF-"}
    assert (await doors.send("GET", response.headers["location"])).json() == body


async def test_a_text_becomes_a_row_that_names_its_source(doors: Doors) -> None:
    response = await doors.post(json=text_request(acl=["staff"], metadata={"tags": ["a"]}, collection="docs"))
    assert response.status_code == 202, response.text
    assert [one["source"] for one in response.json()["documents"]] == ["https://wiki/lamp"]
    job = doors.jobs.find(response.json()["id"])
    assert (job.collection, job.acl, job.metadata) == ("docs", ("staff",), {"tags": ["a"]})
    ((name, content),) = doors.stored().items()
    assert name == f"{job.job_id}/text.jsonl"
    assert json.loads(content) == {
        "id": "https://wiki/lamp", "source": "https://wiki/lamp", "title": "Lamp", "text": "The lamp burns oil."
    }  # fmt: skip


async def test_a_source_given_beside_a_file_is_its_document_s(doors: Doors) -> None:
    response = await doors.post(files={"file": ("a.html", b"x")}, data={"source": "https://wiki/a"})
    assert [one["source"] for one in response.json()["documents"]] == ["https://wiki/a"]
    assert [name.rpartition("/")[2] for name in doors.stored()] == ["0.html"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("../../etc/passwd", "upload/../../etc/passwd"),
        ("/etc/passwd", "upload//etc/passwd"),
        ("C:\\docs\\a.md", "upload/a.md"),
        ("a\0b\x1b.md", "upload/ab.md"),
        ("x" * 2000 + ".md", "upload/" + "x" * 997 + ".md"),
        ("job.sqlite3", "upload/job.sqlite3"),
    ],
)
async def test_a_name_is_never_a_path(doors: Doors, tmp_path: Path, name: str, source: str) -> None:
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"'.encode()
    boundary = BOUNDARY.encode()
    body = b"--" + boundary + b"\r\n" + head + b"\r\n\r\nx\r\n--" + boundary + b"--\r\n"
    before = files_below(tmp_path)
    response = await doors.post(content=body, headers=FORM)
    assert response.status_code == 202, response.text
    assert [one["source"] for one in response.json()["documents"]] == [source]
    (new,) = files_below(tmp_path) - before
    assert (new.parent, new.stem) == (doors.jobs.folder(response.json()["id"]), "0")


# --- uploads that are refused leave nothing behind ---


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        pytest.param({"files": {"acl": (None, b"staff")}}, 422, "no file", id="no_file"),
        pytest.param({"files": {"file": ("a.md", b"x")}, "data": {"colection": "x"}}, 422, "colection", id="field"),
        pytest.param({"files": {"file": ("a.md", b"x")}, "data": {"collection": "a b"}}, 422, "collection", id="name"),
        pytest.param({"files": {"file": ("a.md", b"x")}, "data": {"acl": [""]}}, 422, "acl", id="empty_group"),
        pytest.param({"files": {"file": ("a.md", b"x")}, "data": {"metadata": "{"}}, 422, "metadata", id="metadata"),
        pytest.param({"files": {"file": ("a.md", b"x")}, "data": {"metadata": "[]"}}, 422, "metadata", id="array"),
        *(
            pytest.param({"files": {"file": ("a.md", b"x")}, "data": {"metadata": text}}, 422, "metadata", id=text)
            for text in UNSTORABLE
        ),
        *(
            pytest.param(
                {
                    "content": b'{"text": "x", "title": "x", "source": "x", "metadata": %s}' % text.encode(),
                    "headers": {"content-type": "application/json"},
                },
                400 if "\\u" in text else 422,  # the parser's own refusal
                "hex escape" if "\\u" in text else "metadata",
                id=f"text_{text}",
            )
            for text in UNSTORABLE
        ),
        pytest.param({"files": {"file": ("a.md", b"x")}, "data": {"source": ["a", "b"]}}, 422, "source", id="twice"),
        pytest.param({"files": [("file", ("a", b"x"))] * 2}, 422, "'a'", id="same_name"),
        pytest.param({"files": {"file": (" ", b"x")}}, 422, "no name", id="no_name"),
        pytest.param({"files": {"document": ("a.md", b"x")}}, 422, "`file`", id="another_field"),
        pytest.param({"files": [("file", (str(n), b"x")) for n in range(4)]}, 413, "max_upload_files", id="many_files"),
        pytest.param(
            {"files": [("file", (str(n), b"x")) for n in range(2)], "data": {"source": "a"}}, 422, "apart", id="source"
        ),
        pytest.param({"content": b"--x1x\r\n", "headers": FORM}, 400, "boundary", id="cut"),
        pytest.param({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary", id="none"),
        pytest.param({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "multipart", id="plain_text"),
        pytest.param({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "JSON", id="no_json"),
        pytest.param({"json": text_request(text=" \n")}, 422, "text", id="blank_text"),
        pytest.param({"json": text_request(source=None)}, 422, "source", id="no_source"),
        pytest.param({"json": text_request(source="/home/x/a.md")}, 422, "path", id="absolute_path"),
        pytest.param({"json": text_request(source="a\nb")}, 422, "source", id="control_character"),
        pytest.param({"json": text_request(source="a" * 1001)}, 422, "source", id="long_source"),
        pytest.param({"json": text_request(path="/etc")}, 422, "path", id="unknown_field"),
        pytest.param({"json": text_request(metadata={"year": "2024"})}, 422, "year", id="metadata_of_another_type"),
        pytest.param({"json": text_request(metadata={"a": "x" * 60_000})}, 422, "metadata", id="large_metadata"),
        pytest.param({"json": text_request(text="x" * 70_000)}, 413, "serve.max_text_bytes", id="long_text"),
        pytest.param({"files": {"file": ("a.md", b"x" * 20_000)}}, 413, "serve.max_upload_bytes", id="large_file"),
    ],
)
async def test_a_refused_upload_leaves_nothing(
    tmp_path: Path, request_: dict[str, Any], status: int, words: str
) -> None:
    doors = Doors(tmp_path, max_upload_files=3, max_upload_bytes=20_000, max_text_bytes=70_000)
    body = check_problem(await doors.post(**request_), status)
    assert words in body["detail"]
    assert list(doors.uploads.iterdir()) == []
    assert doors.jobs.start_next() is None


def endless_form(taken: list[int]) -> AsyncIterator[bytes]:
    """A form whose file never ends; `taken` counts the bytes that were asked for."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b'--x1x\r\nContent-Disposition: form-data; name="file"; filename="big.txt"\r\n\r\n'
        while True:
            taken[0] += 1000
            yield b"x" * 1000

    return pieces()


async def test_an_endless_upload_is_refused_within_the_first_bytes_over_the_limit(tmp_path: Path) -> None:
    doors = Doors(tmp_path, max_upload_bytes=50_000)
    taken = [0]
    response = await doors.post(content=endless_form(taken), headers=FORM)
    assert "50000 bytes" in check_problem(response, 413)["detail"]
    assert response.headers["connection"] == "close"  # or the server would take in what is still to come
    assert taken[0] <= 51_000
    assert list(doors.uploads.iterdir()) == []


async def test_an_upload_announced_as_too_large_is_refused_unread(tmp_path: Path) -> None:
    doors = Doors(tmp_path, max_upload_bytes=50_000)
    taken = [0]
    response = await doors.post(content=endless_form(taken), headers={**FORM, "content-length": "50001"})
    check_problem(response, 413)
    assert taken[0] == 0


async def test_other_routes_keep_their_own_limit(tmp_path: Path) -> None:
    doors = Doors(tmp_path, max_body_bytes=2000)
    response = await doors.send("POST", "/collections", json={"name": "x" * 3000})
    assert "serve.max_body_bytes" in check_problem(response, 413)["detail"]
    assert (await doors.send("POST", "/collections", files={"file": ("a", b"x")})).status_code == 415


async def test_uploads_that_wait_fill_a_quota_until_their_jobs_end(tmp_path: Path) -> None:
    doors = Doors(tmp_path, max_stored_bytes=5000)
    assert (await doors.post(files={"file": ("a.txt", b"x" * 3000)})).status_code == 202
    refused = await doors.post(files={"file": ("b.txt", b"x" * 3000)})
    assert "serve.max_stored_bytes" in check_problem(refused, 429)["detail"]
    assert int(refused.headers["retry-after"]) >= 1
    assert len(doors.stored()) == 1
    job = doors.jobs.start_next()
    assert job is not None
    doors.jobs.finish(job, "done", job.documents)
    assert (await doors.post(files={"file": ("b.txt", b"x" * 3000)})).status_code == 202


async def test_an_upload_that_could_never_have_room_is_too_large(tmp_path: Path) -> None:
    doors = Doors(tmp_path, max_stored_bytes=5000)
    check_problem(await doors.post(files={"file": ("a.txt", b"x" * 6000)}), 413)
    assert doors.stored() == {}


async def test_uploads_at_once_are_limited_and_a_refused_one_does_not_count(tmp_path: Path) -> None:
    doors = Doors(tmp_path, max_uploads=1)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b'--x1x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        begun.set()
        await go_on.wait()
        yield b"x\r\n--x1x--\r\n"

    first = asyncio.create_task(doors.post(content=pieces(), headers=FORM))
    await begun.wait()
    refused = await doors.post(json=text_request())
    assert int(refused.headers["retry-after"]) >= 1
    check_problem(refused, 503)
    go_on.set()
    assert (await first).status_code == 202
    assert (await doors.post(json=text_request())).status_code == 202


HEAD = b'--x1x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
JSON_TYPE = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("begun", "headers"),
    [
        pytest.param([HEAD], FORM, id="form"),
        pytest.param([HEAD, b"x", b"x"], FORM, id="form_in_its_middle"),
        pytest.param([], FORM, id="nothing"),
        pytest.param([b'{"text": "x'], JSON_TYPE, id="json"),
    ],
)
async def test_clients_that_fall_silent_are_refused_and_free_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[bytes], headers: dict[str, str]
) -> None:
    monkeypatch.setattr(intake, "SILENCE_S", 0.1)
    doors = Doors(tmp_path, max_uploads=2)

    async def pieces() -> AsyncIterator[bytes]:
        for piece in begun:
            yield piece
        await asyncio.Event().wait()

    async with asyncio.timeout(10):
        for response in await asyncio.gather(*(doors.post(content=pieces(), headers=headers) for _ in range(2))):
            assert "nothing of the body came for 0.1 s" in check_problem(response, 400)["detail"]
            assert response.headers["connection"] == "close"
    assert list(doors.uploads.iterdir()) == []
    assert (await doors.post(json=text_request())).status_code == 202


@pytest.mark.parametrize("headers", [FORM, JSON_TYPE], ids=["form", "json"])
async def test_a_slow_client_that_goes_on_sending_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(intake, "SILENCE_S", 0.5)
    doors = Doors(tmp_path)
    body = HEAD + b"x" * 60 + b"\r\n--x1x--\r\n" if headers is FORM else json.dumps(text_request()).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 12):
            await asyncio.sleep(0.1)
            yield body[start : start + 12]

    began = time.monotonic()
    assert (await doors.post(content=pieces(), headers=headers)).status_code == 202
    assert time.monotonic() - began > 0.6  # longer than any silence may be


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(doors: Doors) -> None:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'--x1x\r\nContent-Disposition: form-data; name="file"; ', "more_body": True},
        {"type": "http.request", "body": b'filename="a.txt"\r\n\r\nhalf', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        assert message.get("status", 499) == 499

    headers = [(b"content-type", FORM["content-type"].encode())]
    scope = {"type": "http", "method": "POST", "path": "/documents", "headers": headers, "query_string": b""}
    await doors.api({**scope, "server": ("s", 80), "scheme": "http", "http_version": "1.1"}, receive, send)
    assert list(doors.uploads.iterdir()) == []
    assert (await doors.post(json=text_request())).status_code == 202


async def test_a_disk_that_fails_is_said_to_and_names_no_path(doors: Doors) -> None:
    doors.uploads.rename(doors.uploads.with_name("gone"))
    body = check_problem(await doors.post(json=text_request()), 503)
    assert body["stage"] == "indexer"
    assert str(doors.uploads) not in body["detail"]
