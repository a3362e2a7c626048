"""Ingestion over an in-memory store and a real journal, and ways to end it in the middle."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ingest.journal import Journal, Unfinished
from ingest.pipeline import IngestReport, ingest_documents
from ingest.prepare import prepare_here
from rag.config import Settings, load_settings
from rag.filters import Filter
from rag.types import Embedding, IndexFingerprint, StoredChunk
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


class Store(InMemoryStore):
    """With a folder for the journal of its collection, which goes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()

    @property
    def journal(self) -> Path:
        return Path(self.folder.name) / "journal.sqlite"


@cache
def _embed_one(text: str) -> Embedding:
    return HashEmbedder().embed_passages([text])[0]


def embed(texts: list[str]) -> list[Embedding]:
    return [_embed_one(text) for text in texts]


def ingest(store: Any, *paths: Path | str, settings: Settings | None = None, **options: Any) -> IngestReport:
    """A run over a Store; `journal` opens its journal, `said` collects what the run says."""
    open_journal: Callable[[Path, str], Journal] = options.pop("journal", Journal)
    said: list[str] = options.pop("said", [])
    chosen = settings or small_settings()
    with open_journal(store.journal, "memory") as journal:
        return ingest_documents(
            [str(path) for path in paths],
            store=store,
            journal=journal,
            embed=options.pop("embed", embed),
            analyze=options.pop("analyze", str.lower),
            prepare=options.pop("prepare", prepare_here(chosen, count_words)),
            fingerprint=options.pop("fingerprint", FINGERPRINT),
            settings=chosen,
            say=said.append,
            collection=COLLECTION,
            **options,
        )


def counts(report: IngestReport) -> tuple[int, int, int, int, int]:
    return report.added, report.replaced, report.unchanged, report.removed, report.failed


def write_document(folder: Path) -> Path:
    """A text file of some paragraphs, in a folder of its own."""
    (folder / "docs").mkdir()
    file = folder / "docs" / "a.txt"
    file.write_text(paragraphs("apples"))
    return file


def paragraphs(word: str, count: int = 6) -> str:
    return "".join(f"Paragraph {number} about {word} has some ten words in it.\n\n" for number in range(count))


def lay_out(folder: Path, files: Mapping[str, str]) -> None:
    """Makes the folder hold these files and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    folder.mkdir(exist_ok=True)


def rows(store: InMemoryStore) -> dict[str, tuple[Any, ...]]:
    """Every row by chunk id, whole but for the time of writing."""
    return {
        name: (row.chunk, row.vector.tobytes(), row.analyzed, row.title, row.source, row.acl, dict(row.metadata),
               row.document_chunks, row.document_pages)
        for name, row in sorted(store._rows[COLLECTION].items())
    }  # fmt: skip


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class Countdown:
    """Lets so many writes happen; the next one, and each after it, raises."""

    def __init__(self, writes: int, error: type[BaseException] = Killed) -> None:
        self.left = writes
        self.error = error

    def __call__(self) -> None:
        if self.left == 0:
            raise self.error("now")
        self.left -= 1


class DyingStore:
    """Another store, in memory or Milvus, until the countdown ends."""

    def __init__(self, store: Any, countdown: Callable[[], None]) -> None:
        self._store = store
        self._countdown = countdown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def upsert(self, collection: str, rows: Sequence[StoredChunk]) -> None:
        for row in rows:  # a call may have got half of its rows in
            self._countdown()
            self._store.upsert(collection, [row])

    def delete(self, collection: str, where: Filter, *, everywhere: bool = True) -> None:
        self._countdown()
        self._store.delete(collection, where, everywhere=everywhere)


class DyingJournal(Journal):
    """A journal that can be written to until the countdown ends."""

    def __init__(self, path: Path, identity: str, countdown: Callable[[], None]) -> None:
        super().__init__(path, identity)
        self._countdown = countdown

    def trust(self, removed: Iterable[tuple[str, str]]) -> int:
        self._countdown()
        return super().trust(removed)

    def begin(self, entries: Sequence[Unfinished]) -> None:
        self._countdown()
        super().begin(entries)

    def advance(self, written: Mapping[str, int]) -> None:
        self._countdown()
        super().advance(written)

    def finish(self, entries: Sequence[tuple[Unfinished, int]]) -> None:
        self._countdown()
        super().finish(entries)

    def abandon(self, document_id: str) -> None:
        self._countdown()
        super().abandon(document_id)

    def forget(self, document_id: str) -> None:
        self._countdown()
        super().forget(document_id)

    def save(self) -> None:
        self._countdown()
        super().save()


class ForgetfulJournal(Journal):
    """A journal without its marker: it never knows that a document is being written."""

    def begin(self, entries: Sequence[Unfinished]) -> None:
        """Writes down nothing."""


def kill(store: Any, writes: int, *paths: Path | str, journal: type[Journal] = DyingJournal, **options: Any) -> bool:
    """A run over the store that ends before a write to store or journal, after so many; whether it came to that."""
    countdown = Countdown(writes)

    def open_journal(path: Path, identity: str) -> Journal:
        return DyingJournal(path, identity, countdown) if journal is DyingJournal else journal(path, identity)

    try:
        ingest(DyingStore(store, countdown), *paths, journal=open_journal, **options)
    except Killed:
        return True
    return False
