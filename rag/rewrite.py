"""A follow-up question as one that can be searched for: with the words of the question before it. Pure.

"How can I apply?" finds nothing by itself. A question that leans on the one before it, by a pronoun or since it says
little and names nothing, gets that one's words which it lacks, behind its own. Whole former questions in front of it
find less, and so does leaving it as it is: `python -m eval.follow_ups` compares them, eval/MEASURED.md
has its table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rag.claims import read_claims
from rag.language import language_of
from rag.types import Message

_FEW_TERMS = {"latin": 3}  # in other languages 1: a Korean question of two or three often says all
_MAX_WORDS = 30
_MAX_CHARS = 64  # of a word, as rag.analyze has it
# Negations are the former question's and not this one's, and a greeting is about nothing.
_NOT_CARRIED = re.compile(
    r"(?:not|no|never|none|without|cannot|\w+n['’]t|hello|hi|hey|thanks?|please|안녕(?:하세요|하십니까)?|감사합니다|고마워요?)$",
    re.IGNORECASE,
)
_MAX_TURNS = 4  # what was asked longer ago is not what a question leans on
_WORD = re.compile(r"\w[\w'’.-]*")
_LEANS = re.compile(
    r"\b(it|its|they|them|their|theirs|this|that|these|those|he|him|his|she|her|hers|one|ones|such|both|so)\b"
    # not "Are there", not "there is"
    r"|(?<!\bis )(?<!\bare )(?<!\bwas )(?<!\bwere )\bthere\b(?! (?:is|are|was|were|be|will|must|may|can)\b)"
    r"|^(and|also|what about|how about)\b"
    r"|^(그럼|그러면|그렇다면|그리고)|(^|\s)(그|이|저)(것|거|건|게|걸|곳|때)|(^|\s)(그|이|거기|여기|그중)(\s|에|는|은|서)",
    re.IGNORECASE,
)


def rewrite_question(question: str, conversation: Sequence[Message], terms: Callable[[str], list[str]]) -> str:
    """The question to search for: `question` itself, or with words of the person's earlier ones in `conversation`.

    `terms` are those of the lexical search. At most 30 words are added, those of the question right before it first.
    """
    asked = ""
    former = [turn.content for turn in conversation if turn.role == "user"][-_MAX_TURNS:]
    for text in (*former, question):
        # What one model reads and another does not is not mixed.
        follows = asked and language_of(text) == language_of(asked) and _leans(text, terms)
        asked = " ".join([text, *carry_words(text, asked, terms)]) if follows else text
    return asked


def carry_words(question: str, former: str, terms: Callable[[str], list[str]]) -> list[str]:
    """The words of the former question that this one lacks, in their order, at most 30."""
    known = set(terms(question))
    carried: list[str] = []
    for word in _WORD.findall(former):
        new = set(terms(word)) - known
        if new and len(word) <= _MAX_CHARS and not _NOT_CARRIED.match(word):
            carried.append(word)
            known |= new
        if len(carried) == _MAX_WORDS:
            break
    return carried


def _leans(question: str, terms: Callable[[str], list[str]]) -> bool:
    """Whether it can hardly be understood without the question before it."""
    if _LEANS.search(question):
        return True
    claims = read_claims(question, terms)
    return len(claims.terms) <= _FEW_TERMS.get(language_of(question), 1) and not (claims.names or claims.numbers)
