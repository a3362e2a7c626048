"""Many documents at once: read and embedded by Ray Data, on this machine or on a cluster, and published here.

    works -> object store -> read, parse, chunk (tasks) -> embed (actors) -> this process, in order -> Milvus

What is decided and what is written stays with the one process that holds the journal: a run over Ray Data is killed,
and made good, like any other. On a cluster the files must have the same paths on every node.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deployments.ray_session import expect_token, join_ray, joined_address, ray_dir_of
from ingest.chunk import embedding_text
from ingest.prepare import Outcome, Prepare, Work, prepare_document, prepare_here
from rag.config import Settings
from rag.embed import SentenceEmbedder
from rag.errors import DocumentError, SettingsError, StageError
from rag.models import load_token_counter, locate_model
from rag.types import Chunk, CountTokens, Embedding

if TYPE_CHECKING:
    from ray.data import DataContext

_WORKS_PER_BLOCK = 32  # one task reads them: a PDF may take seconds, a row of JSON lines a millisecond
# What an actor embeds before any of it is seen here: some hundred chunks, or progress stands still for minutes.
_BLOCK_BYTES = 512 * 1024
_LOG = "ingest.log"
_START_LIMIT_S = 120.0  # a busy machine takes twenty

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
        with _ray(settings, say):
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


@contextmanager
def _ray(settings: Settings, say: Callable[[str], None]) -> Iterator[None]:
    """Ray started or joined, with Ray Data in order and silent; what native code prints goes to a file."""
    log = settings.data_dir / "logs" / _LOG
    ray_dir = ray_dir_of(settings, "ray-ingest")
    at = f" at {joined_address()}" if joined_address() else ""
    say(f"many documents: reading and embedding them over Ray Data{at}")
    logs = f"what Ray printed is in {log}, its own logs in {ray_dir}"
    with _native_stderr_to(log), _ray_address(settings, ray_dir, logs) as address:
        import ray
        from ray.data import DataContext

        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):  # the other writes to Ray's log
                handler.setLevel(logging.CRITICAL)
        try:
            with failures_named(logs, RuntimeError, ValueError, OSError):
                join_ray(address)
            set_up(DataContext.get_current())
            with failures_named(logs):
                yield
        finally:
            ray.shutdown()


def set_up(context: DataContext) -> None:
    """Ray Data in order, silent, and as slow as the documents are: a scanned one may take an hour."""
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = -1


@contextmanager
def failures_named(logs: str, *more: type[Exception]) -> Iterator[None]:
    """What Ray and Ray Data raise, and `more`, as StageError with the logs to look into."""
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, ExecutionTimeoutError, ConnectionError, *more) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise StageError("ingest", f"{lines[-1] if lines else type(error).__name__}; {logs}") from error


@contextmanager
def _ray_address(settings: Settings, ray_dir: Path, logs: str) -> Iterator[str]:
    """Of the Ray that RAY_ADDRESS names, else of one in a process that ends with the block, or with this process."""
    if (joined := joined_address()) is not None:
        yield joined
        return
    cpus = (os.cpu_count() or 1) + settings.ingest.ray_embedders * settings.embedder.threads
    what = [str(ray_dir), str(cpus), str(settings.serve.object_store_bytes)]
    command = [sys.executable, "-m", "deployments.ray_head", *what]
    with ray_head(command, logs) as address:
        expect_token()
        yield address


@contextmanager
def ray_head(command: list[str], logs: str, limit_s: float = _START_LIMIT_S) -> Iterator[str]:
    """The address that the command prints; its stdin is closed with the block. Raises StageError naming the logs."""
    pipe = subprocess.PIPE
    # In a session of its own: Ctrl-C is this process's to answer, while Ray still runs.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        with head.stdin:
            if not select.select([head.stdout], [], [], limit_s)[0]:
                os.killpg(head.pid, signal.SIGKILL)
                raise StageError("ingest", f"Ray did not start within {limit_s:.0f} s; {logs}")
            address = head.stdout.readline().strip()
            if not address:
                raise StageError("ingest", f"Ray did not start; {logs}")
            yield address


@contextmanager
def _native_stderr_to(path: Path) -> Iterator[None]:
    """File descriptor 2 to a file, while Python's own sys.stderr stays where it was."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror}); set RAG_DATA_DIR") from error
    sys.stderr.flush()
    real, python = os.dup(2), sys.stderr
    os.dup2(log, 2)
    os.close(log)
    sys.stderr = os.fdopen(real, "w", buffering=1, encoding=python.encoding, errors=python.errors)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(sys.stderr.fileno(), 2)
        sys.stderr.close()
        sys.stderr = python
