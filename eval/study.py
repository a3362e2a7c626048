"""What the notebooks share: the `rag` command, ranks query by query, and answers by their place in a document.

A place is judged for any chunking: a chunk is right when it holds the answer's characters whole.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eval.compare import Judged
from eval.dataset import read_rows
from eval.retrieval import Found, open_steps, search_here
from rag.config import Settings, load_settings
from rag.errors import InputError
from rag.local_steps import Models
from rag.types import Hit

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "corpus"
EXAMPLE_COLLECTION = "notebook_examples"
_PLACE = ("rule", "source", "start_char", "end_char")


@dataclass(frozen=True, slots=True)
class Place:
    """A question, and where its answer stands: `start_char:end_char` of the text of the document `source`.

    The answer of a heading's question is its whole chunk, that of the other rules one sentence.
    """

    question: str
    rule: str
    source: str
    start_char: int
    end_char: int


def run_rag(*arguments: object, **variables: object) -> str:
    """What `rag ARGUMENTS` prints, with this process's settings and `variables` beside them.

    Raises InputError with the command's message when it fails.
    """
    settings = [f"{name}={value}" for name, value in variables.items()]
    words = [str(argument) for argument in arguments]
    shown = " ".join([*settings, "rag", *words])
    print("$", shown)
    command = ["env", *settings, sys.executable, "-m", "rag.cli", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise InputError(f"{shown} ended with {ended.returncode}: {ended.stderr}")
    return ended.stdout


def workplace() -> Path:
    """The folder that the notebooks keep sets and reports in; it may be deleted."""
    folder = load_settings().cache_dir / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_set(corpus: Path, questions: int) -> Path:
    """A labelled set about the documents in `corpus`, generated unless it is there already."""
    folder = workplace() / f"{corpus.resolve().name}-{questions}"
    if not (folder / "qrels" / "test.tsv").is_file():
        collection = EXAMPLE_COLLECTION if corpus == EXAMPLES else f"notebook_{corpus.resolve().name}"
        print(run_rag("ingest", corpus, "--collection", collection))
        print(run_rag("eval", "generate", folder, "--collection", collection, "--questions", questions))
    return folder


def read_places(folder: Path) -> dict[str, Place]:
    """Query id -> place, of a set that `rag eval generate` made. Raises InputError for one without places."""
    try:
        rows = list(read_rows(folder / "queries.jsonl"))
        found = {row["_id"]: Place(row["text"], **{name: row["metadata"][name] for name in _PLACE}) for _, row in rows}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder} does not say where its answers stand ({type(error).__name__}: {error}); "
            f"make a set that does: rag eval generate {folder}"
        ) from error
    return found


def holds(hit: Hit, place: Place) -> bool:
    """Whether the hit's chunk holds the whole answer."""
    chunk = hit.chunk
    return hit.source == place.source and chunk.start_char <= place.start_char and place.end_char <= chunk.end_char


def first_rank(hits: Sequence[Hit], place: Place) -> float:
    """The rank from 1 of the first chunk that holds the answer, infinite where none does."""
    return next((float(rank) for rank, hit in enumerate(hits, start=1) if holds(hit, place)), np.inf)


def read_chars(hits: Sequence[Hit], place: Place) -> float:
    """Characters of the chunks down to the first that holds the answer, infinite where none does: larger chunks hold
    more each, and cost more of the prompt."""
    total = 0
    for hit in hits:
        total += len(hit.chunk.text)
        if holds(hit, place):
            return float(total)
    return np.inf


async def search_all(
    queries: Mapping[str, str], settings: Settings, models: Models, collection: str, *, depth: int
) -> dict[str, Found]:
    """Query id -> what the product's searching half finds, reranked to `depth`; a first search is not counted."""
    async with open_steps(settings, models) as steps:
        search = partial(search_here, collection=collection, steps=steps, settings=settings, depth=depth, rerank=True)
        await search(next(iter(queries.values())))
        return {query: await search(text) for query, text in queries.items()}


def relevant_ranks(judged: Judged) -> dict[str, float]:
    """Query -> rank from 1 of its first relevant document, infinite where none was found."""
    return {
        query: next(
            (
                float(rank)
                for rank, document in enumerate(judged.run.get(query, ()), start=1)
                if grades.get(document, 0) > 0
            ),
            np.inf,
        )
        for query, grades in judged.qrels.items()
    }


def recall_curve(judged: Judged, depths: Sequence[int]) -> np.ndarray:
    """Recall@k for each k of `depths`: float64 (depths,), the mean over queries of the fraction of relevant found."""
    values = np.zeros((len(judged.qrels), len(depths)))
    for row, (query, grades) in enumerate(judged.qrels.items()):
        wanted = {document for document, grade in grades.items() if grade > 0}
        found = np.cumsum([document in wanted for document in judged.run.get(query, ())])
        if found.size:
            values[row] = [found[min(depth, found.size) - 1] / len(wanted) for depth in depths]
    mean: np.ndarray = values.mean(axis=0)
    return mean


def success(ranks: Sequence[float], depth: int) -> float:
    """Success@depth: the fraction of the ranks that are within it."""
    return float(np.mean(np.asarray(ranks) <= depth))


def reciprocal_rank(ranks: Sequence[float], depth: int = 10) -> float:
    """RR@depth: the mean of 1 / rank, 0 beyond `depth`."""
    listed = np.asarray(ranks)
    return float(np.mean(np.where(listed <= depth, 1 / listed, 0.0)))


def format_ranks(ranks: Mapping[str, float]) -> dict[str, Any]:
    """Stage -> rank as a person reads it, `-` for one that was not found."""
    return {stage: "-" if np.isinf(rank) else int(rank) for stage, rank in ranks.items()}
