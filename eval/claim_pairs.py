"""What grounding has to tell apart: beside the same passages an answer that they support, and one made up.

A file like HaluEval's (Li et al., EMNLP 2023) has JSON lines {knowledge, question, right_answer, hallucinated_answer};
one of the answers may be missing. Of any set whose gold phrases are known, `swap_phrase` makes pairs: a sentence that
holds the phrase, and the same with another question's in its place (as entities in Kryscinski et al., EMNLP 2020).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.answer_measures import GoldQuestion, holds_phrase
from eval.dataset import read_rows
from rag.errors import InputError
from rag.sentences import split_sentences
from rag.types import Chunk, Hit, Scores

_MARK = '"knowledge"'


@dataclass(frozen=True, slots=True)
class ClaimPair:
    """A question with passages, an answer that they support, and one that they do not; one of them may be missing."""

    question: str
    hits: tuple[Hit, ...]
    right: str | None
    made_up: str | None


def holds_pairs(path: Path) -> bool:
    """Whether a file's first line is one of HaluEval's. Raises InputError for a file that is no text."""
    if not path.is_file() or path.suffix == ".gz":
        return False
    try:
        with path.open(encoding="utf-8") as lines:
            return _MARK in lines.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); name a file in UTF-8") from error


def read_pairs(path: Path) -> list[ClaimPair]:
    """The pairs of a file like HaluEval's, in its order, each with its knowledge as the only passage.

    Raises InputError for rows of another shape.
    """
    try:
        return [
            ClaimPair(
                row["question"],
                (_passage(f"{path.stem}:{number}", row["knowledge"]),),
                row.get("right_answer"),
                row.get("hallucinated_answer"),
            )
            for number, row in read_rows(path)
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not laid out as expected ({type(error).__name__}: {error}); each line should have knowledge, "
            "question, right_answer and hallucinated_answer"
        ) from error


def swap_phrase(question: GoldQuestion, hits: Sequence[Hit], phrases: Sequence[str], seed: int) -> ClaimPair | None:
    """The first sentence of the hits that holds a gold phrase to the letter, and the same with one of `phrases` in it.

    That one is drawn of those that stand in none of the hits and are of the phrase's kind: as many words, a capital at
    the start or none, a digit or none. None where no sentence holds a gold phrase, or no phrase can take its place.
    """
    for hit in hits:
        for start, end in split_sentences(hit.chunk.text):
            sentence = hit.chunk.text[start:end]
            phrase = next((one for one in question.phrases if holds_phrase(sentence, [one]) and one in sentence), None)
            if phrase is None:
                continue
            shape = _shape(phrase)
            others = [
                one
                for one in phrases
                if _shape(one) == shape and not any(holds_phrase(hit.chunk.text, [one]) for hit in hits)
            ]
            if not others:
                return None
            other = random.Random(seed).choice(others)
            return ClaimPair(question.text, tuple(hits), sentence, sentence.replace(phrase, other))
    return None


def _shape(phrase: str) -> tuple[int, bool, bool]:
    return len(phrase.split()), phrase[:1].isupper(), any(char.isdigit() for char in phrase)


def _passage(source: str, text: str) -> Hit:
    return Hit(Chunk(source, source, "", 0, text, 0, len(text)), "", source, 0.0, Scores())
