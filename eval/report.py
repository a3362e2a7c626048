"""The report of a retrieval evaluation: JSON, run files, tables for people, a plot.

In the report's folder:

    report.json     settings, models, commit, hardware, every measure with its interval, ms a query by stage
    report.txt      the tables
    ndcg.png        nDCG@10 of every stage, with intervals
    SET/            qrels.txt, queries.jsonl, and STAGE.run, a TREC run file for each stage
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval import metrics
from eval.bench_tables import format_table
from eval.dataset import Dataset, pool_datasets, read_dataset, sample_queries
from eval.hardware import describe_machine, git_commit
from eval.load import percentile
from eval.metrics import MAIN_MEASURE, MEASURES, Estimate, estimate, score_run, write_qrels, write_run
from eval.pool import write_rows
from eval.retrieval import (
    Plan,
    Say,
    StageRuns,
    evaluation_settings,
    measure_here,
    measure_service,
    served_stage,
    write_documents,
)
from ingest.fingerprint import index_fingerprint
from rag.client import Client
from rag.config import Settings
from rag.local_steps import Models
from rag.models import locate_model

REPORT, TABLES, PLOT = "report.json", "report.txt", "ndcg.png"
QRELS, QUERIES = "qrels.txt", "queries.jsonl"
SERVED = "served"  # what a service gives with its own reranking
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")

Measure = Callable[[Dataset], list[StageRuns]]


def evaluate_retrieval(
    references: Sequence[str],
    settings: Settings,
    plan: Plan,
    out: Path,
    say: Say,
    *,
    pool: bool = False,
    queries: int | None = None,
    service: str | None = None,
) -> dict[str, Any]:
    """Measures every data set, and with `pool` all of them as one corpus, and writes the report to `out`; the report.

    `queries`: how many of each set to ask at most. `service`: the URL of a running one to measure in place of the
    settings' models here. Raises InputError for a data set or document that cannot be used, and what the stages raise.
    """
    sets = [read_dataset(reference) for reference in references]
    if queries is not None:
        sets = [sample_queries(one, queries) for one in sets]
    names = [one.name for one in sets]
    if pool:
        sets.append(pool_datasets(sets))
    report: dict[str, Any] = {"commit": git_commit(), "hardware": describe_machine(), "method": metrics.__doc__}
    if service is None:
        facts, measure = _local(settings, plan, say)
    else:
        facts, measure = _remote(service, plan, out, say)
    report |= facts
    report["plan"] = {**asdict(plan), "queries_at_most": queries}
    report["sets"] = []
    for one in sets:
        runs = measure(one)
        write_runs(out / one.name, one, runs)
        origins = names if pool and one is sets[-1] else []
        report["sets"].append(describe_set(one, runs, origins))
        write_report(out, report)  # after each set: hours of work may be broken off
    return report


def write_report(out: Path, report: dict[str, Any]) -> None:
    """The report, its tables and its plot, in place of those that are there."""
    (out / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    (out / TABLES).write_text(format_report(report), encoding="utf-8")
    draw_plot(report, out / PLOT)


def _local(settings: Settings, plan: Plan, say: Say) -> tuple[dict[str, Any], Measure]:
    """The settings' models and store, in this process: what the report says of them, and how they are measured."""
    own = evaluation_settings(settings)
    models = Models(own)
    fingerprint = index_fingerprint(settings)
    facts = {
        "service": None,
        "served": served_stage(settings),
        "settings": settings.model_dump(mode="json"),
        "index": {**asdict(fingerprint), "index_version": fingerprint.index_version},
        "models": {
            "embedder": describe_model(settings.embedder.model, settings),
            "reranker": describe_model(settings.reranker_model, settings),
        },
    }
    return facts, lambda one: measure_here(one, own, models, plan, say)


def _remote(url: str, plan: Plan, out: Path, say: Say) -> tuple[dict[str, Any], Measure]:
    with Client(url) as client:
        own = client.info().as_sent()
    facts = {
        "service": {"url": url, **own},
        "served": SERVED,
        "settings": None,
        "index": None,
        "models": None,
    }

    def measure(one: Dataset) -> list[StageRuns]:
        with Client(url) as client:
            return measure_service(one, client, write_documents(one, out / one.name), plan, say)

    return facts, measure


def describe_model(reference: str, settings: Settings) -> dict[str, Any]:
    """The model's name and, where its weights are in a folder, the first 12 hexadecimal digits of their SHA-256."""
    folder = Path(locate_model(reference, settings.cache_dir))
    files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern)) if folder.is_dir() else []
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return {"model": reference, "weights_sha256": digest.hexdigest()[:12] if files else None}


def write_runs(folder: Path, dataset: Dataset, runs: Sequence[StageRuns]) -> None:
    """The set's judgements, queries and a run file for each stage; run files of an earlier report go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.run"):
        old.unlink()
    write_qrels(folder / QRELS, dataset.qrels)
    write_rows(folder / QUERIES, ({"_id": query, "text": text} for query, text in dataset.queries.items()))
    for run in runs:
        for stage, ranking in run.rankings.items():
            write_run(folder / f"{stage}{run.suffix}.run", ranking, f"{stage}{run.suffix}")


def describe_set(dataset: Dataset, runs: Sequence[StageRuns], origins: Sequence[str] = ()) -> dict[str, Any]:
    """The set's part of the report; `origins`: the sets that it was pooled from, each measured by its own queries."""
    stages = []
    for run in runs:
        for stage, ranking in run.rankings.items():
            values = score_run(dataset.qrels, ranking)
            by_origin = {name: float(values[MAIN_MEASURE][_of_origin(dataset, name)].mean()) for name in origins}
            if by_origin:
                by_origin["mean of the sets"] = float(np.mean(list(by_origin.values())))
            stages.append(
                {
                    "stage": stage,
                    "depth": run.depth,
                    "run": f"{dataset.name}/{stage}{run.suffix}.run",
                    "measures": {measure: asdict(estimate(values[measure])) for measure in MEASURES},
                    "by_origin": by_origin,
                }
            )
    return {
        "set": dataset.name,
        "documents": len(dataset.documents),
        "queries": len(dataset.queries),
        "stages": stages,
        "timings_ms": [
            {
                "depth": run.depth,
                **{stage: _percentiles(took_ms) for stage, took_ms in run.timings_ms.items() if stage != "queue"},
            }
            for run in runs
        ],
    }


def _of_origin(dataset: Dataset, name: str) -> list[int]:
    return [index for index, query in enumerate(dataset.queries) if query.startswith(f"{name}/")]


def _percentiles(took_ms: Sequence[float]) -> dict[str, float | None]:
    return {"queries": len(took_ms), "p50_ms": percentile(took_ms, 50), "p95_ms": percentile(took_ms, 95)}


def format_report(report: dict[str, Any]) -> str:
    """Tables for people: one a set, with the 95 % interval of the first measure."""
    machine = report["hardware"]
    lead = (
        f"commit {report['commit']}; {machine['cpu_model']}, {machine['cpu_count_usable']} cores; load average at the "
        f"start {machine['load_average_1min']}\nserved: {report['served']}"
    )
    if report["models"]:
        embedder, reranker = (report["models"][name]["model"] for name in ("embedder", "reranker"))
        settings = report["settings"]
        lead += (
            f"; embedder {embedder}, reranker {reranker} ({settings['reranker']['kind']}); each search "
            f"{settings['retrieval']['top_k']} deep, {settings['reranker']['candidates']} candidates reranked, unless "
            f"a stage says @DEPTH for both; token vectors in the index: {report['index']['token_vectors'] or 'none'}"
        )
    return "\n\n".join([lead, *map(_format_set, report["sets"])]) + "\n"


def _format_set(one: dict[str, Any]) -> str:
    header = ("stage", MAIN_MEASURE, "95 %", *MEASURES[1:])
    rows = []
    for stage in one["stages"]:
        measures = {name: Estimate(**value) for name, value in stage["measures"].items()}
        main = measures[MAIN_MEASURE]
        others = (f"{measures[name].mean:.3f}" for name in MEASURES[1:])
        rows.append((_label(stage), f"{main.mean:.3f}", f"{main.low:.3f}-{main.high:.3f}", *others))
    title = f"{one['set']}  {one['documents']:,} documents, {one['queries']:,} queries"
    parts = [title, format_table(header, rows)]
    if any(stage["by_origin"] for stage in one["stages"]):
        origins = list(one["stages"][0]["by_origin"])
        by_origin = [
            (_label(stage), *(f"{value:.3f}" for value in stage["by_origin"].values())) for stage in one["stages"]
        ]
        parts.append(
            f"{MAIN_MEASURE} by the set that the queries are from\n{format_table(('stage', *origins), by_origin)}"
        )
    parts += [f"ms a query, p50 (p95){_suffix(took)}: {_format_timings(took)}" for took in one["timings_ms"]]
    return "\n".join(parts)


def _format_timings(took: dict[str, Any]) -> str:
    return ", ".join(
        f"{stage} {values['p50_ms']:.1f} ({values['p95_ms']:.1f})" for stage, values in took.items() if stage != "depth"
    )


def _label(stage: dict[str, Any]) -> str:
    return f"{stage['stage']}{_suffix(stage)}"


def _suffix(one: dict[str, Any]) -> str:
    return "" if one["depth"] is None else f"@{one['depth']}"


def draw_plot(report: dict[str, Any], path: Path) -> None:
    """A bar for each stage of each set, with its interval."""
    from matplotlib.figure import Figure

    sets = report["sets"]
    labels = list(dict.fromkeys(_label(stage) for one in sets for stage in one["stages"]))
    figure = Figure(figsize=(max(6.0, 0.35 * len(sets) * (len(labels) + 1)), 4.5), layout="constrained")
    axes = figure.add_subplot()
    for offset, label in enumerate(labels):
        found = [
            (place, Estimate(**stage["measures"][MAIN_MEASURE]))
            for place, one in enumerate(sets)
            for stage in one["stages"]
            if _label(stage) == label
        ]
        means = [value.mean for _, value in found]
        axes.bar(
            [place + (offset - (len(labels) - 1) / 2) * 0.8 / len(labels) for place, _ in found],
            means,
            width=0.8 / len(labels),
            yerr=[
                [value.mean - value.low for _, value in found],
                [value.high - value.mean for _, value in found],
            ],
            capsize=2,
            label=label,
        )
    axes.set_xticks(range(len(sets)), [one["set"] for one in sets])
    axes.set_ylabel(f"{MAIN_MEASURE}, 95 % interval")
    axes.set_ylim(0, 1)
    figure.legend(loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    figure.savefig(path, dpi=150)
