"""Milvus: one collection holds chunks with a dense vector and BM25 terms.

Writing, listing and dropping are plain functions for ingest; searching and `ping` are coroutines for a server.
A call takes about `timeout_s` at most, and each failure of pymilvus leaves as a RagError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pymilvus import MilvusException

from rag.errors import InputError, StageError, StoreUnavailableError, UnknownCollectionError
from rag.filters import And, Equals, Filter, compile_filter, compile_filter_after, visible_to
from rag.index_versions import VERSIONS_TTL_S, Indexes, IndexRegistry, ReadyIndex
from rag.milvus import CONSISTENCY, NEEDS_BM25, MilvusConnection
from rag.store_rows import (
    DOCUMENT_COLUMNS,
    HIT_COLUMNS,
    BuiltIndex,
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
    decode_token_vectors,
    encode_row,
    order_hits,
)
from rag.types import Chunk, Groups, Hit, IndexFingerprint, Scores, SearchResult, StoredChunk, StoredDocument, Vector

UPSERT_ROWS = 192  # with text, lead, terms and token vectors at their longest still below the 64 MiB of a message
PAGE_ROWS = 1_000

_NO_TERMS = "NaN or Inf value"  # Milvus Lite divides by the mean length, which is 0 where no chunk has a term

# Without these Milvus may give any rows of a page, not the first ones by id.
_IN_ORDER = {"iterator": "True", "reduce_stop_for_best": "True"}


class MilvusStore:
    """One Milvus server, reached by `uri` and `token`.

    A collection that was reindexed has several index versions (rag.index_versions). Searches use the newest that was
    built with `fingerprint`; where there is none, they raise IndexMismatchError. Writes go to the current version, and
    raise IndexMismatchError when that was built otherwise. Without `fingerprint` the current version serves for all.

    Collections made on a server without BM25 (Milvus before 2.5) have no words to search. Every method may raise
    StoreUnavailableError, and those that name a collection UnknownCollectionError. Safe to share between threads and
    event loops.
    """

    def __init__(
        self,
        uri: str,
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        fingerprint: IndexFingerprint | None = None,
        versions_ttl_s: float = VERSIONS_TTL_S,
    ) -> None:
        self._connection = MilvusConnection(uri, token, timeout_s)
        self._timeout_s = timeout_s
        self._expected = fingerprint
        self.registry = IndexRegistry(self._connection, versions_ttl_s)

    # --- collections ---

    def ensure_collection(self, name: str, fingerprint: IndexFingerprint) -> bool:
        """Makes the collection unless it exists; whether it had to.

        Raises InputError for a name that Milvus does not take or that is kept for index versions, and
        IndexMismatchError when its current version has another fingerprint.
        """
        check_collection_name(name, of_version=self.registry.is_being_built(name))
        made = False
        try:
            index = self.registry.read(name).ready[0]
        except UnknownCollectionError:
            self.registry.clear(name)
            self._create(name, fingerprint)
            made = True
            index = self.registry.read(name).ready[0]
        check_fingerprint(name, index.built.fingerprint, fingerprint)
        with self._connection.client(name) as client:
            # Just made, or by a process that was killed over it; both calls may be repeated. No row is in it yet that
            # an index would have to be waited for, and pymilvus waits half a second for each.
            if len(client.list_indexes(index.physical, timeout=self._timeout_s)) < len(index.built.indexed_columns):
                client.create_index(index.physical, build_indexes(index.built), timeout=self._timeout_s, sync=False)
            client.load_collection(index.physical, timeout=self._timeout_s)
        return made

    def fingerprint(self, name: str) -> IndexFingerprint:
        """What the version that is searched was built with. Raises IndexMismatchError when another program made it."""
        return self._fitting(self.registry.read(name)).built.fingerprint

    def collections(self) -> list[str]:
        """The names of the collections that this program made, sorted."""
        return self.registry.collections()

    def drop_collection(self, name: str) -> None:
        """Removes the collection with all that is in it, in every version."""
        self.registry.drop_collection(name)

    def lexical_problem(self) -> str | None:
        """Why this server cannot search by words, None when it can."""
        return self._connection.lexical_problem()

    # --- rows ---

    def upsert(self, collection: str, rows: Sequence[StoredChunk]) -> None:
        """Stores the rows in their order, replacing those with the same chunk_id; of equal ids the last counts.

        Raises InputError naming the chunk that cannot be stored, before anything is written.
        """
        built = self._current(collection).built
        columns = [encode_row(row, built) for row in {row.chunk.chunk_id: row for row in rows}.values()]
        for start in range(0, len(columns), UPSERT_ROWS):
            index = self._current(collection)  # anew, since a switch waits for one call only
            with self._connection.client(collection) as client:
                client.upsert(index.physical, columns[start : start + UPSERT_ROWS], timeout=self._timeout_s)

    def delete(self, collection: str, where: Filter, *, everywhere: bool = True) -> None:
        """Removes the chunks that the filter means, from every version: nobody finds them any more.

        Not `everywhere`: only from the current version, for rows that it alone has, as other chunks of a document.
        """
        indexes = self._writable(collection)
        for index in indexes if everywhere else indexes[:1]:
            with self._connection.client(collection) as client:
                client.delete(index.physical, filter=compile_filter(where), timeout=self._timeout_s)

    def stored_documents(self, collection: str, where: Filter | None = None) -> list[StoredDocument]:
        """The complete documents that `where` means (None: all), by source, ties by id.

        Complete is one whose chunk 0, published last, is there.
        """
        first = Equals("ordinal", 0)
        wanted = first if where is None else And((first, where))
        rows = self._rows(collection, self._read(collection), wanted, DOCUMENT_COLUMNS)
        found = [decode_document(row) for row in rows]
        return sorted(found, key=lambda document: (document.source, document.document_id))

    def chunks(self, collection: str, document_id: str) -> list[Chunk]:
        """The document's chunks by ordinal; empty when it is not there."""
        found = [chunk for chunk, _ in self.every_chunk(collection, Equals("document_id", document_id))]
        return sorted(found, key=lambda chunk: (chunk.ordinal, chunk.chunk_id))

    def every_chunk(self, collection: str, where: Filter | None = None) -> Iterator[tuple[Chunk, StoredDocument]]:
        """The chunks that `where` means (None: all), each with its document's facts, in the order of chunk ids; memory
        holds a page of them."""
        index = self._read(collection)
        columns = list(dict.fromkeys((*index.built.chunk_columns, *DOCUMENT_COLUMNS)))
        for row in self._rows(collection, index, And(()) if where is None else where, columns):
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
        index = await self._searchable(collection)
        fingerprint = index.built.fingerprint
        query = np.asarray(vector, dtype=np.float32)
        if query.shape != (fingerprint.dimension,):
            raise InputError(f"the query vector has shape {query.shape}; ({fingerprint.dimension},) is expected")
        hits = await self._search(collection, index, query, "vector", "COSINE", top_k, groups, where)
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
        """At most top_k hits for terms between spaces, by BM25, best first, ties by chunk_id. No terms, no hits.

        Raises StageError for a collection that was made on a server without BM25.
        """
        check_top_k(top_k)
        index = await self._searchable(collection)
        fingerprint = index.built.fingerprint
        if not index.built.lexical:
            made = f"collection {collection!r} was made on a Milvus without BM25"
            raise StageError("lexical", f"{made}; {NEEDS_BM25} {collection}")
        if not analyzed_query.strip():
            return SearchResult((), fingerprint.index_version)
        hits = await self._search(collection, index, analyzed_query, "sparse", "BM25", top_k, groups, where)
        return SearchResult(tuple(as_lexical(hit) for hit in hits), fingerprint.index_version)

    async def token_vectors(self, collection: str, chunk_ids: Sequence[str]) -> list[bytes]:
        """What the index keeps of each chunk's tokens, in the given order; empty where it keeps none.

        Of any chunk: whoever asks knows its id from a search that its caller's groups were heeded in.
        """
        index = await self._searchable(collection)
        if not index.built.fingerprint.token_vectors or not chunk_ids:
            return [b""] * len(chunk_ids)
        async with self._connection.async_client(collection) as client:
            rows = await client.get(
                index.physical,
                ids=list(chunk_ids),
                output_fields=["chunk_id", "token_vectors"],
                timeout=self._timeout_s,
            )
        found = {row["chunk_id"]: decode_token_vectors(row) for row in rows}
        return [found.get(chunk_id, b"") for chunk_id in chunk_ids]

    async def ping(self) -> None:
        """Raises StoreUnavailableError when Milvus does not answer."""
        async with self._connection.async_client() as client:
            await client.list_collections(timeout=self._timeout_s)

    async def aclose(self) -> None:
        """Closes the running loop's connection and the plain functions'; using the store again connects again."""
        await self._connection.aclose()

    def close(self) -> None:
        """Closes the connection of the plain functions; the searching side is closed by `aclose`."""
        self._connection.close()

    # --- calls ---

    async def _search(
        self,
        collection: str,
        index: ReadyIndex,
        query: np.ndarray | str,
        column: str,
        metric: str,
        top_k: int,
        groups: Groups,
        where: Filter | None,
    ) -> Sequence[Hit]:
        """The one way into Milvus' search: what a caller may not see is left out whatever the filter says."""
        wanted = [*([] if groups is None else [visible_to(groups)]), *([] if where is None else [where])]
        async with self._connection.async_client(collection) as client:
            try:
                found = await client.search(
                    index.physical,
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

    def _rows(self, collection: str, index: ReadyIndex, where: Filter, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Page by page in the order of ids. pymilvus' own iterator makes a call without a timeout."""
        expression = compile_filter(where)
        while True:
            with self._connection.client(collection) as client:
                rows: list[dict[str, Any]] = client.query(
                    index.physical,
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

    def _create(self, name: str, fingerprint: IndexFingerprint) -> None:
        built = BuiltIndex(fingerprint, lexical=self.lexical_problem() is None)
        with self._connection.client() as client:
            try:
                client.create_collection(
                    name, schema=build_schema(built), consistency_level=CONSISTENCY, timeout=self._timeout_s
                )
            except MilvusException:
                # Another process may have made it in the meantime.
                if not client.has_collection(name, timeout=self._timeout_s):
                    raise

    def _indexes(self, collection: str) -> Indexes:
        return self.registry.recall(collection) or self.registry.read(collection)

    def _read(self, collection: str) -> ReadyIndex:
        """The version whose rows are read."""
        return self._fitting(self._indexes(collection))

    def _fitting(self, indexes: Indexes) -> ReadyIndex:
        """The newest version with the store's fingerprint, else the current one."""
        fitting = (index for index in indexes.ready if self._expected in (None, index.built.fingerprint))
        return next(fitting, indexes.ready[0])

    async def _searchable(self, collection: str) -> ReadyIndex:
        """The version to search. Raises IndexMismatchError when none has the store's fingerprint."""
        indexes = self.registry.recall(collection)
        if indexes is None:
            indexes = await asyncio.to_thread(self.registry.read, collection)
        index = self._fitting(indexes)
        if self._expected is not None:
            check_fingerprint(collection, index.built.fingerprint, self._expected)
        return index

    def _writable(self, collection: str) -> tuple[ReadyIndex, ...]:
        """The ready versions, the current one first. Raises StoreUnavailableError during a switch."""
        indexes = self._indexes(collection)
        if indexes.switching:
            raise StoreUnavailableError(
                f"collection {collection!r} is switching to a new index version and takes no changes; try again in "
                f"some seconds, or, where reindexing was stopped, end the switch: rag collections reindex {collection}"
            )
        return indexes.ready

    def _current(self, collection: str) -> ReadyIndex:
        """The version that takes new rows. Raises IndexMismatchError when it has another fingerprint."""
        index = self._writable(collection)[0]
        if self._expected is not None:
            check_fingerprint(collection, index.built.fingerprint, self._expected)
        return index
