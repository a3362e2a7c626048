"""JSON lines: a document a row."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.load import JSONL, Failure, document_id_of, load_document, load_documents
from ingest.parse import parse_document
from ingest.rows import find_rows, read_row
from rag.errors import DocumentError
from rag.step_settings import IngestSettings
from rag.types import Document

LIMITS = IngestSettings()


def write(folder: Path, *rows: Mapping[str, Any] | bytes | str, name: str = "it's a 말뭉치.jsonl") -> Path:
    path = folder / name
    lines = (
        row
        if isinstance(row, bytes)
        else (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)).encode()
        for row in rows
    )
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def load(path: Path, max_file_bytes: int = 10_000, **given: Any) -> tuple[list[Document], list[Failure]]:
    found = list(load_documents(path, max_file_bytes=max_file_bytes, **given))
    documents = [document for document in found if isinstance(document, Document)]
    return documents, [failure for failure in found if isinstance(failure, Failure)]


def revision_of_row(**row: Any) -> str:
    return read_row(json.dumps({"id": "a", "text": "text", **row}).encode()).revision


def test_a_row_is_a_document(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"id": "a", "text": "서울은 수도이다.\n둘째 줄.", "title": "Seoul", "metadata": {"lang": "ko"}, "extra": [1]},
        {"_id": "b", "text": "Second.", "title": ""},
        {"id": 7, "text": "Third.", "source": "https://example.org/third", "metadata": None},
    )
    documents, failures = load(path)
    assert failures == []
    assert [(found.source, found.title, found.metadata) for found in documents] == [
        ("a", "Seoul", {"lang": "ko"}),
        ("b", None, {}),
        ("https://example.org/third", None, {}),
    ]
    assert all(found.media_type == JSONL and found.document_id == document_id_of(found.source) for found in documents)
    parsed = [parse_document(found, LIMITS, path) for found in documents]
    assert [(found.text, found.title, found.paged) for found in parsed] == [
        ("서울은 수도이다.\n둘째 줄.", "Seoul", False),
        ("Second.", "b", False),
        ("Third.", "https://example.org/third", False),
    ]


def test_the_callers_metadata_lies_over_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": "a", "text": "x", "metadata": {"lang": "ko", "year": 2024}})
    ((document,), _) = load(path, metadata={"lang": "en"}, acl=["hr"])
    assert (document.metadata, document.acl) == ({"lang": "en", "year": 2024}, ("hr",))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{not json", "it is no JSON in UTF-8"),
        (b'{"id": "\xff", "text": "x"}', "it is no JSON in UTF-8"),
        ("[" * 100_000, "it is no JSON in UTF-8"),
        ('{"id": "x", "text": "x", "metadata": {"score": NaN}}', "NaN is no JSON"),
        ('{"id": "x", "text": "x", "metadata": {"score": [1e999]}}', "Infinity is no JSON"),
        ('{"id": "x", "text": "x", "metadata": {"a": ' + "[" * 900 + "]" * 900 + "}}", "it is no JSON in UTF-8"),
        ('["id", "text"]', "it is no JSON object but"),
        ({"text": "x"}, "it has no `id`"),
        ({"id": "", "text": "x"}, "it has no `id`"),
        ({"id": True, "text": "x"}, "it has no `id`"),
        ({"id": "x"}, "its `text` is missing or empty"),
        ({"id": "x", "text": " \n"}, "its `text` is missing or empty"),
        ({"id": "x", "text": ["x"]}, "its `text` is"),
        ({"id": "x", "text": "x", "title": 3}, "its `title` is 3"),
        ({"id": "x", "text": "x", "source": {}}, "its `source` is {}"),
        ({"id": "x", "text": "x", "metadata": "lang=ko"}, 'its `metadata` is "lang=ko"'),
        ({"id": "first", "text": "another text"}, "its source (or its id, without one) stands in a row above"),
        ({"id": "other", "source": "first", "text": "x"}, "its source (or its id, without one) stands in a row above"),
        ({"id": "x", "text": "long " * 30_000}, "more than the 120,000 allowed"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_row_is_named_by_file_and_line_and_the_rest_goes_on(
    tmp_path: Path, row: Mapping[str, Any] | bytes | str, reason: str
) -> None:
    path = write(tmp_path, {"id": "first", "text": "1"}, "", row, {"id": "last", "text": "2"})
    documents, (failure,) = load(path, max_file_bytes=120_000)
    assert [document.source for document in documents] == ["first", "last"]
    assert failure.source == f"{path}:3"
    assert reason in failure.reason
    assert [parse_document(document, LIMITS, path).text for document in documents] == ["1", "2"]


def test_the_limit_on_bytes_is_a_rows_not_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, *({"id": str(n), "text": "x" * 900} for n in range(50)))
    documents, failures = load(path, max_file_bytes=1000)
    assert (len(documents), failures) == (50, [])
    row = json.dumps({"id": "a", "text": "x"}).encode()
    assert len(load(write(tmp_path, row), max_file_bytes=len(row))[0]) == 1
    assert len(load(write(tmp_path, row), max_file_bytes=len(row) - 1)[1]) == 1


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, *({"id": str(n), "text": "x" * 10_000} for n in range(2000)))
    tracemalloc.start()
    count = sum(1 for _ in load_documents(path, max_file_bytes=20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 2_000_000 < path.stat().st_size


def test_revision_is_of_what_makes_the_document() -> None:
    same = [revision_of_row(), revision_of_row(id="b"), revision_of_row(title=""), revision_of_row(metadata={}, more=1)]
    assert len(set(same)) == 1
    assert revision_of_row(metadata={"a": 1, "b": 2}) == revision_of_row(metadata={"b": 2, "a": 1})
    assert (
        read_row(b'{ "text":"\\uac00",  "id":"x"}').revision == read_row('{"id": "x", "text": "가"}'.encode()).revision
    )
    others = [revision_of_row(text="other"), revision_of_row(title="T"), revision_of_row(metadata={"a": 1})]
    assert len({same[0], *others}) == 4


def test_a_row_that_changed_since_it_was_found(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": "a", "text": "before"}, {"id": "b", "text": "stays"})
    (first, second), _ = load(path)
    write(tmp_path, {"id": "a", "text": "change"}, {"id": "b", "text": "stays"})
    with pytest.raises(DocumentError, match="it changed"):
        parse_document(first, LIMITS, path)
    assert parse_document(second, LIMITS, path).text == "stays"
    path.write_bytes(b"")
    with pytest.raises(DocumentError, match="no JSON"):
        parse_document(second, LIMITS, path)
    path.unlink()
    with pytest.raises(DocumentError, match="it is gone"):
        parse_document(second, LIMITS, path)


def test_characters_that_cannot_be_stored_keep_their_place(tmp_path: Path) -> None:
    path = write(tmp_path, '{"id": "a\\ud83d", "text": "one\\u0000 two\\udc00 \\ud83d\\ude80", "title": "\\ud800"}')
    ((document,), _) = load(path)
    assert (document.source, document.title) == ("a\ufffd", "\ufffd")
    assert parse_document(document, LIMITS, path).text == "one\ufffd two\ufffd 🚀"


def test_too_many_characters(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": "a", "text": "가" * 11})
    ((document,), _) = load(path)
    with pytest.raises(DocumentError, match="11 characters, more than the 10 allowed"):
        parse_document(document, IngestSettings(max_chars=10), path)


def test_a_file_of_rows_is_not_one_document(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="a document a line"):
        load_document(write(tmp_path, {"id": "a", "text": "x"}), max_file_bytes=1000)


def test_a_file_that_cannot_be_used_is_one_failure(tmp_path: Path) -> None:
    for path, reason in [
        (write(tmp_path, b"", name="empty.jsonl").with_name("gone.jsonl"), "it is gone"),
        (write(tmp_path, "a,b,c", name="table.ndjson"), "its first line is no JSON object"),
        (write(tmp_path, b"\0\1{}", name="binary.jsonl"), "it is binary"),
    ]:
        documents, (failure,) = load(path)
        assert documents == []
        assert (failure.source, reason in failure.reason) == (str(path), True)


row_bytes = st.binary(max_size=12).map(lambda raw: raw.replace(b"\r", b"r"))  # a line end's only
rows = st.lists(st.one_of(row_bytes, st.sampled_from([b"", b" ", b"{}", b"x" * 9])), max_size=12)


def test_metadata_that_no_store_can_hold_are_cleaned_as_the_text_is() -> None:
    row = read_row(b'{"id": "a", "text": "x", "metadata": {"k\\ud800": "a\\udc00b", "l": [{"m": "\\u0000"}, 1, null]}}')
    assert row.metadata == {"k\ufffd": "a\ufffdb", "l": [{"m": "\ufffd"}, 1, None]}


@given(
    rows=rows, end=st.sampled_from([b"\n", b"\r\n"]), last=st.booleans(), bom=st.booleans(), limit=st.integers(1, 12)
)
def test_rows_are_found_where_they_stand(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], end: bytes, last: bool, bom: bool, limit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    raw = (b"\xef\xbb\xbf" if bom else b"") + end.join(rows) + (end if last else b"")
    path.write_bytes(raw)
    body = raw[3:] if raw.startswith(b"\xef\xbb\xbf") else raw
    expected = [
        (number, line.rstrip(b"\r"))
        for number, line in enumerate(body.split(b"\n"), start=1)
        if line.strip() or len(line.rstrip(b"\r")) > limit
    ]
    found = list(find_rows(path, limit))
    assert [number for number, _, _ in found] == [number for number, _ in expected]
    for (_, (start, stop), kept), (_, line) in zip(found, expected, strict=True):
        assert raw[start:stop].rstrip(b"\r\n") == line
        assert kept == (line if len(line) <= limit else b"")
        assert (stop - start > limit) == (kept == b"")
