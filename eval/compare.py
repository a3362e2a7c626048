"""Two retrieval reports, or two run files, query by query.

Of reports every stage that both have is compared, and first of all what each one serves, whatever its stage is called.
A run file's judgements are those beside it (qrels.txt, as a report has them) unless others are named.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.bench_tables import format_table
from eval.dataset import Qrels
from eval.metrics import MAIN_MEASURE, MEASURES, Run, compare_values, read_qrels, read_run, score_run
from eval.report import QRELS, QUERIES, REPORT, SERVED
from rag.errors import InputError

SHOWN_QUERIES = 5


@dataclass(frozen=True, slots=True)
class Judged:
    """A run with its judgements, and the queries' texts where they are known."""

    run: Run
    qrels: Qrels
    texts: dict[str, str]


def compare_paths(first: Path, second: Path, qrels: Path | None = None) -> dict[str, Any]:
    """The comparison of two report folders or two run files, `second` against `first`.

    Raises InputError for what is neither, and where the two have no stage, or not the same judgements, in common.
    """
    if first.is_dir() != second.is_dir():
        raise InputError(f"{first} and {second} cannot be compared: name two report folders or two run files")
    if first.is_dir():
        left, right = read_report(first), read_report(second)
        shared = [key for key in left if key in right]
        if not shared:
            raise InputError(f"{first} and {second} have no stage of a data set in common; evaluate the same sets")
        pairs = [(*key, left[key], right[key]) for key in shared]
    else:
        pairs = [(first.resolve().parent.name, "run", _read_file(first, qrels), _read_file(second, qrels))]
    return {
        "first": str(first),
        "second": str(second),
        "comparisons": [compare_runs(name, stage, one, other) for name, stage, one, other in pairs],
    }


def read_report(folder: Path) -> dict[tuple[str, str], Judged]:
    """(set, stage) -> run; the stage that a set's questions get is there as `served` too, first. Raises InputError."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        found: dict[tuple[str, str], Judged] = {}
        for one in report["sets"]:
            runs = {Path(stage["run"]).stem: read_run(folder / stage["run"]) for stage in one["stages"]}
            qrels, texts = _judgements(folder / one["set"])
            if report["served"] in runs:
                found[one["set"], SERVED] = Judged(runs[report["served"]], qrels, texts)
            found |= {(one["set"], stage): Judged(run, qrels, texts) for stage, run in runs.items()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder} holds no report that can be read ({type(error).__name__}: {error}); "
            f"make one: rag eval retrieval DATASET --out {folder}"
        ) from error
    return found


def compare_runs(name: str, stage: str, first: Judged, second: Judged) -> dict[str, Any]:
    """Every measure's difference, and the queries that won and lost most by the first measure.

    Raises InputError when the two were judged differently: their figures would be of different things.
    """
    if first.qrels != second.qrels:
        raise InputError(f"the runs of {name}, {stage} have other queries or judgements; evaluate the same set anew")
    ours, theirs = score_run(first.qrels, first.run), score_run(second.qrels, second.run)
    measures = {}
    for measure in MEASURES:
        difference = compare_values(ours[measure], theirs[measure])
        means = {"first": float(ours[measure].mean()), "second": float(theirs[measure].mean())}
        measures[measure] = {**means, **asdict(difference)}
    change = theirs[MAIN_MEASURE] - ours[MAIN_MEASURE]
    queries = [
        {
            "query": query,
            "text": first.texts.get(query, ""),
            "first": float(ours[MAIN_MEASURE][index]),
            "second": float(theirs[MAIN_MEASURE][index]),
        }
        for index, query in enumerate(first.qrels)
    ]
    order = np.argsort(change, kind="stable")
    lost = [queries[index] for index in order[:SHOWN_QUERIES] if change[index] < 0]
    won = [queries[index] for index in order[::-1][:SHOWN_QUERIES] if change[index] > 0]
    return {"set": name, "stage": stage, "queries": len(queries), "measures": measures, "won": won, "lost": lost}


def format_comparison(comparison: dict[str, Any]) -> str:
    """Tables for people; the queries are shown once for each set, of its first comparison."""
    parts = [
        f"first   {comparison['first']}\nsecond  {comparison['second']}\n"
        "change: second - first, with its 95 % interval; p: paired randomisation test, two-sided, not corrected for "
        "the number of rows"
    ]
    seen: set[str] = set()
    for one in comparison["comparisons"]:
        parts.append(_format_measures(one))
        if one["set"] not in seen:
            seen.add(one["set"])
            parts += [_format_queries(title, one[key]) for title, key in (("won", "won"), ("lost", "lost")) if one[key]]
    return "\n\n".join(parts) + "\n"


def _read_file(path: Path, qrels: Path | None) -> Judged:
    run = read_run(path)
    if qrels is not None:
        return Judged(run, read_qrels(qrels), _texts(path.parent))
    if not (path.parent / QRELS).is_file():
        raise InputError(f"there are no judgements beside {path} ({QRELS}); name them with --qrels FILE")
    return Judged(run, *_judgements(path.parent))


def _judgements(folder: Path) -> tuple[Qrels, dict[str, str]]:
    return read_qrels(folder / QRELS), _texts(folder)


def _texts(folder: Path) -> dict[str, str]:
    """The queries' texts; none where the folder is no report's."""
    path = folder / QUERIES
    if not path.is_file():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["_id"]: row["text"] for row in rows}


def _format_measures(one: dict[str, Any]) -> str:
    header = ("measure", "first", "second", "change", "95 %", "p", "won", "lost", "tied")
    rows = []
    for measure, found in one["measures"].items():
        change = found["change"]
        rows.append(
            (
                measure,
                f"{found['first']:.3f}",
                f"{found['second']:.3f}",
                f"{change['mean']:+.3f}",
                f"{change['low']:+.3f} to {change['high']:+.3f}",
                f"{found['p_value']:.4f}",
                *(found[name] for name in ("won", "lost", "tied")),
            )
        )
    return f"{one['set']}, {one['stage']}: {one['queries']:,} queries\n{format_table(header, rows)}"


def _format_queries(title: str, queries: Sequence[dict[str, Any]]) -> str:
    rows = [f"  {one['first']:.3f} -> {one['second']:.3f}  {one['query']}  {one['text']}" for one in queries]
    return "\n".join([f"{title} most, {MAIN_MEASURE}:", *rows])
