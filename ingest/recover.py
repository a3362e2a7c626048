"""What a killed run left in the store: compared with the journal, finished or removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ingest.journal import Journal, Unfinished
from ingest.publish import ChunkStore, remove_replaced, why_unstorable
from rag.errors import UnknownCollectionError
from rag.filters import And, Equals, NotEquals
from rag.types import Chunk, IndexFingerprint


@contextmanager
def collection_made(
    store: ChunkStore, collection: str, fingerprint: IndexFingerprint, journal: Journal
) -> Iterator[None]:
    """The collection is there for the length of a block, unless somebody deletes it. `journal` is the caller's alone.

    What the journal knows as unfinished of a collection that was deleted is forgotten: one of its name that is made
    later begins without it. Raises IndexMismatchError.
    """
    if store.ensure_collection(collection, fingerprint):
        _forget_unfinished(journal)
    try:
        yield
    except UnknownCollectionError:
        _forget_unfinished(journal)
        raise


def _forget_unfinished(journal: Journal) -> None:
    for entry in journal.all_unfinished():
        journal.abandon(entry.document_id)


def reconcile(store: ChunkStore, collection: str, journal: Journal, say: Callable[[str], None]) -> None:
    """Makes the journal agree with the store, before a run.

    A journal that is new, or does not know what the store holds, is rebuilt from all of the store's rows. Afterwards
    no document has two complete revisions, and each revision with rows missing is an unfinished one of the journal.
    """
    disagreement = journal.load_store(store.stored_documents(collection))
    if disagreement.missing:
        say(f"the store no longer holds {disagreement.missing} documents that the journal lists; the journal follows")
    if not journal.trusted or disagreement.unknown:
        superseded = journal.load_rows(store.every_chunk(collection))
        for document_id, revision in superseded:
            this = And((Equals("document_id", document_id), Equals("revision", revision)))
            store.delete(collection, this, everywhere=False)
        documents, broken = journal.trust(superseded), len(journal.all_unfinished())
        if documents or broken:
            why = journal.fault or f"does not know {disagreement.unknown} documents of the store"
            say(
                f"the journal {why}: rebuilt from the store, which holds {documents} documents "
                f"and {broken} that were not finished"
            )
    for entry in journal.all_unfinished():
        problem = why_unstorable(entry)
        if problem is None:
            _settle(store, collection, journal, entry)
        else:  # no row of it was ever written
            say(f"{entry.source[:300]}: an earlier run could not store it ({problem}); given up")
            journal.abandon(entry.document_id)


def _settle(store: ChunkStore, collection: str, journal: Journal, entry: Unfinished) -> None:
    """Does what is left to do for a revision all of whose rows are there."""
    latest = journal.recorded(entry.document_id)
    if latest is None or (latest.revision, latest.updated_at) != (entry.revision, entry.updated_at):
        return
    old = journal.recorded(entry.moved_from) if entry.moved_from is not None else None
    if old is not None and not is_gone(old.origin) and is_gone(entry.origin):  # moved, and moved back
        store.delete(collection, Equals("document_id", entry.document_id))
        journal.forget(entry.document_id)
        return
    remove_replaced(store, collection, entry, latest.chunks)
    journal.finish([(entry, latest.chunks)])


def is_rewrite(store: ChunkStore, collection: str, journal: Journal, entry: Unfinished) -> bool:
    """Whether the rows of a complete revision were being replaced, by the same text with other groups or metadata.

    Such an entry cannot be discarded without the document.
    """
    complete = journal.recorded(entry.document_id)
    if complete is not None:
        return complete.revision == entry.revision
    # A journal that was rebuilt lists no revision with rows of two attempts; the first row is written last.
    this = And((Equals("document_id", entry.document_id), Equals("revision", entry.revision)))
    return any(True for _ in store.stored_documents(collection, this))


def discard(store: ChunkStore, collection: str, journal: Journal, entry: Unfinished) -> None:
    """Removes the rows of an unfinished revision; the document's complete one stays, where those are not its rows."""
    this = Equals("document_id", entry.document_id)
    complete = journal.recorded(entry.document_id)
    if complete is None or complete.revision == entry.revision:
        store.delete(collection, this)
        journal.forget(entry.document_id)
    else:
        store.delete(collection, And((this, NotEquals("revision", complete.revision))), everywhere=False)
        journal.abandon(entry.document_id)


def count_written(store: ChunkStore, collection: str, entry: Unfinished, chunks: Sequence[Chunk]) -> int:
    """The highest ordinal up to which, from 1 on, the journal says and the store shows that these chunks are there."""
    if entry.written == 0:
        return 0
    wanted = {chunk.chunk_id: chunk for chunk in chunks}
    found = store.chunks(collection, entry.document_id)
    stored = {chunk.ordinal for chunk in found if wanted.get(chunk.chunk_id) == chunk}
    written = 0
    while written < entry.written and written + 1 in stored:
        written += 1
    return written


def is_gone(name: str | Path) -> bool:
    """Whether there is certainly no such file: a name that is no path, or a folder that may not be looked into, says
    nothing."""
    path = Path(name)
    if not path.is_absolute():
        return False
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
