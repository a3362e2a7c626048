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
    mg: mg milligram milligrams 밀리그램
    ml: ml milliliter milliliters millilitre millilitres 밀리리터
    l: l L liter liters litre litres 리터
    lb: lb lbs
    oz: oz ounce ounces 온스
    inch: inch inches 인치
    ft: ft foot feet 피트
    yd: yd yard yards 야드
    am: am a.m
    pm: pm p.m
    $: $ dollar dollars usd 달러
    ₩: ₩ won krw 원
    €: € euro euros eur 유로
    £: £ gbp
    ¥: ¥ yen jpy
""")
_SCALES = {
    "hundred": 2,
    "thousand": 3,
    "million": 6,
    "billion": 9,
    "trillion": 12,
    "천": 3,
    "만": 4,
    "백만": 6,
    "억": 8,
    "조": 12,
}
_KOREAN_FORMS = sorted((form for form in (*_UNITS, *_SCALES) if "가" <= form[0] <= "힣"), key=len, reverse=True)
_ONES = _numbered("one two three four five six seven eight nine", first=1)
_TENS = _numbered("twenty thirty forty fifty sixty seventy eighty ninety", first=20, step=10)
_TEENS = _numbered("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen", first=10)
_ORDINALS = _numbered("first second third fourth fifth sixth seventh eighth ninth tenth", first=1)
_JOINED_ORDINALS = tuple(word for word in _ORDINALS if word != "second")  # thirty-second is half a minute
_PASSING = _ORDINALS | {"once": 1, "twice": 2}
_SPELLED = _ONES | _TENS | _TEENS | _PASSING | {"zero": 0}
_KOREAN_TENS = {
    "": 0,
    "열": 10,
    "스물": 20,
    "서른": 30,
    "마흔": 40,
    "쉰": 50,
    "예순": 60,
    "일흔": 70,
    "여든": 80,
    "아흔": 90,
}
_KOREAN_ONES = {"": 0} | _numbered("한 두 세 네 다섯 여섯 일곱 여덟 아홉", first=1)
_KOREAN_NUMBERS = {
    ten + one: tens + ones for ten, tens in _KOREAN_TENS.items() for one, ones in _KOREAN_ONES.items() if ten + one
} | {"스무": 20}
# "one" and "zero" are rarely counts.
_LEAST_CLAIMED = 2

_LAST = "|".join((*_ONES, *_JOINED_ORDINALS))

# two, twenty-five, two hundred and five; or twenty-first, which is said in passing, as "once" is
_SPELLED_NUMBER = re.compile(
    rf"\b(?:(?P<hundreds>{'|'.join(_ONES)}|a)[ -]hundred(?: and)?(?![\w-]| (?:and )?(?:{'|'.join(_SPELLED)})\b)"
    rf"|(?:(?P<more>{'|'.join(_ONES)}|a)[ -]hundred (?:and )?)?"
    rf"(?:(?P<tens>{'|'.join(_TENS)})(?:-| (?=[a-z]+\b(?!-)))(?P<last>{_LAST})|(?P<word>{'|'.join(_SPELLED)})))\b",
    re.IGNORECASE,
)
_KOREAN_NUMBER = re.compile(
    rf"(?<![가-힣])({'|'.join(sorted(_KOREAN_NUMBERS, key=len, reverse=True))})"
    r"\s?(?=개|명|번|가지|대|시간|달|곳|배|차례|마리|권|장\b|줄|단계|살|사람|분\b|분의)"
)
# 1만 5천, 3억 5천만, 2백5십, 1만 5000: what is added up
_KOREAN_SUM = re.compile(
    r"(?<![A-Za-z0-9_.,])\d[\d,]*(?:\.\d+)?\s?[십백천만억조]+(?:\s?\d[\d,]*\s?[십백천만억조]+)*"
    r"(?:(?<!조)\s?\d[\d,]*)?"
    r"(?=\s?(?:원|명|개|년|달러|유로|엔|위안|톤|곳|건|마리|대|권|회|배|평|여|시간|킬로|미터|그램|리터)|[^가-힣\d]|$)"
)
_KOREAN_PART = re.compile(r"(\d[\d,]*(?:\.\d+)?)|([십백천])|([만억조])")
_KOREAN_SMALL = {"십": 10, "백": 100, "천": 1000}
_DIGITS = re.compile(r"(?<![A-Za-z0-9_.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![.,]?\d)")
_NEAR_CHARS = 40  # beside a number that are read for its sign and its unit
_ORDINAL = re.compile(r"(?<![가-힣])제\s?$")  # 제10조, an article
_MINUS = re.compile(r"(?:^|[\s(=])[-−]$")
_CURRENCY = re.compile(r"([$€₩£¥])\s?$")
_UNIT = re.compile(r"(?:\s|-)?([AaPp]\.[Mm](?=\.)|[A-Za-z]+\b)|\s?([%％€₩£¥])|\s?([가-힣]+)")
_GLUED_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_GLUED_ENDINGS = frozenset({"st", "nd", "rd", "th", "s"})


def claimed_quantities(text: str) -> Iterator[Quantity]:
    """Numbers in digits, English cardinals from "two" on, Korean counts ("두 개"). Identifiers (135M, v2) are none."""
    for found in _KOREAN_SUM.finditer(text):
        before = _near_before(text, found)
        total = None if _ORDINAL.search(before) else _add_up(found.group())
        if total is not None:
            value, unit = _measured(total, text[found.end() :])
            currency = _CURRENCY.search(before)
            yield value, currency.group(1) if currency else unit
            text = f"{text[: found.start()]}{' ' * len(found.group())}{text[found.end() :]}"
    for found in _DIGITS.finditer(text):
        before, after = _near_before(text, found), text[found.end() : found.end() + _NEAR_CHARS]
        if is_identifier(after):
            continue
        value = Decimal(found.group().replace(",", ""))
        if _ORDINAL.search(before):
            yield value, ""
            continue
        value, unit = _measured(-value if _MINUS.search(before) else value, after)
        currency = _CURRENCY.search(before)
        yield value, currency.group(1) if currency else unit
    for spelled, in_passing, end in _spelled(text):
        if spelled >= _LEAST_CLAIMED and not in_passing:
            yield _measured(Decimal(spelled), text[end:])
    for found in _KOREAN_NUMBER.finditer(text):
        yield _measured(Decimal(_KOREAN_NUMBERS[found.group(1)]), text[found.end() :])


def passing_quantities(text: str) -> Iterator[Quantity]:
    """Numbers said in passing ("first", "one", "twice"): too loose to be claims, but they back others."""
    for value, in_passing, end in _spelled(text):
        if in_passing or value < _LEAST_CLAIMED:
            yield _measured(Decimal(value), text[end:])


def is_backed(quantity: Quantity, said: frozenset[Quantity]) -> bool:
    """Whether a quantity is among those said; one without a unit matches any of its value."""
    value, unit = quantity
    return any(value == other and (unit == has or not unit or not has) for other, has in said)


def _near_before(text: str, found: re.Match[str]) -> str:
    return text[max(found.start() - _NEAR_CHARS, 0) : found.start()]


def _spelled(text: str) -> Iterator[tuple[int, bool, int]]:
    """Value, whether it is said in passing ("first", "twice"), and the end of each number in English words."""
    for found in _SPELLED_NUMBER.finditer(text):
        hundreds, more, tens, last, word = (part and part.lower() for part in found.groups())
        value = 100 * _ONES.get(hundreds or more or "", 1 if hundreds or more else 0)
        value += _TENS.get(tens or "", 0) + _SPELLED.get(last or word or "", 0)
        yield value, (last or word) in _PASSING, found.end()


def _add_up(text: str) -> Decimal | None:
    """The sum that a Korean number of several parts is; None for one of a single part, and for a list (5만 10만)."""
    if len(re.findall(r"\d[\d,]*", text)) == 1 and not re.search("[십백]", text):
        return None
    total = section = Decimal(0)
    least = max(_SCALES.values()) + 1
    number: Decimal | None = None
    for digits, small, large in _KOREAN_PART.findall(text):
        if digits:
            number = Decimal(digits.replace(",", ""))
        elif small:
            section += (1 if number is None else number) * _KOREAN_SMALL[small]
            number = None
        else:
            if _SCALES[large] >= least:
                return None
            least = _SCALES[large]
            total += (section + (number or 0) or 1) * 10**least
            section, number = Decimal(0), None
    return total + section + (number or 0)


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
