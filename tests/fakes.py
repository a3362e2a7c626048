"""Whole small stand-ins for models and the store, to be passed in where the real ones would be."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from rag.errors import InputError, UnknownCollectionError
from rag.filters import And, Equals, Filter, compile_filter
from rag.store_rows import (
    BuiltIndex,
    as_dense,
    as_lexical,
    check_collection_name,
    check_fingerprint,
    check_top_k,
    encode_row,
    order_hits,
)
from rag.types import (
    Chunk,
    Embedding,
    Groups,
    Hit,
    IndexFingerprint,
    Scores,
    SearchResult,
    StoredChunk,
    StoredDocument,
    TextKind,
    Vector,
)
from tests.filter_fake import matches

BM25_K1, BM25_B = 1.2, 0.75


class HashEmbedder:
    """Bag-of-words vectors: texts that share words are near, and the same text has the same vector everywhere."""

    def __init__(self, dimension: int = 64) -> None:
        self.dimension = dimension

    def encode(self, texts: Sequence[str], kind: TextKind) -> np.ndarray:
        """n texts -> float32 (n, dimension), rows of L2 norm 1; `kind` makes no difference."""
        return np.stack([self._vector(text) for text in texts]) if texts else np.zeros((0, self.dimension), np.float32)

    async def embed(self, texts: list[str], kind: TextKind) -> np.ndarray:
        """As `encode`."""
        return self.encode(texts, kind)

    def embed_passages(self, texts: Sequence[str]) -> list[Embedding]:
        """As `encode`, a text each, without token vectors."""
        return [Embedding(vector) for vector in self.encode(texts, "passage")]

    def _vector(self, text: str) -> np.ndarray:
        vector = np.zeros(self.dimension, dtype=np.float32)
        for word in re.findall(r"\w+", text.lower()) or [text]:
            digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
            seed = int.from_bytes(digest[:8], "big")
            vector += np.random.default_rng(seed).standard_normal(self.dimension).astype(np.float32)
        return vector / np.linalg.norm(vector)


class InMemoryStore:
    """MilvusStore's methods over dictionaries: exact cosine, BM25 as Okapi's formula has it, the same errors."""

    def __init__(self, fingerprint: IndexFingerprint | None = None) -> None:
        self._expected = fingerprint
        self._built: dict[str, IndexFingerprint] = {}
        self._rows: dict[str, dict[str, StoredChunk]] = {}

    def sharing(self, fingerprint: IndexFingerprint | None) -> InMemoryStore:
        """Another store over the same collections, as a second process has with another fingerprint."""
        other = InMemoryStore(fingerprint)
        other._built, other._rows = self._built, self._rows
        return other

    def ensure_collection(self, name: str, fingerprint: IndexFingerprint) -> bool:
        check_collection_name(name)
        made = name not in self._built
        check_fingerprint(name, self._built.setdefault(name, fingerprint), fingerprint)
        self._rows.setdefault(name, {})
        return made

    def fingerprint(self, name: str) -> IndexFingerprint:
        if name not in self._built:
            raise UnknownCollectionError(name)
        return self._built[name]

    def collections(self) -> list[str]:
        return sorted(self._built)

    def drop_collection(self, name: str) -> None:
        self.fingerprint(name)
        del self._built[name], self._rows[name]

    def upsert(self, collection: str, rows: Sequence[StoredChunk]) -> None:
        built = BuiltIndex(self._check(collection))
        for row in rows:
            encode_row(row, built)
        self._rows[collection].update({row.chunk.chunk_id: row for row in rows})

    def delete(self, collection: str, where: Filter, *, everywhere: bool = True) -> None:
        self.fingerprint(collection)
        compile_filter(where)  # refuses what the real store refuses
        kept = {name: row for name, row in self._rows[collection].items() if not matches(where, row)}
        self._rows[collection] = kept

    def stored_documents(self, collection: str, where: Filter | None = None) -> list[StoredDocument]:
        self.fingerprint(collection)
        wanted = And((Equals("ordinal", 0), where)) if where is not None else Equals("ordinal", 0)
        compile_filter(wanted)  # refuses what the real store refuses
        found = [_document(row) for row in self._rows[collection].values() if matches(wanted, row)]
        return sorted(found, key=lambda document: (document.source, document.document_id))

    def chunks(self, collection: str, document_id: str) -> list[Chunk]:
        self.fingerprint(collection)
        found = [row.chunk for row in self._rows[collection].values() if row.chunk.document_id == document_id]
        return sorted(found, key=lambda chunk: (chunk.ordinal, chunk.chunk_id))

    def every_chunk(self, collection: str, where: Filter | None = None) -> Iterator[tuple[Chunk, StoredDocument]]:
        self.fingerprint(collection)
        if where is not None:
            compile_filter(where)  # refuses what the real store refuses
        for _, row in sorted(self._rows[collection].items()):
            if where is None or matches(where, row):
                yield row.chunk, _document(row)

    async def dense_search(
        self,
        collection: str,
        vector: Vector,
        top_k: int,
        *,
        groups: Groups = frozenset(),
        where: Filter | None = None,
    ) -> SearchResult:
        check_top_k(top_k)
        fingerprint = self._check(collection)
        query = np.asarray(vector, dtype=np.float32)
        if query.shape != (fingerprint.dimension,):
            raise InputError(f"the query vector has shape {query.shape}; ({fingerprint.dimension},) is expected")
        rows = self._visible(collection, groups, where)
        hits = [as_dense(_hit(row, _cosine(row.vector, query))) for row in rows.values()]
        await asyncio.sleep(0)
        return SearchResult(order_hits(hits)[:top_k], fingerprint.index_version)

    async def lexical_search(
        self,
        collection: str,
        analyzed_query: str,
        top_k: int,
        *,
        groups: Groups = frozenset(),
        where: Filter | None = None,
    ) -> SearchResult:
        check_top_k(top_k)
        fingerprint = self._check(collection)
        visible = self._visible(collection, groups, where)
        rows = list(self._rows[collection].values())
        scores = _bm25(analyzed_query.split(), [row.analyzed.split() for row in rows])
        found = [(row, score) for row, score in zip(rows, scores, strict=True) if score > 0]
        hits = [as_lexical(_hit(row, score)) for row, score in found if row.chunk.chunk_id in visible]
        await asyncio.sleep(0)
        return SearchResult(order_hits(hits)[:top_k], fingerprint.index_version)

    async def token_vectors(self, collection: str, chunk_ids: Sequence[str]) -> list[bytes]:
        kept = self._check(collection).token_vectors
        rows = self._rows[collection]
        await asyncio.sleep(0)
        return [rows[one].token_vectors if kept and one in rows else b"" for one in chunk_ids]

    def lexical_problem(self) -> str | None:
        return None

    async def ping(self) -> None:
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to close: a closed store can be used again, as the real one can."""

    def _visible(self, collection: str, groups: Groups, where: Filter | None) -> dict[str, StoredChunk]:
        if where is not None:
            compile_filter(where)  # refuses what the real store refuses
        return {
            chunk_id: row
            for chunk_id, row in self._rows[collection].items()
            if (groups is None or not row.acl or not groups.isdisjoint(row.acl))
            and (where is None or matches(where, row))
        }

    def _check(self, collection: str) -> IndexFingerprint:
        stored = self.fingerprint(collection)
        if self._expected is not None:
            check_fingerprint(collection, stored, self._expected)
        return stored


def _hit(row: StoredChunk, score: float) -> Hit:
    return Hit(chunk=replace(row.chunk, lead=""), title=row.title, source=row.source, score=score, scores=Scores())


def _document(row: StoredChunk) -> StoredDocument:
    return StoredDocument(
        document_id=row.chunk.document_id,
        source=row.source,
        title=row.title,
        revision=row.chunk.revision,
        chunks=row.document_chunks,
        pages=row.document_pages,
        acl=row.acl,
        metadata=dict(row.metadata),
        updated_at=row.updated_at,
    )


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def _bm25(query: list[str], documents: list[list[str]]) -> list[float]:
    """Okapi BM25 with the +1 idf of Lucene; 0 where a document holds no term of the query."""
    if not documents:
        return []
    mean_length = sum(map(len, documents)) / len(documents) or 1.0
    holding = Counter(term for document in documents for term in set(document))
    scores = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for term in query:
            idf = math.log(1 + (len(documents) - holding[term] + 0.5) / (holding[term] + 0.5))
            damped = counts[term] + BM25_K1 * (1 - BM25_B + BM25_B * len(document) / mean_length)
            score += idf * counts[term] * (BM25_K1 + 1) / damped
        scores.append(score)
    return scores
