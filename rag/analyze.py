"""Text to index terms, for documents and queries alike.

Milvus' whitespace analyzer splits them again and keeps the BM25 statistics.

Each script has its own rule:

    Hangul      morphemes by Kiwi, content ones only; a compound noun whole and in parts
    Latin etc.  words, stemmed; identifiers (max_ongoing_requests, X-Request-ID, MilvusStore, 2.5.1) whole and in parts
    Han, Kana   character bigrams

Korean is analysed one space-delimited word at a time, without its sentence: a word then has the same terms in a
document and in a query of three words, and can be cached.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import Stemmer

ANALYZER_VERSION = "1"
"""Changes whenever the same text may give other terms: collections of another version have to be built again."""

MAX_OUTPUT_BYTES = 60_000
MAX_TERM_CHARS = 64

HAN_KANA = r"\u3005\u3006\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003134f"
HANGUL = r"\uac00-\ud7a3"
LETTER = rf"[^\W_{HAN_KANA}{HANGUL}]"
RUN = re.compile(
    rf"(?P<hangul>[{HANGUL}]{{1,{MAX_TERM_CHARS}}})"
    rf"|(?P<han>[{HAN_KANA}]+)"
    rf"|(?P<word>_*{LETTER}+(?:(?:_+|['’.-]){LETTER}+)*)"
)
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
PARTS = re.compile(r"[A-Z]{2,}s(?![a-z])|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
JOINERS = re.compile(r"[_.-]+")
CLOSERS = ")]}>\"'`’”%*"

# Milvus' idf weighs frequent words down by itself; what it gets wrong are the words of asking, rare in documents and in
# every question. They go, and with them the commonest function words, which only lengthen the index.
STOP_WORDS = frozenset(
    [
        "a", "an", "and", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did", "do", "does", "for",
        "from", "had", "has", "have", "he", "her", "his", "how", "i", "if", "in", "into", "is", "it", "its", "me", "my",
        "of", "on", "or", "our", "she", "should", "so", "than", "that", "the", "their", "them", "then", "there",
        "these", "they", "this", "those",
        "to", "was", "we", "were", "what", "when", "where", "which", "who", "whom", "whose",
        "why", "will", "with", "would", "you", "your",
    ]
)  # fmt: skip
KOREAN_STOP_WORDS = frozenset(
    ["무엇", "어떻", "어떠하", "왜", "언제", "얼마", "얼마나", "어찌", "하", "되", "있", "것", "수"]
)

NOUN_TAGS = frozenset({"NNG", "NNP", "NNB", "NR", "XR", "XPN", "XSN"})
CONTENT_TAGS = (NOUN_TAGS - {"XPN", "XSN"}) | {"VV", "VA", "MAG"}


class _Token(Protocol):
    form: str
    tag: str


class _Morphemes(Protocol):
    def tokenize(self, text: str) -> list[_Token]: ...


_kiwi: _Morphemes | None = None
_kiwi_lock = threading.Lock()
_stemmer_of_thread = threading.local()


def analyze(text: str) -> str:
    """The terms of `text` in reading order, joined by single spaces; at most 60,000 UTF-8 bytes, cut between terms."""
    kept: list[str] = []
    left = MAX_OUTPUT_BYTES
    for term in _terms(text):
        left -= len(term.encode()) + 1
        if left < -1:
            break
        kept.append(term)
    return " ".join(kept)


def terms(text: str) -> list[str]:
    """What `analyze` gives, as a list: lower-case, no white space inside, 1 to 64 characters each, repeats kept."""
    return analyze(text).split()


def _terms(text: str) -> Iterator[str]:
    text = unicodedata.normalize("NFKC", text)
    text = THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    for run in RUN.finditer(text):
        if run["hangul"]:
            yield from _korean_terms(run[0], _is_attached(text, run.start()))
        elif run["han"]:
            yield from _bigrams(run[0])
        else:
            yield from _word_terms(run[0])


def _is_attached(text: str, start: int) -> bool:
    """Whether the Hangul at `start` continues a word, as in FastAPI에서 and (서울)은."""
    before = start
    while before and start - before < 4 and text[before - 1] in CLOSERS:
        before -= 1
    return before > 0 and text[before - 1].isalnum()


@lru_cache(maxsize=65_536)
def _korean_terms(word: str, attached: bool) -> tuple[str, ...]:
    # Alone, the 에서 of FastAPI에서 would be read as a noun: a letter in front makes it the particle that it is.
    tokens = _load_kiwi().tokenize("A" + word if attached else word)
    found: list[str] = []
    compound: list[str] = []
    for token in [*tokens[1 if attached else 0 :], None]:
        tag = token.tag.split("-")[0] if token else ""
        if token and tag in NOUN_TAGS:
            compound.append(token.form)
        else:
            if len(compound) > 1:
                found.append("".join(compound))
            compound.clear()
        if token and tag in CONTENT_TAGS and token.form not in KOREAN_STOP_WORDS:
            found.append(token.form)
    return tuple(found)


def _load_kiwi() -> _Morphemes:
    global _kiwi
    if _kiwi is None:
        with _kiwi_lock:
            if _kiwi is None:
                from kiwipiepy import Kiwi

                # Without the dictionaries of typing errors and of multi-word names it takes 0.3 GB and 0.9 s
                # in place of 0.5 GB and 2.4 s, and names stay findable by their parts.
                _kiwi = Kiwi(num_workers=1, load_typo_dict=False, load_multi_dict=False)
    return _kiwi


def _bigrams(run: str) -> Iterator[str]:
    if len(run) == 1:
        yield run
    for start in range(len(run) - 1):
        yield run[start : start + 2]


def _word_terms(word: str) -> tuple[str, ...]:
    # A few thousand words are most of any text; a long one is no word, and would fill the cache with itself.
    return _terms_of_usual_word(word) if len(word) <= MAX_TERM_CHARS else tuple(_terms_of_word(word))


@lru_cache(maxsize=65_536)
def _terms_of_usual_word(word: str) -> tuple[str, ...]:
    return tuple(_terms_of_word(word))


def _terms_of_word(word: str) -> Iterator[str]:
    parts: list[str] = []
    for piece in filter(None, JOINERS.split(word)):
        parts += PARTS.findall(piece) if piece.isascii() and "'" not in piece else [piece]
    if len(parts) > 1:
        yield word.strip("_").lower()[:MAX_TERM_CHARS]
    for part in parts:
        lowered = part.replace("’", "'").lower()
        # IT and WHO are names, it and who are not.
        if lowered in STOP_WORDS and not (len(part) > 1 and part.isupper()):
            continue
        yield _stem(lowered)[:MAX_TERM_CHARS]


def _stem(word: str) -> str:
    # A PyStemmer stemmer must not be shared between threads.
    stemmer: Stemmer.Stemmer | None = getattr(_stemmer_of_thread, "english", None)
    if stemmer is None:
        stemmer = _stemmer_of_thread.english = Stemmer.Stemmer("english")
    stemmed: str = stemmer.stemWord(word)
    return stemmed or word
