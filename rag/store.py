"""Milvus: one collection holds chunks with a dense vector and BM25 terms. With rag.store_rows all of its uses.

Writing, listing and dropping are plain functions for ingest; searching and `ping` are coroutines for a server.
A call takes about `timeout_s` at most, and each failure of pymilvus leaves as a RagError.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from pymilvus import AsyncMilvusClient, MilvusClient, MilvusException
from pymilvus.exceptions import DataNotMatchException, DataTypeNotMatchException, ParamError

from rag.errors import InputError, RagError, StoreUnavailableError, UnknownCollectionError
from rag.filters import And, Equals, Filter, compile_filter, compile_filter_after, visible_to
from rag.store_rows import (
    CHUNK_COLUMNS,
    DOCUMENT_COLUMNS,
    HIT_COLUMNS,
    INDEXED_COLUMNS,
    as_dense,
    as_lexical,
    build_indexes,
    build_schema,
    check_collection_name,
    check_fingerprint,
    check_top_k,
    decode_chunk,
    decode_document,
    decode_hit,
    encode_row,
    is_ours,
    order_hits,
    read_description,
)
from rag.types import Chunk, Groups, Hit, IndexFingerprint, Scores, SearchResult, StoredChunk, StoredDocument, Vector

# pymilvus logs a traceback for each error that it also raises.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)

FINGERPRINT_TTL_S = 10.0
UPSERT_ROWS = 256  # with every text at its longest still half of the 64 MiB that Milvus takes in one message
PAGE_ROWS = 1_000
CONSISTENCY = "Strong"  # a search sees every write that returned before it

_NOT_FOUND, _BAD_PARAMETER = 100, 1_100  # Milvus' error codes
_NO_TERMS = "NaN or Inf value"  # Milvus Lite divides by the mean length, which is 0 where no chunk has a term
_REFUSALS = (ParamError, DataNotMatchException, DataTypeNotMatchException)

# Without these Milvus may give any rows of a page, not the first ones by id.
_IN_ORDER = {"iterator": "True", "reduce_stop_for_best": "True"}

# A channel of its own, and short pauses: by gRPC's defaults a server that came back is not tried for up to two minutes.
_CHANNEL_OPTIONS = {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 5_000,  # how long one attempt to connect may take, whatever its name says
    "grpc.max_reconnect_backoff_ms": 1_000,
}


class MilvusStore:
    """One Milvus server, reached by `uri` and `token`.

    With `fingerprint`, searching or writing a collection that was built otherwise raises IndexMismatchError; the check
    is repeated every ten seconds. Every method may raise StoreUnavailableError, and those that name a collection
    UnknownCollectionError. Safe to share between threads and event loops.
    """

    def __init__(
        self,
        uri: str,
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        fingerprint: IndexFingerprint | None = None,
    ) -> None:
        self._uri = uri
        self._address = uri.rsplit("@", 1)[-1]  # without the user and password that a URI may carry
        self._token = token or ""
        self._timeout_s = timeout_s
        self._expected = fingerprint
        self._known: dict[str, tuple[float, IndexFingerprint]] = {}
        self._client: MilvusClient | None = None
        self._client_lock = threading.Lock()
        self._async_clients: dict[asyncio.AbstractEventLoop, tuple[AsyncMilvusClient, asyncio.Lock]] = {}

    # --- collections ---

    def ensure_collection(self, name: str, fingerprint: IndexFingerprint) -> None:
        """Makes the collection unless it exists. Raises InputError for a name that Milvus does not take, and
        IndexMismatchError when it exists with another fingerprint."""
        check_collection_name(name)
        self._known.pop(name, None)
        with self._failures(name):
            client = self._connected()
            if not client.has_collection(name, timeout=self._timeout_s):
                self._create(client, name, fingerprint)
        check_fingerprint(name, self.fingerprint(name), fingerprint)
        with self._failures(name):
            # A process killed while it made the collection leaves it without its indexes; both calls may be repeated.
            if len(client.list_indexes(name, timeout=self._timeout_s)) < len(INDEXED_COLUMNS):
                client.create_index(name, build_indexes(), timeout=self._timeout_s)
            client.load_collection(name, timeout=self._timeout_s)

    def fingerprint(self, name: str) -> IndexFingerprint:
        """What the collection was built with. Raises IndexMismatchError when it was not built by this program."""
        with self._failures(name):
            described = self._connected().describe_collection(name, timeout=self._timeout_s)
        return self._remember(name, described["description"])

    def collections(self) -> list[str]:
        """The names of the collections that this program made, sorted."""
        with self._failures():
            client = self._connected()
            names = client.list_collections(timeout=self._timeout_s)
            described = [client.describe_collection(name, timeout=self._timeout_s) for name in names]
        return sorted(found["collection_name"] for found in described if is_ours(found["description"]))

    def drop_collection(self, name: str) -> None:
        """Removes the collection with all that is in it."""
        with self._failures(name):
            client = self._connected()
            if not client.has_collection(name, timeout=self._timeout_s):
                raise UnknownCollectionError(name)
            client.drop_collection(name, timeout=self._timeout_s)
        self._known.pop(name, None)

    # --- rows ---

    def upsert(self, collection: str, rows: Sequence[StoredChunk]) -> None:
        """Stores the rows in their order, replacing those with the same chunk_id; of equal ids the last counts.

        Raises InputError naming the chunk that cannot be stored, before anything is written.
        """
        dimension = self._check(collection).dimension
        columns = [encode_row(row, dimension) for row in {row.chunk.chunk_id: row for row in rows}.values()]
        with self._failures(collection):
            client = self._connected()
            for start in range(0, len(columns), UPSERT_ROWS):
                client.upsert(collection, columns[start : start + UPSERT_ROWS], timeout=self._timeout_s)

    def delete(self, collection: str, where: Filter) -> None:
        """Removes the chunks that the filter means."""
        with self._failures(collection):
            self._connected().delete(collection, filter=compile_filter(where), timeout=self._timeout_s)

    def stored_documents(self, collection: str) -> list[StoredDocument]:
        """The complete documents, by source, ties by id. Complete is one whose chunk 0, published last, is there."""
        found = [decode_document(row) for row in self._rows(collection, Equals("ordinal", 0), DOCUMENT_COLUMNS)]
        return sorted(found, key=lambda document: (document.source, document.document_id))

    def chunks(self, collection: str, document_id: str) -> list[Chunk]:
        """The document's chunks by ordinal; empty when it is not there."""
        found = [decode_chunk(row) for row in self._rows(collection, Equals("document_id", document_id), CHUNK_COLUMNS)]
        return sorted(found, key=lambda chunk: (chunk.ordinal, chunk.chunk_id))

    def every_chunk(self, collection: str) -> Iterator[tuple[Chunk, StoredDocument]]:
        """All chunks, each with its document's facts, in the order of chunk ids; memory holds a page of them."""
        columns = list(dict.fromkeys((*CHUNK_COLUMNS, *DOCUMENT_COLUMNS)))
        for row in self._rows(collection, And(()), columns):
            yield decode_chunk(row), decode_document(row)

    # --- searching ---

    # Both find chunks that a caller of `groups` may see, and of those what `where` means, all when it is None.

    async def dense_search(
        self,
        collection: str,
        vector: Vector,
        top_k: int,
        *,
        groups: Groups = frozenset(),
        where: Filter | None = None,
    ) -> SearchResult:
        """At most top_k hits for a query vector (dim,), by cosine similarity, best first, ties by chunk_id."""
        check_top_k(top_k)
        fingerprint = await self._check_async(collection)
        query = np.asarray(vector, dtype=np.float32)
        if query.shape != (fingerprint.dimension,):
            raise InputError(f"the query vector has shape {query.shape}; ({fingerprint.dimension},) is expected")
        hits = await self._search(collection, query, "vector", "COSINE", top_k, groups, where)
        return SearchResult(tuple(as_dense(hit) for hit in hits), fingerprint.index_version)

    async def lexical_search(
        self,
        collection: str,
        analyzed_query: str,
        top_k: int,
        *,
        groups: Groups = frozenset(),
        where: Filter | None = None,
    ) -> SearchResult:
        """At most top_k hits for terms between spaces, by BM25, best first, ties by chunk_id. No terms, no hits."""
        check_top_k(top_k)
        fingerprint = await self._check_async(collection)
        if not analyzed_query.strip():
            return SearchResult((), fingerprint.index_version)
        hits = await self._search(collection, analyzed_query, "sparse", "BM25", top_k, groups, where)
        return SearchResult(tuple(as_lexical(hit) for hit in hits), fingerprint.index_version)

    async def ping(self) -> None:
        """Raises StoreUnavailableError when Milvus does not answer."""
        async with self._async_failures() as client:
            await client.list_collections(timeout=self._timeout_s)

    async def aclose(self) -> None:
        """Closes the running loop's connection and the plain functions'; using the store again connects again."""
        client, _ = self._async_clients.pop(asyncio.get_running_loop(), (None, None))
        if client is not None:
            await client.close()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Closes the connection of the plain functions; the searching side is closed by `aclose`."""
        with self._client_lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    # --- calls ---

    async def _search(
        self,
        collection: str,
        query: np.ndarray | str,
        column: str,
        metric: str,
        top_k: int,
        groups: Groups,
        where: Filter | None,
    ) -> Sequence[Hit]:
        """The one way into Milvus' search: what a caller may not see is left out whatever the filter says."""
        wanted = [*([] if groups is None else [visible_to(groups)]), *([] if where is None else [where])]
        async with self._async_failures(collection) as client:
            try:
                found = await client.search(
                    collection,
                    data=[query],
                    anns_field=column,
                    limit=top_k,
                    filter=compile_filter(And(tuple(wanted))) if wanted else "",
                    output_fields=HIT_COLUMNS,
                    search_params={"metric_type": metric},
                    consistency_level=CONSISTENCY,
                    timeout=self._timeout_s,
                )
            except MilvusException as error:
                if metric == "BM25" and _NO_TERMS in error.message:
                    return ()
                raise
        return order_hits(decode_hit(hit["entity"], float(hit["distance"]), Scores()) for hit in found[0])

    def _rows(self, collection: str, where: Filter, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Page by page in the order of ids. pymilvus' own iterator makes a call without a timeout."""
        expression = compile_filter(where)
        while True:
            with self._failures(collection):
                rows: list[dict[str, Any]] = self._connected().query(
                    collection,
                    filter=expression,
                    output_fields=columns,
                    limit=PAGE_ROWS,
                    consistency_level=CONSISTENCY,
                    timeout=self._timeout_s,
                    **_IN_ORDER,
                )
            yield from rows
            if len(rows) < PAGE_ROWS:
                return
            expression = compile_filter_after(where, rows[-1]["chunk_id"])

    def _create(self, client: MilvusClient, name: str, fingerprint: IndexFingerprint) -> None:
        try:
            client.create_collection(
                name,
                schema=build_schema(fingerprint),
                index_params=build_indexes(),
                consistency_level=CONSISTENCY,
                timeout=self._timeout_s,
            )
        except MilvusException:
            # Another process may have made it in the meantime.
            if not client.has_collection(name, timeout=self._timeout_s):
                raise

    def _check(self, collection: str) -> IndexFingerprint:
        stored = self._recall(collection) or self.fingerprint(collection)
        if self._expected is not None:
            check_fingerprint(collection, stored, self._expected)
        return stored

    async def _check_async(self, collection: str) -> IndexFingerprint:
        stored = self._recall(collection)
        if stored is None:
            async with self._async_failures(collection) as client:
                described = await client.describe_collection(collection, timeout=self._timeout_s)
            stored = self._remember(collection, described["description"])
        if self._expected is not None:
            check_fingerprint(collection, stored, self._expected)
        return stored

    def _recall(self, collection: str) -> IndexFingerprint | None:
        read_at, stored = self._known.get(collection, (-FINGERPRINT_TTL_S, None))
        return stored if time.monotonic() - read_at < FINGERPRINT_TTL_S else None

    def _remember(self, collection: str, description: str) -> IndexFingerprint:
        stored = read_description(collection, description)
        self._known[collection] = (time.monotonic(), stored)
        return stored

    def _connected(self) -> MilvusClient:
        with self._client_lock:
            if self._client is None:
                self._client = MilvusClient(
                    self._uri, token=self._token, timeout=self._timeout_s, dedicated=True, grpc_options=_CHANNEL_OPTIONS
                )
            return self._client

    async def _async_connected(self) -> AsyncMilvusClient:
        """The running loop's client, connected: a gRPC channel belongs to one loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._async_clients:
            client = AsyncMilvusClient(
                self._uri, token=self._token, timeout=self._timeout_s, dedicated=True, grpc_options=_CHANNEL_OPTIONS
            )
            # Replaced, not changed: loops in other threads read it at the same time.
            live = {known: pair for known, pair in self._async_clients.items() if not known.is_closed()}
            self._async_clients = {**live, loop: (client, asyncio.Lock())}
        client, connecting = self._async_clients[loop]
        async with connecting:
            await client._connect()
        return client

    @contextmanager
    def _failures(self, collection: str | None = None) -> Iterator[None]:
        """Failures of pymilvus leave as RagErrors."""
        try:
            yield
        except (MilvusException, grpc.RpcError) as error:
            raise self._as_rag_error(error, collection) from error

    @asynccontextmanager
    async def _async_failures(self, collection: str | None = None) -> AsyncIterator[AsyncMilvusClient]:
        """The connected client, for at most `timeout_s`; failures of pymilvus leave as RagErrors."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield await self._async_connected()
        except (MilvusException, grpc.RpcError, TimeoutError) as error:
            raise self._as_rag_error(error, collection) from error

    def _as_rag_error(self, error: Exception, collection: str | None) -> RagError:
        code = error.code if isinstance(error, MilvusException) else None
        if code == _NOT_FOUND and collection is not None:
            self._known.pop(collection, None)
            return UnknownCollectionError(collection)
        if isinstance(error, MilvusException) and (code == _BAD_PARAMETER or isinstance(error, _REFUSALS)):
            return InputError(f"Milvus refuses the request: {error.message}")
        if isinstance(error, MilvusException):
            reason = error.message
        elif isinstance(error, grpc.RpcError):
            reason = f"{error.code().name.lower()}: {error.details()}"
        else:
            reason = f"no answer within {self._timeout_s:g} s"
        return StoreUnavailableError(
            f"the store at {self._address} does not answer: {reason}; "
            "check that Milvus runs there, or set store.uri (RAG_STORE__URI)"
        )
