"""What a filter means, said once more without Milvus: the fake store's searches and the equivalence tests use it."""

from __future__ import annotations

import operator
from typing import Any

from rag.columns import kind_of, to_column
from rag.filters import (
    And,
    Compare,
    Empty,
    Equals,
    Filter,
    HasAny,
    Like,
    Metadata,
    Not,
    NotEquals,
    OneOf,
    Or,
)
from rag.types import StoredChunk

STORED_AS = {"text": "text", "integer": "number", "number": "number", "boolean": "boolean", "list": "list"}
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def matches(where: Filter, row: StoredChunk) -> bool:
    """Whether the filter means the row."""
    match where:
        case And(filters):
            return all(matches(part, row) for part in filters)
        case Or(filters):
            return any(matches(part, row) for part in filters)
        case Not(inner):
            return not matches(inner, row)
        case Empty(column):
            return not value_of(column, row)
    held = value_of(where.column, row)
    if held is None:  # no such field, or none of this type
        return False
    match where:
        case Equals(_, value):
            return bool(held == value)
        case NotEquals(_, value):
            return bool(held != value)
        case Compare(_, sign, str() as value):
            return bool(COMPARE[sign](to_column(held), to_column(value)))
        case Compare(_, sign, value):
            return bool(COMPARE[sign](held, value))
        case OneOf(_, values):
            return held in values
        case Like(_, "start", text):
            return bool(held.startswith(text))
        case Like(_, "end", text):
            return bool(held.endswith(text))
        case Like(_, "within", text):
            return text in held
        case HasAny(_, texts):
            return any(text in held for text in texts)
    raise AssertionError(where)


def value_of(column: Any, row: StoredChunk) -> Any:
    """What the row holds there; None where it has no such field, or one of another type than the declared."""
    if isinstance(column, Metadata):
        held = row.metadata.get(column.name)
        return held if STORED_AS[column.kind] == kind_of(held) else None
    columns = {"title": row.title, "source": row.source, "acl": row.acl, "updated_at": row.updated_at}
    return columns[column] if column in columns else getattr(row.chunk, column)
