"""Which language a text is in, as far as its script tells."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["ko", "zh", "ja", "latin"]

_SCRIPTS: tuple[tuple[Language, re.Pattern[str]], ...] = (
    ("ko", re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")),
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("zh", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")),
)
# A syllable or ideograph says about as much as this many Latin letters.
_LATIN_LETTERS_PER_SIGN = 3
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]")


def language_of(text: str) -> Language:
    """The language of the script that says most of the text; `latin` for every language in Latin letters.

    Names and identifiers in Latin letters are usual in the other languages, so one of their signs counts as three.
    """
    latin = len(_LATIN.findall(text))
    for language, pattern in _SCRIPTS:
        if len(pattern.findall(text)) * _LATIN_LETTERS_PER_SIGN > latin:
            return language
    return "latin"


def understands(languages: tuple[Language, ...] | None, text: str) -> bool:
    """Whether a model that knows `languages` (None: all) can read the text."""
    return languages is None or language_of(text) in languages
