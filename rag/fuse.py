"""Ranked lists into one, and the blend of several scores into an order. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from statistics import fmean, pstdev

from rag.types import Hit, Scores


def fuse_hits(ranked: Sequence[Sequence[Hit]], *, rrf_k: int, top_k: int) -> list[Hit]:
    """The `top_k` hits of several ranked lists, best first, by reciprocal rank fusion.

    A chunk scores the sum over the lists that hold it of 1 / (rrf_k + rank), ranks from 1 (Cormack, Clarke and
    Buettcher, SIGIR 2009); a list that names a chunk twice counts its better rank. The value becomes `score` and
    `scores.fused`; the other scores of a chunk are gathered from all lists. Ties go by `chunk_id`.
    """
    fused: dict[str, float] = {}
    merged: dict[str, Hit] = {}
    for hits in ranked:
        seen: set[str] = set()
        for rank, hit in enumerate(hits, start=1):
            chunk_id = hit.chunk.chunk_id
            if chunk_id in seen:
                continue
            seen.add(chunk_id)
            fused[chunk_id] = fused.get(chunk_id, 0.0) + 1.0 / (rrf_k + rank)
            known = merged.get(chunk_id)
            merged[chunk_id] = replace(known, scores=_merge(known.scores, hit.scores)) if known else hit
    order = sorted(fused, key=lambda chunk_id: (-fused[chunk_id], chunk_id))[:top_k]
    return [
        replace(merged[chunk_id], score=fused[chunk_id], scores=replace(merged[chunk_id].scores, fused=fused[chunk_id]))
        for chunk_id in order
    ]


def order_by_blend(hits: Sequence[Hit], blend: float, dense_share: float) -> list[Hit]:
    """Reranked hits by what reranker and searches say of them, best first, stable on ties.

    The order is by `blend * rerank + (1 - blend) * (dense_share * dense + (1 - dense_share) * lexical)`, each score
    standardised over the hits that have it (mean 0, deviation 1): by how much a hit is better counts, which ranks do
    not tell. A hit that a search did not find counts as the last one that it did; a search without any says nothing,
    and its share is the other's. `score` is that sum, scaled to 0..1 within `hits` (all equal: 1); with `blend` 1.0 it
    is `scores.rerank` as it stands. Raises ValueError for a hit that was not reranked.
    Source: S. Bruch, S. Gai, A. Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023 (convex
    combination of normalised scores).
    """
    rerank: list[float] = []
    for hit in hits:
        if hit.scores.rerank is None:
            raise ValueError(f"chunk {hit.chunk.chunk_id} has no rerank score; order_by_blend takes reranked hits only")
        rerank.append(hit.scores.rerank)
    if blend < 1.0:
        dense, lexical = (_standardise([getattr(hit.scores, name) for hit in hits]) for name in ("dense", "lexical"))
        searches = [
            dense_share * a + (1.0 - dense_share) * b for a, b in zip(dense or lexical, lexical or dense, strict=True)
        ]
        reranked = _standardise(rerank)
        scores = _scale([blend * a + (1.0 - blend) * b for a, b in zip(reranked, searches or reranked, strict=True)])
    else:
        scores = rerank
    scored = [replace(hit, score=score) for hit, score in zip(hits, scores, strict=True)]
    return sorted(scored, key=lambda hit: -hit.score)


def _merge(first: Scores, second: Scores) -> Scores:
    """Each score from the first that has it."""
    pairs = ((name.name, getattr(first, name.name), getattr(second, name.name)) for name in fields(Scores))
    return Scores(**{name: b if a is None else a for name, a, b in pairs})


def _scale(values: Iterable[float]) -> list[float]:
    """Values to 0..1 by their smallest and largest."""
    listed = list(values)
    low, high = min(listed, default=0.0), max(listed, default=0.0)
    return [(value - low) / (high - low) if high > low else 1.0 for value in listed]


def _standardise(values: Sequence[float | None]) -> list[float]:
    """Values to mean 0 and deviation 1, all 0 where they are equal; a missing one becomes the lowest. Of none, none."""
    known = [value for value in values if value is not None]
    if not known:
        return []
    mean, deviation, lowest = fmean(known), pstdev(known), min(known)
    return [((lowest if value is None else value) - mean) / deviation if deviation else 0.0 for value in values]
