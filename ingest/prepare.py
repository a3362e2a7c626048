"""A document -> its chunks: what ingestion does without the store or the journal, so that it may be done anywhere."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ingest.chunk import chunk_document
from ingest.journal import Recorded, Unfinished
from ingest.parse import parse_document
from rag.config import Settings
from rag.errors import DocumentError
from rag.language import Language, understands
from rag.types import Chunk, CountTokens, Document, Embedding, ParsedDocument

logger = logging.getLogger(__name__)

_MAX_PAGES_OF_CHUNK = 4096  # the most that a row of the store can list
# How far to read ahead: the documents of a batch to embed while they are rows of a few hundred bytes.
_AHEAD_DOCUMENTS = 256
_AHEAD_BYTES = 2**20
_CHARS_PER_TOKEN = 2.5  # a chunk of Korean then says about as much as one of English
# Enough to tell a language, spread so that no preface decides for the rest; the whole may be 20 million characters.
_SAMPLE_PIECES, _PIECE_CHARS = 64, 512


@dataclass(frozen=True, slots=True)
class Work:
    """A document to be read: where its bytes are, how many, and what is known of it.

    `known` is its complete revision, `pending` the one that a killed run left, `moved` the document that it takes the
    place of.
    """

    document: Document
    path: Path
    source_bytes: int
    known: Recorded | None = None
    pending: Unfinished | None = None
    moved: Recorded | Unfinished | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document's chunks, by ordinal, and what its rows say of it. `pages` is None where the format has none.

    `embeddings` are theirs, in the same order; None: they are still to be embedded.
    """

    document: Document
    title: str
    pages_read: int
    pages: int | None
    chunks: tuple[Chunk, ...]
    embeddings: tuple[Embedding, ...] | None = None


# What became of a work: its chunks, or why it cannot be read.
Outcome = Prepared | DocumentError
# Works -> each with its outcome, in the same order.
Prepare = Callable[[Iterable[Work]], Generator[tuple[Work, Outcome], None, None]]


def prepare_document(document: Document, path: Path, settings: Settings, count_tokens: CountTokens) -> Prepared:
    """Parses and chunks the file at `path`, which must still have the document's revision. Raises DocumentError."""
    parsed = parse_document(document, settings.ingest, path)
    chunks = chunk_parsed(parsed, settings, count_tokens)
    pages = len(parsed.pages)
    if parsed.skipped_pages:
        logger.warning("%s: %d of its %d pages could not be read", document.source, parsed.skipped_pages, pages)
    return Prepared(document, parsed.title, pages, pages if parsed.paged else None, chunks)


def chunk_parsed(parsed: ParsedDocument, settings: Settings, count_tokens: CountTokens) -> tuple[Chunk, ...]:
    """The document's chunks by ordinal, one at least, measured as its language asks. Raises DocumentError."""
    count = choose_counter(parsed.text, settings.embedder.languages, count_tokens)
    chunks = chunk_document(parsed, settings.chunk, count)
    if not chunks:
        raise DocumentError("it holds no text beside headings and white space; write some or leave it out")
    if any(len(chunk.page_starts) > _MAX_PAGES_OF_CHUNK for chunk in chunks):
        raise DocumentError(
            f"more than {_MAX_PAGES_OF_CHUNK:,} of its pages in a row hold next to no text; "
            "add a text layer first, for example: ocrmypdf IN OUT"
        )
    return tuple(chunks)


def choose_counter(text: str, languages: tuple[Language, ...] | None, count_tokens: CountTokens) -> CountTokens:
    """What a whole document is measured with: the embedder's tokens, or characters where it understands only
    `languages` (None: all) and the text, by a sample of it, is in another.

    A tokenizer cuts what it does not know very finely: its chunks would hold too few words to be found by, which is the
    only way to find them. Measured in characters they may be above `embedder.max_tokens`. Their vectors then miss the
    end, at no cost in that language: its questions are searched by words alone.
    """
    return count_tokens if understands(languages, _sample(text)) else count_by_chars


def count_by_chars(text: str) -> int:
    """One token for every 2.5 characters, white space too; what is left over counts as one."""
    return math.ceil(len(text) / _CHARS_PER_TOKEN)


def _sample(text: str) -> str:
    if len(text) <= _SAMPLE_PIECES * _PIECE_CHARS:
        return text
    step = len(text) // _SAMPLE_PIECES
    return "".join(text[start : start + _PIECE_CHARS] for start in range(0, step * _SAMPLE_PIECES, step))


def prepare_here(settings: Settings, count_tokens: CountTokens) -> Prepare:
    """In this process, one document after the other, in a thread that reads ahead while its caller embeds.

    It is ahead by two documents, and by more while they are small: _AHEAD_DOCUMENTS, _AHEAD_BYTES. Whoever stops early
    waits for the document that is being read.
    """

    def outcome_of(work: Work) -> Outcome:
        try:
            return prepare_document(work.document, work.path, settings, count_tokens)
        except DocumentError as error:
            return error

    def prepare(works: Iterable[Work]) -> Generator[tuple[Work, Outcome], None, None]:
        ahead: deque[tuple[Work, Future[Outcome]]] = deque()
        waiting_bytes = 0
        reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read")
        try:
            for work in works:
                ahead.append((work, reader.submit(outcome_of, work)))
                waiting_bytes += work.source_bytes
                while len(ahead) > _AHEAD_DOCUMENTS or (len(ahead) > 2 and waiting_bytes > _AHEAD_BYTES):
                    done, future = ahead.popleft()
                    waiting_bytes -= done.source_bytes
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            reader.shutdown(cancel_futures=True)

    return prepare
