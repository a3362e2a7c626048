"""Follow-up questions: what retrieval finds for them as they are, and rewritten in several ways.

    python -m eval.follow_ups FILE

FILE is a table of pairs (.jsonl or .jsonl.gz: `question`, `positive`, `negatives`) some of whose questions are two
turns of a conversation, joined by " / ", such as mtrag_ref. Its passages are the documents. The second turn is searched
for by the settings' models as

    alone      it stands
    both       one text behind the first turn
    carried    it stands, with the words of the first turn that it lacks
    rewritten  rag.rewrite has it, which carries them only where the second turn leans on the first
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.bench_tables import format_table
from eval.dataset import Dataset, SetDocument, read_rows, set_name
from eval.metrics import MAIN_MEASURE, compare_values, estimate, score_run
from eval.retrieval import Plan, evaluation_settings, measure_here
from rag.analyze import terms
from rag.config import Settings, load_settings
from rag.errors import InputError, RagError
from rag.local_steps import Models
from rag.rewrite import carry_words, rewrite_question
from rag.types import Message

JOINER = " / "

Rewrite = Callable[[str, str], str]  # first turn, second turn -> what is searched for


def both_turns(first: str, second: str) -> str:
    """One behind the other."""
    return f"{first} {second}"


def carried(first: str, second: str) -> str:
    """The second, then the words of the first that it lacks."""
    return " ".join([second, *carry_words(second, first, terms)])


def rewritten(first: str, second: str) -> str:
    """As the service does it."""
    return rewrite_question(second, [Message("user", first)], terms)


WAYS: dict[str, Rewrite] = {
    "alone": lambda _first, second: second,
    "both": both_turns,
    "carried": carried,
    "rewritten": rewritten,
}


def read_conversations(file: Path) -> tuple[Dataset, Mapping[str, tuple[str, str]]]:
    """The file's passages and its questions of two turns, as a set; and the turns of each query. Raises InputError."""
    texts: dict[str, str] = {}
    turns: dict[str, tuple[str, str]] = {}
    qrels: dict[str, dict[str, int]] = {}
    ids: dict[str, str] = {}
    try:
        for _, row in read_rows(file):
            for text in filter(None, (row["positive"], *(row.get("negatives") or ()))):
                texts.setdefault(text, f"p{len(texts)}")
            asked = row["question"].split(JOINER)
            if len(asked) == 2 and row["positive"]:
                query = ids.setdefault(row["question"], f"q{len(ids)}")
                turns[query] = asked[0], asked[1]
                qrels.setdefault(query, {})[texts[row["positive"]]] = 1
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no table of pairs ({type(error).__name__}: {error})") from error
    if not turns:
        raise InputError(f"no question of {file} has two turns, joined by {JOINER!r}")
    documents = tuple(SetDocument(name, "", text) for text, name in texts.items())
    return Dataset(set_name(file), documents, {query: second for query, (_, second) in turns.items()}, qrels), turns


def compare_ways(
    dataset: Dataset, turns: Mapping[str, tuple[str, str]], measure: Callable[[Dataset], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each way and stage: nDCG@10 with its interval, and the change against the turn alone.

    `measure` gives each stage's ranking of a set's queries.
    """
    alone: dict[str, np.ndarray] = {}
    rows = []
    for way, rewrite in WAYS.items():
        queries = {query: rewrite(*turns[query]) for query in dataset.queries}
        for stage, run in measure(Dataset(dataset.name, dataset.documents, queries, dataset.qrels)).items():
            values = score_run(dataset.qrels, run)[MAIN_MEASURE]
            change = compare_values(alone.setdefault(stage, values), values)
            rows.append({"way": way, "stage": stage, MAIN_MEASURE: estimate(values), "change": change})
    return rows


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a way; of each stage nDCG@10 and the p-value of its change."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        value, change = row[MAIN_MEASURE], row["change"]
        said = f"{value.mean:.3f} ({value.low:.3f}-{value.high:.3f}) p {change.p_value:.4f}"
        cells.setdefault(row["way"], {})[row["stage"]] = said
    table = [(way, *(found.get(stage, "") for stage in stages)) for way, found in cells.items()]
    return format_table(("searched for", *stages), table)


def main() -> int:
    """`python -m eval.follow_ups`: 0, or 2 for what cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    chosen = parser.parse_args()
    try:
        dataset, turns = read_conversations(chosen.file)
        rows = compare_ways(dataset, turns, measure_by(load_settings()))
    except RagError as error:
        print(f"follow_ups: {error}", file=sys.stderr)
        return 2
    print(f"{dataset.name}: {len(turns)} questions of two turns, {len(dataset.documents)} passages")
    print(format_rows(rows))
    return 0


def measure_by(settings: Settings) -> Callable[[Dataset], Mapping[str, Any]]:
    """Each stage's ranking by the settings' own models and a store of the evaluation's own."""
    own = evaluation_settings(settings)
    models = Models(own)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    return lambda dataset: measure_here(dataset, own, models, Plan(), say)[0].rankings


if __name__ == "__main__":
    sys.exit(main())
