"""Many documents at once: read and embedded by Ray Data, on this machine or on a cluster, and published here.

    works -> object store -> read, parse, chunk (tasks) -> embed (actors) -> this process, in order -> Milvus

What is decided and what is written stays with the one process that holds the journal: a run over Ray Data is killed,
and made good, like any other. On a cluster the files must have the same paths on every node.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from deployments.ray_data import ray_data
from deployments.ray_session import joined_address
from ingest.chunk import embedding_text
from ingest.prepare import Outcome, Prepare, Work, prepare_document, prepare_here
from rag.config import Settings
from rag.embed import SentenceEmbedder
from rag.errors import DocumentError
from rag.models import load_token_counter, locate_model
from rag.types import Chunk, CountTokens, Embedding

_WORKS_PER_BLOCK = 32  # one task reads them: a PDF may take seconds, a row of JSON lines a millisecond
# What an actor embeds before any of it is seen here: some hundred chunks, or progress stands still for minutes.
_BLOCK_BYTES = 512 * 1024
_NAME = "ingest"

Columns = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Head:
    """What comes with a document's first row: `shared` has no chunks yet, `chunks` says how many rows there are."""

    work: Work
    shared: Outcome
    chunks: int = 1


def prepare_in_bulk(settings: Settings, count_tokens: CountTokens, say: Callable[[str], None]) -> Prepare:
    """Reads and embeds over Ray Data where there are at least `ingest.ray_documents` documents; else reads here.

    Raises SettingsError when Ray's log cannot be written or the Ray that RAY_ADDRESS names cannot be joined, and
    StageError naming the logs when Ray fails.
    """
    here, enough = prepare_here(settings, count_tokens), settings.ingest.ray_documents

    def prepare(works: Iterable[Work]) -> Generator[tuple[Work, Outcome], None, None]:
        if enough is None:
            yield from here(works)
            return
        coming = iter(works)
        first = list(islice(coming, enough))
        if len(first) < enough:
            yield from here(first)
            return
        at = f" at {joined_address()}" if joined_address() else ""
        say(f"many documents: reading and embedding them over Ray Data{at}")
        cpus = settings.ingest.ray_embedders * settings.embedder.threads
        with ray_data(settings, _NAME, cpus) as context:
            context.target_max_block_size = _BLOCK_BYTES
            context.execution_options.preserve_order = True
            yield from _over_ray(chain(first, coming), settings)

    return prepare


def _over_ray(works: Iterable[Work], settings: Settings) -> Iterator[tuple[Work, Outcome]]:
    import pyarrow
    import ray
    from ray.data import ActorPoolStrategy, from_arrow_refs

    # To the object store, which spills to the disk: this process never holds more than a block of them.
    blocks = []
    rest = iter(works)
    while block := [pickle.dumps(work) for work in islice(rest, _WORKS_PER_BLOCK)]:
        blocks.append(ray.put(pyarrow.table({"work": block})))
    batch = settings.ingest.embed_batch
    rows = (
        from_arrow_refs(blocks)
        .flat_map(_read, fn_kwargs={"settings": settings}, num_cpus=1)
        .map_batches(
            _Embed,
            fn_constructor_kwargs={"settings": settings},
            batch_size=batch,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=settings.ingest.ray_embedders),
            num_cpus=settings.embedder.threads,
            num_gpus=settings.serve.embedder.num_gpus,
        )
    )
    yield from _join(rows.iter_batches(batch_size=batch, batch_format="numpy"))


@functools.cache
def _token_counter(located: str) -> CountTokens:
    return load_token_counter(located)


def _read(row: dict[str, Any], settings: Settings) -> Iterator[dict[str, Any]]:
    """A work -> a row for each chunk: `head` in the first, `text` to be embedded. A single row, without a text, where
    the document cannot be read."""
    work: Work = pickle.loads(row["work"])
    count_tokens = _token_counter(locate_model(settings.embedder.model, settings.cache_dir))
    try:
        prepared = prepare_document(work.document, work.path, settings, count_tokens)
    except DocumentError as error:
        yield {"head": pickle.dumps(_Head(work, error)), "chunk": b"", "text": ""}
        return
    head = pickle.dumps(_Head(work, replace(prepared, chunks=()), len(prepared.chunks)))
    for chunk in prepared.chunks:
        yield {"head": head, "chunk": pickle.dumps(chunk), "text": embedding_text(chunk)}
        head = b""


class _Embed:
    """The rows with `vector`, float32 (rows, dim), and `token_vectors` for `text`; zeros where there is none."""

    def __init__(self, settings: Settings) -> None:
        located = locate_model(settings.embedder.model, settings.cache_dir)
        self._embedder = SentenceEmbedder(settings.embedder, located)

    def __call__(self, columns: Columns) -> Columns:
        texts = columns.pop("text")
        given = np.flatnonzero(texts != "")
        columns["vector"] = np.zeros((len(texts), self._embedder.dimension), dtype=np.float32)
        columns["token_vectors"] = np.full(len(texts), b"", dtype=object)
        if len(given):
            embeddings = self._embedder.embed_passages(texts[given].tolist())
            columns["vector"][given] = [embedding.vector for embedding in embeddings]
            columns["token_vectors"][given] = [embedding.token_vectors for embedding in embeddings]
        return columns


def _join(batches: Iterable[Columns]) -> Iterator[tuple[Work, Outcome]]:
    """The rows, in order, as documents."""
    head: _Head | None = None
    chunks: list[Chunk] = []
    embeddings: list[Embedding] = []
    for columns in batches:
        for row, packed in enumerate(columns["head"]):
            head = pickle.loads(packed) if packed else head
            assert head is not None
            if isinstance(head.shared, DocumentError):
                yield head.work, head.shared
                continue
            chunks.append(pickle.loads(columns["chunk"][row]))
            embeddings.append(Embedding(columns["vector"][row], columns["token_vectors"][row]))
            if len(chunks) == head.chunks:
                yield head.work, replace(head.shared, chunks=tuple(chunks), embeddings=tuple(embeddings))
                chunks, embeddings = [], []
