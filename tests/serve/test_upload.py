"""Documents over HTTP on a real Serve graph with a real Milvus Lite: uploads, jobs, a replica killed, 3 GB refused."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from reportlab.pdfgen.canvas import Canvas

from deployments.launch import running_service
from eval.ports import free_ports
from rag.client import Client
from rag.config import Settings, load_settings
from rag.problems import RefusedError
from rag.wire import DoneEvent, TokenEvent
from tests.serve.document_graph import build_document_app

pytestmark = pytest.mark.skipif(importlib.util.find_spec("milvus_lite") is None, reason="milvus-lite: the cpu extra")

ROOT = Path(__file__).parents[2]
PROBLEM = "application/problem+json"
MAX_UPLOAD = 2_000_000
# What may be on its way in the buffers of sockets and of the proxy when the refusal is written.
BUFFERED = 64_000_000


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    (port,) = free_ports(1)
    return load_settings(
        profile="embedded",
        data_dir=tmp_path_factory.mktemp("serve"),
        serve={"port": port, "max_upload_bytes": MAX_UPLOAD},
    )


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[httpx.Client]:
    with (
        running_service(settings, lambda sentence: print(sentence, file=sys.stderr), build_document_app) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def wait_until(fulfilled: Callable[[], bool], what: str, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fulfilled():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


def upload(client: httpx.Client, files: dict[str, bytes], **fields: Any) -> str:
    parts = [("file", (name, content)) for name, content in files.items()]
    response = client.post("/documents", files=parts, data=fields)
    assert response.status_code == 202, response.text
    return response.headers["location"]


def finish(client: httpx.Client, location: str) -> dict[str, Any]:
    def job() -> dict[str, Any]:
        response = client.get(location)
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    wait_until(lambda: job()["finished_at"] is not None, "the job's end")
    return job()


def sources_found(client: httpx.Client, query: str, collection: str = "default") -> set[str]:
    response = client.post("/search", json={"query": query, "collection": collection})
    assert response.status_code == 200, response.text
    return {hit["source"] for hit in response.json()["hits"]}


def listed(client: httpx.Client, collection: str = "default") -> dict[str, dict[str, Any]]:
    documents: dict[str, dict[str, Any]] = {}
    cursor: str | None = None
    while True:
        asked = {"collection": collection, "limit": "2"} | ({"cursor": cursor} if cursor else {})
        response = client.get("/documents", params=asked)
        assert response.status_code == 200, response.text
        page = response.json()
        documents |= {one["source"]: one for one in page["documents"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return documents


def long_text(word: str, paragraphs: int) -> bytes:
    sentence = f"The {word} stands in the reeds and waits for the frogs of the pond. "
    return "\n\n".join(f"Part {number}. " + sentence * 12 for number in range(paragraphs)).encode()


def replica(settings: Settings, name: str) -> psutil.Process:
    (found,) = [
        one
        for one in psutil.Process().children(recursive=True)
        if f"ServeReplica:rag:{name}" in " ".join(one.cmdline())
    ]
    return found


def pdf(path: Path, text: str) -> bytes:
    canvas = Canvas(str(path))
    for number in (1, 2):
        canvas.drawString(72, 720, f"{text} Page {number}.")
        canvas.showPage()
    canvas.save()
    return path.read_bytes()


def test_what_a_done_job_held_is_found_by_the_next_search(client: httpx.Client, tmp_path: Path) -> None:
    files = {
        "등대.md": b"# Lamp\n\nThe lamp of the lighthouse burns whale oil.",
        "heron.pdf": pdf(tmp_path / "heron.pdf", "The heron eats frogs."),
        "bad.bin": b"\0\1\2\3",
    }
    job = finish(client, upload(client, files, metadata='{"year": 2024}'))
    assert job["state"] == "done"
    lamp, heron, bad = job["documents"]
    assert (lamp["source"], lamp["state"], lamp["pages"], lamp["chunks"]) == ("upload/등대.md", "done", None, 1)
    assert (heron["source"], heron["state"], heron["pages"]) == ("upload/heron.pdf", "done", 2)
    assert bad["state"] == "failed"
    assert "binary" in bad["reason"]
    assert sources_found(client, "lamp whale oil") == {"upload/등대.md", "upload/heron.pdf"}
    documents = listed(client)
    assert set(documents) == {"upload/등대.md", "upload/heron.pdf"}
    document = documents["upload/등대.md"]
    assert (document["title"], document["metadata"], document["acl"]) == ("Lamp", {"year": 2024}, [])
    assert client.get(f"/documents/{document['document_id']}").json() == document


def test_a_text_is_found_under_its_source_and_title(client: httpx.Client) -> None:
    request = {"text": "The plum tree blossoms in spring.", "title": "Plums", "source": "https://wiki/plum"}
    response = client.post("/documents", json={**request, "collection": "texts", "metadata": {"lang": "en"}})
    assert response.status_code == 202, response.text
    job = finish(client, response.headers["location"])
    assert (job["state"], job["documents"][0]["state"], job["documents"][0]["chunks"]) == ("done", "done", 1)
    assert sources_found(client, "plum tree", "texts") == {"https://wiki/plum"}
    document = listed(client, "texts")["https://wiki/plum"]
    assert (document["title"], document["metadata"]) == ("Plums", {"lang": "en"})


def test_rows_of_json_lines_are_documents_and_a_bad_one_is_named(client: httpx.Client) -> None:
    rows = [{"id": "a", "text": "The ash tree."}, {"id": "b"}, {"id": "c", "text": "The elm tree."}]
    content = "\n".join(json.dumps(row) for row in rows).encode()
    job = finish(client, upload(client, {"trees.jsonl": content}, collection="rows"))
    assert job["state"] == "done"
    whole, bad = job["documents"]
    assert (whole["source"], whole["state"], whole["chunks"]) == ("upload/trees.jsonl", "done", 2)
    assert "1 of the 3" in whole["reason"]
    assert (bad["source"], bad["state"]) == ("upload/trees.jsonl:2", "failed")
    assert set(listed(client, "rows")) == {"a", "c"}


def test_a_deleted_document_is_not_found_by_the_next_search(client: httpx.Client) -> None:
    finish(client, upload(client, {"a.md": b"The quince tree.", "b.md": b"The medlar tree."}, collection="trees"))
    assert sources_found(client, "tree", "trees") == {"upload/a.md", "upload/b.md"}
    document_id = listed(client, "trees")["upload/a.md"]["document_id"]
    path = f"/documents/{document_id}?collection=trees"
    assert client.delete(path).status_code == 204
    assert sources_found(client, "tree", "trees") == {"upload/b.md"}
    for response in (client.get(path), client.delete(path)):
        assert response.status_code == 404
        assert response.headers["content-type"] == PROBLEM


def test_a_document_with_groups_is_as_good_as_not_there_for_others(client: httpx.Client) -> None:
    job = finish(client, upload(client, {"secret.md": b"The key is under the mat."}, collection="keys", acl="staff"))
    assert job["state"] == "done"
    assert listed(client, "keys") == {}


def test_collections_are_made_listed_and_deleted(client: httpx.Client) -> None:
    made = client.post("/collections", json={"name": "notes"})
    assert made.status_code == 201, made.text
    assert client.post("/collections", json={"name": "notes"}).status_code == 200
    assert made.json() in client.get("/collections").json()["collections"]
    assert listed(client, "notes") == {}
    assert client.delete("/collections/notes").status_code == 204
    assert client.get("/documents?collection=notes").status_code == 404


def test_the_python_client_takes_a_document_from_its_upload_to_its_end(client: httpx.Client) -> None:
    question, text = "What does the sundial show?", "The sundial shows the hours of the day. It stands in the yard."
    with Client(str(client.base_url)) as python:
        sent = python.upload_files([("sundial.md", text.encode())], collection="sundials", metadata={"year": 2024})
        job = python.wait_for_job(sent.id)
        assert (job.state, job.documents[0].chunks) == ("done", 1)
        (document,) = python.list_documents("sundials")
        assert python.get_document(document.document_id, "sundials") == document
        (hit,) = python.search("sundial", collection="sundials", filter="year == 2024").hits
        assert (hit.document_id, hit.text) == (document.document_id, text)
        answer = python.ask(question, collection="sundials", request_id="sun-1")
        assert (answer.request_id, answer.status) == ("sun-1", "answered")
        assert {citation.quote for citation in answer.citations} <= {"The sundial shows the hours of the day."}
        *events, done = python.stream(question, collection="sundials")
        assert isinstance(done, DoneEvent)
        assert "".join(event.text for event in events if isinstance(event, TokenEvent)) == done.answer == answer.answer
        assert "sundials" in python.info().index_versions
        assert set(python.health().stages.values()) == {"ok"}
        python.delete_document(document.document_id, "sundials")
        with pytest.raises(RefusedError, match="Unknown document"):
            python.get_document(document.document_id, "sundials")
        python.delete_collection("sundials")
        assert "sundials" not in {one.name for one in python.list_collections()}


def test_the_readme_s_python_works(client: httpx.Client) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(from rag\.client .*?)^```$", readme, re.MULTILINE | re.DOTALL)
    code = code.replace("http://127.0.0.1:8000", str(client.base_url))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The brass bell rings at noon." in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "answered"


def test_a_job_whose_indexer_is_killed_is_finished_by_the_next_one(client: httpx.Client, settings: Settings) -> None:
    files = {f"{word}.md": long_text(word, 200) for word in ("heron", "stork", "crane")}
    location = upload(client, files, collection="birds")
    second = upload(client, {"later.md": b"The egret came later."}, collection="birds")
    wait_until(lambda: client.get(location).json()["state"] == "running", "the job's start")

    def written() -> bool:
        response = client.get("/documents", params={"collection": "birds"})
        return response.status_code == 200 and bool(response.json()["documents"])

    wait_until(written, "the first document in the store")
    assert client.get(location).json()["state"] == "running"
    killed = replica(settings, "Indexer")
    killed.kill()
    killed.wait(10)
    assert client.get(location).json()["state"] == "running"
    job = finish(client, location)
    assert job["state"] == "done"
    assert {one["source"]: one["state"] for one in job["documents"]} == {f"upload/{name}": "done" for name in files}
    assert finish(client, second)["state"] == "done"
    assert replica(settings, "Indexer").pid != killed.pid
    documents = listed(client, "birds")
    assert set(documents) == {f"upload/{name}" for name in [*files, "later.md"]}
    assert {one["source"]: one["chunks"] for one in job["documents"]} == {
        f"upload/{name}": documents[f"upload/{name}"]["chunks"] for name in files
    }
    assert list((settings.data_dir / "uploads").iterdir()) == []


@pytest.mark.parametrize("announced", [False, True], ids=["chunked", "content_length"])
def test_three_gigabytes_are_refused_within_the_first_bytes_over_the_limit(
    client: httpx.Client, settings: Settings, announced: bool
) -> None:
    before = disk_use(settings)
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="big.txt"\r\n\r\n'
        for _ in range(3000):
            sent += 1_000_000
            yield b"x" * 1_000_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    if announced:
        headers["content-length"] = str(3_000_000_000)
    response = client.post("/documents", content=pieces(), headers=headers)
    assert response.status_code == 413, response.text
    assert response.headers["content-type"] == PROBLEM
    assert "serve.max_upload_bytes" in response.json()["detail"]
    assert sent <= MAX_UPLOAD + BUFFERED
    assert disk_use(settings) == before
    assert client.get("/healthz").status_code == 200


def disk_use(settings: Settings) -> int:
    return sum(path.stat().st_size for path in (settings.data_dir / "uploads").rglob("*") if path.is_file())


def test_questions_are_answered_while_a_job_runs(client: httpx.Client) -> None:
    location = upload(client, {"long.md": long_text("bittern", 200)}, collection="reeds")
    wait_until(lambda: client.get(location).json()["state"] == "running", "the job's start")
    asked = 0
    while client.get(location).json()["finished_at"] is None:
        asked += 1
        assert "upload/등대.md" in sources_found(client, "lamp whale oil")
    assert asked > 0
    assert finish(client, location)["state"] == "done"
