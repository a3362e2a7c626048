"""Questions that a chunk answers, written by rules from its own sentences, in English and Korean. Pure.

    definition  "A hit is a chunk with its scores."        -> "What is a hit?"
                "서비스의 기본 포트는 8000번입니다."        -> "서비스의 기본 포트는 무엇입니까?"
    fact        "A question may have 4,000 characters."    -> "A question may have how many characters?"
                "질문은 최대 16개까지 처리합니다."          -> "질문은 최대 몇 개까지 처리합니까?"
    heading     a section's heading, where it asks or has two terms at least

A fact's number is masked where it stands, so that the question needs no parser and cannot ask for something else; of an
English sentence only the clause with the number is asked, since every word more makes the chunk easier to find.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rag.extract import asks
from rag.language import language_of
from rag.quotes import plain_text
from rag.sentences import split_sentences
from rag.types import Chunk, Span

Rule = Literal["definition", "fact", "heading"]
Terms = Callable[[str], list[str]]

MIN_CHARS, MAX_CHARS = 15, 300  # of a sentence: a shorter one says too little, a longer one is a table or a list
MIN_CLAUSE_CHARS = 30
MIN_HEADING_TERMS = 2

_ENGLISH_DEFINITION = re.compile(
    r"(?P<subject>(?:(?:The|A|An) )?(?:[^\s,;:()]+ ){0,4}[^\s,;:()]+) (?P<verb>is|are) (?=(?:a|an|the|any|one) )"
)
_ENGLISH_MEANING = re.compile(r"(?P<subject>(?:[^\s,;:()]+ ){0,3}[^\s,;:()]+) means (?:to|that|a|an|the) ")
_ARTICLE = re.compile(r"(?:The|A|An|To)(?= )")
# What points elsewhere, or opens a clause: a question that starts so cannot stand alone.
_ENGLISH_OPENERS = re.compile(
    r"(?:it|this|that|these|those|he|she|they|we|you|i|there|here|what|which|who|if|when|while|where|each|every|all|some"
    r"|both|one|another|such|then|its|their|his|her|our|your|my|and|but|so|in|for|with|as|how|by)\b(?!-)",
    re.IGNORECASE,
)
_UNCLEAR = re.compile(
    r"\b(?:that|which|who|where|when|if|first|second|third|last|next|other|same|following)\b", re.IGNORECASE
)
_ENGLISH_NUMBER = re.compile(r"(?<![\w.,/:`=<>\-])\d+(?:[.,]\d+)*(?![\w`/:=-])")
# What a number counts: a plural, with one word at most before it, or a unit.
_COUNTED = re.compile(
    r" ?%| (?:percent|million|billion|[KMGT]i?B|[kcm]?m|k?g)\b"
    r"| (?!(?:[a-z]+ )?(?:is|was|has|as|means|does|this|its|thus|always)\b)"
    r"(?:(?!(?:and|or|to|in|of|on|at|by|for|from|with|are|the|if|when|after|before|per|but|than|while|until)\b)"
    r"[a-z]+ )?[a-z]+s\b"
)

# Where a clause ends that can be left out: another one with a subject of its own, a reason, an example.
_JOINT = re.compile(r"; |: |, (?:(?:and|but) (?=the |a |an )|(?=so that|so |because|since|which|while|for example))")

_KOREAN_DEFINITION = re.compile(
    r"(?P<subject>(?:[^\s,.]+ ){0,4}[^\s,.]{2,}?)(?P<particle>이란|란|은|는) .+(?:이다|입니다|[말뜻]한다|[말뜻]합니다"
    r"|의미한다|의미합니다)\.$"
)
_KOREAN_OPENERS = frozenset(["이", "그", "저", "이것", "그것", "저것", "여기", "거기", "이때", "이런", "그런", "다른"])
# Where 은 and 는 end a verb that describes the noun to come, as in 살아 있는 동안, or follow another particle.
_KOREAN_STEMS = re.compile(r"(?:[있없하되않같지오]|들어가|걸리|알리|에서|에|으로|까지|부터|동안|때|[을를] .*)$")
_KOREAN_COUNTERS = (
    "개월|개|명|번|분|초|시|일|주|월|년|글자|자|쪽|페이지|건|회|차례|배|대|원|달러|퍼센트|도|가지|줄|단계|살|세|층|곳|위|권|장|만|억"
    "|문장|청크|토큰"
)
_KOREAN_NUMBER = re.compile(
    rf"(?<![\w.,/:`=-])(?P<number>\d+(?:[.,]\d+)*) ?(?=%|[KMGT]i?B(?![A-Za-z])|{_KOREAN_COUNTERS})"
)
_HANGUL_BASE, _FINALS, _FINAL_N, _FINAL_SS = 0xAC00, 28, 4, 20


@dataclass(frozen=True, slots=True)
class Draft:
    """A question, and `span` of its chunk's text as the answer; `value` is the masked part of it, if there is one.

    `claim` is what another chunk must not say, too: the question could not tell the two apart.
    """

    rule: Rule
    text: str
    span: Span
    claim: str
    value: str | None = None


def draft_questions(chunk: Chunk, terms: Terms, *, own_heading: bool) -> list[Draft]:
    """The chunk's questions by every rule, in the order of its text, the heading's last.

    `own_heading`: no other chunk stands under the same heading, so that asking for it asks for this one. A sentence
    gives one question at most: a fact where it is no definition.
    """
    found = [draft for span in split_sentences(chunk.text) if (draft := _of_sentence(chunk.text, span)) is not None]
    if own_heading and (question := ask_heading(chunk.heading, terms)) is not None:
        found.append(Draft("heading", question, (0, len(chunk.text)), chunk.text))
    return found


def _of_sentence(text: str, span: Span) -> Draft | None:
    sentence = plain_text(text[slice(*span)])
    if not (MIN_CHARS <= len(sentence) <= MAX_CHARS) or not sentence.endswith(".") or "|" in sentence:
        return None
    definition = ask_definition(sentence)
    if definition is not None:
        return Draft("definition", definition, span, sentence)
    fact = mask_fact(sentence)
    if fact is None:
        return None
    question, value, claim = fact
    return Draft("fact", question, span, claim, value)


def ask_definition(sentence: str) -> str | None:
    """The question that a defining sentence answers, None where the sentence defines nothing that it names."""
    if language_of(sentence) == "ko":
        return _ask_korean_definition(sentence)
    if _opens_alone(sentence):
        if found := _ENGLISH_DEFINITION.match(sentence):
            subject = found["subject"]
            if not _UNCLEAR.search(subject):
                return f"What {found['verb']} {_lower_article(subject)}?"
        if found := _ENGLISH_MEANING.match(sentence):
            return f"What does {_lower_article(found['subject'])} mean?"
    return None


def _ask_korean_definition(sentence: str) -> str | None:
    found = _KOREAN_DEFINITION.match(sentence)
    if found is None or found["subject"].split()[0] in _KOREAN_OPENERS or _KOREAN_STEMS.search(found["subject"]):
        return None
    return f"{found['subject']}{found['particle']} 무엇입니까?"


def mask_fact(sentence: str) -> tuple[str, str, str] | None:
    """(question, value, sentence without it) of a sentence with a number, its last one that counts or measures.

    None for a sentence without one, and for one that points to another by its first word.
    """
    return _mask_korean_fact(sentence) if language_of(sentence) == "ko" else _mask_english_fact(sentence)


def _mask_english_fact(sentence: str) -> tuple[str, str, str] | None:
    numbers = [found for found in _ENGLISH_NUMBER.finditer(sentence) if found[0].count(".") < 2]  # no addresses
    if not numbers or not _opens_alone(sentence):
        return None
    first, last = _clause(sentence, numbers[-1].start())
    start, end = numbers[-1].span()
    if start == first:
        return None
    counted = _COUNTED.match(sentence, end)
    before, after = sentence[first:start], sentence[end:last].rstrip(".")
    question = f"{before}{'how many' if counted else 'what'}{after}?"
    return question[0].upper() + question[1:], sentence[start:end], before + after


def _clause(sentence: str, place: int) -> Span:
    """The span of the clause around a place; the sentence's where the clause is short or points elsewhere."""
    joints = list(_JOINT.finditer(sentence))
    first = max((joint.end() for joint in joints if joint.end() <= place), default=0)
    last = min((joint.start() for joint in joints if joint.start() > place), default=len(sentence))
    clause = sentence[first:last]
    return (first, last) if len(clause) >= MIN_CLAUSE_CHARS and _opens_alone(clause) else (0, len(sentence))


def _mask_korean_fact(sentence: str) -> tuple[str, str, str] | None:
    numbers = list(_KOREAN_NUMBER.finditer(sentence))
    asked = _ask_korean_ending(sentence)
    if not numbers or asked is None or sentence.split()[0] in _KOREAN_OPENERS:
        return None
    start, end = numbers[-1].span()
    return f"{asked[:start]}몇 {asked[end:]}", numbers[-1]["number"], sentence[:start] + sentence[end:]


def _ask_korean_ending(sentence: str) -> str | None:
    """A statement as a question: 합니다. -> 합니까?, 이다. -> 인가?, 했다. -> 했는가?, 한다. -> 하는가?"""
    if sentence.endswith("니다."):
        return sentence[:-2] + "까?"
    if not sentence.endswith("다.") or len(sentence) < 4:
        return None
    stem, last = sentence[:-2], sentence[-3]
    final = (ord(last) - _HANGUL_BASE) % _FINALS if "가" <= last <= "힣" else 0
    if last == "이":
        return stem[:-1] + "인가?"
    if final == _FINAL_SS or last == "없":
        return stem + "는가?"
    if last == "는":
        return stem + "가?"
    if final == _FINAL_N:
        return stem[:-1] + chr(ord(last) - _FINAL_N) + "는가?"
    return None


def ask_heading(path: str, terms: Terms) -> str | None:
    """The question of a heading path "A > B": its last part, behind the one above where it says too little alone."""
    parts = [part.strip() for part in path.split(" > ") if part.strip()]
    for subject in (parts[-1:], parts[-2:]):
        text = plain_text(": ".join(subject))
        if asks(text):
            return text
        if len(set(terms(text))) >= MIN_HEADING_TERMS:
            return f"{text}에 대해 무엇을 말합니까?" if language_of(text) == "ko" else f"What is said about {text}?"
    return None


def _opens_alone(sentence: str) -> bool:
    return _ENGLISH_OPENERS.match(sentence) is None


def _lower_article(subject: str) -> str:
    return _ARTICLE.sub(lambda found: found[0].lower(), subject)
