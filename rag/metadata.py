"""The documents' metadata as the declared fields have it: a filter finds nothing in a value of another type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from rag.errors import InputError
from rag.filters import KIND_WORDS, FieldKind

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_metadata(pairs: Iterable[tuple[str, str]], fields: Mapping[str, FieldKind]) -> dict[str, Any]:
    """Metadata from names and texts, as a command line has them; a name that is not declared holds text.

    A list has one entry for each time that its name is given. Raises InputError for a text that the field cannot hold,
    for one that was no UTF-8 on the command line, and for a name that is given twice though it holds no list.
    """
    found: dict[str, Any] = {}
    for name, text in pairs:
        if _SURROGATE.search(name + text):
            raise InputError(
                f"metadata {_short(name)}={_short(text)} is no UTF-8; set the terminal to UTF-8 or give another"
            )
        kind = fields.get(name, "text")
        if kind == "list":
            found.setdefault(name, []).append(text)
        elif name in found:
            raise InputError(f"metadata {name} is given twice; it holds one value, {KIND_WORDS[kind]}")
        else:
            found[name] = _read(name, text, kind)
    return found


def check_metadata(metadata: Mapping[str, Any], fields: Mapping[str, FieldKind]) -> None:
    """Raises InputError naming the first declared field that holds something else than it was declared to."""
    for name, value in metadata.items():
        kind = fields.get(name)
        if kind is not None and not _holds(value, kind):
            raise InputError(
                f"metadata {name} is {_short(value)}; it must be {KIND_WORDS[kind]} (store.metadata_fields)"
            )


def _read(name: str, text: str, kind: FieldKind) -> Any:
    try:
        match kind:
            case "integer":
                return int(text)
            case "number":
                return _finite(float(text))
            case "boolean":
                return {"true": True, "false": False}[text]
            case _:
                return text
    except (ValueError, KeyError) as error:
        raise InputError(f"metadata {name} is {_short(text)}; it must be {KIND_WORDS[kind]}") from error


def _finite(number: float) -> float:
    if not isfinite(number):
        raise ValueError(number)
    return number


def _holds(value: Any, kind: FieldKind) -> bool:
    match kind:
        case "text":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "list":
            return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
