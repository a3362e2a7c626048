"""Whether two questions ask the same in other words, as far as their words tell. Pure; English and Korean.

The cosine of two questions' vectors does not say it: all-MiniLM-L6-v2 has .97 for "When was the sundial carved?" and
"Where was ...", .96 for the left and the right valve, and .99 for "Did Anna beat Bob?" and "Did Bob beat Anna?".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rag.claims import Terms, contradiction, read_claims
from rag.language import language_of

# What is asked for. "What" and "which" leave that to another word, and are not among the terms either.
_ASKED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bwho(?:m|se)?\b|누구|누가",
        r"\bwhen\b|언제",
        r"\bwhere\b|어디",
        r"\bwhy\b|왜",
        r"\bhow\b|어떻게|어떡",
        r"\b(?:many|much)\b|(?<![가-힣])몇|얼마",
    )
)


def is_paraphrase(first: str, second: str, terms: Terms) -> bool:
    """Whether nothing that can be checked tells the two questions apart.

    They are in one language, ask for the same (who, when, how ...), and say the same names, numbers and negation and
    no opposites. One's content words stand, in their order, among the other's: a word in the place of another one is
    another question. It errs on the side of False.
    """
    if language_of(first) != language_of(second) or _asked(first) != _asked(second):
        return False
    one, other, nothing = (read_claims(text, terms) for text in (first, second, ""))
    if (one.names, one.mentioned, one.nouns) != (other.names, other.mentioned, other.nouns):
        return False
    if contradiction(one, other, nothing) or contradiction(other, one, nothing):
        return False
    short, long = sorted((terms(first), terms(second)), key=len)
    return bool(short) and _stand_in_order(short, long)


def _asked(question: str) -> list[bool]:
    return [pattern.search(question) is not None for pattern in _ASKED]


def _stand_in_order(words: Sequence[str], among: Sequence[str]) -> bool:
    rest = iter(among)
    return all(word in rest for word in words)
