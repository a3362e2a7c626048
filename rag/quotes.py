"""The passages' sentences as evidence, the quotes taken from them, and what may be sent of a quote. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rag.claims import Claims, Terms, read_claims
from rag.instructions import FindInstructions, find_instructions
from rag.types import Hit, Passage, Span, SplitSentences

_MARKERS = re.compile(r"\s*\[[1-9]\d{0,2}(?:\s*[,;]\s*[1-9]\d{0,2})*\](?!\()")
_MARKER_NUMBER = re.compile(r"\d+")
_CODE_SPAN = re.compile(r"(`[^`]*`)")
_LEADING_MARK = re.compile(r"^\s*(?:>\s*|#{1,6}\s+|[-*+•]\s+|\d{1,3}[.)]\s+(?=\S))+")
_QUOTED_LINE = re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<!\d)\*\*(?=\S)(.+?)(?<=\S)\*\*|(?<![\w*])\*(?=\S)([^*]+?)(?<=\S)\*(?![\w*])")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)\s]*(?:\s\"[^\"]*\")?\)")
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^<>\s]+|[^<>\s@]+@[^<>\s@]+)>")
# Others are placeholders and types: <PATH>, List<String>.
_TAG = re.compile(
    r"</?(?:a|abbr|b|bdi|bdo|blockquote|br|caption|center|cite|code|dd|del|details|dfn|div|dl|dt|em|figcaption|figure|font"
    r"|h[1-6]|hr|i|iframe|img|ins|kbd|li|mark|nobr|object|ol|p|pre|q|rp|rt|ruby|s|samp|script|small|span|strike|strong"
    r"|style|sub|summary|sup|svg|table|tbody|td|tfoot|th|thead|tr|tt|u|ul|var|wbr"
    r"|section|nav|aside|header|footer|main|article|button|col|colgroup|video|audio|canvas|fieldset|legend|form|select"
    r"|option|textarea|source(?=\s)|title(?=\s)|time(?=\s)|label(?=\s)|input(?=\s))(?:\s[^<>]*)?/?>|</(?:title|time|label)>",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class EvidenceSentence:
    """A sentence of a passage: its span within the chunk's text, and what it claims.

    `instructs`: its paragraph gives orders to whoever answers, so that it is neither evidence nor an answer.
    """

    passage: int  # index into Evidence.passages
    span: Span
    claims: Claims
    instructs: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """The passages' sentences. `sentences[i]` are those of `passages[i]`, in order."""

    passages: tuple[Passage, ...]
    sentences: tuple[tuple[EvidenceSentence, ...], ...]
    headings: tuple[frozenset[str], ...]  # the terms of each passage's heading
    terms: tuple[frozenset[str], ...]  # the terms of what may be quoted of each passage, heading and title included
    question: Claims

    @property
    def spans(self) -> list[list[Span]]:
        """Per passage the sentences' spans within its chunk's text."""
        return [[sentence.span for sentence in sentences] for sentences in self.sentences]


@dataclass(frozen=True, slots=True)
class Quote:
    """`start:end` of a passage's chunk text."""

    passage: Passage
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.passage.hit.chunk.text[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Grounded:
    """A sentence of the answer, markers stripped. Without a quote it is unsupported. `extracted`: it is its quote.

    `support` (0..1): how well the quote backs the sentence. `relevance` (0..1): how well it answers the question.
    """

    text: str
    quote: Quote | None
    support: float = 0.0
    relevance: float = 0.0
    extracted: bool = False


def split_evidence(
    passages: Sequence[Passage],
    question: str,
    split: SplitSentences,
    terms: Terms,
    instructions: FindInstructions = find_instructions,
) -> Evidence:
    """The passages' sentences by `split`, each read once for what it claims; what `instructions` finds is none."""
    sentences = tuple(
        tuple(_read_sentences(index, passage.hit, split, terms, instructions)) for index, passage in enumerate(passages)
    )
    headings = tuple(frozenset(terms(passage.hit.chunk.heading)) for passage in passages)
    every = tuple(
        heading.union(
            terms(passage.hit.title), *(sentence.claims.terms for sentence in group if not sentence.instructs)
        )
        for passage, heading, group in zip(passages, headings, sentences, strict=True)
    )
    return Evidence(tuple(passages), sentences, headings, every, read_claims(question, terms))


def _read_sentences(
    passage: int, hit: Hit, split: SplitSentences, terms: Terms, instructions: FindInstructions
) -> Iterator[EvidenceSentence]:
    text, withheld = hit.chunk.text, instructions(hit)
    for start, end in split(text):
        instructs = any(first < end and start < last for first, last in withheld)
        yield EvidenceSentence(passage, (start, end), read_claims(text[start:end], terms), instructs)


def markers_in(sentence: str) -> frozenset[int]:
    """The numbers of the `[n]` markers in a sentence."""
    return frozenset(int(number) for marks in _MARKERS.findall(sentence) for number in _MARKER_NUMBER.findall(marks))


def strip_markers(sentence: str) -> str:
    """The sentence without `[n]` markers; those inside code spans stay."""
    return _outside_code(sentence, lambda part: _MARKERS.sub("", part)).strip()


def plain_text(quote: str) -> str:
    """A quote as a sentence of an answer: one line, no list or heading mark, emphasis or tags, links by their text."""
    text = _LINK.sub(r"\1", _LEADING_MARK.sub("", _QUOTED_LINE.sub("", quote)))
    text = _outside_code(text, lambda part: _TAG.sub("", _AUTOLINK.sub(r"\1", part)))
    text = _EMPHASIS.sub(r"\1\2", text)
    return re.sub(r"\s+", " ", strip_markers(text)).strip()


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with its parts outside code spans changed."""
    return "".join(part if part.startswith("`") else change(part) for part in _CODE_SPAN.split(text))
