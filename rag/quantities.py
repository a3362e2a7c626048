"""The numbers of a text with their units, in one notation: 1,000 = 1000, "five" = 5, 5 % = 5% = "5 percent". Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

Quantity = tuple[Decimal, str]  # value, canonical unit ("" without one)


def _forms(rows: str) -> dict[str, str]:
    """form -> canonical, from rows of "canonical: form form"."""
    pairs = (row.split(":", 1) for row in rows.strip().splitlines())
    return {form: canonical.strip() for canonical, forms in pairs for form in forms.split()}


def _numbered(names: str, first: int = 0, step: int = 1) -> dict[str, int]:
    """word -> number, counting the words from `first`."""
    return {word: first + step * index for index, word in enumerate(names.split())}


_UNITS = _forms("""
    %: % ％ percent 퍼센트 프로
    ms: ms msec millisecond milliseconds 밀리초
    s: s sec secs second seconds 초
    min: min mins minute minutes 분
    h: h hr hrs hour hours 시간
    day: day days 일
    week: week weeks 주
    month: month months 개월 달
    year: year years 년
    o'clock: 시
    month of the year: 월
    B: B byte bytes 바이트
    KB: kb kib kilobyte kilobytes 킬로바이트
    MB: mb mib megabyte megabytes 메가바이트
    GB: gb gib gigabyte gigabytes 기가바이트
    TB: tb tib terabyte terabytes 테라바이트
    km: km kilometer kilometers kilometre kilometres 킬로미터
    m: m meter meters metre metres 미터
    cm: cm centimeter centimeters centimetre centimetres 센티미터
    mm: mm millimeter millimeters millimetre millimetres 밀리미터
    mile: mile miles 마일
    kg: kg kilogram kilograms 킬로그램
    g: g gram grams 그램
    token: token tokens 토큰
    $: $ dollar dollars usd 달러
    ₩: ₩ won krw 원
    €: € euro euros eur 유로
""")
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "천": 3, "만": 4, "백만": 6, "억": 8, "조": 12}
_KOREAN_FORMS = sorted((form for form in (*_UNITS, *_SCALES) if "가" <= form[0] <= "힣"), key=len, reverse=True)
_CARDINALS = _numbered("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
""") | _numbered("thirty forty fifty sixty seventy eighty ninety", first=30, step=10)
_ORDINALS = _numbered("first second third fourth fifth sixth seventh eighth ninth tenth", first=1)
_PASSING = _ORDINALS | _CARDINALS | {"once": 1, "twice": 2}
_KOREAN_NUMBERS = _numbered("한 두 세 네 다섯 여섯 일곱 여덟 아홉 열", first=1)
# "one" and "zero" are rarely counts.
_LEAST_CLAIMED = 2

_CARDINAL = re.compile(rf"\b({'|'.join(_CARDINALS)})\b", re.IGNORECASE)
_SAID_IN_PASSING = re.compile(rf"\b({'|'.join(_PASSING)})\b", re.IGNORECASE)
_KOREAN_NUMBER = re.compile(
    rf"(?<![가-힣])({'|'.join(_KOREAN_NUMBERS)})\s?(?=개|명|번|가지|대|시간|달|곳|배|차례|마리|권|장\b|줄|단계)"
)
_DIGITS = re.compile(r"(?<![A-Za-z0-9_.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![.,]?\d)")
_MINUS = re.compile(r"(?:^|[\s(=])[-−]$")
_CURRENCY = re.compile(r"([$€₩])\s?$")
_UNIT = re.compile(r"(?:\s|-)?([A-Za-z]+)\b|\s?([%％€₩])|\s?([가-힣]+)")
_GLUED_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_GLUED_ENDINGS = frozenset({"st", "nd", "rd", "th", "s"})


def claimed_quantities(text: str) -> Iterator[Quantity]:
    """Numbers in digits, English cardinals from "two" on, Korean counts ("두 개"). Identifiers (135M, v2) are none."""
    for found in _DIGITS.finditer(text):
        before, after = text[: found.start()], text[found.end() :]
        if is_identifier(after):
            continue
        value = Decimal(found.group().replace(",", ""))
        value, unit = _measured(-value if _MINUS.search(before) else value, after)
        currency = _CURRENCY.search(before)
        yield value, currency.group(1) if currency else unit
    for found in _CARDINAL.finditer(text):
        if (small := _CARDINALS[found.group(1).lower()]) >= _LEAST_CLAIMED:
            yield _measured(Decimal(small), text[found.end() :])
    for found in _KOREAN_NUMBER.finditer(text):
        yield _measured(Decimal(_KOREAN_NUMBERS[found.group(1)]), text[found.end() :])


def passing_quantities(text: str) -> Iterator[Quantity]:
    """Numbers said in passing ("first", "one", "twice"): too loose to be claims, but they back others."""
    for found in _SAID_IN_PASSING.finditer(text):
        yield Decimal(_PASSING[found.group(1).lower()]), ""


def is_backed(quantity: Quantity, said: frozenset[Quantity]) -> bool:
    """Whether a quantity is among those said; one without a unit matches any of its value."""
    value, unit = quantity
    return any(value == other and (unit == has or not unit or not has) for other, has in said)


def _unit(form: str) -> str:
    """The canonical unit, "" for no unit. A single letter counts in its usual case only: 5 m, but a 5M model."""
    return _UNITS.get(form if len(form) == 1 else form.lower(), "")


def is_identifier(after: str) -> bool:
    """Whether the letters glued to a number, given what follows it, make it an identifier (135M) and no quantity."""
    glued = _GLUED_WORD.match(after)
    return glued is not None and glued.group() not in _GLUED_ENDINGS and not _unit(glued.group())


def is_unit(word: str, before: str) -> bool:
    """Whether a word is the unit of the number that ends the text before it ("1.5 GB")."""
    return bool(_unit(word)) and re.search(r"\d\s?$", before) is not None


def _measured(value: Decimal, after: str) -> Quantity:
    """The value with the scale and the unit that follow it."""
    found = _UNIT.match(after)
    if found is None:
        return value, ""
    latin, sign, korean = found.groups()
    form, end = latin or sign or "", found.end()
    if korean:
        form = next((form for form in _KOREAN_FORMS if korean.startswith(form)), "")
        end = found.start(3) + len(form)
    if form.lower() in _SCALES:
        return _measured(value * 10 ** _SCALES[form.lower()], after[end:])
    # 1990s is a decade.
    decade = form == "s" and value >= 1000 and not after[:1].isspace()
    return value, "" if decade else _unit(form)
