"""Token vectors in few bytes: what each form costs in ranking, to choose the one that an index stores.

    python -m eval.token_vectors REPORT DATASET... --fit FILE... [--out FILE]

REPORT is a folder of `rag eval retrieval` over the same sets: the first documents of its `fused` runs are the
candidates. Each is encoded once by the settings' embedder, cut where its model cuts; then every form ranks
the same candidates, alone and blended half and half with the fused order (reciprocal ranks, as rag.fuse has it).

A form is a projection and a number of bits. The projection keeps the directions in which the token vectors of the
`--fit` files are largest (uncentred principal components, for inner products are what has to be kept), then turns them
at random so that every kept number has the same spread. Each number becomes the nearest of 2**bits levels, optimal for
a normal distribution (Lloyd 1982, Max 1960). The query's vectors are projected, not quantised. `rotation` is the same
without anything fitted: all dimensions, turned at random. Pooling by k replaces k neighbouring tokens by their mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from eval.bench_tables import format_table
from eval.dataset import Dataset, read_dataset, read_documents, sample_queries
from eval.metrics import MAIN_MEASURE, compare_values, read_run, score_run
from rag.config import Settings, load_settings
from rag.embed import SentenceEmbedder
from rag.errors import InputError, RagError
from rag.models import locate_model
from rag.token_vectors import random_rotation

CANDIDATES = 50
BLEND = 0.5
QUERIES = 150  # of a set at most
FIT_TEXTS = 150  # of each file
LLOYD_STEPS = 300
FLOAT_BITS = 16
DIMENSIONS = (128, 96, 64, 48)
BITS = (4, 2, 1)
POOLING = (2, 3)


@dataclass(frozen=True, slots=True)
class Form:
    """How a text's token vectors are kept: `projection` (dim, kept) has orthonormal columns, None keeps them as they
    are; `spread` is the root mean square of a kept number; `bits` a number, or FLOAT_BITS for float16."""

    name: str
    projection: np.ndarray | None
    bits: int
    spread: float
    pool: int = 1

    def bytes_of(self, tokens: int, dimension: int) -> float:
        """Bytes of a text of so many tokens."""
        kept = dimension if self.projection is None else self.projection.shape[1]
        return -(-tokens // self.pool) * kept * self.bits / 8

    def restore(self, vectors: np.ndarray) -> np.ndarray:
        """What is read back of unit vectors (tokens, dim): float32 (tokens left, kept), unit length again."""
        pooled = pool_neighbours(vectors, self.pool)
        if self.projection is not None:
            pooled = pooled @ self.projection
        if self.bits < FLOAT_BITS:
            levels = optimal_levels(self.bits) * self.spread
            pooled = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, pooled)]
        return unit_rows(pooled)

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """A query's vectors (tokens, dim) as this form's are compared with: (tokens, kept), unit length."""
        return vectors if self.projection is None else unit_rows(vectors @ self.projection)


@cache
def optimal_levels(bits: int) -> np.ndarray:
    """float32 (2**bits,), ascending, read only: the levels of least mean square error for a standard normal variable.

    Kept: finding them takes longer than coding a text by them.
    """
    count = 2**bits
    levels = norm.ppf((np.arange(count) + 0.5) / count)
    for _ in range(LLOYD_STEPS):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        levels = -np.diff(norm.pdf(edges)) / np.diff(norm.cdf(edges))  # each the mean of its cell
    found = np.asarray(levels, dtype=np.float32)
    found.flags.writeable = False
    return found


def pool_neighbours(vectors: np.ndarray, size: int) -> np.ndarray:
    """(tokens, dim) -> (ceil(tokens / size), dim): the unit means of neighbours, in groups as equal as may be."""
    if size == 1 or len(vectors) < 2:
        return vectors
    groups = np.array_split(vectors, -(-len(vectors) // size))
    return unit_rows(np.stack([group.mean(axis=0) for group in groups]))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its L2 norm; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def principal_directions(vectors: np.ndarray) -> np.ndarray:
    """float32 (dim, dim), orthonormal columns by falling energy of (n, dim), not centred."""
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    return np.ascontiguousarray(directions[:, ::-1], dtype=np.float32)


def make_forms(sample: np.ndarray) -> list[Form]:
    """Every form that is compared, the unchanged vectors first; fitted on unit vectors (n, dim)."""
    dimension = sample.shape[1]
    directions = principal_directions(sample)

    def form(name: str, projection: np.ndarray, bits: int, pool: int = 1) -> Form:
        return Form(name, projection, bits, float(np.sqrt(np.mean((sample @ projection) ** 2))), pool)

    forms = [Form("float16", None, FLOAT_BITS, 1.0)]
    forms += [form(f"rotation, {bits} bits", random_rotation(dimension), bits) for bits in (8, *BITS)]
    kept = {count: directions[:, :count] @ random_rotation(count) for count in DIMENSIONS if count < dimension}
    forms += [form(f"{count} components, {bits} bits", kept[count], bits) for count in kept for bits in BITS]
    forms += [Form(f"float16, pooled by {pool}", None, FLOAT_BITS, 1.0, pool) for pool in POOLING]
    largest = max(kept, default=None)
    if largest is not None:
        name = f"{largest} components, 2 bits, pooled by"
        forms += [form(f"{name} {pool}", kept[largest], 2, pool) for pool in POOLING]
    return forms


def max_similarity(query: np.ndarray, text: np.ndarray) -> float:
    """The mean over the query's tokens of the largest cosine to any of the text's, as rag.rerank has it."""
    return float((query @ text.T).max(axis=1).mean()) if len(text) and len(query) else 0.0


def blend(scores: np.ndarray, ranks: np.ndarray, rrf_k: int) -> np.ndarray:
    """Half the scores, half the reciprocal ranks, both scaled to 0..1 among the candidates."""
    fused = 1 / (rrf_k + ranks)
    return BLEND * _scale(scores) + (1 - BLEND) * _scale(fused)


def _scale(values: np.ndarray) -> np.ndarray:
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread else np.ones_like(values)


@dataclass(frozen=True, slots=True)
class Candidates:
    """A set's queries with their fused candidates, and the token vectors of all texts in play."""

    dataset: Dataset
    found: dict[str, list[str]]
    queries: dict[str, np.ndarray]
    documents: dict[str, np.ndarray]

    def rank(self, form: Form, rrf_k: int) -> tuple[dict[str, list[str]], dict[str, list[str]], float]:
        """The runs of the form alone and blended, and its mean ms a query with the vectors read back before."""
        restored = {name: form.restore(vectors) for name, vectors in self.documents.items()}
        alone, blended, seconds = {}, {}, 0.0
        for query, documents in self.found.items():
            began = time.perf_counter()
            own = form.project(self.queries[query])
            scores = np.array([max_similarity(own, restored[name]) for name in documents])
            seconds += time.perf_counter() - began
            alone[query] = [documents[index] for index in np.argsort(-scores, kind="stable")]
            mixed = blend(scores, np.arange(1, len(documents) + 1), rrf_k)
            blended[query] = [documents[index] for index in np.argsort(-mixed, kind="stable")]
        return alone, blended, 1000 * seconds / len(self.found)


def read_candidates(reference: str, report: Path, embedder: SentenceEmbedder) -> Candidates:
    """A set's candidates by the report's `fused` run, encoded. Raises InputError where the report has none of it."""
    dataset = sample_queries(read_dataset(reference), QUERIES)
    run = read_run(report / dataset.name / "fused.run")
    found = {query: run[query][:CANDIDATES] for query in dataset.queries if run.get(query)}
    if not found:
        raise InputError(f"{report} has no fused run of the queries of {dataset.name}; evaluate that set anew")
    texts = {one.document_id: f"{one.title}\n{one.text}".strip() for one in dataset.documents}
    wanted = list(dict.fromkeys(name for names in found.values() for name in names))
    documents = embedder.encode_tokens([texts[name] for name in wanted], "passage")
    queries = embedder.encode_tokens([dataset.queries[query] for query in found], "query")
    return Candidates(dataset, found, dict(zip(found, queries, strict=True)), dict(zip(wanted, documents, strict=True)))


def sample_vectors(files: Iterable[Path], embedder: SentenceEmbedder) -> np.ndarray:
    """float32 (n, dim): the token vectors of the first texts of each file."""
    texts = [one.text for file in files for one in islice(read_documents(file), FIT_TEXTS)]
    return np.concatenate(embedder.encode_tokens(texts, "passage"))


def compare_forms(sets: Sequence[Candidates], forms: Sequence[Form], rrf_k: int) -> list[dict[str, Any]]:
    """For each form and set: bytes a text, nDCG@10 alone and blended, and both changes against the first form."""
    rows: list[dict[str, Any]] = []
    whole: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for form in forms:
        for one in sets:
            alone, blended, took_ms = one.rank(form, rrf_k)
            qrels = {query: one.dataset.qrels[query] for query in one.found}
            values = tuple(score_run(qrels, run)[MAIN_MEASURE] for run in (alone, blended))
            first = whole.setdefault(one.dataset.name, (values[0], values[1]))
            sizes = [form.bytes_of(len(vectors), vectors.shape[1]) for vectors in one.documents.values()]
            rows.append(
                {
                    "form": form.name,
                    "set": one.dataset.name,
                    "bytes": float(np.mean(sizes)),
                    "alone": float(values[0].mean()),
                    "blended": float(values[1].mean()),
                    "alone_p": compare_values(first[0], values[0]).p_value,
                    "blended_p": compare_values(first[1], values[1]).p_value,
                    "ms": took_ms,
                }
            )
        print(f"{form.name}: done", file=sys.stderr)
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """A line a form: bytes a text, nDCG@10 by set alone / blended, their means and the loss against the first form."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    by_form: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_form.setdefault(row["form"], []).append(row)
    means = {
        form: [float(np.mean([row[key] for row in own])) for key in ("alone", "blended")]
        for form, own in by_form.items()
    }
    best = next(iter(means.values()))
    table = [
        (
            form,
            f"{np.mean([row['bytes'] for row in own]):,.0f}",
            *(f"{row['alone']:.3f} / {row['blended']:.3f}" for row in own),
            f"{means[form][0]:.4f} / {means[form][1]:.4f}",
            f"{means[form][0] - best[0]:+.4f} / {means[form][1] - best[1]:+.4f}",
            f"{np.mean([row['ms'] for row in own]):.1f}",
        )
        for form, own in by_form.items()
    ]
    return format_table(("form", "bytes a text", *names, "mean", "change", "ms a query"), table)


def main() -> int:
    """`python -m eval.token_vectors`: 0, or 2 for what cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--fit", type=Path, nargs="+", required=True, help="texts unlike the sets', as for the pool")
    parser.add_argument("--out", type=Path, help="the rows as JSON")
    chosen = parser.parse_args()
    try:
        settings = load_settings()
        rows = _measure(chosen.report, chosen.datasets, chosen.fit, settings)
    except RagError as error:
        print(f"token_vectors: {error}", file=sys.stderr)
        return 2
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(format_rows(rows))
    return 0


def _measure(report: Path, datasets: Sequence[str], fit: Sequence[Path], settings: Settings) -> list[dict[str, Any]]:
    embedder = SentenceEmbedder(settings.embedder, locate_model(settings.embedder.model, settings.cache_dir))
    sample = sample_vectors(fit, embedder)
    print(f"fitted on {len(sample):,} token vectors of {len(fit)} files", file=sys.stderr)
    sets = []
    for reference in datasets:
        sets.append(read_candidates(reference, report, embedder))
        print(f"{sets[-1].dataset.name}: {len(sets[-1].documents):,} texts encoded", file=sys.stderr)
    return compare_forms(sets, make_forms(sample), settings.retrieval.rrf_k)


if __name__ == "__main__":
    sys.exit(main())
