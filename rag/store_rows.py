"""The store's schema: chunks to columns and back, and what a collection's description remembers. No connection."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from pymilvus import CollectionSchema, DataType, Function, FunctionType, MilvusClient
from pymilvus.milvus_client.index import IndexParams

from rag.columns import (
    MAX_ARRAY_LENGTH,
    MAX_TEXT_BYTES,
    check_fit,
    document_columns,
    from_column,
    from_metadata_column,
    to_column,
)
from rag.errors import IndexMismatchError, InputError
from rag.types import Chunk, Hit, IndexFingerprint, Scores, StoredChunk, StoredDocument

SCHEMA_VERSION = 2
MAX_TOP_K = 16_384  # Milvus' limit
MAX_CHUNK_ID_CHARS = 512
CHUNK_ID = re.compile(r"[A-Za-z0-9_.:-]{1,512}", re.ASCII)
SERVER_VERSION = re.compile(r"v?(\d+)\.(\d+)", re.ASCII)
FIRST_WITH_BM25 = (2, 5)
COLLECTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
REGISTRY = "rag_index_versions"  # the collection of rag.index_versions
VERSION_NAME = re.compile(r".+__v\d+", re.ASCII)  # the physical collections' that it makes

CHUNK_COLUMNS = [
    "chunk_id",
    "document_id",
    "revision",
    "ordinal",
    "text",
    "start_char",
    "end_char",
    "heading",
    "first_page",
    "last_page",
    "page_starts",
]
HIT_COLUMNS = [*CHUNK_COLUMNS, "title", "source"]
DOCUMENT_COLUMNS = [
    "document_id",
    "source",
    "title",
    "revision",
    "document_chunks",
    "document_pages",
    "acl",
    "metadata",
    "updated_at",
]


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """What a collection's description remembers: how it was built, whether it has the columns for BM25, and whether
    its chunks keep their leads."""

    fingerprint: IndexFingerprint
    lexical: bool = True
    leads: bool = True

    @property
    def chunk_columns(self) -> list[str]:
        """All that its rows hold of a chunk."""
        return [*CHUNK_COLUMNS, "lead"] if self.leads else CHUNK_COLUMNS

    @property
    def indexed_columns(self) -> tuple[str, ...]:
        return ("vector", "sparse") if self.lexical else ("vector",)


def has_bm25(server_version: str) -> bool:
    """Whether a Milvus that calls itself so has BM25: 2.5 and later; one that tells no version is Milvus Lite."""
    found = SERVER_VERSION.match(server_version)
    return found is None or (int(found[1]), int(found[2])) >= FIRST_WITH_BM25


def build_schema(built: BuiltIndex) -> CollectionSchema:
    """The columns of a collection; its description remembers the index, as Lite cannot alter properties."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=write_description(built))
    schema.add_field("chunk_id", DataType.VARCHAR, is_primary=True, max_length=MAX_CHUNK_ID_CHARS)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=built.fingerprint.dimension)
    schema.add_field("text", DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
    for name in ("document_id", "revision", "heading", "title", "source", "updated_at"):
        schema.add_field(name, DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
    for name in ("ordinal", "start_char", "end_char", "first_page", "last_page", "document_chunks", "document_pages"):
        schema.add_field(name, DataType.INT64)
    schema.add_field("page_starts", DataType.ARRAY, element_type=DataType.INT64, max_capacity=MAX_ARRAY_LENGTH)
    schema.add_field(
        "acl",
        DataType.ARRAY,
        element_type=DataType.VARCHAR,
        max_capacity=MAX_ARRAY_LENGTH,
        max_length=MAX_TEXT_BYTES,
    )
    schema.add_field("metadata", DataType.JSON)
    if built.leads:
        schema.add_field("lead", DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
    if built.fingerprint.token_vectors:
        schema.add_field("token_vectors", DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
    if built.lexical:
        _add_lexical_columns(schema)
    return schema


def build_indexes(built: BuiltIndex) -> IndexParams:
    """One index for each of its indexed columns: cosine similarity for the vectors, BM25 for the terms."""
    indexes = MilvusClient.prepare_index_params()
    indexes.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
    if built.lexical:
        indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    return indexes


def check_collection_name(name: str, *, of_version: bool = False) -> None:
    """Raises InputError unless Milvus takes the name and it is free for collections; `of_version`: for a version's."""
    if not COLLECTION_NAME.fullmatch(name):
        raise InputError(
            f"{name[:80]!r} cannot name a collection: start with a letter or underscore, "
            "then letters, digits and underscores, 255 at most"
        )
    if name == REGISTRY or (VERSION_NAME.fullmatch(name) and not of_version):
        raise InputError(f"{name[:80]!r} is kept for index versions; choose another name")


def check_top_k(top_k: int) -> None:
    """Raises InputError unless Milvus searches so deep."""
    if not 1 <= top_k <= MAX_TOP_K:
        raise InputError(f"top_k is {top_k}; it must be between 1 and {MAX_TOP_K}")


def encode_row(row: StoredChunk, built: BuiltIndex) -> dict[str, Any]:
    """The columns of a row. Raises InputError naming the chunk and the column when Milvus could not hold it."""
    chunk, dimension = row.chunk, built.fingerprint.dimension
    if not CHUNK_ID.fullmatch(chunk.chunk_id):
        raise InputError(
            f"chunk id {chunk.chunk_id[:80]!r} cannot be stored: use letters, digits and _ . : -, 512 at most"
        )
    vector = np.asarray(row.vector, dtype=np.float32)
    if vector.shape != (dimension,) or not np.isfinite(vector).all():
        raise InputError(
            f"chunk {chunk.chunk_id!r}: its vector has shape {vector.shape}; ({dimension},) finite numbers are expected"
        )
    columns: dict[str, Any] = {
        "chunk_id": chunk.chunk_id,
        "vector": vector,
        "text": chunk.text,
        "document_id": to_column(chunk.document_id),
        "revision": to_column(chunk.revision),
        "ordinal": chunk.ordinal,
        "start_char": chunk.start_char,
        "end_char": chunk.end_char,
        "first_page": -1 if chunk.first_page is None else chunk.first_page,
        "last_page": -1 if chunk.last_page is None else chunk.last_page,
        "page_starts": list(chunk.page_starts),
        "heading": chunk.heading,
        "document_chunks": row.document_chunks,
        "document_pages": -1 if row.document_pages is None else row.document_pages,
        "updated_at": to_column(row.updated_at),
    }
    if built.fingerprint.token_vectors:
        encoded = base64.b64encode(row.token_vectors).decode("ascii")
        # Those of a very long chunk do not fit; a reranker makes them anew.
        columns["token_vectors"] = encoded if len(encoded) <= MAX_TEXT_BYTES else ""
    if built.leads:
        columns["lead"] = chunk.lead
    if built.lexical:
        columns["analyzed"] = row.analyzed
    try:
        check_fit(columns)
        return columns | document_columns(row.title, row.source, row.acl, row.metadata)
    except ValueError as error:
        raise InputError(f"chunk {chunk.chunk_id!r} cannot be stored: {error}") from error


def decode_chunk(columns: Mapping[str, Any]) -> Chunk:
    """The chunk of a row's CHUNK_COLUMNS, with its lead where the row comes with it."""
    return Chunk(
        chunk_id=columns["chunk_id"],
        document_id=from_column(columns["document_id"]),
        revision=from_column(columns["revision"]),
        ordinal=int(columns["ordinal"]),
        text=columns["text"],
        start_char=int(columns["start_char"]),
        end_char=int(columns["end_char"]),
        heading=columns["heading"],
        first_page=_page(columns["first_page"]),
        last_page=_page(columns["last_page"]),
        page_starts=tuple(int(start) for start in columns["page_starts"]),
        lead=columns.get("lead", ""),
    )


def decode_token_vectors(columns: Mapping[str, Any]) -> bytes:
    """The token vectors of a row's column of that name, empty where none fitted."""
    return base64.b64decode(columns["token_vectors"])


def decode_document(columns: Mapping[str, Any]) -> StoredDocument:
    """The document of a row's DOCUMENT_COLUMNS."""
    return StoredDocument(
        document_id=from_column(columns["document_id"]),
        source=from_column(columns["source"]),
        title=from_column(columns["title"]),
        revision=from_column(columns["revision"]),
        chunks=int(columns["document_chunks"]),
        pages=_page(columns["document_pages"]),
        acl=tuple(from_column(group) for group in columns["acl"]),
        metadata=from_metadata_column(columns["metadata"]),
        updated_at=from_column(columns["updated_at"]),
    )


def decode_hit(columns: Mapping[str, Any], score: float, scores: Scores) -> Hit:
    """The hit of a row's HIT_COLUMNS."""
    return Hit(
        chunk=decode_chunk(columns),
        title=from_column(columns["title"]),
        source=from_column(columns["source"]),
        score=score,
        scores=scores,
    )


def order_hits(hits: Iterable[Hit]) -> tuple[Hit, ...]:
    """By score, highest first; ties by chunk_id."""
    return tuple(sorted(hits, key=lambda hit: (-hit.score, hit.chunk.chunk_id)))


def write_description(built: BuiltIndex) -> str:
    """What a collection remembers of how it was built."""
    return json.dumps({"rag_schema": SCHEMA_VERSION, **asdict(built)}, ensure_ascii=True)


def is_ours(description: str) -> bool:
    """Whether this project made the collection with this description."""
    return "rag_schema" in _json_object(description)


def read_description(collection: str, description: str) -> BuiltIndex:
    """How the collection was built. Raises IndexMismatchError when there is none that this version reads."""
    remembered = _json_object(description)
    if "rag_schema" not in remembered:
        raise IndexMismatchError(
            f"collection {collection!r} was made by another program; choose another name, or another Milvus (store.uri)"
        )
    values = remembered.get("fingerprint")
    if isinstance(values, dict):
        values.setdefault("token_vectors", "")  # collections made before there were any
    names = {field.name for field in fields(IndexFingerprint)}
    if remembered["rag_schema"] != SCHEMA_VERSION or not isinstance(values, dict) or set(values) != names:
        raise IndexMismatchError(
            f"collection {collection!r} was made by another version of this program; {_mend(collection)}"
        )
    # Those made before there were leads do not say so.
    return BuiltIndex(IndexFingerprint(**values), remembered["lexical"], leads=remembered.get("leads", False))


def check_fingerprint(collection: str, stored: IndexFingerprint, expected: IndexFingerprint) -> None:
    """Raises IndexMismatchError naming what differs and the commands that mend it."""
    built, asked = asdict(stored), asdict(expected)
    differing = [f"{name} is {built[name]!r}, not {asked[name]!r}" for name in built if built[name] != asked[name]]
    if differing:
        raise IndexMismatchError(
            f"collection {collection!r} was built with other settings: {'; '.join(differing)}; "
            f"set those again, or rebuild it with these: rag collections reindex {collection}"
        )


def as_dense(hit: Hit) -> Hit:
    """The hit with its score as cosine similarity."""
    return replace(hit, scores=Scores(dense=hit.score))


def as_lexical(hit: Hit) -> Hit:
    """The hit with its score as BM25."""
    return replace(hit, scores=Scores(lexical=hit.score))


def _mend(collection: str) -> str:
    return f"build it anew: rag collections delete {collection}, then rag ingest PATH --collection {collection}"


def _add_lexical_columns(schema: CollectionSchema) -> None:
    """The terms, and what Milvus makes of them for BM25."""
    whitespace = {"tokenizer": "whitespace"}
    schema.add_field(
        "analyzed", DataType.VARCHAR, max_length=MAX_TEXT_BYTES, enable_analyzer=True, analyzer_params=whitespace
    )
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(
        Function(
            name="bm25", function_type=FunctionType.BM25, input_field_names=["analyzed"], output_field_names=["sparse"]
        )
    )


def _page(stored: Any) -> int | None:
    return None if stored == -1 else int(stored)


def _json_object(text: str) -> dict[str, Any]:
    try:
        loaded = json.loads(text)
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}
