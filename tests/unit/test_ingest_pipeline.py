"""Files -> collection over the in-memory store: what a run adds, replaces, skips, removes, and survives."""

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.pipeline import IngestReport, ingest_documents
from rag.config import Settings, load_settings
from rag.errors import IndexMismatchError, StoreUnavailableError
from rag.filters import Filter
from rag.types import IndexFingerprint, StoredChunk
from tests.fakes import HashEmbedder, InMemoryStore

FINGERPRINT = IndexFingerprint("hash", 64, True, "", "", "splitter", "analyzer")
COLLECTION = "docs"


def count_words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def small_settings(**ingest: Any) -> Settings:
    """Chunks of 20 tokens and batches of 4, so that a few paragraphs make several of both."""
    return load_settings(
        profile="embedded",
        chunk={"max_tokens": 20, "overlap_tokens": 0},
        ingest={"embed_batch": 4, **ingest},
    )


def ingest(store: Any, *paths: Path | str, settings: Settings | None = None, **options: Any) -> IngestReport:
    return ingest_documents(
        [str(path) for path in paths],
        store=store,
        embed=options.pop("embed", lambda texts: HashEmbedder().encode(texts, "passage")),
        analyze=options.pop("analyze", str.lower),
        count_tokens=count_words,
        fingerprint=options.pop("fingerprint", FINGERPRINT),
        settings=settings or small_settings(),
        collection=COLLECTION,
        **options,
    )


def counts(report: IngestReport) -> tuple[int, int, int, int, int]:
    return report.added, report.replaced, report.unchanged, report.removed, report.failed


def paragraphs(word: str, count: int = 6) -> str:
    return "".join(f"Paragraph {number} about {word} has some ten words in it.\n\n" for number in range(count))


def contents(store: InMemoryStore) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that a search could see, but for the times of writing."""
    return {
        document.source: [
            document.revision,
            document.acl,
            dict(document.metadata),
            document.chunks,
            *((chunk.chunk_id, chunk.text) for chunk in store.chunks(COLLECTION, document.document_id)),
        ]
        for document in store.stored_documents(COLLECTION)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / "a.md").write_text("# Apples\n\n" + paragraphs("apples"))
    (docs / "b.txt").write_text(paragraphs("pears", 2))
    (docs / "deep" / "c.html").write_text("<html><body><h1>Plums</h1><p>" + paragraphs("plums") + "</p></body></html>")
    (docs / "notes.bin").write_bytes(b"\0\1")
    return docs


class SpyStore(InMemoryStore):
    """Remembers the calls that write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[str, Any]] = []

    def upsert(self, collection: str, rows: Sequence[StoredChunk]) -> None:
        self.writes.append(("upsert", tuple((row.source, row.chunk.ordinal) for row in rows)))
        super().upsert(collection, rows)

    def delete(self, collection: str, where: Filter) -> None:
        self.writes.append(("delete", where))
        super().delete(collection, where)


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class DyingStore(InMemoryStore):
    """Shares another store's rows; ends the run at its n-th write."""

    def __init__(self, store: InMemoryStore, writes: int, error: type[BaseException] = Killed) -> None:
        super().__init__()
        self._built, self._rows = store._built, store._rows
        self._left = writes
        self._error = error

    def _write(self) -> None:
        if self._left == 0:
            raise self._error("now")
        self._left -= 1

    def upsert(self, collection: str, rows: Sequence[StoredChunk]) -> None:
        for row in rows:  # a call may have got half of its rows in
            self._write()
            super().upsert(collection, [row])

    def delete(self, collection: str, where: Filter) -> None:
        self._write()
        super().delete(collection, where)


def test_a_folder_is_added_once(folder: Path) -> None:
    store = InMemoryStore()
    first = ingest(store, folder)
    assert counts(first) == (3, 0, 0, 0, 0)
    stored = {document.source: document for document in store.stored_documents(COLLECTION)}
    assert set(stored) == {(folder / name).as_posix() for name in ("a.md", "b.txt", "deep/c.html")}
    assert first.chunks == sum(document.chunks for document in stored.values())
    assert [stored[(folder / name).as_posix()].title for name in ("a.md", "b.txt", "deep/c.html")] == [
        "Apples", "b", "Plums",
    ]  # fmt: skip
    before = contents(store)
    again = ingest(store, folder)
    assert counts(again) == (0, 0, 3, 0, 0)
    assert again.chunks == 0
    assert contents(store) == before


def test_an_unchanged_file_is_neither_parsed_nor_embedded(folder: Path) -> None:
    store = SpyStore()
    ingest(store, folder)
    store.writes.clear()

    def refuse(texts: list[str]) -> np.ndarray:
        raise AssertionError(f"embedded again: {texts}")

    assert counts(ingest(store, folder, embed=refuse)) == (0, 0, 3, 0, 0)
    assert store.writes == []


def test_a_changed_file_replaces_all_of_its_chunks(folder: Path) -> None:
    store = InMemoryStore()
    ingest(store, folder)
    (folder / "a.md").write_text("# Cherries\n\n" + paragraphs("cherries", 2))
    assert counts(ingest(store, folder)) == (0, 1, 2, 0, 0)
    fresh = InMemoryStore()
    ingest(fresh, folder)
    assert contents(store) == contents(fresh)
    assert "apples" not in str(contents(store))


def test_the_first_chunk_is_written_last_and_alone(folder: Path) -> None:
    store = SpyStore()
    ingest(store, folder / "a.md")
    upserts = [rows for kind, rows in store.writes if kind == "upsert"]
    assert [ordinal for _, ordinal in upserts[-1]] == [0]
    assert all(ordinal > 0 for rows in upserts[:-1] for _, ordinal in rows)
    assert store.writes[-1][0] == "delete"


def test_batches_are_full_across_documents(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"One short text about number {number}.")
    sizes: list[int] = []

    def embed(texts: list[str]) -> np.ndarray:
        sizes.append(len(texts))
        return HashEmbedder().encode(texts, "passage")

    assert counts(ingest(InMemoryStore(), tmp_path, embed=embed)) == (5, 0, 0, 0, 0)
    assert sizes == [4, 1]


def test_what_is_embedded_and_what_is_analysed(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("---\ntitle: Handbook\n---\n\n# Guide\n\n## Install\n\nRun it.\n")
    embedded: list[str] = []
    analyzed: list[str] = []

    def embed(texts: list[str]) -> np.ndarray:
        embedded.extend(texts)
        return HashEmbedder().encode(texts, "passage")

    def analyze(text: str) -> str:
        analyzed.append(text)
        return text

    ingest(InMemoryStore(), tmp_path, embed=embed, analyze=analyze)
    assert embedded[-1] == "Guide > Install\nRun it."
    assert analyzed[-1] == "Handbook\nGuide > Install\nRun it."


async def test_a_document_is_found_after_the_run(folder: Path) -> None:
    store = InMemoryStore()
    ingest(store, folder)
    vector = HashEmbedder().encode(["Paragraph 3 about plums has some ten words in it."], "query")[0]
    dense = await store.dense_search(COLLECTION, vector, 1)
    lexical = await store.lexical_search(COLLECTION, "pears", 1)
    assert "plums" in dense.hits[0].chunk.text
    assert lexical.hits[0].source == (folder / "b.txt").as_posix()


@pytest.mark.parametrize("given", [{"acl": ["staff"]}, {"metadata": {"lang": "en"}}], ids=["acl", "metadata"])
def test_another_access_list_or_metadata_is_published(folder: Path, given: dict[str, Any]) -> None:
    store = InMemoryStore()
    ingest(store, folder)
    assert counts(ingest(store, folder, **given)) == (0, 3, 0, 0, 0)
    for document in store.stored_documents(COLLECTION):
        assert list(document.acl) == given.get("acl", [])
        assert dict(document.metadata) == given.get("metadata", {})
    assert counts(ingest(store, folder, **given)) == (0, 0, 3, 0, 0)


def test_a_run_that_names_no_groups_keeps_those_stored(folder: Path) -> None:
    store = InMemoryStore()
    ingest(store, folder, acl=["staff"], metadata={"lang": "en"})
    (folder / "b.txt").write_text(paragraphs("figs", 2))
    assert counts(ingest(store, folder)) == (0, 1, 2, 0, 0)
    assert {document.acl for document in store.stored_documents(COLLECTION)} == {("staff",)}
    assert all(dict(document.metadata) == {"lang": "en"} for document in store.stored_documents(COLLECTION))


def test_prune_removes_what_is_gone_from_the_folders_given_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    store = InMemoryStore()
    other = tmp_path / "docs-old"  # its name begins like the folder's
    shutil.copytree(folder, other)
    ingest(store, folder, other)
    (folder / "a.md").unlink()
    shutil.rmtree(folder / "deep")
    (other / "a.md").unlink()
    assert counts(ingest(store, folder)) == (0, 0, 1, 0, 0)
    assert len(store.stored_documents(COLLECTION)) == 6
    assert counts(ingest(store, folder, prune=True)) == (0, 0, 1, 2, 0)
    assert {document.source for document in store.stored_documents(COLLECTION)} == {
        (folder / "b.txt").as_posix(), *((other / name).as_posix() for name in ("a.md", "b.txt", "deep/c.html")),
    }  # fmt: skip


def test_prune_keeps_a_file_that_is_there_but_cannot_be_used(folder: Path) -> None:
    store = InMemoryStore()
    ingest(store, folder)
    (folder / "a.md").write_text("")
    report = ingest(store, folder, prune=True)
    assert counts(report) == (0, 0, 2, 0, 1)
    assert len(store.stored_documents(COLLECTION)) == 3


def test_bad_input_is_named_and_the_rest_goes_on(folder: Path) -> None:
    (folder / "empty.md").write_text("")
    (folder / "headings only.md").write_text("# One\n\n## Two\n")
    (folder / "binary.txt").write_bytes(b"\x7fELF\0\0\1\2" * 100)
    (folder / "large.txt").write_text("word " * 10_000)
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.7\nnothing more")
    missing = folder / "missing.md"
    report = ingest(InMemoryStore(), folder, missing, settings=small_settings(max_file_bytes=20_000))
    assert counts(report) == (3, 0, 0, 0, 6)
    reasons = {Path(failure.source).name: failure.reason for failure in report.failures}
    assert set(reasons) == {"empty.md", "headings only.md", "binary.txt", "large.txt", "damaged.pdf", "missing.md"}
    assert "empty" in reasons["empty.md"]
    assert "no text" in reasons["headings only.md"]
    assert "binary" in reasons["binary.txt"]
    assert "ingest.max_file_bytes" in reasons["large.txt"]
    assert "damaged" in reasons["damaged.pdf"]
    assert "no such file" in reasons["missing.md"]


def test_a_file_that_became_bad_keeps_what_is_stored(folder: Path) -> None:
    store = InMemoryStore()
    ingest(store, folder)
    before = contents(store)
    (folder / "a.md").write_bytes(b"\0\1\2")
    assert counts(ingest(store, folder)) == (0, 0, 2, 0, 1)
    assert contents(store) == before


def test_an_odd_name_is_stored_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / 'it\'s a "guide" 설치 안내 (1).md'
    path.write_text("Some text.")
    store = InMemoryStore()
    assert counts(ingest(store, path)) == (1, 0, 0, 0, 0)
    assert counts(ingest(store, tmp_path)) == (0, 0, 1, 0, 0)
    assert [document.source for document in store.stored_documents(COLLECTION)] == [path.as_posix()]


@pytest.mark.parametrize("replacing", [False, True], ids=["first_time", "replacing"])
def test_a_run_killed_at_any_write_is_made_good_by_the_next(folder: Path, tmp_path: Path, replacing: bool) -> None:
    old = shutil.copytree(folder, tmp_path / "old")
    new = shutil.copytree(folder, tmp_path / "new")
    for name in ("a.md", "b.txt", "deep/c.html"):
        (new / name).write_text((old / name).read_text().replace("has some", "now has") + paragraphs("more", 3))

    def state_after(writes: int | None) -> dict[str, Any] | None:
        """What is stored after a run over the new files that dies at a write, and another; None if it did not."""
        store = InMemoryStore()
        if replacing:
            shutil.copytree(old, folder, dirs_exist_ok=True)
            ingest(store, folder)
        shutil.copytree(new, folder, dirs_exist_ok=True)
        if writes is not None:
            with suppress(Killed):
                ingest(DyingStore(store, writes), folder)
                return None
        ingest(store, folder)
        return contents(store)

    wanted = state_after(None)
    for writes in range(200):
        state = state_after(writes)
        if state is None:
            break
        assert state == wanted, writes
    assert 20 < writes < 199


def test_a_store_that_goes_away_stops_the_run_and_keeps_what_is_written(folder: Path) -> None:
    store = InMemoryStore()
    with pytest.raises(StoreUnavailableError):
        ingest(DyingStore(store, 10, StoreUnavailableError), folder)
    done = len(store.stored_documents(COLLECTION))
    assert 0 < done < 3
    assert counts(ingest(store, folder)) == (3 - done, 0, done, 0, 0)


def test_a_collection_built_otherwise_is_refused_before_anything_is_written(folder: Path) -> None:
    store = SpyStore()
    ingest(store, folder / "b.txt")
    store.writes.clear()
    with pytest.raises(IndexMismatchError):
        ingest(store, folder, fingerprint=IndexFingerprint("other", 64, True, "", "", "splitter", "analyzer"))
    assert store.writes == []


def test_progress_counts_up_to_the_whole(folder: Path) -> None:
    (folder / "empty.md").write_text("")
    seen: list[tuple[int, int, int, int]] = []
    report = ingest(InMemoryStore(), folder, progress=lambda *totals: seen.append(totals))
    assert seen == sorted(seen)
    assert seen[-1] == (4, 4, report.chunks, 3)


def test_the_report_as_it_is_printed(folder: Path) -> None:
    (folder / "empty.md").write_text("")
    report = ingest(InMemoryStore(), folder).as_dict()
    assert report["documents"] == {"added": 3, "replaced": 0, "unchanged": 0, "removed": 0, "failed": 1}
    assert report["chunks"] > 3
    assert report["seconds"] > 0
    assert [set(failure) for failure in report["failures"]] == [{"source", "reason"}]
