"""Retrieval over labelled data sets, each stage of the question flow measured by itself.

What is measured is what is served: the documents are ingested by ingest's own pipeline into a store of their own, and
each query goes through rag.retrieve, with the settings' models in this process or in a running service. One pass gives
every stage's ranking, since a hit keeps the score that each stage gave it:

    lexical     BM25 over the analysed text
    dense       cosine similarity of the embedder's vectors
    fused       both, by reciprocal rank fusion
    rerank      the fused candidates by the reranker's score alone, the rest of the fused order behind them
    blend=B     the candidates by B * rerank and (1 - B) of the searches' scores

One of the last two is the settings' own, and is what a question gets. A document is ranked by its best chunk.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from eval.dataset import Dataset
from eval.pool import write_rows
from ingest.fingerprint import index_fingerprint
from ingest.pipeline import IngestReport
from ingest.prepare import prepare_here
from ingest.run import run_ingest
from rag.analyze import analyze, terms
from rag.client import Client
from rag.clock import RequestClock
from rag.config import Settings
from rag.connect import open_store
from rag.errors import InputError, StageError
from rag.filters import Filter
from rag.fuse import order_by_blend
from rag.local_steps import Models
from rag.retrieve import SearchSteps, retrieve
from rag.step_settings import DeadlineSettings
from rag.store import MilvusStore
from rag.types import Answerability, Embed, Groups, Hit, Score, SearchResult

Say = Callable[[str], None]
T = TypeVar("T")
STAGES = ("lexical", "dense", "fused", "rerank", "blend")
RERANKED = frozenset({"rerank", "blend"})
# A stage that is late is left out of an answer; here it would be left out of its own figure.
PATIENT_S = 600.0
SAY_EVERY_S = 10.0
SERVICE_TOP_K = 50  # as deep as the deepest measure looks


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `depths`: hits of each search, and of the fused ones how many are reranked; empty: the
    settings' own numbers. `blends` are further shares of the reranker beside the settings'."""

    stages: tuple[str, ...] = STAGES
    depths: tuple[int, ...] = ()
    blends: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What a query found: every candidate in the order that is served, and the ms of each stage."""

    hits: Sequence[Hit]
    timings_ms: Mapping[str, float]


@dataclass(slots=True)
class StageRuns:
    """Of a set at one depth: stage -> query -> document ids, best first, and the ms of each query by stage.

    A stage that gave no query a hit did not take part (its model does not understand the queries) and is left out.
    """

    depth: int | None
    rankings: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    timings_ms: dict[str, list[float]] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """What tells its stages from those at other depths."""
        return "" if self.depth is None else f"@{self.depth}"

    def add(self, query: str, hits: Mapping[str, Sequence[Hit]], timings_ms: Mapping[str, float]) -> None:
        """Takes each stage's hits of one query."""
        for stage, found in hits.items():
            if found:
                self.rankings.setdefault(stage, {})[query] = rank_documents(found)
        self.add_timings(timings_ms)

    def add_timings(self, timings_ms: Mapping[str, float]) -> None:
        """Takes the ms of one query."""
        for stage, took_ms in timings_ms.items():
            self.timings_ms.setdefault(stage, []).append(took_ms)


def stage_hits(
    hits: Sequence[Hit], stages: Sequence[str], blends: Sequence[float], dense_share: float
) -> dict[str, list[Hit]]:
    """Stage -> its hits, best first, of everything that `retrieve` found for a query; see order_by_blend."""
    fused = ranked_by(hits, "fused")
    reranked = [hit for hit in fused if hit.scores.rerank is not None]
    rest = [hit for hit in fused if hit.scores.rerank is None]
    found = {stage: ranked_by(hits, stage) for stage in ("lexical", "dense") if stage in stages}
    if "fused" in stages:
        found["fused"] = fused
    if "rerank" in stages:
        found["rerank"] = order_by_blend(reranked, 1.0, dense_share) + rest
    if "blend" in stages:
        found |= {
            blend_name(blend): order_by_blend(reranked, blend, dense_share) + rest for blend in blends if blend < 1
        }
    return found


def ranked_by(hits: Sequence[Hit], name: str) -> list[Hit]:
    """Those that a stage scored, in its order: ties go by chunk id in both searches and in the fusion."""
    scored = [(getattr(hit.scores, name), hit) for hit in hits]
    known = [(score, hit) for score, hit in scored if score is not None]
    return [hit for _, hit in sorted(known, key=lambda one: (-one[0], one[1].chunk.chunk_id))]


def rank_documents(hits: Sequence[Hit]) -> list[str]:
    """The hits' documents, each at the place of its best chunk: `source` is the id that the set gave it."""
    return list(dict.fromkeys(hit.source for hit in hits))


def blend_name(blend: float) -> str:
    """As `blend=0.5`."""
    return f"blend={blend:g}"


def served_stage(settings: Settings) -> str:
    """The stage whose order a question gets."""
    return "rerank" if settings.reranker.blend == 1 else blend_name(settings.reranker.blend)


def collection_name(dataset: Dataset) -> str:
    """A collection's name from the set's and its documents: a set that changed gets another one, since BM25's
    statistics remember what was deleted."""
    digest = hashlib.blake2b(digest_size=5)
    for document in dataset.documents:
        digest.update("\0".join(document).encode("utf-8", "surrogatepass") + b"\1")
    return f"eval_{re.sub(r'[^A-Za-z0-9]+', '_', dataset.name)[:80]}_{digest.hexdigest()}"


def evaluation_settings(settings: Settings) -> Settings:
    """The settings with a data directory of the evaluation's own, by index version, and no stage ever late.

    Where they name a Milvus by `store.uri` the collections, called `eval_...`, are made there.
    """
    version = index_fingerprint(settings).index_version
    patient = dict.fromkeys(DeadlineSettings.model_fields, PATIENT_S)
    return settings.model_copy(
        update={
            "data_dir": settings.cache_dir / "eval" / version,
            "deadlines": DeadlineSettings(**patient),
            "store": settings.store.model_copy(update={"timeout_s": PATIENT_S}),
        }
    )


def write_documents(dataset: Dataset, folder: Path) -> Path:
    """The set's documents as a file that `rag ingest` takes; a row's source is its document's id."""
    path = folder / f"{collection_name(dataset)}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"id": one.document_id, "title": one.title, "text": one.text} for one in dataset.documents)
    write_rows(path, rows)
    return path


def index_dataset(dataset: Dataset, settings: Settings, say: Say) -> str:
    """The collection that holds the set, ingested unless it is there already; `settings` are evaluation_settings'.

    Raises InputError for a document that cannot be ingested, and what ingest.run.run_ingest raises.
    """
    collection = collection_name(dataset)
    documents = write_documents(dataset, settings.data_dir / "sets")
    report = ingest_paths([documents], settings, collection, say, prune=False)
    if report.chunks:
        say(f"{dataset.name}: {report.chunks} chunks in {report.seconds:.0f} s")
    return collection


def ingest_paths(paths: Sequence[Path], settings: Settings, collection: str, say: Say, *, prune: bool) -> IngestReport:
    """Ingests files and folders in this process, as `rag ingest` does.

    Raises InputError for a document that cannot be ingested, and what ingest.run.run_ingest raises.
    """
    report = run_ingest(
        settings,
        [str(path) for path in paths],
        collection=collection,
        acl=(),
        metadata={},
        prune=prune,
        choose_prepare=lambda settings, count_tokens, _: prepare_here(settings, count_tokens),
        say=say,
    )
    if report.failures:
        failure = report.failures[0]
        raise InputError(
            f"{collection}: {report.failed} documents cannot be ingested, the first is {failure.source}: "
            f"{failure.reason}; leave it out or mend it"
        )
    return report


@asynccontextmanager
async def open_steps(settings: Settings, models: Models) -> AsyncIterator[SearchSteps]:
    """The steps over the settings' store, which is closed at the end. Raises what rag.connect.open_store does."""
    with open_store(settings, index_fingerprint(settings)) as store:
        try:
            yield search_steps(store, models.embed, models.score, models.answerability)
        finally:
            await store.aclose()


def search_steps(
    store: MilvusStore, embed: Embed, score: Score, answerability: Answerability | None = None
) -> SearchSteps:
    """The steps of the service's retriever, embedder and reranker, in this process."""

    async def lexical(collection: str, query: str, top_k: int, *, groups: Groups, where: Filter | None) -> SearchResult:
        analyzed = await asyncio.to_thread(analyze, query)
        return await store.lexical_search(collection, analyzed, top_k, groups=groups, where=where)

    return SearchSteps(embed, store.dense_search, lexical, score, terms, store.token_vectors, answerability)


async def search_here(
    query: str, *, collection: str, steps: SearchSteps, settings: Settings, depth: int | None, rerank: bool
) -> Found:
    """One query through the product's searching half. Raises StageError for a stage that was left out."""
    if depth is not None:
        reranker = settings.reranker.model_copy(update={"candidates": depth})
        settings = settings.model_copy(update={"reranker": reranker})
    clock = RequestClock(PATIENT_S)
    result = await retrieve(query, collection, steps, settings, clock, groups=None, top_k=depth, rerank=rerank)
    if clock.degraded:
        raise StageError(clock.degraded[0], f"failed for the query {query!r}; the log above says why")
    return Found(result.hits, {**clock.timings_ms, "total": clock.elapsed_s * 1000})


async def measure_stages(
    dataset: Dataset, collection: str, steps: SearchSteps, settings: Settings, plan: Plan, say: Say
) -> list[StageRuns]:
    """Every query of a set that `collection` holds, one after the other, at each depth."""
    blends = (settings.reranker.blend, *plan.blends)
    rerank = bool(RERANKED & set(plan.stages))
    found = []
    for depth in plan.depths or (None,):
        search = partial(search_here, collection=collection, steps=steps, settings=settings, depth=depth, rerank=rerank)
        await search(next(iter(dataset.queries.values())))  # the first one pays for connections and caches
        runs = StageRuns(depth)
        tell = _Teller(f"{dataset.name}{runs.suffix}", len(dataset.queries), say)
        for query, text in dataset.queries.items():
            result = await search(text)
            runs.add(
                query, stage_hits(result.hits, plan.stages, blends, settings.reranker.dense_share), result.timings_ms
            )
            tell()
        found.append(runs)
    return found


def measure_here(dataset: Dataset, settings: Settings, models: Models, plan: Plan, say: Say) -> list[StageRuns]:
    """The set's runs in the store that `settings`, evaluation_settings', name; ingested first where that is to do."""
    collection = index_dataset(dataset, settings, say)

    async def measure() -> list[StageRuns]:
        async with open_steps(settings, models) as steps:
            return await measure_stages(dataset, collection, steps, settings, plan, say)

    return asyncio.run(measure())


def measure_service(dataset: Dataset, client: Client, documents: Path, plan: Plan, say: Say) -> list[StageRuns]:
    """The set's runs by `POST /search`: `fused`, and `served` with the service's own reranking.

    The service cuts its hits, so that the other stages cannot be told. Its collection is collection_name's, of
    `documents`. Raises InputError where it is not there, StageError for an answer that left a stage out.
    """
    collection = collection_name(dataset)
    wanted = {"fused": False} if "fused" in plan.stages else {}
    wanted |= {"served": True} if RERANKED & set(plan.stages) else {}
    found = []
    for depth in plan.depths or (None,):
        runs = StageRuns(depth)
        tell = _Teller(f"{dataset.name}{runs.suffix}", len(dataset.queries), say)
        for query, text in dataset.queries.items():
            for stage, rerank in wanted.items():
                try:
                    answer = client.search(text, collection=collection, top_k=depth or SERVICE_TOP_K, rerank=rerank)
                except InputError as error:
                    ingest = f"rag ingest {documents} --collection {collection}"
                    raise InputError(f"{error}; the service needs the set's documents: {ingest}") from error
                if answer.degraded:
                    raise StageError(answer.degraded[0], f"was left out for the query {text!r}; look at the service")
                ranking = list(dict.fromkeys(hit.source for hit in answer.hits))
                runs.rankings.setdefault(stage, {})[query] = ranking
            runs.add_timings(answer.timings_ms)
            tell()
        found.append(runs)
    return found


class _Teller:
    """Says now and then how many queries are done."""

    def __init__(self, name: str, queries: int, say: Say) -> None:
        self._name, self._queries, self._say = name, queries, say
        self._done, self._said_at = 0, time.monotonic()

    def __call__(self) -> None:
        self._done += 1
        if time.monotonic() - self._said_at > SAY_EVERY_S:
            self._said_at = time.monotonic()
            self._say(f"{self._name}: {self._done} of {self._queries} queries")
