from __future__ import annotations

import os
import time
from hashlib import blake2b
from pathlib import Path

import pytest

from ingest.load import (
    HTML,
    JSONL,
    MARKDOWN,
    PDF,
    TEXT,
    Failure,
    find_files,
    load_document,
    load_documents,
    revision_of,
    tell_media_type,
    unreadable,
)
from rag.errors import DocumentError

LIMIT = 1000


def write(path: Path, raw: bytes = b"text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path.resolve()


def refusal(path: Path, max_file_bytes: int = LIMIT) -> str:
    with pytest.raises(DocumentError) as caught:
        load_document(path, max_file_bytes=max_file_bytes)
    return str(caught.value)


class TestFindFiles:
    def test_folder_is_walked_in_sorted_order_without_hidden_and_foreign_files(self, tmp_path: Path) -> None:
        wanted = [write(tmp_path / name) for name in ("a/z.txt", "b.md", "c/d/e.HTML", "c/f.pdf")]
        for name in (".hidden.md", ".git/x.md", "c/image.png", "archive.zip", "setup.py", "mkdocs.yml"):
            write(tmp_path / name)
        found = find_files([tmp_path])
        assert sorted(found.files) == sorted(wanted)
        assert found.files == find_files([tmp_path]).files
        assert found.folders == (tmp_path.resolve(),)
        assert found.skipped == 4
        assert found.failures == ()

    def test_named_file_is_taken_whatever_its_suffix_and_name(self, tmp_path: Path) -> None:
        names = ["notes.log", ".hidden", 'it\'s "quoted".md', "두 번째 문서.md", "brackets[1].md", "a*b?.txt"]
        files = [write(tmp_path / name) for name in names]
        assert list(find_files(files).files) == files

    def test_a_file_named_twice_counts_once(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.py")
        found = find_files([file, tmp_path / "." / "a.py", tmp_path, str(tmp_path / "*.py")])
        assert found.files == (file,)
        assert found.skipped == 0

    def test_glob_counts_as_its_matches(self, tmp_path: Path) -> None:
        first, second = write(tmp_path / "x/one.md"), write(tmp_path / "x/y/two.md")
        write(tmp_path / "x/y/three.txt")
        assert find_files([str(tmp_path / "**/*.md")]).files == (first, second)

    def test_what_is_not_there_is_named_and_the_rest_goes_on(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.md")
        missing, pattern = str(tmp_path / "missing.md"), str(tmp_path / "*.nothing")
        found = find_files([missing, file, pattern])
        assert found.files == (file,)
        assert [failure.source for failure in found.failures] == [missing, pattern]
        assert all("no such file" in failure.reason for failure in found.failures)

    def test_a_name_that_the_system_refuses_is_a_failure_of_its_own(self, tmp_path: Path) -> None:
        file = write(tmp_path / "docs/a.md")
        (tmp_path / "docs/far.md").symlink_to("/" + "x" * 300)
        (tmp_path / "far").symlink_to("/" + "x" * 300)
        found = find_files([tmp_path / "far", tmp_path / "docs"])
        assert file in found.files
        assert "File name too long" in refusal(tmp_path / "far")

    def test_links_lead_to_their_target_and_loops_are_named(self, tmp_path: Path) -> None:
        file = write(tmp_path / "docs/a.md")
        (tmp_path / "docs/b.md").symlink_to(file)
        (tmp_path / "docs/loop.md").symlink_to("loop.md")
        (tmp_path / "docs/up").symlink_to(tmp_path)
        found = find_files([tmp_path / "docs"])
        assert found.files == (file,)
        assert [Path(failure.source).name for failure in found.failures] == ["loop.md"]

    def test_a_walk_does_not_come_into_what_is_left_out_and_a_name_does(self, tmp_path: Path) -> None:
        data, own = tmp_path.resolve() / "data", write(tmp_path / "a.md")
        left_out = (data, data / "uploads")
        kept, waiting = write(data / "docs/b.md"), write(data / "uploads/0.md")
        (tmp_path / "link.md").symlink_to(waiting)
        write(tmp_path / "data-old/c.md")
        old = tmp_path.resolve() / "data-old/c.md"
        assert set(find_files([tmp_path], left_out).files) == {own, old}
        assert set(find_files([str(tmp_path / "**/*.md")], left_out).files) == {own, old}
        assert find_files([data], left_out).files == (kept,)
        assert find_files([str(data / "*/*.md")], left_out).files == (kept,)
        assert find_files([waiting], left_out).files == (waiting,)
        assert find_files([data / "uploads"], left_out).files == (waiting,)


class TestLoadDocument:
    def test_id_is_of_the_source_and_revision_of_the_bytes(self, tmp_path: Path) -> None:
        raw = "내용 – content".encode()
        one = load_document(write(tmp_path / "하나.md", raw), max_file_bytes=LIMIT)
        two = load_document(write(tmp_path / "둘.md", raw), max_file_bytes=LIMIT)
        assert one.source == (tmp_path / "하나.md").resolve().as_posix()
        assert one.document_id != two.document_id
        assert one.revision == two.revision == revision_of(raw)
        assert one.document_id == blake2b(one.source.encode(), digest_size=16).hexdigest()
        changed = load_document(write(tmp_path / "하나.md", raw + b"!"), max_file_bytes=LIMIT)
        assert (changed.document_id, changed.media_type) == (one.document_id, MARKDOWN)
        assert changed.revision != one.revision

    def test_relative_path_and_link_give_the_same_document(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = write(tmp_path / "docs/a.md")
        monkeypatch.chdir(tmp_path / "docs")
        (tmp_path / "link.md").symlink_to(file)
        documents = [load_document(path, max_file_bytes=LIMIT) for path in (file, Path("a.md"), tmp_path / "link.md")]
        assert len({document.document_id for document in documents}) == 1

    def test_acl_and_metadata_are_kept(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.md")
        document = load_document(file, max_file_bytes=LIMIT, acl=["hr", "it"], metadata={"lang": "ko"})
        assert document.acl == ("hr", "it")
        assert document.metadata == {"lang": "ko"}

    def test_empty(self, tmp_path: Path) -> None:
        assert "it is empty" in refusal(write(tmp_path / "a.md", b""))

    def test_too_large_names_the_setting_and_reads_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "big.txt"
        with path.open("wb") as file:
            file.truncate(200 * 1024 * 1024)  # sparse: NULs that a reader would call binary
        reason = refusal(path, max_file_bytes=100 * 1024 * 1024)
        assert "209,715,200 bytes, more than the 104,857,600 allowed" in reason
        assert "ingest.max_file_bytes" in reason

    def test_the_limit_itself_is_allowed(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt", b"x" * LIMIT)
        assert load_document(file, max_file_bytes=LIMIT).revision == revision_of(b"x" * LIMIT)

    def test_gone(self, tmp_path: Path) -> None:
        assert "it is gone" in refusal(tmp_path / "was-here.md")

    def test_no_regular_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.md")
        assert "not a regular file" in refusal(tmp_path / "pipe.md")

    def test_unreadable(self) -> None:
        assert "permission denied" in unreadable(PermissionError(13, "Permission denied"))
        assert "Input/output error" in unreadable(OSError(5, "Input/output error"))

    def test_name_that_is_not_unicode(self, tmp_path: Path) -> None:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md"))
        path.write_bytes(b"text")
        assert "not valid UTF-8" in refusal(path)
        assert find_files([tmp_path]).files == (path.resolve(),)


@pytest.mark.parametrize(
    ("head", "name", "media_type"),
    [
        (b"%PDF-1.7\n\0\1", "report.md", PDF),
        (b"junk\n%PDF-1.4", "report", PDF),
        (b"junk\n%PDF-1.4", "report.pdf", PDF),
        (b"\xef\xbb\xbf\r\n%PDF-1.4", "report.txt", PDF),
        (b"# PDF\n\nIt begins with %PDF-1.7.", "formats.md", MARKDOWN),
        (b"It begins with %PDF-1.7.", "formats.txt", TEXT),
        (b"<!doctype html><p>It begins with %PDF-1.7.", "formats.html", HTML),
        (b'{"id": "1", "text": "It begins with %PDF-1.7."}', "formats.jsonl", JSONL),
        (b"damaged at its start", "report.PDF", PDF),
        (b"\n<!-- saved --><!DOCTYPE html><html>", "page.txt", HTML),
        (b'<?xml version="1.0"?>\n<html xmlns="x">', "page", HTML),
        (b"<p>a fragment</p>", "page.htm", HTML),
        (b"<div align=center>\n\n# Title", "README.md", MARKDOWN),
        (b"# Title", "README.markdown", MARKDOWN),
        (b"# Title", "README", TEXT),
        ("\ufeff제목".encode("utf-16"), "windows.txt", TEXT),
        ("제목".encode("cp949"), "legacy.txt", TEXT),
        (b"\x1b[32mINFO\x1b[0m started\n", "server.log", TEXT),
    ],
)
def test_type_is_told_by_content_then_name(head: bytes, name: str, media_type: str) -> None:
    assert tell_media_type(head, name) == media_type


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (b"<!-- -->" * 500 + b"<p>", MARKDOWN),
        (b"<!-- -->" * 500 + b"<html>", HTML),
        (b"<!-- a --> <?xml?>\n" * 200 + b"text", MARKDOWN),
        (b"<!-- " * 800, MARKDOWN),
        (b" " * 4000, MARKDOWN),
        (b"<?xml" * 800, MARKDOWN),
    ],
)
def test_a_head_of_comments_is_told_in_no_time(head: bytes, media_type: str) -> None:
    started = time.monotonic()
    assert tell_media_type(head, "a.md") == media_type
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "head", [b"PK\x03\x04\x14\0\0\0", b"\x89PNG\r\n\x1a\n\0\0", bytes(range(1, 256)), b"\x7fELF\0"]
)
@pytest.mark.parametrize("name", ["a.md", "a.txt", "a.html", "a.bin"])
def test_binary_is_refused_whatever_its_name(head: bytes, name: str) -> None:
    with pytest.raises(DocumentError, match="it is binary"):
        tell_media_type(head, name)


def test_a_source_that_is_given_names_the_document_in_place_of_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "0.md")
    document = load_document(path, max_file_bytes=LIMIT, source="upload/메모.md")
    assert document.source == "upload/메모.md"
    assert document.document_id != load_document(path, max_file_bytes=LIMIT).document_id
    assert document.media_type == MARKDOWN
    (failure,) = load_documents(path, max_file_bytes=1, source="upload/메모.md")
    assert isinstance(failure, Failure)
    assert failure.source == "upload/메모.md"
