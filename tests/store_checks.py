"""Rows, vectors and searches of the stores' contract tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rag.store import MilvusStore
from rag.types import Chunk, IndexFingerprint, StoredChunk
from tests.fakes import InMemoryStore

DIMENSION = 4
FINGERPRINT = IndexFingerprint("hash", DIMENSION, True, "", "", splitter="s", analyzer="1")
ODD_TEXTS = [
    "한글 문서 (최종).md",
    'a "quoted" name',
    "it's",
    "back\\slash\\",
    '\\" or ordinal >= 0',
    "two\nlines\r\n\ttab",
    "nul\x00 and \x7f",
    "␛000a",
    "😀 %_{}[]",
    " spaces ",
    "",
]

Store = InMemoryStore | MilvusStore
OpenStore = Callable[[IndexFingerprint | None], Store]


def vector(*values: float) -> np.ndarray:
    """The unit vector that points to `values`, the rest 0."""
    padded = np.zeros(DIMENSION, dtype=np.float32)
    padded[: len(values)] = values
    return padded / np.linalg.norm(padded)


def row(chunk_id: str, document_id: str = "d1", ordinal: int = 0, analyzed: str = "", **changes: object) -> StoredChunk:
    """A stored chunk; `changes` are other fields of it."""
    values: dict[str, object] = {
        "chunk": Chunk(chunk_id, document_id, "r1", ordinal, f"text of {chunk_id}", 0, 10),
        "vector": vector(1),
        "analyzed": analyzed,
        "title": f"title of {document_id}",
        "source": f"{document_id}.md",
        "acl": (),
        "metadata": {},
        "document_chunks": 1,
        "document_pages": None,
        "updated_at": "2026-11-01T00:00:00Z",
    }
    return StoredChunk(**{**values, **changes})  # type: ignore[arg-type]


async def dense_ids(store: Store, collection: str, query: np.ndarray, top_k: int = 10, **options: Any) -> list[str]:
    """The chunk ids that dense search finds."""
    return [hit.chunk.chunk_id for hit in (await store.dense_search(collection, query, top_k, **options)).hits]


async def lexical_ids(store: Store, collection: str, query: str, top_k: int = 10, **options: Any) -> list[str]:
    """The chunk ids that lexical search finds."""
    return [hit.chunk.chunk_id for hit in (await store.lexical_search(collection, query, top_k, **options)).hits]
