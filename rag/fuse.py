"""Ranked lists into one, and the blend of two scores into an order. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

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


def order_by_blend(hits: Sequence[Hit], blend: float) -> list[Hit]:
    """Reranked hits by `blend * rerank + (1 - blend) * fused`, best first, stable on ties.

    Both scores are scaled to 0..1 within `hits` (all equal: 1), and `score` becomes the blend; with `blend` 1.0 it is
    `scores.rerank` as it stands. A hit without a fused score counts as the lowest. Raises ValueError for a hit that
    was not reranked.
    """
    rerank: list[float] = []
    for hit in hits:
        if hit.scores.rerank is None:
            raise ValueError(f"chunk {hit.chunk.chunk_id} has no rerank score; order_by_blend takes reranked hits only")
        rerank.append(hit.scores.rerank)
    if blend < 1.0:
        known = [hit.scores.fused for hit in hits if hit.scores.fused is not None]
        lowest = min(known, default=0.0)
        fused = _scale([lowest if hit.scores.fused is None else hit.scores.fused for hit in hits])
        scores = [blend * a + (1.0 - blend) * b for a, b in zip(_scale(rerank), fused, strict=True)]
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
