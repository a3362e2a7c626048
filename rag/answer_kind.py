"""What kind of thing a question asks for, and whether a sentence has one. Pure; English, and Korean but for names."""

from __future__ import annotations

import re
from typing import Literal

from rag.claims import Claims, missing_names

Kind = Literal["number", "date", "name"]

_NUMBER = re.compile(
    r"\bhow (?:many|much|long|old|far|tall|high|large|big|often|fast|wide|deep|heavy)\b"
    r"|\bwhat (?:percentage|percent|number|fraction|proportion|age|amount|price)\b|몇|얼마",
    re.IGNORECASE,
)
_DATE = re.compile(r"\bwhen\b|\b(?:what|which) (?:year|date|day|month|century|decade|time)\b|언제", re.IGNORECASE)
_NAME = re.compile(
    r"\b(?:who|whom|whose|where)\b|\bwhat (?:is|was|are|were) the names?\b"
    r"|\b(?:what|which) (?:\w+ )?(?:city|country|state|river|place|person|people|king|queen|president|actor|author"
    r"|company|organi[sz]ation|team|school|university|church|battle|album|song|book|film|movie)\b",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December|century"
    r"|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day)\b"
)


def asked_kind(question: str) -> Kind | None:
    """What a question asks for as far as its words tell; None where they do not."""
    if _NUMBER.search(question):
        return "number"
    if _DATE.search(question):
        return "date"
    return "name" if _NAME.search(question) else None


def offers(sentence: Claims, question: Claims, kind: Kind) -> bool:
    """Whether a sentence has something of the kind that does not stand in the question itself."""
    if kind == "name":
        return bool(missing_names(sentence.names, question.text))
    named_time = kind == "date" and _TIME.search(sentence.text) is not None
    return named_time or bool(sentence.mentioned - question.mentioned)
