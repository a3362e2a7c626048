"""How the store holds what can be filtered: texts without control characters, metadata with what a `not` needs.

Milvus Lite's grammar takes neither a raw line break nor the escape of one, and has no `not`. So a text is stored as
`to_column` has it, and metadata as

    data    what the document was given
    kinds   for each name that a filter could use: text, number, boolean or list
    has     for each such list of texts: a key for every text in it, all 1

`kinds` makes a condition on absent fields out of `!=`, which holds where there is nothing; `has` one on absent texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any

FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
MAX_JSON_DEPTH = 100
MAX_TEXT_BYTES = 65_535  # Milvus' limit on a VARCHAR, and on a JSON value
MAX_ARRAY_LENGTH = 4_096  # Milvus' limit on an ARRAY
_INT64 = range(-(2**63), 2**63)

# An unsafe character is stored as ␛ and its code in four signs for hexadecimal digits. All of these signs are unsafe
# themselves, so that a piece of a text is found in the stored form exactly where it is in the text.
_ESCAPE, _DIGITS = "␛", "␀␁␂␃␄␅␆␇␈␉␊␋␌␍␎␏"
_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROL}{_ESCAPE}{_DIGITS}]")
_ESCAPED = re.compile(f"{_ESCAPE}([{_DIGITS}]{{4}})")
_NEVER_STORED = re.compile(f"[{_CONTROL}]")
_FROM_HEX = str.maketrans("0123456789abcdef", _DIGITS)
_TO_HEX = str.maketrans(_DIGITS, "0123456789abcdef")


def to_column(text: str) -> str:
    """The form in which a filterable column holds a text: no control character, no lone surrogate. One to one."""
    return _UNSAFE.sub(lambda found: _ESCAPE + f"{ord(found[0]):04x}".translate(_FROM_HEX), text)


def from_column(stored: str) -> str:
    """The text that `to_column` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1].translate(_TO_HEX), 16)), stored)


def after_prefix(stored: str) -> str | None:
    """The first stored text behind all that start with `stored`, in the order of code points; None: there is none."""
    while stored:
        code = ord(stored[-1]) + 1
        while code <= 0x10FFFF and _NEVER_STORED.match(chr(code)):
            code += 1
        if code <= 0x10FFFF:
            return stored[:-1] + chr(code)
        stored = stored[:-1]
    return None


def document_columns(title: str, source: str, acl: Iterable[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What each row says of its document, as it is stored. Raises ValueError naming what Milvus could not hold."""
    columns = {
        "title": to_column(title),
        "source": to_column(source),
        "acl": [to_column(group) for group in acl],
        "metadata": to_metadata_column(metadata),
    }
    check_fit(columns)
    return columns


def check_fit(columns: Mapping[str, Any]) -> None:
    """Raises ValueError naming the column whose value Milvus could not hold."""
    for name, value in columns.items():
        problem = _misfit(value)
        if problem:
            raise ValueError(f"{name} {problem}")


def _misfit(value: Any) -> str | None:
    """Why Milvus could not hold the value; None when it can."""
    if isinstance(value, list):
        if len(value) > MAX_ARRAY_LENGTH:
            return f"has {len(value)} entries, at most {MAX_ARRAY_LENGTH} fit; give fewer"
        return next((problem for entry in value if (problem := _misfit(entry))), None)
    if isinstance(value, dict):
        try:
            value = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            return f"is not JSON: {error}"
    if isinstance(value, str):
        try:
            size = len(value.encode("utf-8"))
        except UnicodeEncodeError:
            return "holds half a character (a lone surrogate)"
        if size > MAX_TEXT_BYTES:
            return f"has {size} bytes, at most {MAX_TEXT_BYTES} fit; shorten it"
    return None


def to_metadata_column(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as it is stored. Raises ValueError when it is nested deeper than MAX_JSON_DEPTH, and for an integer
    beyond 64 bits."""
    kinds = {name: kind_of(value) for name, value in metadata.items() if _can_be_named(name)}
    lists = {name: metadata[name] for name, kind in kinds.items() if kind == "list"}
    return {
        "data": _map_texts(dict(metadata), to_column, MAX_JSON_DEPTH),
        "kinds": {name: kind for name, kind in kinds.items() if kind is not None},
        "has": {name: {list_key(text): 1 for text in held if isinstance(text, str)} for name, held in lists.items()},
    }


def from_metadata_column(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that `to_metadata_column` was given, its tuples as lists."""
    found: dict[str, Any] = _map_texts(stored["data"], from_column, MAX_JSON_DEPTH)
    return found


def list_key(text: str) -> str:
    """A text's key in `has`: 16 hexadecimal digits, since a key in an expression is no place for any text."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def kind_of(value: Any) -> str | None:
    """text, number, boolean or list; None for what no filter compares."""
    match value:
        case str():
            return "text"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case list() | tuple():
            return "list"
        case _:
            return None


def _can_be_named(name: object) -> bool:
    return isinstance(name, str) and FIELD_NAME.fullmatch(name) is not None


def _map_texts(value: Any, change: Callable[[str], str], levels: int) -> Any:
    if levels < 0:
        raise ValueError(f"metadata is nested deeper than {MAX_JSON_DEPTH} levels; make it flat")
    match value:
        case str():
            return change(value)
        case list() | tuple():
            return [_map_texts(entry, change, levels - 1) for entry in value]
        case dict():
            return {
                _map_texts(name, change, levels): _map_texts(entry, change, levels - 1) for name, entry in value.items()
            }
        case int() if value not in _INT64:
            raise ValueError("metadata holds an integer beyond 64 bits; write it as text")
        case _:
            return value
