"""Which stored chunks are meant: a typed tree, and the only place that writes a Milvus expression.

Milvus Lite 2.5.1 has no filter templates, so values stand in the expression as literals. Its grammar takes neither a
raw line break nor the escape of one; what can be filtered is therefore stored as `to_column` of its texts, which has no
control character at all, and `compile_filter` writes the same form.

A metadata field that a chunk lacks, or holds with another type than the declared one, makes every comparison with it
false, `!=` too. `Not` is the plain complement: what its filter does not mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import Any, Literal, TypeAlias, get_args

ScalarColumn = Literal["document_id", "revision", "ordinal", "source", "title", "updated_at"]
ArrayColumn = Literal["acl"]
FieldKind = Literal["text", "integer", "number", "boolean", "list"]
Operator = Literal["<", "<=", ">", ">="]
Value: TypeAlias = str | int | float  # a bool where the field is boolean

KIND_WORDS: Mapping[FieldKind, str] = {
    "text": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "list": "a list of texts",
}
INTEGER_COLUMNS = frozenset({"ordinal"})
SCALAR_COLUMNS = frozenset(get_args(ScalarColumn))
ARRAY_COLUMNS = frozenset(get_args(ArrayColumn))
OPERATORS = frozenset(get_args(Operator))
FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
MAX_JSON_DEPTH = 100
INT64 = range(-(2**63) + 1, 2**63)  # Milvus reads the digits before the sign

EVERY_CHUNK = "ordinal >= 0"
NO_CHUNK = "ordinal < 0"

# An unsafe character is stored as ␛ and its code in four signs for hexadecimal digits. All of these signs are unsafe
# themselves, so that a piece of a text is found in the stored form exactly where it is in the text.
_ESCAPE, _DIGITS = "␛", "␀␁␂␃␄␅␆␇␈␉␊␋␌␍␎␏"
_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROL}{_ESCAPE}{_DIGITS}]")
_ESCAPED = re.compile(f"{_ESCAPE}([{_DIGITS}]{{4}})")
_NEVER_STORED = re.compile(f"[{_CONTROL}]")
_FROM_HEX = str.maketrans("0123456789abcdef", _DIGITS)
_TO_HEX = str.maketrans(_DIGITS, "0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Metadata:
    """A declared field of the documents' metadata; `list` is one of texts."""

    name: str
    kind: FieldKind


Column: TypeAlias = ScalarColumn | Metadata


@dataclass(frozen=True, slots=True)
class Equals:
    """The column holds this value."""

    column: Column
    value: Value


@dataclass(frozen=True, slots=True)
class NotEquals:
    """The column holds another value."""

    column: Column
    value: Value


@dataclass(frozen=True, slots=True)
class Compare:
    """The column holds a value before or behind this one: numbers by size, texts by the code points of `to_column`."""

    column: Column
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class OneOf:
    """The column holds one of the values; none given: no chunk."""

    column: Column
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """The column's text starts with, ends with or has within it this text, letter by letter."""

    column: Column
    place: Literal["start", "end", "within"]
    text: str


@dataclass(frozen=True, slots=True)
class HasAny:
    """The array column, or the list, holds at least one of the values; none given: no chunk."""

    column: ArrayColumn | Metadata
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Empty:
    """The array column holds nothing."""

    column: ArrayColumn


@dataclass(frozen=True, slots=True)
class And:
    """All of the filters hold; none given: every chunk."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of the filters holds; none given: no chunk."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The filter does not hold."""

    filter: Filter


Filter: TypeAlias = Equals | NotEquals | Compare | OneOf | Like | HasAny | Empty | And | Or | Not


def visible_to(groups: Collection[str]) -> Filter:
    """The chunks that a caller of these groups may see: those open to everyone, and those of one of the groups."""
    return Or((Empty("acl"), HasAny("acl", tuple(sorted(groups)))))


def compile_filter(where: Filter) -> str:
    """A Milvus boolean expression. Raises TypeError for an unknown column or a value not of the column's type."""
    match where:
        case Equals(column, value):
            return f"{_scalar(column)} == {_literal(column, value)}"
        case NotEquals(column, value):
            return _other_than(column, value)
        case Compare(column, operator, value):
            return _compared(column, operator, value)
        case OneOf(column, values):
            name, listed = _scalar(column), ", ".join(_literal(column, value) for value in values)
            return f"{name} in [{listed}]" if listed else NO_CHUNK
        case Like(column, place, text):
            return _like(column, place, text)
        case HasAny(column, texts):
            contains, listed = _array(column), ", ".join(_text(column, text) for text in texts)
            return f"{contains}, [{listed}])" if listed else NO_CHUNK
        case Empty(column):
            return f"array_length({_array_column(column)}) == 0"
        case And(filters):
            return " and ".join(f"({compile_filter(part)})" for part in filters) or EVERY_CHUNK
        case Or(filters):
            return " or ".join(f"({compile_filter(part)})" for part in filters) or NO_CHUNK
        case Not(inner):
            return f"not ({compile_filter(inner)})"


def compile_filter_after(where: Filter, chunk_id: str) -> str:
    """As `compile_filter`, for the chunks whose ids come after `chunk_id`: the next page in the order of ids."""
    return f"chunk_id > {_quoted(chunk_id)} and ({compile_filter(where)})"


def to_column(text: str) -> str:
    """The form in which a filterable column holds a text: no control character, no lone surrogate. One to one."""
    return _UNSAFE.sub(lambda found: _ESCAPE + f"{ord(found[0]):04x}".translate(_FROM_HEX), text)


def from_column(stored: str) -> str:
    """The text that `to_column` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1].translate(_TO_HEX), 16)), stored)


def to_json_column(value: Any) -> Any:
    """A JSON value with `to_column` of each text in it, names of fields among them.

    Raises ValueError for one nested deeper than MAX_JSON_DEPTH.
    """
    return _map_texts(value, to_column, MAX_JSON_DEPTH)


def from_json_column(stored: Any) -> Any:
    """The value that `to_json_column` was given."""
    return _map_texts(stored, from_column, MAX_JSON_DEPTH)


def _map_texts(value: Any, change: Callable[[str], str], levels: int) -> Any:
    if levels < 0:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels; make it flat")
    match value:
        case str():
            return change(value)
        case list() | tuple():
            return [_map_texts(entry, change, levels - 1) for entry in value]
        case dict():
            return {
                _map_texts(name, change, levels): _map_texts(entry, change, levels - 1) for name, entry in value.items()
            }
        case _:
            return value


def _other_than(column: Column, value: Value) -> str:
    if not isinstance(column, Metadata):
        return f"{_scalar(column)} != {_literal(column, value)}"
    # Milvus' own != holds for a chunk without the field.
    if column.kind == "boolean":
        _literal(column, value)
        return f"{_scalar(column)} == {_literal(column, not value)}"
    name, literal = _scalar(column), _literal(column, value)
    return f"({name} < {literal} or {name} > {literal})"


def _compared(column: Column, operator: str, value: Value) -> str:
    if operator not in OPERATORS or _kind(column) == "boolean":
        raise TypeError(f"{column!r} {operator!r} {value!r} is no comparison; numbers and texts have < <= > >=")
    return f"{_scalar(column)} {operator} {_literal(column, value)}"


def _like(column: Column, place: str, text: str) -> str:
    name, stored = _scalar(column), _stored(column, text)
    if place == "start" or not stored:
        # Not by `like`: Milvus versions differ in how they read an escape in front of the last %.
        end = _after_all_with_prefix(stored)
        upper = f" and {name} < {_quoted(end)}" if end else ""
        return f"({name} >= {_quoted(stored)}{upper})"
    escaped = re.sub(r"([\\%_])", r"\\\1", stored)
    patterns = {"end": f"%{escaped}", "within": f"%{escaped}%"}
    if place not in patterns:
        raise TypeError(f"{place!r} is no place in a text; those are: start, end, within")
    return f"{name} like {_quoted(patterns[place])}"


def _after_all_with_prefix(stored: str) -> str | None:
    """The first stored text behind all that start with `stored`, None when there is none."""
    while stored:
        code = ord(stored[-1]) + 1
        while code <= 0x10FFFF and _NEVER_STORED.match(chr(code)):
            code += 1
        if code <= 0x10FFFF:
            return stored[:-1] + chr(code)
        stored = stored[:-1]
    return None


def _kind(column: Column | ArrayColumn) -> FieldKind:
    if isinstance(column, Metadata):
        return column.kind
    return "integer" if column in INTEGER_COLUMNS else "text"


def _literal(column: Column, value: Value) -> str:
    kind = _kind(column)
    if kind == "text":
        return _text(column, value)
    if kind == "boolean" and isinstance(value, bool):
        return "true" if value else "false"
    if kind == "integer" and isinstance(value, int) and not isinstance(value, bool) and value in INT64:
        return str(value)
    if kind == "number" and isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        digits = format(Decimal(repr(float(value))), "f")
        return digits if "." in digits else f"{digits}.0"
    raise TypeError(f"{column!r} is compared with {value!r}; it holds {KIND_WORDS[kind]}")


def _text(column: Column | ArrayColumn, value: object) -> str:
    return _quoted(_stored(column, value))


def _stored(column: Column | ArrayColumn, value: object) -> str:
    if not isinstance(value, str) or _kind(column) not in ("text", "list"):
        raise TypeError(f"{column!r} is compared with {value!r}; it holds {KIND_WORDS[_kind(column)]}")
    return to_column(value)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _scalar(column: Column) -> str:
    if isinstance(column, Metadata) and column.kind != "list":
        return _metadata(column)
    if column not in SCALAR_COLUMNS:
        raise TypeError(f"{column!r} is no scalar column; those are: {', '.join(sorted(SCALAR_COLUMNS))}")
    return str(column)


def _array(column: ArrayColumn | Metadata) -> str:
    """The head of a call that looks into the array."""
    if isinstance(column, Metadata) and column.kind == "list":
        return f"json_contains_any({_metadata(column)}"
    return f"array_contains_any({_array_column(column)}"


def _array_column(column: object) -> str:
    if column not in ARRAY_COLUMNS:
        raise TypeError(f"{column!r} is no array column; those are: {', '.join(sorted(ARRAY_COLUMNS))}")
    return str(column)


def _metadata(column: Metadata) -> str:
    if not FIELD_NAME.fullmatch(column.name):
        raise TypeError(f"{column.name!r} cannot name a metadata field: use letters, digits and underscores")
    return f'metadata["{column.name}"]'
