"""The evidence's own best sentences: the answer when the LLM is down or nothing that it wrote is supported, and what a
weak reader's answer lacks of them. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from rag.answer_kind import asked_kind, offers
from rag.claims import Terms
from rag.language import language_of
from rag.quotes import Evidence, EvidenceSentence, Grounded, Quote, plain_text
from rag.step_settings import GroundingSettings
from rag.types import Citation, Passage, Span

# Of the scorer's value, beside the words', in how well a sentence answers. Chosen on nine question sets by the gold
# phrases that the best sentences of five passages hold; eval/MEASURED.md has the table.
SCORER_WEIGHT = 0.75
# A term of the question in the heading above a sentence, beside one in the sentence.
HEADING_TERM_WEIGHT = 0.5
# What a fragment (heading, code, table row, cut sentence) has to be better by than a whole sentence.
FRAGMENT_PENALTY = 0.1
# The same for a sentence in another script than the question's.
FOREIGN_PENALTY = 0.1
# What a sentence gains that has a thing of the kind asked for (a date for "when"). Chosen on nine question sets by
# the gold phrases that the best sentences hold, see eval/MEASURED.md.
KIND_BONUS = 0.1
# How close to the best sentence each further one has to come. Chosen on nine question sets, between answers that hold
# the gold phrase more often and quotes beside the point, see eval/MEASURED.md.
SECOND_GAP = 0.15

# Of the chance that a sentence answers by itself, as the answerability model has it, in how well it answers. Chosen by
# the answers and quotes that hold the gold phrase, of articles that the model was not trained on, see eval/MEASURED.md.
ANSWERABILITY_SHARE = 0.3

_ENDED = re.compile(r"[.!?。！？…]['\"”’)\]*_`]*(?:\s*\[\d+\])*$")
_ASKS = re.compile(r"[?？]['\"”’)\]*_`]*$")
_PRONOUN = re.compile(
    r"(?:It|He|She|They|This|These|Its|His|Her|Their)\b|(?:이는|이것은|이들은|이곳은|그는|그녀는|그것은|그들은|그의|그녀의)\s"
)
_FRAGMENT = re.compile(r"^\s*[|`{}<,;)]|\|\s*$")


def question_relevance(evidence: Evidence, similarity: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How well each sentence answers the question: the scorer's `similarity`, and a quarter of lexical coverage.

    Coverage is the fraction of the question's terms that the sentence holds (counted half when only its heading does),
    weighted by how rare each is among the evidence's sentences: log(1 + sentences / sentences with it). Terms that
    stand nowhere in the evidence do not count. A sentence that gives orders to whoever answers has 0.
    """
    wanted = evidence.question.terms
    every = [sentence.claims.terms & wanted for sentences in evidence.sentences for sentence in sentences]
    holding = Counter(term for held in every for term in held)
    known = holding.keys() | (frozenset[str]().union(*evidence.headings) & wanted)
    rarity = {term: math.log1p(len(every) / max(holding[term], 1)) for term in known}
    total = sum(rarity.values()) or 1.0
    relevance = []
    for sentences, heading, row in zip(evidence.sentences, evidence.headings, similarity, strict=True):
        coverage = [
            sum(rarity[term] for term in sentence.claims.terms & known)
            + HEADING_TERM_WEIGHT * sum(rarity[term] for term in heading & known - sentence.claims.terms)
            for sentence in sentences
        ]
        answers = np.array([not sentence.instructs for sentence in sentences], dtype=np.float32)
        own = SCORER_WEIGHT * row + (1 - SCORER_WEIGHT) * np.array(coverage, dtype=np.float32) / total
        relevance.append(own * answers)
    return relevance


def likeliest(evidence: Evidence, relevance: Sequence[np.ndarray], count: int) -> list[tuple[int, int]]:
    """Passage and place of so many sentences of most relevance, best first, of those that may be an answer."""
    ranked = [
        (relevant, passage, at)
        for passage, (sentences, row) in enumerate(zip(evidence.sentences, relevance, strict=True))
        for at, relevant in _answering(sentences, row)
    ]
    ranked.sort(key=lambda one: -one[0])
    return [(passage, at) for _, passage, at in ranked[:count]]


def _answering(sentences: Sequence[EvidenceSentence], row: np.ndarray) -> Iterator[tuple[int, float]]:
    """Of a passage's sentences those that may be an answer: place, and relevance, its own or what a question lends."""
    lent = 0.0
    for at, (sentence, own) in enumerate(zip(sentences, row.tolist(), strict=True)):
        text = sentence.claims.text
        if sentence.instructs:
            lent = 0.0
        elif asks(text):
            lent = max(lent, own)
        else:
            yield at, max(own, lent)
            lent = lent if _is_fragment(text) else 0.0


def weigh_answerability(
    evidence: Evidence, relevance: Sequence[np.ndarray], places: Sequence[tuple[int, int]], log_odds: np.ndarray
) -> list[np.ndarray]:
    """The relevance, with ANSWERABILITY_SHARE of it the chance that the sentence answers by itself.

    `places` are the sentences, as `likeliest` gives them, that `log_odds` are of; the others have the lowest chance of
    them, but for a sentence that asks, which has that of the answer that it lends its relevance to. What has no
    relevance gets none.
    """
    chances = 0.5 + 0.5 * np.tanh(0.5 * log_odds.astype(np.float64))
    lowest = float(chances.min(initial=1.0))
    shares = [np.where(row > 0, lowest, 0.0) for row in relevance]
    for (passage, at), chance in zip(places, chances.tolist(), strict=True):
        asked = at
        while asked > 0 and _leads(_text(evidence, passage, asked - 1)):
            asked -= 1
        for one in range(asked, at + 1):
            if relevance[passage][one] > 0 and (one == at or asks(_text(evidence, passage, one))):
                shares[passage][one] = max(chance, shares[passage][one])
    return [
        ((1 - ANSWERABILITY_SHARE) * row + ANSWERABILITY_SHARE * share).astype(np.float32)
        for row, share in zip(relevance, shares, strict=True)
    ]


def extract_answer(evidence: Evidence, relevance: Sequence[np.ndarray], settings: GroundingSettings) -> list[Grounded]:
    """The evidence's own best sentences for the question, best first: one, and more only while they come close.

    Whole sentences in the question's script are preferred over fragments and those in others, which follow none in the
    question's own, and those that have a thing of the kind asked for over others. A sentence that asks (a FAQ's
    question) is no answer, but lends its relevance to the one after it; one that gives orders to whoever answers is
    none either. The text is the quote on one line without Markdown; the quote stays verbatim. At most
    `settings.extract_sentences`; empty when the passages hold no sentence. Ties go to the earlier passage and sentence.
    """
    language, kind = language_of(evidence.question.text), asked_kind(evidence.question.text)
    ranked: list[tuple[float, float, bool, EvidenceSentence]] = []
    for sentences, row in zip(evidence.sentences, relevance, strict=True):
        for at, relevant in _answering(sentences, row):
            sentence = sentences[at]
            text = sentence.claims.text
            fragment = _is_fragment(text)
            foreign = language_of(text) != language
            rank = relevant - (FRAGMENT_PENALTY if fragment else 0.0) - (FOREIGN_PENALTY if foreign else 0.0)
            rank += KIND_BONUS if kind and offers(sentence.claims, evidence.question, kind) else 0.0
            ranked.append((rank, relevant, foreign, sentence))
    ranked.sort(key=lambda candidate: -candidate[0])
    chosen: list[Grounded] = []
    for rank, relevant, foreign, sentence in ranked:
        if len(chosen) == settings.extract_sentences or rank < ranked[0][0] - SECOND_GAP:
            break
        if foreign and not ranked[0][2]:
            continue
        quote = Quote(evidence.passages[sentence.passage], *sentence.span)
        text = plain_text(quote.text)
        if text and all(text != other.text for other in chosen):
            chosen.append(Grounded(text, quote, support=1.0, relevance=relevant, extracted=True))
    return chosen


def in_full(grounded: Grounded, evidence: Evidence, terms: Terms) -> Grounded:
    """A weak reader's sentence, or in its place its quote where that says more than the sentence and the question do.

    What the quote says more is often what was asked for. A quote with a fragment in it, of two paragraphs, or in
    another script than the question's takes no sentence's place.
    """
    quote, question = grounded.quote, evidence.question
    if quote is None or "\n\n" in quote.text:
        return grounded
    if any(_is_fragment(_plain(quote, one)) for one in _within(quote, evidence)):
        return grounded
    text = plain_text(quote.text)
    more = set(terms(text)) - question.terms - set(terms(grounded.text))
    if not more or language_of(text) != language_of(question.text):
        return grounded
    return replace(grounded, text=text, support=1.0, extracted=True)


def unsaid(sentence: Grounded, evidence: Evidence, citations: Sequence[Citation]) -> Grounded | None:
    """A sentence as an answer with these citations goes on with it; None for an extracted one that it has already.

    Of an extracted one the evidence's sentences that are cited are left out. One that begins with a pronoun takes the
    sentence before it along, which names what is meant: a whole one of the same paragraph that begins with no pronoun
    itself, of which nothing is cited yet.
    """
    if not sentence.extracted or sentence.quote is None:
        return sentence
    quote, chunk = sentence.quote, sentence.quote.passage.hit.chunk
    cited = [
        (one.char_start - chunk.start_char, one.char_end - chunk.start_char)
        for one in citations
        if one.document_id == chunk.document_id
    ]
    whole = _within(quote, evidence)
    left = [one for one in whole if not _overlap(one.span, cited)]
    if not left:
        return None
    if len(left) < len(whole):
        quote = replace(quote, start=left[0].span[0], end=left[-1].span[1])
        sentence = replace(sentence, text=plain_text(quote.text), quote=quote)
    if not _PRONOUN.match(sentence.text):
        return sentence
    earlier = [one for one in _sentences(quote.passage, evidence) if one.span[1] <= quote.start]
    if not earlier:
        return sentence
    before, text = earlier[-1], _plain(quote, earlier[-1])
    apart = "\n\n" in chunk.text[before.span[1] : quote.start]
    if apart or before.instructs or asks(text) or _is_fragment(text) or _PRONOUN.match(text):
        return sentence
    if _overlap(before.span, cited):
        return sentence
    return replace(sentence, text=f"{text} {sentence.text}", quote=replace(quote, start=before.span[0]))


def asks(text: str) -> bool:
    """Whether a sentence asks: it asserts nothing, so it is neither an answer nor evidence."""
    return _ASKS.search(text) is not None


def _leads(text: str) -> bool:
    """Whether what a question lends goes past it to the next sentence."""
    return asks(text) or _is_fragment(text)


def _text(evidence: Evidence, passage: int, at: int) -> str:
    return evidence.sentences[passage][at].claims.text


def _is_fragment(text: str) -> bool:
    """Whether a text is no whole sentence: a heading, a table row, code, or cut short."""
    return not _ENDED.search(text) or _FRAGMENT.search(text) is not None


def _sentences(passage: Passage, evidence: Evidence) -> tuple[EvidenceSentence, ...]:
    pairs = zip(evidence.passages, evidence.sentences, strict=True)
    return next(group for known, group in pairs if known is passage)


def _within(quote: Quote, evidence: Evidence) -> list[EvidenceSentence]:
    """The evidence's sentences that a quote is made of."""
    every = _sentences(quote.passage, evidence)
    return [one for one in every if quote.start <= one.span[0] and one.span[1] <= quote.end]


def _plain(quote: Quote, sentence: EvidenceSentence) -> str:
    start, end = sentence.span
    return plain_text(quote.passage.hit.chunk.text[start:end])


def _overlap(span: Span, spans: Sequence[Span]) -> bool:
    return any(span[0] < last and first < span[1] for first, last in spans)
