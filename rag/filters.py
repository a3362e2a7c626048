"""Which stored chunks are meant: a typed tree, and the only place that writes a Milvus expression.

Milvus Lite 2.5.1 has no filter templates, so values stand in the expression as literals, in the form of rag.columns.

A metadata field that a chunk lacks, or holds with another type than the declared one, makes every comparison with it
false, `!=` too. `Not` is the plain complement: what its filter does not mean. Milvus has no complement of the end or
the middle of a text, nor of groups: those within a Not are a TypeError.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from heapq import heapify, heappop, heappush
from math import isfinite
from typing import Literal, TypeAlias, get_args

from rag.columns import FIELD_NAME, after_prefix, list_key, to_column

ScalarColumn = Literal["chunk_id", "document_id", "revision", "ordinal", "source", "title", "updated_at"]
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
OPPOSITES = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
INT64 = range(-(2**63) + 1, 2**63)  # Milvus reads the digits before the sign

_Part: TypeAlias = tuple[int, str]  # how deep an expression nests, and the expression
_COMPARISON_DEPTH = 2
EVERY_CHUNK = "ordinal >= 0"
NO_CHUNK = "ordinal < 0"


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
    return _compile(where, negated=False)[1]


def compile_filter_after(where: Filter, chunk_id: str) -> str:
    """As `compile_filter`, for the chunks whose ids come after `chunk_id`: the next page in the order of ids."""
    return f"chunk_id > {_quoted(chunk_id)} and ({compile_filter(where)})"


def _compile(where: Filter, negated: bool) -> _Part:
    """The filter, or its complement: Milvus Lite has no `not`, so each comparison is turned round instead."""
    match where:
        case Not(inner):
            return _compile(inner, not negated)
        case And(filters) | Or(filters):
            every = isinstance(where, And) != negated
            return _joined([_compile(part, negated) for part in filters], every)
        case HasAny(Metadata() as column, texts):
            name, keys = _list_name(column), [list_key(_text(column, text)) for text in texts]
            sign = "!=" if negated else "=="
            return _joined([(0, f'metadata["has"]["{name}"]["{key}"] {sign} 1') for key in keys], every=negated)
    return _COMPARISON_DEPTH, _comparison(where, negated)


def _joined(parts: list[_Part], every: bool) -> _Part:
    """All of the parts, or one of them, as a tree that is as flat as can be: the flattest parts are joined first.

    Milvus Lite refuses what nests deeper than some 50 levels, and a plain chain of 60 is that deep.
    """
    if not parts:
        return 0, EVERY_CHUNK if every else NO_CHUNK
    waiting = [(depth, number, expression) for number, (depth, expression) in enumerate(parts)]
    heapify(waiting)
    while len(waiting) > 1:
        (_, number, left), (depth, _, right) = heappop(waiting), heappop(waiting)
        heappush(waiting, (depth + 1, number, f"({left}) {'and' if every else 'or'} ({right})"))
    depth, _, expression = waiting[0]
    return depth, expression


# --- one comparison, or its complement ---


def _comparison(where: Filter, negated: bool) -> str:
    match where:
        case Equals(column, value):
            return _equal(column, value, negated)
        case NotEquals(column, value):
            return _unequal(column, value, negated)
        case Compare(column, operator, value):
            return _compared(column, operator, value, negated)
        case OneOf(column, values):
            return _one_of(column, values, negated)
        case Like(column, place, text):
            return _like(column, place, text, negated)
        case HasAny(column, texts):
            return _has_any(column, texts, negated)
        case Empty(column):
            return f"array_length({_array_column(column)}) {'!=' if negated else '=='} 0"
    raise TypeError(f"{where!r} is no filter")


def _equal(column: Column, value: Value, negated: bool) -> str:
    # Milvus' own != holds where there is no such field, which makes it the complement.
    return f"{_scalar(column)} {'!=' if negated else '=='} {_literal(column, value)}"


def _unequal(column: Column, value: Value, negated: bool) -> str:
    if not isinstance(column, Metadata):
        return _equal(column, value, not negated)
    if negated:
        return f"({_equal(column, value, False)} or {_absent(column)})"
    return f"({_equal(column, value, True)} and {_present(column)})"


def _compared(column: Column, operator: str, value: Value, negated: bool) -> str:
    if operator not in OPPOSITES or _kind(column) == "boolean":
        raise TypeError(f"{column!r} {operator!r} {value!r} is no comparison; numbers and texts have < <= > >=")
    compared = f"{_scalar(column)} {OPPOSITES[operator] if negated else operator} {_literal(column, value)}"
    return _or_absent(column, compared) if negated else compared


def _one_of(column: Column, values: Sequence[Value], negated: bool) -> str:
    name, listed = _scalar(column), ", ".join(_literal(column, value) for value in values)
    if not listed:
        return EVERY_CHUNK if negated else NO_CHUNK
    return f"{name} {'not in' if negated else 'in'} [{listed}]"


def _like(column: Column, place: str, text: str, negated: bool) -> str:
    name, stored = _scalar(column), to_column(_text(column, text))
    if place == "start" or not stored:
        # Not by `like`: Milvus versions differ in how they read an escape in front of the last %.
        start, after = _quoted(stored), after_prefix(stored)
        if negated:
            behind = f" or {name} >= {_quoted(after)}" if after is not None else ""
            return _or_absent(column, f"{name} < {start}{behind}")
        return f"({name} >= {start}" + (f" and {name} < {_quoted(after)})" if after is not None else ")")
    if negated:
        raise TypeError(f"{column!r} like {text!r} cannot stand within a not unless it is at the text's start")
    escaped = re.sub(r"([\\%_])", r"\\\1", stored)
    patterns = {"end": f"%{escaped}", "within": f"%{escaped}%"}
    if place not in patterns:
        raise TypeError(f"{place!r} is no place in a text; those are: start, end, within")
    return f"{name} like {_quoted(patterns[place])}"


def _has_any(column: object, texts: Sequence[str], negated: bool) -> str:
    name, listed = _array_column(column), ", ".join(_literal("acl", text) for text in texts)
    if negated:
        raise TypeError(f"{name} cannot stand within a not")
    return f"array_contains_any({name}, [{listed}])" if listed else NO_CHUNK


def _or_absent(column: Column, condition: str) -> str:
    return f"({condition} or {_absent(column)})" if isinstance(column, Metadata) else f"({condition})"


def _absent(column: Metadata) -> str:
    return f'metadata["kinds"]["{_name(column)}"] != "{_stored_kind(column)}"'


def _present(column: Metadata) -> str:
    return f'metadata["kinds"]["{_name(column)}"] == "{_stored_kind(column)}"'


def _stored_kind(column: Metadata) -> str:
    return "number" if column.kind == "integer" else column.kind


# --- columns and literals ---


def _kind(column: Column | ArrayColumn) -> FieldKind:
    if isinstance(column, Metadata):
        return column.kind
    return "integer" if column in INTEGER_COLUMNS else "text"


def _literal(column: Column | ArrayColumn, value: Value) -> str:
    kind = _kind(column)
    if kind == "text":
        return _quoted(to_column(_text(column, value)))
    if kind == "boolean" and isinstance(value, bool):
        return "true" if value else "false"
    if kind == "integer" and isinstance(value, int) and not isinstance(value, bool) and value in INT64:
        return str(value)
    if kind == "number" and isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        digits = format(Decimal(repr(float(value))), "f")
        return digits if "." in digits else f"{digits}.0"
    raise TypeError(f"{column!r} is compared with {value!r}; it holds {KIND_WORDS[kind]}")


def _text(column: Column | ArrayColumn, value: object) -> str:
    if not isinstance(value, str) or _kind(column) not in ("text", "list"):
        raise TypeError(f"{column!r} is compared with {value!r}; it holds {KIND_WORDS[_kind(column)]}")
    return value


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _scalar(column: Column) -> str:
    if isinstance(column, Metadata) and column.kind != "list":
        return f'metadata["data"]["{_name(column)}"]'
    if column not in SCALAR_COLUMNS:
        raise TypeError(f"{column!r} is no scalar column; those are: {', '.join(sorted(SCALAR_COLUMNS))}")
    return str(column)


def _array_column(column: object) -> str:
    if column not in ARRAY_COLUMNS:
        raise TypeError(f"{column!r} is no array column; those are: {', '.join(sorted(ARRAY_COLUMNS))}")
    return str(column)


def _list_name(column: Metadata) -> str:
    if column.kind != "list":
        raise TypeError(f"{column!r} is no list")
    return _name(column)


def _name(column: Metadata) -> str:
    if not FIELD_NAME.fullmatch(column.name):
        raise TypeError(f"{column.name!r} cannot name a metadata field: use letters, digits and underscores")
    return column.name
