"""The values that travel between the steps, and the shape of each step.

Offsets count Unicode code points, ends are exclusive. Scores: higher is better, always.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from rag.filters import Filter

Vector = np.ndarray  # float32, (dim,), L2 norm 1
Span = tuple[int, int]  # start, end (exclusive) within the text it belongs to
Stage = Literal["embed", "dense", "lexical", "rerank", "rewrite", "generate", "ground"]
TextKind = Literal["query", "passage"]
Groups = frozenset[str] | None  # whose documents a caller may see; None: the owner's own tools, which see everything


@dataclass(frozen=True, slots=True)
class Document:
    """One source before it is parsed: `document_id` comes from `source`, `revision` from its bytes.

    `part` is the range of bytes in the file that holds the document, None for a file that is one document; `title` is
    the one given beside the text, None where parsing finds it.
    """

    document_id: str
    source: str
    revision: str
    media_type: str
    acl: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    part: Span | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page, numbered from 1; `start_char` is where its text starts within the document's text.

    `label` is what the document itself calls the page ("iv", "A-3"), None where that is the number.
    """

    number: int
    text: str
    start_char: int
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading (level from 1), its text without markup; its lines are `start_char:end_char` of the document's text."""

    level: int
    text: str
    start_char: int
    end_char: int


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """A document's text. The document's text is its pages' texts, joined without anything between.

    It is stored in chunks only; ingest.rebuild puts it together again, so that a quote's surroundings can be shown.
    """

    document: Document
    title: str
    pages: tuple[Page, ...]
    headings: tuple[Heading, ...] = ()
    verbatim: tuple[Span, ...] = ()  # code, as whole lines: in order, apart; blank lines do not part what is in one
    paged: bool = False  # False: the format has no pages, `pages` is a single one, citations carry no page
    skipped_pages: int = 0

    @property
    def text(self) -> str:
        return "".join(page.text for page in self.pages)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The stored, embedded unit. `text == document_text[start_char:end_char]`.

    `page_starts[i]` is where page `first_page + i` starts in the document's text; empty when the format
    has no pages (`first_page` and `last_page` are then None). `lead` is what stands between the chunks before and this
    one, heading lines and white space, at most its first 16,000 characters: with it all chunks together hold the
    document's text. A search's hits come without it.
    """

    chunk_id: str
    document_id: str
    revision: str
    ordinal: int
    text: str
    start_char: int
    end_char: int
    heading: str = ""  # "Guide > Install": embedded and searched with the text, never quoted
    first_page: int | None = None
    last_page: int | None = None
    page_starts: tuple[int, ...] = ()
    lead: str = ""

    def page_at(self, char: int) -> int | None:
        """The page that holds document offset `char`, None when the format has no pages."""
        if self.first_page is None:
            return None
        before = sum(1 for start in self.page_starts if start <= char)
        return self.first_page + max(before - 1, 0)


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as the store knows it: what `documents list` shows."""

    document_id: str
    source: str
    title: str
    revision: str
    chunks: int
    pages: int | None
    acl: tuple[str, ...]
    metadata: Mapping[str, Any]
    updated_at: str


@dataclass(frozen=True, slots=True)
class IndexFingerprint:
    """What the vectors and terms of a collection were made with; two that differ cannot share one collection."""

    model: str
    dimension: int
    normalized: bool
    query_prefix: str
    passage_prefix: str
    splitter: str  # the splitter's version and sizes, and the languages that it measures in the embedder's tokens
    analyzer: str  # the lexical analyzer's name and version
    token_vectors: str = ""  # the name of their code (rag.token_vectors), empty where none are kept

    @property
    def index_version(self) -> str:
        """12 hexadecimal digits of the fields' SHA-256: the same fields give the same version everywhere."""
        fields = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(fields.encode("ascii")).hexdigest()[:12]


class Embedding(NamedTuple):
    """What an index keeps of a text: its vector, and its token vectors as rag.token_vectors codes them, or nothing."""

    vector: Vector
    token_vectors: bytes = b""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A row of the store: a chunk, its vector (dim,) and terms, and its document's facts, the same on each row.

    `analyzed` holds the terms that lexical search finds, separated by spaces; `token_vectors` is as in Embedding.
    """

    chunk: Chunk
    vector: Vector
    analyzed: str
    title: str
    source: str
    acl: tuple[str, ...]
    metadata: Mapping[str, Any]
    document_chunks: int
    document_pages: int | None
    updated_at: str
    token_vectors: bytes = b""


@dataclass(frozen=True, slots=True)
class Scores:
    """What each stage gave a hit; None where the stage did not see it. `rerank` is within 0..1."""

    dense: float | None = None
    lexical: float | None = None
    fused: float | None = None
    rerank: float | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search returned. `score` is what the last stage orders by.

    `token_vectors` are those that the index keeps of it, once they were fetched for the reranker; empty before.
    """

    chunk: Chunk
    title: str
    source: str
    score: float
    scores: Scores
    token_vectors: bytes = b""


@dataclass(frozen=True, slots=True)
class Passage:
    """A hit that an answer may cite under its marker `[n]`, n from 1: those in the prompt first, then the others."""

    marker: int
    hit: Hit


@dataclass(frozen=True, slots=True)
class Citation:
    """A verbatim quote that supports `answer[answer_start:answer_end]`.

    `quote` stands in the document's text at `char_start:char_end`; `verified` says that this was checked.
    """

    marker: int
    answer_start: int
    answer_end: int
    quote: str
    verified: bool
    document_id: str
    chunk_id: str
    title: str
    source: str
    page: int | None
    char_start: int
    char_end: int
    score: float


@dataclass(frozen=True, slots=True)
class UnsupportedSpan:
    """A sentence of the answer for which the passages hold no evidence."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """LLM tokens of one answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Question:
    """What a person asks, with what the caller may choose; None means that the settings decide.

    `groups` are the caller's own, never a choice: by default none, so that only documents open to everyone are seen.
    """

    text: str
    collection: str = "default"
    conversation: tuple[Message, ...] = ()
    model: str | None = None
    top_k: int | None = None
    rerank_top_k: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    deadline_s: float | None = None
    filter: Filter | None = None
    groups: Groups = frozenset()


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a question; `timings_ms` maps a stage to its milliseconds, `query` is what was searched for.

    `cached`: it is that of the same question asked before, or of a similar one; `query` and `hits` are then that one's.
    `degraded` names the stages left out; `generate:NAME` is an LLM in whose place its next one, `model`, answered.
    `dropped` counts the sentences that the LLM wrote and that are not in the answer.
    """

    status: Literal["answered", "abstained"]
    answer: str
    answer_source: Literal["generated", "extracted"] | None
    reason: Literal["no_documents", "no_evidence"] | None
    citations: tuple[Citation, ...]
    unsupported: tuple[UnsupportedSpan, ...]
    confidence: float | None
    degraded: tuple[str, ...]
    collection: str
    index_version: str
    model: str | None
    usage: Usage
    timings_ms: Mapping[str, float]
    hits: tuple[Hit, ...] = ()
    query: str = ""
    prompt_hash: str | None = None
    cached: Literal["exact", "semantic"] | None = None
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A piece of the LLM's text; `usage` is that of the request so far. The last piece carries both others."""

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits best first, and the index version that gave them."""

    hits: tuple[Hit, ...]
    index_version: str


class Embed(Protocol):
    """n texts -> float32 (n, dim), rows of L2 norm 1."""

    def __call__(self, texts: list[str], kind: TextKind) -> Awaitable[np.ndarray]: ...


class DenseSearch(Protocol):
    """Cosine similarity with a query vector (dim,), best first; of the chunks that `groups` see and `where` means."""

    def __call__(
        self, collection: str, vector: Vector, top_k: int, *, groups: Groups, where: Filter | None
    ) -> Awaitable[SearchResult]: ...


class LexicalSearch(Protocol):
    """BM25 over the analysed text, best first; of the chunks that `groups` see and `where` means."""

    def __call__(
        self, collection: str, query: str, top_k: int, *, groups: Groups, where: Filter | None
    ) -> Awaitable[SearchResult]: ...


class Score(Protocol):
    """How well spans of texts match queries.

    `spans[i]` are spans of `texts[i]`, and `token_vectors[i]` what the index keeps of it, or nothing; the result holds,
    per text, a float32 array (queries, spans) in 0..1. A passage is reranked by one span over its whole text; a
    sentence, by its span within the passage.
    """

    def __call__(
        self, queries: list[str], texts: list[str], spans: list[list[Span]], token_vectors: list[bytes]
    ) -> Awaitable[list[np.ndarray]]: ...


class Answerability(Protocol):
    """Log odds that each passage answers its question, float32 (pairs,), of pairs (question, passage)."""

    def __call__(self, pairs: list[tuple[str, str]]) -> Awaitable[np.ndarray]: ...


class StoredTokenVectors(Protocol):
    """The token vectors that the index keeps of each of these chunks, in their order; empty where it keeps none."""

    def __call__(self, collection: str, chunk_ids: list[str]) -> Awaitable[list[bytes]]: ...


class Generate(Protocol):
    """Messages -> pieces of text, as the LLM of that name writes them."""

    def __call__(
        self, messages: list[Message], *, model: str, max_tokens: int, temperature: float
    ) -> AsyncIterator[GeneratedText]: ...


CountTokens = Callable[[str], int]
# Texts -> of each where its content tokens start and end, int (tokens, 2), as the embedder cuts it.
TokenOffsets = Callable[[list[str]], list[np.ndarray]]
SplitSentences = Callable[[str], Sequence[Span]]
