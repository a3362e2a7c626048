"""Which stored chunks are meant: a typed tree, and the only place that writes a Milvus expression.

Milvus Lite 2.5.1 has no filter templates, so values stand in the expression as literals. Its grammar takes neither a
raw line break nor the escape of one; the filterable columns therefore hold `to_column` of a value, which has no control
character at all, and `compile_filter` writes the same form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

ScalarColumn = Literal["document_id", "revision", "ordinal", "source"]
ArrayColumn = Literal["acl"]
Value: TypeAlias = str | int

INTEGER_COLUMNS = frozenset({"ordinal"})
SCALAR_COLUMNS = frozenset(get_args(ScalarColumn))
ARRAY_COLUMNS = frozenset(get_args(ArrayColumn))

EVERY_CHUNK = "ordinal >= 0"
NO_CHUNK = "ordinal < 0"

_ESCAPE = "␛"  # the printable sign for ESC
_UNSAFE = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{_ESCAPE}]")
_ESCAPED = re.compile(f"{_ESCAPE}([0-9a-f]{{4}})")


@dataclass(frozen=True, slots=True)
class Equals:
    """The column holds this value."""

    column: ScalarColumn
    value: Value


@dataclass(frozen=True, slots=True)
class NotEquals:
    """The column holds another value."""

    column: ScalarColumn
    value: Value


@dataclass(frozen=True, slots=True)
class OneOf:
    """The column holds one of the values; none given: no chunk."""

    column: ScalarColumn
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class HasAny:
    """The array column holds at least one of the values; none given: no chunk."""

    column: ArrayColumn
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class And:
    """All of the filters hold; none given: every chunk."""

    filters: tuple[Filter, ...]


Filter: TypeAlias = Equals | NotEquals | OneOf | HasAny | And


def compile_filter(where: Filter) -> str:
    """A Milvus boolean expression. Raises TypeError for an unknown column or a value not of the column's type."""
    match where:
        case Equals(column, value):
            return f"{_scalar(column)} == {_literal(column, value)}"
        case NotEquals(column, value):
            return f"{_scalar(column)} != {_literal(column, value)}"
        case OneOf(column, values):
            listed = ", ".join(_literal(_scalar(column), value) for value in values)
            return f"{column} in [{listed}]" if listed else NO_CHUNK
        case HasAny(column, texts):
            listed = ", ".join(_literal(_array(column), text) for text in texts)
            return f"array_contains_any({column}, [{listed}])" if listed else NO_CHUNK
        case And(filters):
            return " and ".join(f"({compile_filter(part)})" for part in filters) or EVERY_CHUNK


def compile_filter_after(where: Filter, chunk_id: str) -> str:
    """As `compile_filter`, for the chunks whose ids come after `chunk_id`: the next page in the order of ids."""
    return f"chunk_id > {_quoted(chunk_id)} and ({compile_filter(where)})"


def to_column(text: str) -> str:
    """The form in which a filterable column holds a text: no control character, no lone surrogate. One to one."""
    return _UNSAFE.sub(lambda found: f"{_ESCAPE}{ord(found[0]):04x}", text)


def from_column(stored: str) -> str:
    """The text that `to_column` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), stored)


def _literal(column: str, value: Value) -> str:
    if column in INTEGER_COLUMNS:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{column} is compared with {value!r}; it holds integers")
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{column} is compared with {value!r}; it holds text")
    return _quoted(to_column(value))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _scalar(column: str) -> str:
    if column not in SCALAR_COLUMNS:
        raise TypeError(f"{column!r} is no scalar column; those are: {', '.join(sorted(SCALAR_COLUMNS))}")
    return column


def _array(column: str) -> str:
    if column not in ARRAY_COLUMNS:
        raise TypeError(f"{column!r} is no array column; those are: {', '.join(sorted(ARRAY_COLUMNS))}")
    return column
