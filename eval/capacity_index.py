"""What an index of so many chunks takes: Milvus' index type, memory, disk, shards and query nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from rag.step_settings import StepSettings

GIB = 2**30
IndexType = Literal["FLAT", "HNSW", "IVF_SQ8", "DISKANN"]

FLOAT_BYTES = 4
# Links of a vector in HNSW's lowest layer are 2 M (Malkov and Yashunin, 2016); that AUTOINDEX has M = 18 by default was
# not looked up.
HNSW_LINKS = 36
# Milvus' page "On-disk Index" (disk_index.md): MaxDegree, and the shares of the raw data for codes and for its cache.
VAMANA_DEGREE, PQ_SHARE, CACHE_SHARE = 56, 0.125, 0.10
DISK_PAGE_BYTES = 4096
MAX_SHARDS = 16  # Milvus' page "proxy-related Configurations": proxy.maxShardNum


class IndexSettings(StepSettings):
    """What the index is sized by. Those without a source in their description are assumptions to replace."""

    dimension: int = Field(384, ge=1)
    row_bytes: int = Field(20_000, ge=0, description="a chunk's text, terms, columns and stored token vectors")
    terms: int = Field(80, ge=0, description="distinct terms of a chunk, 8 bytes each in the BM25 index")
    memory_budget_gib: float = Field(512.0, gt=0, description="of all query nodes, for one copy of the vectors")
    nvme: bool = Field(True, description="query nodes have a local NVMe disk")
    flat_bytes: int = Field(
        200_000_000, ge=0, description="up to which all vectors are compared: 20 ms, where 20,000 of 384 took 3.5 ms"
    )
    segment_bytes: int = Field(GIB, gt=0, description="of a sealed segment; Milvus' dataCoord.segment.maxSize")
    segment_search_s: float = Field(0.0005, gt=0, description="core seconds of one search of one segment's graph")
    chunks_per_shard: int = Field(100_000_000, ge=1, description="shards spread writes, not searches")
    node_gib: float = Field(64.0, gt=0)
    node_cores: int = Field(16, ge=1)
    node_memory_share: float = Field(0.75, gt=0, le=1, description="of a node for data, the rest for searches")
    copies: int = Field(1, ge=1, description="in-memory replicas, for searches that go on while a node is lost")


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """Bytes are of all copies together; `segment_searches` is how many segments one search reads."""

    index: IndexType
    raw_bytes: int
    memory_bytes: int
    disk_bytes: int
    segments: int
    shards: int
    search_core_s: float
    query_nodes: int


def raw_bytes(chunks: int, dimension: int) -> int:
    """float32 vectors."""
    return chunks * dimension * FLOAT_BYTES


def index_bytes(index: IndexType, chunks: int, dimension: int) -> tuple[int, int]:
    """Memory and disk of the vectors' index.

    FLAT, HNSW, IVF_SQ8: Milvus' page "Index Explained", section "Memory usage estimation": vectors; vectors + links *
    4 bytes; a byte a dimension + centroids + each vector's cluster, with Faiss' 4 * sqrt(n) clusters.
    DISKANN: PQ codes and cached nodes are shares of the raw vectors (Milvus' pages "DISKANN", "On-disk Index"); on disk
    each vector with its links, whole within pages of 4 KiB (Subramanya et al., DiskANN, NeurIPS 2019, section 3.2).
    """
    raw = raw_bytes(chunks, dimension)
    match index:
        case "FLAT":
            return raw, 0
        case "HNSW":
            return raw + chunks * HNSW_LINKS * 4, 0
        case "IVF_SQ8":
            clusters = math.ceil(4 * math.sqrt(chunks))
            return chunks * dimension + raw_bytes(clusters, dimension) + chunks * (2 if clusters <= 65_536 else 4), 0
        case "DISKANN":
            one = dimension * FLOAT_BYTES + 4 + VAMANA_DEGREE * 4
            if one <= DISK_PAGE_BYTES:
                pages = math.ceil(chunks / (DISK_PAGE_BYTES // one))
            else:
                pages = chunks * math.ceil(one / DISK_PAGE_BYTES)
            return math.ceil(raw * (PQ_SHARE + CACHE_SHARE)), pages * DISK_PAGE_BYTES


def choose_index(chunks: int, settings: IndexSettings) -> IndexType:
    """Milvus' page "Index Explained", its decision matrix: all vectors compared where they are few; HNSW where the raw
    data fits in memory; else DiskANN with an SSD, IVF with quantised vectors without one."""
    if raw_bytes(chunks, settings.dimension) <= settings.flat_bytes:
        return "FLAT"
    if index_bytes("HNSW", chunks, settings.dimension)[0] <= settings.memory_budget_gib * GIB:
        return "HNSW"
    return "DISKANN" if settings.nvme else "IVF_SQ8"


def plan_index(chunks: int, searches_per_s: float, utilisation: float, settings: IndexSettings) -> IndexPlan:
    """Query nodes are as many as the memory wants or as the searches' cores want, whichever is more.

    A search reads every sealed segment, so that its cores grow with the chunks; shards spread what is written (Zilliz'
    blog "Sharding, Partitioning, and Segments"). Rows are memory-mapped, on disk therefore ("Index Explained", section
    "Memory-mapped files"). The BM25 index is in memory: a posting has 4 bytes of id and 4 of value.
    """
    if chunks < 1:
        raise ValueError(f"chunks is {chunks}: give 1 or more")
    index = choose_index(chunks, settings)
    vectors, graph_disk = index_bytes(index, chunks, settings.dimension)
    raw = raw_bytes(chunks, settings.dimension)
    segments = math.ceil(raw / settings.segment_bytes)
    if index == "FLAT":
        search_core_s = 0.0035 * raw / (20_000 * 384 * FLOAT_BYTES)
    else:
        search_core_s = segments * settings.segment_search_s
    memory = (vectors + chunks * settings.terms * 8) * settings.copies
    disk = (graph_disk + chunks * settings.row_bytes) * settings.copies
    by_memory = math.ceil(memory / (settings.node_gib * GIB * settings.node_memory_share))
    by_cores = math.ceil(searches_per_s * search_core_s / utilisation / settings.node_cores)
    return IndexPlan(
        index=index,
        raw_bytes=raw,
        memory_bytes=memory,
        disk_bytes=disk,
        segments=segments,
        shards=min(math.ceil(chunks / settings.chunks_per_shard), MAX_SHARDS),
        search_core_s=search_core_s,
        query_nodes=max(by_memory, by_cores, settings.copies),
    )
