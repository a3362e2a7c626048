"""Answer sentences to verbatim quotes of the passages, or marked unsupported. Pure: scores are passed in.

evidence = split_evidence(passages, question, split, terms)   the passages' sentences and what each claims
ground_sentence(sentence, evidence, similarity, relevance)    a sentence that the LLM wrote, with its quote or without
extract_answer(evidence, relevance, settings)                 the evidence's own best sentences: no LLM needed
AnswerText().add(grounded)                                    sentence by sentence: text to send, citations, offsets

`similarity` and `relevance` hold per passage float (its sentences,) in 0..1: how well the scorer, or without one
`lexical_similarity`, finds the LLM's sentence and the question in each sentence of the evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from rag.claims import Claims, Terms, contradiction, read_claims, unknown_terms
from rag.extract import asks, extract_answer, question_relevance
from rag.quantities import is_backed
from rag.quotes import (
    Evidence,
    EvidenceSentence,
    Grounded,
    Quote,
    markers_in,
    plain_text,
    split_evidence,
    strip_markers,
)
from rag.refusal import is_refusal
from rag.step_settings import GroundingSettings
from rag.types import Citation, Passage, UnsupportedSpan

__all__ = [
    "AnswerText",
    "Evidence",
    "EvidenceSentence",
    "Grounded",
    "Quote",
    "answers_question",
    "extract_answer",
    "ground_sentence",
    "is_refusal",
    "is_verbatim",
    "lexical_similarity",
    "plain_text",
    "question_relevance",
    "split_evidence",
    "strip_markers",
]

# Weight of the similarity beside the lexical coverage, in the support of a sentence.
SIMILARITY_WEIGHT = 0.5
# A term that the question already holds says less about the answer than a new one.
QUESTION_TERM_WEIGHT = 0.5
# What a word costs that stands neither in the passage nor in the question: in a long sentence the words it shares
# outweigh the one that is made up. Chosen by made-up sentences that were supported, beside right ones that were not.
UNKNOWN_TERM_PENALTY = 0.05
# Two adjacent sentences are quoted together when that raises the support by this much.
PAIR_GAIN = 0.1
# What a marker that the LLM wrote is worth when two quotes support a sentence almost equally.
HINT_BONUS = 0.02
# Of quotes that support a sentence almost equally, the one that answers the question.
RELEVANCE_BONUS = 0.05


def lexical_similarity(text: str, evidence: Evidence, terms: Terms) -> list[np.ndarray]:
    """What stands in for the scorer when it is down: the fraction of the text's terms in each sentence."""
    claims = read_claims(text, terms)
    return [
        np.array([_coverage(claims, sentence.claims.terms) for sentence in sentences], dtype=np.float32)
        for sentences in evidence.sentences
    ]


def ground_sentence(
    sentence: str,
    evidence: Evidence,
    similarity: Sequence[np.ndarray],
    relevance: Sequence[np.ndarray],
    *,
    terms: Terms,
    settings: GroundingSettings,
) -> Grounded:
    """The sentence with the quote that supports it best, or without one.

    A quote is one sentence of a passage, or two adjacent ones where that supports clearly better. Support is the mean
    of similarity and lexical coverage, less a penalty for each word that neither the whole passage nor the question
    holds; below `settings.min_support` the sentence is unsupported. No quote is one that
    breaks a hard rule of `claims.contradiction`, one that asks or gives orders to whoever answers, and a pair of which
    one sentence lends the number and the other what is said of it. Markers in the sentence, and how well a quote
    answers the question, decide near ties; else ties go to the earlier passage and sentence.
    """
    hinted = markers_in(sentence)
    text = strip_markers(sentence)
    claims = read_claims(text, terms)
    unknown = [len(unknown_terms(claims, known | evidence.question.terms)) for known in evidence.terms]
    ranked: list[tuple[float, float, float, tuple[EvidenceSentence, ...]]] = []
    for group, similar, relevant in _candidates(evidence, similarity, relevance):
        found = group[0].claims.terms | group[-1].claims.terms
        support = SIMILARITY_WEIGHT * similar + (1 - SIMILARITY_WEIGHT) * _coverage(claims, found, evidence.question)
        support = max(support - UNKNOWN_TERM_PENALTY * unknown[group[0].passage], 0.0)
        if support < settings.min_support:
            continue
        rank = support + RELEVANCE_BONUS * relevant - (PAIR_GAIN if len(group) > 1 else 0.0)
        if evidence.passages[group[0].passage].marker in hinted:
            rank += HINT_BONUS
        ranked.append((rank, support, relevant, group))
    for _, support, relevant, group in sorted(ranked, key=lambda candidate: -candidate[0]):
        passage = evidence.passages[group[0].passage]
        quote = Quote(passage, group[0].span[0], group[-1].span[1])
        label = f"{passage.hit.title}\n{passage.hit.chunk.heading}"
        around = evidence.terms[group[0].passage]
        broken = contradiction(claims, _joined(group, quote), evidence.question, label, around)
        if not broken and not asks(quote.text) and not _swaps_number(claims, group, evidence.question):
            return Grounded(text, quote, support, relevant)
    return Grounded(text, None)


def answers_question(grounded: Grounded, relevance: Sequence[np.ndarray], settings: GroundingSettings) -> bool:
    """Whether a sentence is supported and its quote answers the question about as well as the best evidence does.

    False when the quote's relevance is below the best by more than `settings.max_score_gap` (None: never so).
    """
    if grounded.quote is None:
        return False
    best = max((float(row.max()) for row in relevance if row.size), default=0.0)
    return settings.max_score_gap is None or grounded.relevance >= best - settings.max_score_gap


@dataclass(slots=True)
class AnswerText:
    """The answer as it grows. Offsets count code points of `text`."""

    text: str = ""
    citations: list[Citation] = field(default_factory=list)
    unsupported: list[UnsupportedSpan] = field(default_factory=list)
    extracted: bool = True  # every sentence of it

    def add(self, grounded: Grounded, lead: str = " ") -> str:
        """Appends the sentence, with its marker when its quote is verified, and returns what was appended.

        `lead` is what stands before it, unless it is the first. A quote that is not verbatim in its chunk is dropped
        and the sentence recorded as unsupported. The pieces returned, joined, are `text`.
        """
        piece = (lead if self.text else "") + grounded.text
        end = len(self.text) + len(piece)
        start = end - len(grounded.text)
        citation = _cite(grounded, start, end)
        self.extracted = self.extracted and grounded.extracted
        if citation is None:
            self.unsupported.append(UnsupportedSpan(start, end, grounded.text))
        else:
            self.citations.append(citation)
            piece += f" [{citation.marker}]"
        self.text += piece
        return piece


def is_verbatim(citation: Citation, passage: Passage) -> bool:
    """Whether the quote stands in the passage's chunk at the citation's document offsets."""
    chunk = passage.hit.chunk
    start, end = citation.char_start - chunk.start_char, citation.char_end - chunk.start_char
    return 0 <= start < end <= len(chunk.text) and chunk.text[start:end] == citation.quote


def _cite(grounded: Grounded, start: int, end: int) -> Citation | None:
    quote = grounded.quote
    if quote is None:
        return None
    hit = quote.passage.hit
    char_start = hit.chunk.start_char + quote.start
    citation = Citation(
        marker=quote.passage.marker,
        answer_start=start,
        answer_end=end,
        quote=quote.text,
        verified=True,
        document_id=hit.chunk.document_id,
        chunk_id=hit.chunk.chunk_id,
        title=hit.title,
        source=hit.source,
        page=hit.chunk.page_at(char_start),
        char_start=char_start,
        char_end=hit.chunk.start_char + quote.end,
        score=grounded.support,
    )
    return citation if is_verbatim(citation, quote.passage) else None


def _candidates(
    evidence: Evidence, similarity: Sequence[np.ndarray], relevance: Sequence[np.ndarray]
) -> Iterator[tuple[tuple[EvidenceSentence, ...], float, float]]:
    """Single sentences, then adjacent pairs, each with its similarity and its relevance (of a pair, the larger)."""
    rows = [
        (sentences, similar.tolist(), relevant.tolist())
        for sentences, similar, relevant in zip(evidence.sentences, similarity, relevance, strict=True)
    ]
    for width in (1, 2):
        for sentences, similar, relevant in rows:
            for first in range(len(sentences) - width + 1):
                last = first + width
                if any(sentence.instructs for sentence in sentences[first:last]):
                    continue
                yield sentences[first:last], max(similar[first:last]), max(relevant[first:last])


def _joined(group: tuple[EvidenceSentence, ...], quote: Quote) -> Claims:
    """The claims of a quote of one or two sentences."""
    if len(group) == 1:
        return group[0].claims
    first, last = group[0].claims, group[-1].claims
    return Claims(
        quote.text,
        first.terms | last.terms,
        first.numbers | last.numbers,
        first.mentioned | last.mentioned,
        first.names | last.names,
        first.nouns | last.nouns,
        first.clauses + last.clauses,
        first.denied | last.denied,
        (first.excluded - last.terms) | (last.excluded - first.terms),
    )


def _swaps_number(claims: Claims, group: tuple[EvidenceSentence, ...], question: Claims) -> bool:
    """Whether a number stands in one sentence of a pair only, while the other says more of the claim with its own."""
    if len(group) == 1:
        return False
    return any(
        any(is_backed(number, lender.claims.mentioned - other.claims.mentioned) for number in claims.numbers)
        and not all(is_backed(number, claims.numbers | question.mentioned) for number in other.claims.numbers)
        and _coverage(claims, other.claims.terms) > _coverage(claims, lender.claims.terms)
        for lender, other in permutations(group)
    )


def _coverage(sentence: Claims, found: frozenset[str], question: Claims | None = None) -> float:
    """The weighted fraction of the sentence's terms that are `found`; 0 without terms."""
    known = question.terms if question else frozenset[str]()
    weights = {term: QUESTION_TERM_WEIGHT if term in known else 1.0 for term in sentence.terms}
    total = sum(weights.values())
    return sum(weight for term, weight in weights.items() if term in found) / total if total else 0.0
