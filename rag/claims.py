"""What a sentence claims that can be checked to the letter: numbers, names, negation. Pure; English and Korean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from rag.quantities import Quantity, claimed_quantities, is_backed, is_identifier, is_unit, passing_quantities

Terms = Callable[[str], list[str]]  # a text's content words, analysed: stems, Korean morphemes
Clause = tuple[frozenset[str], bool]  # its terms, whether it negates
Reason = Literal["number", "name", "negation", "opposite"]


def words(text: str) -> frozenset[str]:
    """The words of a literal list."""
    return frozenset(text.split())


_LATIN_WORD = re.compile(
    r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*(?:\+\+|#)?|\d+(?:\.\d+){2,}|\d+[A-Za-z_]\w*", re.ASCII
)
_QUOTED_TERM = re.compile(
    r"`([^`]+)`|“([^”]+)”|\"([^\"]+)\"|‘([^’]+)’|「([^」]+)」|『([^』]+)』|《([^》]+)》|(?<!\w)'([^']+)'(?!\w)"
)
_HANGUL = re.compile(r"[가-힣]")
_LATIN_LETTER = re.compile(r"[a-zà-ɏ]")
# Capitalised in English by grammar, not because they name something.
_PLAIN_CAPITALS = words("""
    i ok yes no a an the it its he his she her they their we our you your this that these those there here what who
    which when where why how each every everyone everything both all some any many most none one another other others
    nothing nobody someone something in on at by for to of and but or if so as
""")
# After one of these, the capitalised first word of a sentence is its subject.
_VERBS = words("is was are were has had have will did does can could would may must became won wrote and or of")
# A name of this many letters may carry a suffix of that many.
_SUFFIXED_LETTERS = 4
_SUFFIX_LETTERS = 3
_DENIED_CHARS = 200  # behind a negation that are read for what it denies

# A Korean word is a noun where one of these, or nothing, follows it.
_PARTICLE = (
    r"(?:은|는|이|가|을|를|의|에|에서|에게|에는|로|으로|와|과|도|만|부터|까지|라는|이라는|라고|이라고|인|이다|이며|이고|이었다|였다"
    r"|입니다|이나|나|보다|처럼)?(?![가-힣])"
)
_LEAST_NOUN_SYLLABLES = 2
# Korean nouns that say so little that any paraphrase may bring them.
_PLAIN_NOUNS = words("""
    경우 관련 기준 내용 다음 달리 대부분 대상 도움 때문 모두 문서 방법 방식 부분 사람 사용 사항 상황 상태 생각
    설명 수준 스스로 시작 앞서 역할 예시 용도 우리 원인 의미 이때 이름 이상 이유 이전 이하 이후 일반적 일부 있음
    자신 작업 전체 점차 정도 정보 종류 주요 중요 질문 처음 최근 추가 특정 특징 필요 한편 해당 현재 형태 효과
""")

_NEGATION = re.compile(
    r"\b(?:not|cannot|never|no|none|nor|neither|without|nothing|nobody|nowhere|unable)\b|n['’]t\b"
    r"|않|(?<![잘연])못|없(?![애앴앨])|아니|아닌|아닙|아닐|(?<![가-힣])안\s(?=[가-힣])|지\s?마(?:세요|십시오|라|시오)|말아야"
    r"|(?<![환지선후완])불가(?![피침분결역리]|항력|사의|사리)|불필요(?:합니다|하다|하며|하고)|제외(?:합니다|됩니다|한다|된다|하며|되며|함|됨)",
    re.IGNORECASE,
)
# What these leave out: in English it stands behind them, in Korean before them.
_EXCEPT = re.compile(
    r"\b(?:except(?:ing)?(?: for)?|excluding|other than|with the exception of)\b([^,.;:()]*)", re.IGNORECASE
)
_KOREAN_EXCEPT = re.compile(r"(?<!\S)((?:\S+\s+){0,3}\S+)\s(?:제외(?:한|하고|하면|하고는)|빼고|빼면)(?![가-힣])")
_KOREAN_TOPIC = re.compile(r".*(?:[은는이가,]|에서|에는)\s")
_LEFT_OUT = re.compile(r"exclud|except|apart from|other than|besides|제외|빼고|빼면|외에", re.IGNORECASE)
_NOT_THIS = re.compile(r"\bnot\s", re.IGNORECASE)
# 불가능, 비회원, 미포함, 무제한: the analysis gives such a word, and beside it what it negates.
_PREFIXES = "불비미무"
# A Korean sentence with a verb or an adjective, which asserts something; "별칭입니다." only names it.
_KOREAN_PREDICATE = re.compile(r"(?<!입니)(?<!이)(?<!이에)(?<!예)(?:다|요|죠)\W*$")
# Cues that negate nothing, and the contrast "not only A but B".
_NO_NEGATION = re.compile(
    r"\bwhether or not\b|\bnot (?:only|just|merely)\b|\bno\.\s*\d|\bno (?:more|less|fewer|later|earlier) than\b"
    r"|뿐(?:만)?\s?아니라|못지\s?않|틀림\s?없",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(
    r"[,;:()—–]+|\b(?:and|but|or|which|that|who|because|if|when|while|although|though|unless|whereas|so|than)\b"
    r"|(?<=지만)\s|(?<=으며)\s|(?<=이며)\s|(?<=하며)\s|(?<=하고)\s|(?<=이고)\s|(?<=는데)\s|(?<=으나)\s|(?<=므로)\s|(?<=니라)\s"
    r"|(?<=으면)\s|(?<=하면)\s",
    re.IGNORECASE,
)
_OPPOSITES = tuple(
    (words(a), words(b))
    for a, b in (
        ("enable enables enabled", "disable disables disabled"),
        ("maximum max", "minimum min"),
        ("before", "after"),
        ("increase increases increased", "decrease decreases decreased"),
        ("always", "never"),
        ("true", "false"),
        ("more higher larger greater", "less lower smaller fewer"),
        ("required mandatory", "optional"),
        ("allowed permitted", "forbidden prohibited"),
        ("above", "below"),
        ("이상", "이하"),
        ("이상", "미만"),
        ("초과", "미만"),
        ("초과", "이하"),
        ("최대", "최소"),
        ("이전", "이후"),
        ("활성화", "비활성화"),
        ("필수", "선택"),
    )
)
_WORD = re.compile(r"[A-Za-z]+|[가-힣]+")
_NO_WORD = re.compile(r"[^\w.]+")
_BOUNDS = tuple(
    (re.compile(bound, re.IGNORECASE), word)
    for bound, word in (
        (r"(?<=\d)\s?mins?\b", " minutes"),
        (r"\bat least\b|\bno (?:less|fewer) than\b", "minimum"),
        (r"\bat most\b|\bno more than\b|\bup to\b", "maximum"),
        (r"\bover (?=[$€£₩¥]?\d)", "more "),
        (r"\bunder (?=[$€£₩¥]?\d)", "less "),
    )
)


@dataclass(frozen=True, slots=True)
class Claims:
    """What one text claims.

    `numbers` must be backed; `mentioned` holds them and those said in passing ("first", "twice"), which back others.
    """

    text: str
    terms: frozenset[str]
    numbers: frozenset[Quantity]
    mentioned: frozenset[Quantity]
    names: frozenset[str]
    nouns: frozenset[str]  # Korean ones: the names among them cannot be told apart
    clauses: tuple[Clause, ...]
    denied: frozenset[str]  # what an English negation stands right before: "get" of "cannot get a refund"
    excluded: frozenset[str]  # what stands only behind "except", or "not" without a verb

    @property
    def negated(self) -> bool:
        return any(negates for _, negates in self.clauses)


def read_claims(text: str, terms: Terms) -> Claims:
    """The claims of a sentence."""
    numbers = frozenset(claimed_quantities(text))
    found = frozenset(terms(text))
    return Claims(
        text,
        found,
        numbers,
        numbers | frozenset(passing_quantities(text)),
        frozenset(_names(text)),
        frozenset(_korean_nouns(text, found)),
        _clauses(text, found, terms),
        frozenset(_denied(text, terms)),
        _excluded(text, terms),
    )


def contradiction(
    sentence: Claims, quote: Claims, question: Claims, label: str = "", passage_terms: frozenset[str] = frozenset()
) -> Reason | None:
    """The first hard rule that `quote` breaks as evidence for `sentence`, None when it breaks none.

    number: every number stands in the quote with its unit (one without unit matches any).
    name: every name, identifier, acronym and quoted term stands in the quote, in `label` (title, heading) or in the
    question; every Korean noun in the quote, in the question or among `passage_terms` (those of the quote's passage).
    negation: the quote's clause that is nearest to the sentence's negates where the sentence does and only there, and
    the sentence does not say of what the quote leaves out what it says of the rest. What is asked with a negation
    ("What is not covered?") may be named without one ("Labour."), but not be asserted ("Labour is covered.").
    opposite: the quote does not say the opposite word (minimum for maximum, 불가능 for 가능) in its stead.
    """
    if missing_numbers(sentence, quote):
        return "number"
    if missing_names(sentence.names, f"{quote.text}\n{label}\n{question.text}"):
        return "name"
    if sentence.nouns - quote.terms - question.terms - passage_terms:
        return "name"
    if _negation_differs(sentence, quote, question):
        return "negation"
    return "opposite" if _says_opposite(sentence.text, quote.text) or _lacks_prefix(sentence, quote) else None


def missing_numbers(claims: Claims, evidence: Claims) -> frozenset[Quantity]:
    """The numbers claimed that the evidence does not mention with their unit."""
    return frozenset(number for number in claims.numbers if not is_backed(number, evidence.mentioned))


def missing_names(names: frozenset[str], text: str) -> frozenset[str]:
    """The names, as Claims has them, that stand in a text neither as they are nor in a near form."""
    place = _fold(text)
    known = frozenset(_LATIN_WORD.findall(place))
    return frozenset(name for name in names if not _stands_in(name, place, known))


def unknown_terms(claims: Claims, known: frozenset[str]) -> frozenset[str]:
    """The terms in Latin letters that are not `known`. Of Korean ones the nouns are a hard rule of `contradiction`; the
    others are verbs, which any paraphrase changes."""
    return frozenset(term for term in claims.terms - known if _LATIN_LETTER.search(term))


def _names(text: str) -> Iterator[str]:
    for quoted in _QUOTED_TERM.finditer(text):
        yield _fold(next(part for part in quoted.groups() if part))
    korean = _HANGUL.search(text) is not None
    latin = list(_LATIN_WORD.finditer(text))
    for index, found in enumerate(latin):
        word = found.group()
        if word.lower() in _PLAIN_CAPITALS or _is_quantity(word) or is_unit(word, text[: found.start()]):
            continue
        coded = any(char.isdigit() or char in "_." for char in word) or any(char.isupper() for char in word[1:])
        if coded or (korean and len(word) > 1) or (word[0].isupper() and not _capital_by_place(text, latin, index)):
            yield _fold(word)


def _korean_nouns(text: str, terms: frozenset[str]) -> Iterator[str]:
    """The nouns among a text's terms, as far as what follows them tells; of a compound, its parts."""
    for term in terms - _PLAIN_NOUNS:
        if len(term) < _LEAST_NOUN_SYLLABLES or not _HANGUL.match(term):
            continue
        compound = any(term[:cut] in terms and term[cut:] in terms for cut in range(1, len(term)))
        if not compound and re.search(re.escape(term) + _PARTICLE, text):
            yield term


def _is_quantity(word: str) -> bool:
    """Whether a word led by a digit is a number with its unit ("5ms", "3rd", "1990s")."""
    rest = word.lstrip("0123456789")
    return rest != word and not rest.startswith(".") and not is_identifier(rest)


def _capital_by_place(text: str, latin: list[re.Match[str]], index: int) -> bool:
    """Whether the word is capitalised because a sentence starts there, as far as its neighbours tell."""
    before = text[: latin[index].start()].rstrip(" \"'“‘(*_`")
    if before and before[-1] not in ".!?:;\n":
        return False
    following = [found.group() for found in latin[index + 1 :]]
    if all(word[0].isupper() or word in _VERBS for word in following):
        return False  # no sentence: an answer such as "Delhi." or "University of Seoul"
    adjacent = not text[latin[index].end() : latin[index + 1].start()].strip()
    subject = following[0] in _VERBS or following[0].endswith("ed")
    return not (adjacent and (subject or following[0][0].isupper()))


def _stands_in(name: str, place: str, known: frozenset[str]) -> bool:
    """Whether a folded name stands in a folded text: a word, a near form (Korea, Korean; GPU, GPUs), a phrase."""
    if name in known or re.search(rf"(?<![a-z0-9_]){re.escape(name)}(?![a-z0-9_])", place):
        return True
    if name.isalpha() and name.isascii():
        return any(_near_form(name, word) for word in known)
    spoken = _NO_WORD.sub(" ", name).strip()
    return bool(spoken) and f" {spoken} " in f" {_NO_WORD.sub(' ', place)} "


def _near_form(name: str, word: str) -> bool:
    """Whether one is the other with a suffix: up to three letters on a word of four or more, else a plural s."""
    short, long = sorted((name, word), key=len)
    if not long.startswith(short):
        return False
    return long == f"{short}s" or (len(short) >= _SUFFIXED_LETTERS and len(long) - len(short) <= _SUFFIX_LETTERS)


def _clauses(text: str, found: frozenset[str], terms: Terms) -> tuple[Clause, ...]:
    plain = _NO_NEGATION.sub(" ", text)
    if not _NEGATION.search(plain):
        return ((found, False),)
    parts = [part for part in _CLAUSE_END.split(plain) if part and part.strip()]
    return tuple((frozenset(terms(part)), _NEGATION.search(part) is not None) for part in parts)


def _denied(text: str, terms: Terms) -> Iterator[str]:
    plain = _NO_NEGATION.sub(" ", text)
    for found in _NEGATION.finditer(plain):
        behind = plain[found.end() : found.end() + _DENIED_CHARS]
        yield from terms(_CLAUSE_END.split(behind, maxsplit=1)[0])[:1]


def _excluded(text: str, terms: Terms) -> frozenset[str]:
    """Terms that stand in what a text leaves out, and nowhere else in it.

    What is left out of a negation ("nobody but the manager") is affirmed: not where the text negates otherwise.
    """
    if not _LEFT_OUT.search(text) and not _NOT_THIS.search(text):
        return frozenset()
    left_out = list[tuple[int, int]]()
    if not _NEGATION.search(_NO_NEGATION.sub(" ", text)):
        left_out = [found.span(1) for found in _EXCEPT.finditer(text)]
        for found in _KOREAN_EXCEPT.finditer(text) if _HANGUL.search(text) else ():
            topic = _KOREAN_TOPIC.match(found.group(1))
            left_out.append((found.start(1) + (topic.end() if topic else 0), found.end(1)))
    ends = [0, *(found.end() for found in _CLAUSE_END.finditer(text)), len(text)]
    left_out += [
        (start, end)
        for start, end in pairwise(ends)
        if _NOT_THIS.match(_NO_NEGATION.sub(" ", text[start:end]).lstrip())
    ]
    if not left_out:
        return frozenset()
    rest, at = "", 0
    for start, end in sorted(left_out):
        rest, at = f"{rest} {text[at:start]}", max(at, end)
    inside = (terms(text[start:end]) for start, end in left_out)
    return frozenset[str]().union(*inside) - frozenset(terms(rest + text[at:]))


def _negation_differs(sentence: Claims, quote: Claims, question: Claims) -> bool:
    # Something is said of what is left out: more than that it is.
    leaves_out = bool(sentence.terms & quote.excluded) and bool(sentence.terms & quote.terms - quote.excluded)
    asked_for = question.negated or _LEFT_OUT.search(question.text) is not None
    if not sentence.negated:
        if sentence.terms <= quote.excluded and not asked_for:
            return bool(sentence.terms)
        if leaves_out and not _LEFT_OUT.search(sentence.text):
            return not asked_for or not sentence.terms <= quote.excluded
        differs = quote.negated and _nearest_negates(sentence.terms, quote.clauses)
        return differs and (not asked_for or _asserts(sentence, quote))
    if not quote.negated:
        return not all(terms & quote.excluded for terms, negates in sentence.clauses if negates)
    return not all(_nearest_negates(terms, quote.clauses) for terms, negates in sentence.clauses if negates)


def _asserts(sentence: Claims, quote: Claims) -> bool:
    """Whether a sentence says what the quote denies, rather than to name what it is denied of."""
    return bool(sentence.terms & quote.denied) or _KOREAN_PREDICATE.search(sentence.text) is not None


def _lacks_prefix(sentence: Claims, quote: Claims) -> bool:
    """Whether one says with a negating prefix (불가능) what the other says without (가능)."""
    return any(
        with_prefix in one.terms
        and with_prefix not in other.terms
        and with_prefix[1:] in one.terms & other.terms
        and not re.search(rf"(?<![{_PREFIXES}]){re.escape(with_prefix[1:])}", one.text)
        for one, other in ((sentence, quote), (quote, sentence))
        for with_prefix in one.terms
        if with_prefix[0] in _PREFIXES
    )


def _nearest_negates(terms: frozenset[str], clauses: tuple[Clause, ...]) -> bool:
    """Whether the clause that shares most terms negates; of several equally near, whether one does."""
    most = max(len(terms & clause) for clause, _ in clauses)
    return any(negates for clause, negates in clauses if len(terms & clause) == most)


def _says_opposite(sentence: str, quote: str) -> bool:
    said, quoted = _plain_words(sentence), _plain_words(quote)
    for pair in _OPPOSITES:
        for mine, theirs in (pair, pair[::-1]):
            if (
                _any_of(mine, said)
                and _any_of(theirs, quoted)
                and not _any_of(mine, quoted)
                and not _any_of(theirs, said)
            ):
                return True
    return False


def _plain_words(text: str) -> list[str]:
    """Words, bounds in one form: "more" for "over 12"; the "min" of "30 min" is no bound."""
    for bound, word in _BOUNDS:
        text = bound.sub(word, text)
    return _WORD.findall(text.lower())


def _any_of(forms: frozenset[str], words: list[str]) -> bool:
    """Whether one of the words is one of the forms; a Korean word may carry a particle."""
    return any(word in forms or (word[0] >= "가" and word.startswith(tuple(forms))) for word in words)


def _fold(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()
