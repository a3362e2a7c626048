"""The searching half of the question flow: (embed -> dense) beside lexical, then fuse, then rerank.

A question in a language that the embedder does not understand is searched by its words alone, and one that the
reranker does not understand is scored by the words it shares with a passage: noise is worse than less.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from rag.clock import RequestClock
from rag.config import Settings
from rag.errors import (
    DeadlineError,
    IndexMismatchError,
    ModelError,
    OverloadedError,
    StageError,
    StoreUnavailableError,
    UnknownCollectionError,
)
from rag.filters import Filter, OneOf
from rag.fuse import fuse_hits, order_by_blend
from rag.language import understands
from rag.step_settings import CalibrationSettings
from rag.types import (
    Answerability,
    DenseSearch,
    Embed,
    Groups,
    Hit,
    LexicalSearch,
    Score,
    SearchResult,
    Span,
    Stage,
    StoredTokenVectors,
    Vector,
)

logger = logging.getLogger(__name__)

# What an optional stage may fail with; anything else is the caller's mistake or ours, and is raised.
DEGRADABLE = (StageError, StoreUnavailableError, ModelError, OverloadedError)


@dataclass(frozen=True, slots=True)
class SearchSteps:
    """The callables of the searching half; without `token_vectors` late interaction makes them anew, and without
    `answerability` the evidence gate goes by the reranker alone."""

    embed: Embed
    dense_search: DenseSearch
    lexical_search: LexicalSearch
    score: Score
    terms: Callable[[str], list[str]]
    token_vectors: StoredTokenVectors | None = None
    answerability: Answerability | None = None


class _Branch(NamedTuple):
    """What a search found, and the dense one's query vector."""

    result: SearchResult
    vector: Vector | None = None


async def retrieve(
    query: str,
    collection: str,
    steps: SearchSteps,
    settings: Settings,
    clock: RequestClock,
    *,
    groups: Groups = frozenset(),
    where: Filter | None = None,
    top_k: int | None = None,
    rerank: bool = True,
) -> SearchResult:
    """Every chunk found for a query, best first; `top_k` is the depth of each search.

    Only chunks that a caller of `groups` may see, and of those the ones that `where` means, all when it is None. The
    reranker's candidates that word search alone found have a dense score too.

    One of the two branches, and the reranker, may fail or be late: they are named in `clock.degraded`. Raises what the
    dense branch raised when both fail, UnknownCollectionError and IndexMismatchError in any case, and DeadlineError.
    """
    depth = top_k or settings.retrieval.top_k
    branches: dict[Stage, Awaitable[_Branch]] = {}
    if understands(settings.embedder.languages, query):
        dense = partial(steps.dense_search, groups=groups, where=where)
        branches["dense"] = _dense(query, collection, depth, steps.embed, dense, settings, clock)
    lexical = partial(steps.lexical_search, groups=groups, where=where)
    branches["lexical"] = _lexical(query, collection, depth, lexical, settings, clock)
    results = await asyncio.gather(*branches.values(), return_exceptions=True)
    found: list[_Branch] = []
    failures: dict[Stage, Exception] = {}
    for name, result in zip(branches, results, strict=True):
        if isinstance(result, _Branch):
            found.append(result)
        elif isinstance(result, DEGRADABLE):
            failures[name] = result
        else:
            raise result
    if not found:
        raise next(iter(failures.values()))
    for name, failure in failures.items():
        logger.warning("answering without %s search: %s", name, failure, extra={"stage": name})
        clock.leave_out(name)
    with clock.timed("fuse"):
        # All that either branch found: a reranker reads its own number of candidates from the top.
        hits = fuse_hits([branch.result.hits for branch in found], rrf_k=settings.retrieval.rrf_k, top_k=2 * depth)
    vector = found[0].vector
    if vector is not None:
        hits = await _score_unfound(hits, vector, collection, groups, steps.dense_search, settings, clock)
    fused = SearchResult(tuple(hits), found[0].result.index_version)
    return await rerank_found(query, collection, fused, steps, settings, clock) if rerank else fused


async def rerank_found(
    query: str, collection: str, found: SearchResult, steps: SearchSteps, settings: Settings, clock: RequestClock
) -> SearchResult:
    """What `retrieve` found without reranking, reranked; as it is where the reranker cannot read the query or fails."""
    if not found.hits or not understands(settings.reranker.languages, query):
        return found
    hits = await _rerank(query, collection, list(found.hits), steps, settings, clock)
    return SearchResult(tuple(hits), found.index_version)


def scored_text(hit: Hit) -> tuple[str, int]:
    """What a scorer reads of a hit, heading first, and where the chunk's own text starts in it."""
    lead = f"{hit.chunk.heading}\n" if hit.chunk.heading else ""
    return lead + hit.chunk.text, len(lead)


async def score_spans(
    query: str, hits: Sequence[Hit], spans: Sequence[Sequence[Span]], score: Score
) -> list[np.ndarray]:
    """Of each hit float32 (its spans,) in 0..1: how well those spans of its chunk's text match the query."""
    texts, shifted = [], []
    for hit, own in zip(hits, spans, strict=True):
        text, shift = scored_text(hit)
        texts.append(text)
        shifted.append([(start + shift, end + shift) for start, end in own])
    return [found[0] for found in await score([query], texts, shifted, [hit.token_vectors for hit in hits])]


async def judge_answerability(
    query: str, texts: Sequence[str], steps: SearchSteps, settings: Settings, clock: RequestClock
) -> np.ndarray | None:
    """Log odds that each text answers the query, float32 (texts,); None without a model that understands it, and where
    it fails (`rerank` degraded): it reads query and text as a reranker does."""
    judge = steps.answerability
    if judge is None or not understands(settings.evidence.answerability_languages, query):
        return None
    pairs = [(query, text) for text in texts]
    try:
        return await clock.run("rerank", lambda: judge(pairs), settings.deadlines.rerank_s, optional=True)
    except (*DEGRADABLE, DeadlineError) as error:
        logger.warning("judging the evidence without answerability: %s", error, extra={"stage": "rerank"})
        clock.leave_out("rerank")
        return None


async def _dense(
    query: str,
    collection: str,
    depth: int,
    embed: Embed,
    search: Callable[[str, Vector, int], Awaitable[SearchResult]],
    settings: Settings,
    clock: RequestClock,
) -> _Branch:
    vector = (await clock.run("embed", lambda: embed([query], "query"), settings.deadlines.embed_s))[0]
    found = await clock.run("dense", lambda: search(collection, vector, depth), settings.deadlines.dense_s)
    return _Branch(found, vector)


async def _lexical(
    query: str,
    collection: str,
    depth: int,
    search: Callable[[str, str, int], Awaitable[SearchResult]],
    settings: Settings,
    clock: RequestClock,
) -> _Branch:
    limit_s = settings.deadlines.lexical_s
    return _Branch(await clock.run("lexical", lambda: search(collection, query, depth), limit_s))


async def _score_unfound(
    hits: list[Hit],
    vector: Vector,
    collection: str,
    groups: Groups,
    search: DenseSearch,
    settings: Settings,
    clock: RequestClock,
) -> list[Hit]:
    """The hits, those candidates that dense search did not find with their dense score: how far behind they are is
    worth more to the blend than that they are behind."""
    unfound = tuple(hit.chunk.chunk_id for hit in hits[: settings.reranker.candidates] if hit.scores.dense is None)
    if not unfound:
        return hits
    where = OneOf("chunk_id", unfound)
    try:
        found = await clock.run(
            "dense",
            lambda: search(collection, vector, len(unfound), groups=groups, where=where),
            settings.deadlines.dense_s,
            optional=True,
        )
    except DEGRADABLE as error:
        logger.warning("blending without the dense scores of what word search alone found: %s", error)
        clock.leave_out("dense")
        return hits
    dense = {hit.chunk.chunk_id: hit.scores.dense for hit in found.hits}
    return [
        replace(hit, scores=replace(hit.scores, dense=dense.get(hit.chunk.chunk_id)))
        if hit.scores.dense is None
        else hit
        for hit in hits
    ]


async def _rerank(
    query: str, collection: str, hits: list[Hit], steps: SearchSteps, settings: Settings, clock: RequestClock
) -> list[Hit]:
    """The first candidates in the blended order, the others behind them; the fused order when the stage fails."""
    candidates, rest = hits[: settings.reranker.candidates], hits[settings.reranker.candidates :]
    texts = [scored_text(hit)[0] for hit in candidates]
    spans: list[list[Span]] = [[(0, len(text))] for text in texts]

    async def score() -> tuple[list[Hit], list[np.ndarray]]:
        fetch = steps.token_vectors if settings.reranker.kind == "maxsim" else None  # others read the texts
        known = await _with_token_vectors(collection, candidates, fetch)
        return known, await steps.score([query], texts, spans, [hit.token_vectors for hit in known])

    try:
        candidates, scores = await clock.run("rerank", score, settings.deadlines.rerank_s, optional=True)
    except DEGRADABLE as error:
        logger.warning("answering without reranking: %s", error, extra={"stage": "rerank"})
        clock.leave_out("rerank")
        return hits
    scored = [
        replace(hit, scores=replace(hit.scores, rerank=_calibrated(float(score[0, 0]), settings.reranker.calibration)))
        for hit, score in zip(candidates, scores, strict=True)
    ]
    return order_by_blend(scored, settings.reranker.blend, settings.reranker.dense_share) + rest


async def _with_token_vectors(collection: str, hits: list[Hit], fetch: StoredTokenVectors | None) -> list[Hit]:
    """The hits with what the index keeps of their tokens; as they are where it cannot be had: it can be made anew."""
    if fetch is None:
        return hits
    try:
        kept = await fetch(collection, [hit.chunk.chunk_id for hit in hits])
    except (*DEGRADABLE, UnknownCollectionError, IndexMismatchError) as error:  # of one that was searched a moment ago
        logger.warning("reranking without the stored token vectors: %s", error, extra={"stage": "rerank"})
        return hits
    return [replace(hit, token_vectors=own) for hit, own in zip(hits, kept, strict=True)]


def _calibrated(score: float, calibration: CalibrationSettings | None) -> float:
    if calibration is None:
        return score
    # The logistic function by tanh, which no steep slope makes overflow.
    return 0.5 + 0.5 * math.tanh(0.5 * calibration.slope * (score - calibration.midpoint))
