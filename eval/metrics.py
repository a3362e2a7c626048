"""Measures of rankings, by ir-measures, with their uncertainty.

A query that found nothing counts 0. nDCG is trec_eval's: the grade itself is the gain, discounted by log2(1 + rank).
R@k is the fraction of the relevant documents found, Success@k whether any was; AP is over all that a run holds.

Intervals hold 95 % of the means of 2,000 samples of the queries, drawn with replacement (percentile bootstrap, Efron
1979). A difference of two runs over the same queries is tested by changing its sign, query by query, at random (paired
randomisation test, two-sided; Smucker, Allan and Carterette, CIKM 2007): 9,999 times, or every way where there are
fewer. Both draw from a fixed seed. p-values are not corrected for the number of comparisons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
from ir_measures import AP, RR, R, Success, iter_calc, nDCG
from scipy.stats import bootstrap, permutation_test

from eval.dataset import Qrels
from rag.errors import InputError

Run = Mapping[str, Sequence[str]]  # query id -> document ids, best first, each once

_MEASURES = (nDCG @ 10, RR @ 10, AP, R @ 10, R @ 50, Success @ 1, Success @ 5)
MEASURES = tuple(map(str, _MEASURES))
MAIN_MEASURE = MEASURES[0]
RESAMPLES = 2_000
PERMUTATIONS = 9_999
SEED = 0
_BATCH_VALUES = 500_000  # of the samples that are in memory at once
# White space ends a field of a run file; the sign that stands for it has to be told from itself.
_SPECIAL = re.compile(r"[\s%]")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two runs, `second - first`: its mean and interval, its p-value, and how many queries each one wins."""

    change: Estimate
    p_value: float
    won: int
    lost: int
    tied: int


def score_run(qrels: Qrels, run: Run) -> dict[str, np.ndarray]:
    """Measure -> float64 (queries,), a value in 0..1 for each query of `qrels`, in their order."""
    place = {query: index for index, query in enumerate(qrels)}
    values = {measure: np.zeros(len(place)) for measure in MEASURES}
    ranked = {
        query: {document: float(-rank) for rank, document in enumerate(documents)}
        for query, documents in run.items()
        if query in place
    }
    for metric in iter_calc(_MEASURES, qrels, ranked):
        values[str(metric.measure)][place[metric.query_id]] = metric.value
    return values


def estimate(values: np.ndarray) -> Estimate:
    """The mean of (queries,) and its interval; of a single query the interval is its value."""
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Estimate(mean, mean, mean)
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=_batch(values), method="percentile", rng=SEED
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def compare_values(first: np.ndarray, second: np.ndarray) -> Difference:
    """Two runs' values (queries,) of one measure, query by query. p is 1 where no query differs."""
    change = second - first
    won, lost = int((change > 0).sum()), int((change < 0).sum())
    return Difference(estimate(change), _sign_flip_p(change[change != 0]), won, lost, change.size - won - lost)


def _sign_flip_p(changes: np.ndarray) -> float:
    """Two-sided p of the mean under random signs; a change of 0 has none to flip and is left out by the caller."""
    if changes.size < 2:  # one change and its opposite are equally far from 0
        return 1.0
    result = permutation_test(
        (changes,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=_batch(changes),
        rng=SEED,
    )
    return float(result.pvalue)


def _batch(values: np.ndarray) -> int:
    """How many samples of so many values to draw at once."""
    return max(_BATCH_VALUES // values.size, 1)


def write_run(path: Path, run: Run, tag: str) -> None:
    """A TREC run file: query, Q0, document, rank from 1, score, tag. The score only says the order."""
    with path.open("w", encoding="utf-8") as file:
        for query, documents in run.items():
            for rank, document in enumerate(documents, start=1):
                score = len(documents) - rank + 1
                file.write(f"{_field(query)} Q0 {_field(document)} {rank} {score} {_field(tag)}\n")


def read_run(path: Path) -> dict[str, list[str]]:
    """The run of a TREC run file, by score, ties by rank. Raises InputError."""
    scored: dict[str, list[tuple[float, int, str]]] = {}
    for number, fields in _lines(path):
        try:
            query, _, document, rank, score, _ = fields
            scored.setdefault(unquote(query), []).append((-float(score), int(rank), unquote(document)))
        except ValueError as error:
            raise InputError(f"{path}:{number} is no line of a TREC run: query Q0 document rank score tag") from error
    return {query: list(dict.fromkeys(row[2] for row in sorted(rows))) for query, rows in scored.items()}


def write_qrels(path: Path, qrels: Qrels) -> None:
    """A TREC qrels file: query, 0, document, grade."""
    with path.open("w", encoding="utf-8") as file:
        for query, grades in qrels.items():
            file.writelines(f"{_field(query)} 0 {_field(document)} {grade}\n" for document, grade in grades.items())


def read_qrels(path: Path) -> Qrels:
    """The judgements of a TREC qrels file. Raises InputError."""
    qrels: Qrels = {}
    for number, fields in _lines(path):
        try:
            query, _, document, grade = fields
            qrels.setdefault(unquote(query), {})[unquote(document)] = int(grade)
        except ValueError as error:
            raise InputError(f"{path}:{number} is no line of TREC qrels: query 0 document grade") from error
    return qrels


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); name a TREC file in UTF-8") from error
    return [(number, line.split()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _field(text: str) -> str:
    return _SPECIAL.sub(lambda found: quote(found[0], safe=""), text)
