"""Files -> collection over the in-memory store: what a run adds, replaces, skips, removes, and survives."""

import shutil
from collections.abc import Generator, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.pipeline import Progress
from ingest.prepare import Outcome, Work, prepare_here
from rag.config import Settings
from rag.errors import IndexMismatchError, StoreUnavailableError
from rag.filters import Filter
from rag.step_settings import ChunkSettings
from rag.types import Embedding, IndexFingerprint, StoredChunk
from tests.fakes import HashEmbedder, InMemoryStore
from tests.ingest_fakes import (
    COLLECTION,
    Countdown,
    DyingStore,
    Store,
    count_words,
    counts,
    ingest,
    kill,
    paragraphs,
    rows,
    small_settings,
)


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


class SpyStore(Store):
    """Remembers the calls that write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[str, Any]] = []

    def upsert(self, collection: str, rows: Sequence[StoredChunk]) -> None:
        self.writes.append(("upsert", tuple((row.source, row.chunk.ordinal) for row in rows)))
        super().upsert(collection, rows)

    def delete(self, collection: str, where: Filter, *, everywhere: bool = True) -> None:
        self.writes.append(("delete", where))
        super().delete(collection, where, everywhere=everywhere)


def test_a_folder_is_added_once(folder: Path) -> None:
    store = Store()
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
    store = Store()
    ingest(store, folder)
    (folder / "a.md").write_text("# Cherries\n\n" + paragraphs("cherries", 2))
    assert counts(ingest(store, folder)) == (0, 1, 2, 0, 0)
    fresh = Store()
    ingest(fresh, folder)
    assert contents(store) == contents(fresh)
    assert "apples" not in str(contents(store))


def test_the_first_chunk_is_written_last_and_alone(folder: Path) -> None:
    store = SpyStore()
    ingest(store, folder / "a.md")
    upserts = [rows for kind, rows in store.writes if kind == "upsert"]
    assert [ordinal for _, ordinal in upserts[-1]] == [0]
    assert all(ordinal > 0 for rows in upserts[:-1] for _, ordinal in rows)
    (folder / "a.md").write_text("# Cherries\n\n" + paragraphs("cherries", 2))
    ingest(store, folder / "a.md")
    assert store.writes[-1][0] == "delete"


def test_batches_are_full_across_documents(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"One short text about number {number}.")
    sizes: list[int] = []

    def embed(texts: list[str]) -> list[Embedding]:
        sizes.append(len(texts))
        return HashEmbedder().embed_passages(texts)

    assert counts(ingest(Store(), tmp_path, embed=embed)) == (5, 0, 0, 0, 0)
    assert sizes == [4, 1]


def test_what_is_embedded_and_what_is_analysed(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("---\ntitle: Handbook\n---\n\n# Guide\n\n## Install\n\nRun it.\n")
    embedded: list[str] = []
    analyzed: list[str] = []

    def embed(texts: list[str]) -> list[Embedding]:
        embedded.extend(texts)
        return HashEmbedder().embed_passages(texts)

    def analyze(text: str) -> str:
        analyzed.append(text)
        return text

    ingest(Store(), tmp_path, embed=embed, analyze=analyze)
    assert embedded[-1] == "Guide > Install\nRun it."
    assert analyzed[-1] == "Handbook\nGuide > Install\nRun it."


async def test_a_document_is_found_after_the_run(folder: Path) -> None:
    store = Store()
    ingest(store, folder)
    vector = HashEmbedder().encode(["Paragraph 3 about plums has some ten words in it."], "query")[0]
    dense = await store.dense_search(COLLECTION, vector, 1)
    lexical = await store.lexical_search(COLLECTION, "pears", 1)
    assert "plums" in dense.hits[0].chunk.text
    assert lexical.hits[0].source == (folder / "b.txt").as_posix()


@pytest.mark.parametrize("given", [{"acl": ["staff"]}, {"metadata": {"lang": "en"}}], ids=["acl", "metadata"])
def test_another_access_list_or_metadata_is_published(folder: Path, given: dict[str, Any]) -> None:
    store = Store()
    ingest(store, folder)
    assert counts(ingest(store, folder, **given)) == (0, 3, 0, 0, 0)
    for document in store.stored_documents(COLLECTION):
        assert list(document.acl) == given.get("acl", [])
        assert dict(document.metadata) == given.get("metadata", {})
    assert counts(ingest(store, folder, **given)) == (0, 0, 3, 0, 0)


def test_a_run_that_names_no_groups_keeps_those_stored(folder: Path) -> None:
    store = Store()
    ingest(store, folder, acl=["staff"], metadata={"lang": "en"})
    (folder / "b.txt").write_text(paragraphs("figs", 2))
    assert counts(ingest(store, folder)) == (0, 1, 2, 0, 0)
    assert {document.acl for document in store.stored_documents(COLLECTION)} == {("staff",)}
    assert all(dict(document.metadata) == {"lang": "en"} for document in store.stored_documents(COLLECTION))


def in_large_chunks() -> Settings:
    return small_settings().model_copy(update={"chunk": ChunkSettings(max_tokens=200, overlap_tokens=0)})


def test_the_same_bytes_in_fewer_chunks_leave_none_of_the_former_ones(folder: Path) -> None:
    store = Store()
    before = ingest(store, folder, acl=["staff"]).chunks
    assert ingest(store, folder, acl=["boss"], settings=in_large_chunks()).chunks < before
    fresh = Store()
    ingest(fresh, folder, acl=["boss"], settings=in_large_chunks())
    assert rows(store) == rows(fresh)


def test_after_a_killed_run_that_wrote_fewer_chunks_none_of_the_former_ones_are_left(folder: Path) -> None:
    path, fresh = folder / "a.md", Store()
    ingest(fresh, path, acl=["boss"], settings=in_large_chunks())
    for writes in range(100):
        store = Store()
        ingest(store, path, acl=["staff"])
        killed = kill(store, writes, path, acl=["boss"], settings=in_large_chunks())
        ingest(store, path, acl=["boss"], settings=in_large_chunks())
        assert rows(store) == rows(fresh), writes
        if not killed:
            break
    assert writes > 2


def test_prune_removes_what_is_gone_from_the_folders_given_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    store = Store()
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
    store = Store()
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
    report = ingest(Store(), folder, missing, settings=small_settings(max_file_bytes=20_000))
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
    store = Store()
    ingest(store, folder)
    before = contents(store)
    (folder / "a.md").write_bytes(b"\0\1\2")
    assert counts(ingest(store, folder)) == (0, 0, 2, 0, 1)
    assert contents(store) == before


def test_an_odd_name_is_stored_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / 'it\'s a "guide" 설치 안내 (1).md'
    path.write_text("Some text.")
    store = Store()
    assert counts(ingest(store, path)) == (1, 0, 0, 0, 0)
    assert counts(ingest(store, tmp_path)) == (0, 0, 1, 0, 0)
    assert [document.source for document in store.stored_documents(COLLECTION)] == [path.as_posix()]


def test_a_store_that_goes_away_stops_the_run_and_keeps_what_is_written(folder: Path) -> None:
    store = Store()
    with pytest.raises(StoreUnavailableError):
        ingest(DyingStore(store, Countdown(10, StoreUnavailableError)), folder)
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
    seen: list[Progress] = []
    report = ingest(Store(), folder, progress=seen.append)
    stages = [(one.files, one.documents, one.pages, one.chunks, one.seconds) for one in seen]
    assert all(before <= after for pair in pairwise(stages) for before, after in zip(*pair, strict=True))
    assert stages[-1][:-1] == (4, 4, 3, report.chunks)
    assert {one.files_total for one in seen} == {4}
    assert seen[-1].seconds_left == pytest.approx(0, abs=1e-6)


def test_progress_counts_a_file_when_it_was_read_though_all_were_looked_at_before(folder: Path) -> None:
    """As over Ray Data, which wants all works before it gives the first back."""
    here = prepare_here(small_settings(), count_words)
    seen: list[Progress] = []

    def prepare(works: Iterable[Work]) -> Generator[tuple[Work, Outcome], None, None]:
        yield from here(list(works))

    ingest(Store(), folder, prepare=prepare, settings=small_settings(embed_batch=1), progress=seen.append)
    assert sorted({one.files for one in seen}) == [0, 1, 3]  # with the last document all of them
    assert [one.files for one in seen] == sorted(one.files for one in seen)
    assert all(one.documents >= one.files - 1 for one in seen)


def test_progress_counts_a_document_when_it_is_in_the_store_and_not_before(folder: Path) -> None:
    store = Store()
    ahead: list[int] = []

    def compare(progress: Progress) -> None:
        ahead.append(progress.documents - len(store.stored_documents(COLLECTION)))

    ingest(store, folder, progress=compare)
    assert max(ahead) == 0


def test_the_report_as_it_is_printed(folder: Path) -> None:
    (folder / "empty.md").write_text("")
    report = ingest(Store(), folder).as_dict()
    assert report["documents"] == {"added": 3, "replaced": 0, "unchanged": 0, "removed": 0, "failed": 1}
    assert report["chunks"] > 3
    assert report["seconds"] > 0
    assert [set(failure) for failure in report["failures"]] == [{"source", "reason"}]


# --- uploads: their files have names of their own, and go when they were read -----------------------------------------


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    (tmp_path / "data" / "uploads").mkdir(parents=True)
    path = tmp_path / "data" / "uploads" / "0.txt"
    path.write_text(paragraphs("apples"))
    return path


def test_an_upload_that_was_being_rewritten_is_finished_under_its_own_name(tmp_path: Path, upload: Path) -> None:
    store, sources, other = Store(), {upload: "upload/a.txt"}, tmp_path / "other.txt"
    other.write_text("Another document.")
    ingest(store, upload, sources=sources, acl=["hr"])
    assert kill(store, 3, upload, sources=sources, metadata={"year": 2024})
    ingest(store, other)
    ingest(store, upload, sources=sources, metadata={"year": 2024})
    documents = {one.source: one for one in store.stored_documents(COLLECTION)}
    assert sorted(documents) == sorted(["upload/a.txt", str(other)])
    assert (documents["upload/a.txt"].acl, documents["upload/a.txt"].metadata) == (("hr",), {"year": 2024})


def test_a_folder_that_holds_the_data_directory_is_ingested_without_it(tmp_path: Path, upload: Path) -> None:
    store, settings = Store(), small_settings().model_copy(update={"data_dir": tmp_path / "data"})
    (tmp_path / "a.txt").write_text("Hello there.")
    assert counts(ingest(store, tmp_path, settings=settings)) == (1, 0, 0, 0, 0)
    assert [one.source for one in store.stored_documents(COLLECTION)] == [str(tmp_path / "a.txt")]


def test_pruning_a_folder_that_holds_the_data_directory_leaves_the_uploads(tmp_path: Path, upload: Path) -> None:
    store, settings = Store(), small_settings().model_copy(update={"data_dir": tmp_path / "data"})
    gone = tmp_path / "data" / "gone.txt"
    gone.write_text("Soon gone.")
    ingest(store, upload, settings=settings, sources={upload: "upload/a.txt"})
    ingest(store, gone, settings=settings)
    upload.unlink()
    gone.unlink()
    assert ingest(store, tmp_path, settings=settings, prune=True).removed == 1
    assert [one.source for one in store.stored_documents(COLLECTION)] == ["upload/a.txt"]
