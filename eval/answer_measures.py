"""Whether answers are right and what their citations are worth, against gold phrases. Pure.

A text holds a phrase when it does after SQuAD's normalisation (Rajpurkar et al. 2016: lower case, without punctuation
and articles), as whole words; a phrase in Hangul, whose words carry particles, anywhere in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from eval.metrics import estimate

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_HANGUL = re.compile(r"[가-힣]")
_MARKERS = re.compile(r"\s*\[\d+\]")


@dataclass(frozen=True, slots=True)
class GoldQuestion:
    """A question and the phrases of which a right answer holds one; without any the documents hold no answer."""

    text: str
    phrases: tuple[str, ...]

    @property
    def answerable(self) -> bool:
        return bool(self.phrases)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an answer, and the quotes that are cited for it."""

    text: str
    quotes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What one way of answering wrote: an answer, or none where it abstained; its sentences, and the passages that it
    had."""

    answer: str | None
    sentences: tuple[Sentence, ...] = ()
    passages: tuple[str, ...] = ()


def holds_phrase(text: str, phrases: Sequence[str]) -> bool:
    """Whether the text holds one of the phrases, case, articles and punctuation aside; markers such as [1] are no part
    of it.

    Punctuation is a space or nothing ("1,000" is 1000, "co-workers" are coworkers, which SQuAD's own normalisation has
    too). A phrase in Hangul may stand in a longer word, another may have a Korean particle behind it.
    """
    text = _MARKERS.sub("", text)
    return any(_stands_in(_normalise(phrase, mark), _normalise(text, mark)) for mark in (" ", "") for phrase in phrases)


def _stands_in(phrase: str, text: str) -> bool:
    if not phrase or _HANGUL.search(phrase):
        return bool(phrase) and phrase in text
    return re.search(rf"(?<!\w){re.escape(phrase)}(?![^\W가-힣])", text) is not None


def measure_answers(questions: Sequence[GoldQuestion], written: Sequence[Written]) -> dict[str, Any]:
    """The figures of one way of answering; None where nothing is there to count.

    right               answerable questions whose answer holds a gold phrase, abstentions counted as wrong; with its
                        95 % interval
    abstained           answerable questions without an answer
    refused             unanswerable questions without an answer
    wrong_of_answered   of all answers, those that hold no gold phrase
    wrong_of_answerable the same of the answers to answerable questions
    citation_precision  of the quotes cited for answerable questions, those that hold a gold phrase
    citation_recall     of the sentences that hold a gold phrase which a passage holds too, those for which a quote is
                        cited that holds one
    quote_chars         median length of a quote in characters
    """
    pairs = list(zip(questions, written, strict=True))
    asked = [(question, given) for question, given in pairs if question.answerable]
    without = [given for question, given in pairs if not question.answerable]
    right = [_is_right(question, given) for question, given in asked]
    said = [(question, given, sentence) for question, given in asked for sentence in given.sentences]
    cited = [holds_phrase(quote, question.phrases) for question, _, sentence in said for quote in sentence.quotes]
    backed = [
        any(holds_phrase(quote, question.phrases) for quote in sentence.quotes)
        for question, given, sentence in said
        if _has_support(question, given, sentence)
    ]
    answered = [_is_right(question, given) for question, given in pairs if given.answer is not None]
    lengths = [len(quote) for _, given in pairs for sentence in given.sentences for quote in sentence.quotes]
    return {
        "answerable": len(asked),
        "unanswerable": len(without),
        "right": asdict(estimate(np.array(right, dtype=np.float64))) if right else None,
        "abstained": _share(given.answer is None for _, given in asked),
        "refused": _share(given.answer is None for given in without),
        "wrong_of_answered": _share(not one for one in answered),
        "wrong_of_answerable": _share(
            not one for one, (_, given) in zip(right, asked, strict=True) if given.answer is not None
        ),
        "citation_precision": _share(iter(cited)),
        "citation_recall": _share(iter(backed)),
        "quote_chars": median(lengths) if lengths else None,
    }


def _is_right(question: GoldQuestion, given: Written) -> bool:
    return given.answer is not None and holds_phrase(given.answer, question.phrases)


def _has_support(question: GoldQuestion, given: Written, sentence: Sentence) -> bool:
    return holds_phrase(sentence.text, question.phrases) and any(
        holds_phrase(passage, question.phrases) for passage in given.passages
    )


def _share(values: Iterator[bool]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None


def _normalise(text: str, mark: str) -> str:
    """Folded, without articles, `mark` in place of each sign of punctuation."""
    folded = unicodedata.normalize("NFC", text).casefold()
    plain = "".join(mark if unicodedata.category(char)[0] in "PS" else char for char in folded)
    return " ".join(_ARTICLE.sub(" ", plain).split())
