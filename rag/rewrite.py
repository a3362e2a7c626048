"""A follow-up question as one that can be searched for: with the words of the question before it. Pure.

"How can I apply?" finds nothing by itself. A question that leans on the one before it, by a pronoun or since it says
little, gets that one's words which it lacks, behind its own. Whole former questions in front of it find less, and so
does leaving it as it is: `python -m eval.follow_ups` compares them, the README has its table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rag.types import Message

_FEW_TERMS = 3
_MAX_WORDS = 30
_MAX_CHARS = 64  # of a word, as rag.analyze has it
_MAX_TURNS = 4  # what was asked longer ago is not what a question leans on
_WORD = re.compile(r"\w[\w'’.-]*")
_LEANS = re.compile(
    r"\b(it|its|they|them|their|theirs|this|that|these|those|he|him|his|she|her|hers|one|ones|there|such|both|so)\b"
    r"|^(and|also|what about|how about)\b"
    r"|^(그럼|그러면|그렇다면|그리고)|(^|\s)(그|이|저)(것|거|건|게|걸|곳|때)|(^|\s)(그|이|저|거기|여기|그중)(\s|에|는|은|서)",
    re.IGNORECASE,
)


def rewrite_question(question: str, conversation: Sequence[Message], terms: Callable[[str], list[str]]) -> str:
    """The question to search for: `question` itself, or with words of the person's earlier ones in `conversation`.

    `terms` are those of the lexical search. At most 30 words are added, those of the question right before it first.
    """
    asked = ""
    former = [turn.content for turn in conversation if turn.role == "user"][-_MAX_TURNS:]
    for text in (*former, question):
        asked = " ".join([text, *carry_words(text, asked, terms)]) if asked and _leans(text, terms) else text
    return asked


def carry_words(question: str, former: str, terms: Callable[[str], list[str]]) -> list[str]:
    """The words of the former question that this one lacks, in their order, at most 30."""
    known = set(terms(question))
    carried: list[str] = []
    for word in _WORD.findall(former):
        new = set(terms(word)) - known
        if new and len(word) <= _MAX_CHARS:
            carried.append(word)
            known |= new
    return carried[:_MAX_WORDS]


def _leans(question: str, terms: Callable[[str], list[str]]) -> bool:
    """Whether it can hardly be understood without the question before it."""
    return len(set(terms(question))) <= _FEW_TERMS or _LEANS.search(question) is not None
