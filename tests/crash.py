"""A corpus that changes, and what a collection of Milvus holds in the end. As a program: an ingest that can be killed.

`python -m tests.crash DATA_DIR COLLECTION FOLDER` is `rag ingest FOLDER --prune` with the hash embedder, which needs no
seconds to load. It prints "ready" on stderr before it opens the store.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymilvus import MilvusClient

from ingest.journal import open_journal
from ingest.pipeline import ingest_documents
from ingest.prepare import prepare_here
from rag.config import load_settings
from rag.connect import open_store
from rag.milvus import CHANNEL_OPTIONS
from rag.store_rows import decode_token_vectors
from rag.token_vectors import decode_tokens
from rag.types import IndexFingerprint
from tests.fakes import HashEmbedder
from tests.ingest_fakes import count_words

WORDS = ("apple", "pear", "plum", "fig", "date", "kiwi", "lime", "melon", "grape", "peach", "olive", "quince", "guava")
FINGERPRINT = IndexFingerprint("hash", 64, True, "", "", "splitter", "analyzer")
Corpus = dict[str, str]
_NOT_EXACT = {"vector": None, "token_vectors": None}

# Small chunks and batches, so that a run makes many writes.
VARIABLES = {"RAG_CHUNK__MAX_TOKENS": "24", "RAG_CHUNK__OVERLAP_TOKENS": "0", "RAG_INGEST__EMBED_BATCH": "8"}


def changing_corpora(seed: int, documents: int, versions: int) -> Iterator[Corpus]:
    """A corpus, and what becomes of it: each time some documents are added, changed, changed back, removed, renamed."""
    chance = random.Random(seed)
    numbers = iter(range(10**6))
    first: Corpus = {_name(chance, next(numbers)): _text(chance) for _ in range(documents)}
    former: Corpus = {}
    corpus = dict(first)
    for _ in range(versions):
        yield dict(corpus)
        some = chance.sample(sorted(corpus), documents // 4)
        part = len(some) // 4
        for name in some[:part]:
            del corpus[name]
            corpus[_name(chance, next(numbers))] = _text(chance)
        for name in some[part : 2 * part]:
            corpus[_name(chance, next(numbers), Path(name).suffix)] = corpus.pop(name)
        for name in some[2 * part :]:
            former[name], corpus[name] = corpus[name], former.get(name) or _text(chance)


def _name(chance: random.Random, number: int, suffix: str | None = None) -> str:
    folder = chance.choice(["", "deep/", "deep/er/", "문서/"])
    return f"{folder}{chance.choice(WORDS)} {number}{suffix or chance.choice(['.md', '.txt'])}"


def _text(chance: random.Random) -> str:
    def sentence() -> str:
        return " ".join(chance.choices(WORDS, k=12)).capitalize() + "."

    return "# " + chance.choice(WORDS) + "\n\n" + "\n\n".join(sentence() for _ in range(chance.randint(1, 6))) + "\n"


def raw_client(uri: str) -> MilvusClient:
    """A client beside our store's, with its channel: by pymilvus' own Milvus Lite ends it for too many pings."""
    return MilvusClient(uri, timeout=20, dedicated=True, grpc_options=CHANNEL_OPTIONS)


def stored_rows(uri: str, collection: str) -> list[dict[str, Any]]:
    """Every row of the collection by chunk id, every column but the time of writing."""
    client = raw_client(uri)
    rows: list[dict[str, Any]] = client.query(
        collection, filter="ordinal >= 0", output_fields=["*"], limit=16_384, consistency_level="Strong", timeout=20
    )
    client.close()
    for row in rows:
        del row["updated_at"]
    return sorted(rows, key=lambda row: row["chunk_id"])


def compare_rows(found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> None:
    """Raises AssertionError unless both are the same, row by row.

    Where a text is embedded beside others its vectors differ by some 1e-7, which can put a number of a token vector on
    the next of its few levels: about one in a million was seen to.
    """
    ids, wanted_ids = ([row["chunk_id"] for row in rows] for rows in (found, wanted))
    differing = set(ids) ^ set(wanted_ids)
    assert ids == wanted_ids, (
        f"{len(ids)} rows in place of {len(wanted_ids)}; "
        f"too many: {[(row['source'], row['ordinal']) for row in found if row['chunk_id'] in differing]}, "
        f"missing: {[(row['source'], row['ordinal']) for row in wanted if row['chunk_id'] in differing]}"
    )
    for row, other in zip(found, wanted, strict=True):
        assert {**row, **_NOT_EXACT} == {**other, **_NOT_EXACT}
        assert np.allclose(row["vector"], other["vector"], atol=1e-5)
        levels, other_levels = _token_levels(row), _token_levels(other)
        assert levels.shape == other_levels.shape
        assert np.count_nonzero(levels != other_levels) <= levels.size // 1000, row["source"]


def _token_levels(row: dict[str, Any]) -> np.ndarray:
    """The numbers of the row's token vectors, float32 (tokens, dim); none where it keeps none."""
    return decode_tokens([decode_token_vectors({"token_vectors": "", **row})], len(row["vector"]))


def main(data_dir: str, collection: str, folder: str) -> None:
    settings = load_settings(data_dir=data_dir)
    print("ready", file=sys.stderr, flush=True)
    with open_store(settings, FINGERPRINT) as store, open_journal(settings, collection, print) as journal:
        ingest_documents(
            [folder],
            store=store,
            journal=journal,
            embed=HashEmbedder().embed_passages,
            analyze=str.lower,
            prepare=prepare_here(settings, count_words),
            fingerprint=FINGERPRINT,
            settings=settings,
            say=print,
            collection=collection,
            prune=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
