"""How deep to search, how to fuse and how much of the order is the reranker's: each constant alone, over labelled sets.

    python -m eval.sweep DATASET... --out DIR

Each query is searched once, as deep as the deepest value asks, and every chunk found is reranked. A setting's order
follows from that: the hits of a search `top_k` deep are the first `top_k` of a deeper one, and a chunk's score by the
reranker does not hang on the other candidates. So the settings are compared over the very same scores, by the
product's own fusion and blend (rag.fuse), in a minute. Around the served settings one constant changes at a time.

    sweep.json      every setting with its nDCG@10 by set, and what it differs by from the served one, with p-values
    sweep.txt       the same as a table
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eval.bench_tables import format_table
from eval.dataset import Dataset, read_dataset, sample_queries
from eval.hardware import describe_machine, git_commit
from eval.metrics import MAIN_MEASURE, compare_values, score_run
from eval.retrieval import Say, evaluation_settings, index_dataset, open_steps, rank_documents, ranked_by, search_here
from rag.config import Settings, load_settings
from rag.errors import RagError
from rag.fuse import fuse_hits, order_by_blend
from rag.local_steps import Models
from rag.retrieve import SearchSteps
from rag.types import Hit, Scores

REPORT, TABLES = "sweep.json", "sweep.txt"
CONSTANTS: Mapping[str, tuple[float, ...]] = {
    "top_k": (10, 20, 30, 100, 200),
    "rrf_k": (1, 10, 20, 120),
    "candidates": (10, 16, 30, 100),
    "blend": (0.0, 0.25, 0.35, 0.55, 0.65, 0.75, 1.0),
    "dense_share": (0.0, 0.25, 0.4, 0.5, 0.7, 0.8, 1.0),
}


@dataclass(frozen=True, slots=True)
class Point:
    """One choice of the constants; named as in `retrieval` (the first two) and in `reranker`."""

    top_k: int
    rrf_k: int
    candidates: int
    blend: float
    dense_share: float

    def order(self, hits: Sequence[Hit]) -> list[Hit]:
        """The order of a query's answer, from every hit of a deeper search, all of them reranked."""
        lists = [[_as_found(hit, name) for hit in ranked_by(hits, name)[: self.top_k]] for name in ("dense", "lexical")]
        fused = fuse_hits([found for found in lists if found], rrf_k=self.rrf_k, top_k=2 * self.top_k)
        # A candidate has its dense score whether dense search found it or not.
        dense = {hit.chunk.chunk_id: hit.scores.dense for hit in hits}
        candidates = [
            replace(hit, scores=replace(hit.scores, dense=dense[hit.chunk.chunk_id]))
            for hit in fused[: self.candidates]
        ]
        blended = order_by_blend(candidates, self.blend, self.dense_share)
        return blended + fused[self.candidates :]


def _as_found(hit: Hit, search: str) -> Hit:
    """The hit as one search alone gave it: the other may not have found it, at less depth."""
    return replace(hit, scores=Scores(**{search: getattr(hit.scores, search)}, rerank=hit.scores.rerank))


def served_point(settings: Settings) -> Point:
    """What a question gets."""
    retrieval, reranker = settings.retrieval, settings.reranker
    return Point(retrieval.top_k, retrieval.rrf_k, reranker.candidates, reranker.blend, reranker.dense_share)


def points_around(served: Point) -> Iterator[tuple[str, Point]]:
    """The served point, then each constant's other values: (the constant, the point)."""
    yield "served", served
    for name, values in CONSTANTS.items():
        for value in values:
            change: dict[str, Any] = {name: value}
            if value != getattr(served, name):
                yield name, replace(served, **change)


def deepened(settings: Settings, depth: int) -> Settings:
    """Settings with which each search is `depth` deep and every hit is reranked."""
    retrieval = settings.retrieval.model_copy(update={"top_k": depth})
    reranker = settings.reranker.model_copy(update={"candidates": 2 * depth})
    return settings.model_copy(update={"retrieval": retrieval, "reranker": reranker})


async def search_deep(
    queries: Mapping[str, str], collection: str, steps: SearchSteps, deep: Settings
) -> dict[str, list[Hit]]:
    """Query -> every hit, by `deepened` settings. Raises StageError for a stage that failed."""
    search = partial(search_here, collection=collection, steps=steps, settings=deep, depth=None, rerank=True)
    # What a hit keeps of its tokens is not needed any more, and would be the most of the memory.
    return {
        query: [replace(hit, token_vectors=b"") for hit in (await search(text)).hits] for query, text in queries.items()
    }


def measure_point(dataset: Dataset, found: Mapping[str, Sequence[Hit]], point: Point) -> np.ndarray:
    """nDCG@10 of every query: float64 (queries,)."""
    run = {query: rank_documents(point.order(hits)) for query, hits in found.items()}
    return score_run(dataset.qrels, run)[MAIN_MEASURE]


def sweep_sets(datasets: Sequence[Dataset], settings: Settings, say: Say) -> list[dict[str, Any]]:
    """Every point with its nDCG@10 by set, the served one first; the others with their difference from it by set.

    Raises ModelError, InputError and StageError.
    """
    own = evaluation_settings(settings)
    models = Models(own)
    served = served_point(settings)
    points = list(points_around(served))
    depth = max(point.top_k for _, point in points)
    measured: dict[str, list[np.ndarray]] = {}
    for dataset in datasets:
        started = time.monotonic()
        collection = index_dataset(dataset, own, say)
        searched = asyncio.run(_search_set(dataset, collection, deepened(own, depth), models))
        measured[dataset.name] = [measure_point(dataset, searched, point) for _, point in points]
        say(f"{dataset.name}: {len(searched)} queries in {time.monotonic() - started:.0f} s")
    rows = []
    for place, (changed, point) in enumerate(points):
        means = {name: float(found[place].mean()) for name, found in measured.items()}
        row = {"changed": changed, **asdict(point), "sets": means, "mean": float(np.mean(list(means.values())))}
        if place:
            row["differences"] = {
                name: asdict(compare_values(found[0], found[place])) for name, found in measured.items()
            }
        rows.append(row)
    return rows


async def _search_set(dataset: Dataset, collection: str, deep: Settings, models: Models) -> dict[str, list[Hit]]:
    async with open_steps(deep, models) as steps:
        return await search_deep(dataset.queries, collection, steps, deep)


def format_sweep(report: Mapping[str, Any]) -> str:
    """The table: * behind a set's value that differs from the served one's with p < .05."""
    served, *others = report["points"]
    names = list(served["sets"])
    lead = (
        f"commit {report['commit']}; {MAIN_MEASURE} by set; served: "
        + ", ".join(f"{name} {served[name]}" for name in CONSTANTS)
        + "\n* differs from the served order with p < .05 (paired randomisation, not corrected for their number)"
    )
    rows: list[tuple[object, ...]] = [
        ("served", *(f"{served['sets'][name]:.3f}" for name in names), f"{served['mean']:.4f}", "")
    ]
    for one in others:
        marks = {name: "*" if one["differences"][name]["p_value"] < 0.05 else " " for name in names}
        rows.append(
            (
                f"{one['changed']} {one[one['changed']]}",
                *(f"{one['sets'][name]:.3f}{marks[name]}" for name in names),
                f"{one['mean']:.4f}",
                f"{one['mean'] - served['mean']:+.4f}",
            )
        )
    return f"{lead}\n{format_table(('setting', *names, 'mean', 'change'), rows)}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m eval.sweep", description=__doc__.split("\n\n")[0])
    parser.add_argument("datasets", nargs="+", metavar="DATASET")
    parser.add_argument("--out", type=Path, required=True, help="where the report goes")
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--queries", type=int, default=300, help="of each set at most (default: 300)")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        sets = [sample_queries(read_dataset(one), given.queries) for one in given.datasets]
        points = sweep_sets(sets, load_settings(profile=given.profile), _say)
    except RagError as error:
        print(f"eval.sweep: {error}", file=sys.stderr)
        return 1
    report = {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "queries_at_most": given.queries,
        "points": points,
        "wall_s": round(time.monotonic() - started, 1),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    (given.out / TABLES).write_text(format_sweep(report), encoding="utf-8")
    print(format_sweep(report), end="")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
