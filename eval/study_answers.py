"""Answers without the LLM, in this process, and how well their confidence tells the right ones from the wrong.

Questions and what is expected of their answers come from a set that `rag eval generate` made, or from one with
answers.jsonl (_id, answers, unanswerable). With the LLM left out an answer is the documents' own sentences, as the
service gives them where its LLM is down: what is measured is retrieval, the evidence gate and extraction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.confidence import risk_by_coverage
from eval.dataset import read_rows
from eval.retrieval import open_steps
from eval.study import Place, read_places
from rag.config import Settings
from rag.errors import InputError, StageError
from rag.local_steps import Models
from rag.models import load_token_counter, locate_model
from rag.pipeline import Steps, answer
from rag.types import Answer, Citation, GeneratedText, Question


@dataclass(frozen=True, slots=True)
class Expected:
    """A question with the place of its answer, or with phrases of which a quote has to hold one; neither: none."""

    question: str
    place: Place | None = None
    phrases: tuple[str, ...] = ()

    @property
    def answerable(self) -> bool:
        """Whether the documents hold the answer."""
        return self.place is not None or bool(self.phrases)


def read_expected(folder: Path, held_out: Collection[str] = ()) -> list[Expected]:
    """The questions of a set, in its order; those about a source in `held_out` count as unanswerable.

    Raises InputError for a set that says neither where its answers stand nor what they are.
    """
    answers = folder / "answers.jsonl"
    if not answers.is_file():
        return [
            Expected(place.question, None if place.source in held_out else place)
            for place in read_places(folder).values()
        ]
    try:
        texts = {row["_id"]: row["text"] for _, row in read_rows(folder / "queries.jsonl")}
        return [
            Expected(texts[row["_id"]], phrases=() if row.get("unanswerable") else tuple(row["answers"]))
            for _, row in read_rows(answers)
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{answers} does not fit queries.jsonl beside it ({type(error).__name__}: {error})") from error


async def answer_all(expected: Sequence[Expected], settings: Settings, models: Models, collection: str) -> list[Answer]:
    """The extracted answer of each question, with the evidence gate open, so that every confidence is seen.

    Tokens of passages are counted as the embedder counts them. Raises what rag.pipeline.stream_answer raises.
    """
    settings = settings.model_copy(
        update={
            "generator": settings.generator.model_copy(update={"languages": ()}),  # so that it is never asked
            "evidence": settings.evidence.model_copy(update={"min_confidence": 0.0}),
        }
    )
    count_tokens = load_token_counter(locate_model(settings.embedder.model, settings.cache_dir))
    async with open_steps(settings, models) as search:
        steps = Steps(search, _no_llm, count_tokens)
        return [await answer(Question(one.question, collection, groups=None), steps, settings) for one in expected]


def _no_llm(*_: object, **__: object) -> AsyncIterator[GeneratedText]:
    """See rag.types.Generate."""
    raise StageError("generate", "no LLM runs here")


def is_right(found: Answer, expected: Expected) -> bool:
    """Whether a citation's quote overlaps the answer's place, or holds one of its phrases but for case and spaces."""
    return any(_supports(citation, expected) for citation in found.citations)


def _supports(citation: Citation, expected: Expected) -> bool:
    place = expected.place
    if place is not None:
        overlaps = citation.char_start < place.end_char and place.start_char < citation.char_end
        return citation.source == place.source and overlaps
    quote = _plain(citation.quote)
    return any(_plain(phrase) in quote for phrase in expected.phrases)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def coverage_accuracy(confidence: Sequence[float | None], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and accuracy, float64 (thresholds,) each, as the threshold falls over every confidence there is.

    Coverage is the fraction of all questions answered, accuracy the fraction of those that are right: one minus the
    risk of eval.confidence. A question without confidence is never answered.
    """
    known = np.array([value is not None for value in confidence])
    values = np.array([value for value in confidence if value is not None], dtype=np.float64)
    _, coverage, risk = risk_by_coverage(values, np.asarray(right, dtype=bool)[known], np.ones(values.size))
    return coverage * known.mean(), 1 - risk
