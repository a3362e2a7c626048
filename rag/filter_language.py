"""The filter language of the HTTP doors and the command: an expression -> the typed tree of rag.filters.

    expression  =  all { "or" all }
    all         =  single { "and" single }
    single      =  "not" single | "(" expression ")" | comparison
    comparison  =  name ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) value
                |  name "in" "[" [ value { "," value } ] "]"
                |  name "has" text                         a list holds it
                |  name "like" text                       % at its start, its end or both: any characters; \\%: a %
    value       =  text | -12 | 3.5 | true | false
    text        =  "..." or '...', with the escapes \\" \\' \\\\ \\n \\r \\t

A document that lacks a field, or holds it with another type, is found by no comparison with it, by `!=` neither.
`not` gives exactly what its operand does not: `lang != "ko"` finds the documents with another language, `not lang ==
"ko"` those without one too. Milvus cannot turn round every pattern: within `not`, one may have % at its end only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from rag.columns import FIELD_NAME
from rag.errors import FilterError
from rag.filters import (
    INT64,
    KIND_WORDS,
    OPPOSITES,
    And,
    Column,
    Compare,
    Equals,
    FieldKind,
    Filter,
    HasAny,
    Like,
    Metadata,
    Not,
    NotEquals,
    OneOf,
    Or,
    Value,
)

BuiltinField = Literal["source", "title", "document_id", "updated_at"]
BUILTIN_FIELDS: tuple[BuiltinField, ...] = get_args(BuiltinField)
METADATA_FIELDS: Mapping[str, FieldKind] = {"lang": "text", "author": "text", "year": "integer", "tags": "list"}
KEYWORDS = frozenset({"and", "or", "not", "in", "has", "like", "true", "false", "null"})

MAX_CHARS = 2_000
MAX_DEPTH = 20
MAX_VALUES = 100
MAX_DIGITS = 30

_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<number>-?[0-9]+(?:\.[0-9]+)?)(?![A-Za-z0-9_.])"
    r"|(?P<sign>==|!=|<=|>=|[<>()\[\],])"
    r'|(?P<text>"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')',
    re.DOTALL | re.ASCII,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
_HINTS = {"=": "write == to compare", "&": "write and", "|": "write or", "!": "write not, or != to compare"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # word, number, sign, text or end
    text: str
    column: int  # from 1


def check_field_names(fields: Mapping[str, FieldKind]) -> Mapping[str, FieldKind]:
    """The same declarations. Raises ValueError for a name that no expression could use."""
    for name in fields:
        if not FIELD_NAME.fullmatch(name) or name in KEYWORDS or name in BUILTIN_FIELDS:
            taken = ", ".join([*BUILTIN_FIELDS, *sorted(KEYWORDS)])
            raise ValueError(
                f"{name!r} cannot name a field: start with a letter or underscore, then letters, digits and "
                f"underscores, 64 at most; taken are: {taken}"
            )
    return fields


def parse_filter(expression: str, fields: Mapping[str, FieldKind]) -> Filter:
    """The tree of an expression over the built-in fields and the declared metadata `fields`.

    Raises FilterError with the column of the first mistake.
    """
    if len(expression) > MAX_CHARS:
        raise FilterError(MAX_CHARS + 1, f"it has {len(expression)} characters; at most {MAX_CHARS} are taken")
    known: dict[str, Column] = {name: Metadata(name, kind) for name, kind in fields.items()}
    known.update((name, name) for name in BUILTIN_FIELDS)
    parser = _Parser(_tokens(expression), known)
    where = parser.expression(0)
    if parser.token.kind != "end":
        raise parser.mistake(f"{_shown(parser.token)} stands where and, or, or the end is expected")
    return where


def _tokens(expression: str) -> list[_Token]:
    tokens, at = [], 0
    while at < len(expression):
        found = _TOKEN.match(expression, at)
        if found is None:
            raise FilterError(at + 1, _unreadable(expression, at))
        if found.lastgroup != "space":
            tokens.append(_Token(str(found.lastgroup), found[0], at + 1))
        at = found.end()
    return [*tokens, _Token("end", "", len(expression) + 1)]


def _unreadable(expression: str, at: int) -> str:
    sign = expression[at]
    if sign in "\"'":
        return f"the text that begins here has no closing {sign}"
    if sign in "-0123456789":
        return "this is no number; write digits, as 2024, -1 or 2.5"
    return f"{sign!r} has no meaning here" + (f"; {_HINTS[sign]}" if sign in _HINTS else "")


@dataclass(slots=True)
class _Parser:
    """Recursive descent with one token of look-ahead."""

    tokens: list[_Token]
    known: Mapping[str, Column]
    at: int = 0
    negated: bool = False  # within an odd number of nots

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def mistake(self, reason: str, token: _Token | None = None) -> FilterError:
        return FilterError((token or self.token).column, reason)

    def take(self) -> _Token:
        taken = self.token
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return taken

    def take_if(self, *texts: str) -> bool:
        """Whether the next token is one of these words or signs; it is then taken."""
        found = self.token.kind in ("word", "sign") and self.token.text in texts
        if found:
            self.take()
        return found

    def expect(self, sign: str) -> None:
        if not self.take_if(sign):
            raise self.mistake(f"{sign} is expected, not {_shown(self.token)}")

    def expression(self, depth: int) -> Filter:
        parts = [self.all_of(depth)]
        while self.take_if("or"):
            parts.append(self.all_of(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def all_of(self, depth: int) -> Filter:
        parts = [self.single(depth)]
        while self.take_if("and"):
            parts.append(self.single(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def single(self, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise self.mistake(f"more than {MAX_DEPTH} parentheses and nots stand within each other")
        if self.take_if("not"):
            self.negated = not self.negated
            inner = self.single(depth + 1)
            self.negated = not self.negated
            return Not(inner)
        if self.take_if("("):
            inner = self.expression(depth + 1)
            self.expect(")")
            return inner
        return self.comparison()

    def comparison(self) -> Filter:
        name = self.take()
        if name.kind != "word" or name.text in KEYWORDS:
            raise self.mistake(f"the name of a field is expected, not {_shown(name)}", name)
        column = self.known.get(name.text)
        if column is None:
            raise self.mistake(f"there is no field {name.text!r}; the names are: {', '.join(sorted(self.known))}", name)
        kind, operator = _kind(column), self.take()
        allowed = _operators(kind)
        if operator.text not in allowed or operator.kind not in ("word", "sign"):
            holds = f"{name.text} holds {KIND_WORDS[kind]}, and takes: {' '.join(allowed)}"
            raise self.mistake(f"{_shown(operator)} cannot stand here; {holds}", operator)
        if operator.text == "in":
            return OneOf(column, self.values(name.text, kind))
        if operator.text == "has":
            assert isinstance(column, Metadata)
            return HasAny(column, (str(self.value(name.text, "text")),))
        if operator.text == "like":
            return self.like(column, name.text)
        value = self.value(name.text, kind)
        match operator.text:
            case "==":
                return Equals(column, value)
            case "!=":
                return NotEquals(column, value)
            case "<" | "<=" | ">" | ">=" as sign:
                return Compare(column, sign, value)
        raise AssertionError(operator)

    def values(self, name: str, kind: FieldKind) -> tuple[Value, ...]:
        self.expect("[")
        values: list[Value] = []
        while not self.take_if("]"):
            if values:
                self.expect(",")
            if len(values) == MAX_VALUES:
                raise self.mistake(f"a list may have {MAX_VALUES} values")
            values.append(self.value(name, kind))
        return tuple(values)

    def value(self, name: str, kind: FieldKind) -> Value:
        token = self.take()
        match kind, token.kind:
            case "text", "text":
                return "".join(character for character, _ in _characters(token))
            case (("integer" | "number"), "number") if len(token.text) > MAX_DIGITS:
                raise self.mistake(
                    f"this number has {len(token.text)} characters; at most {MAX_DIGITS} are taken", token
                )
            case (("integer" | "number"), "number") if "." not in token.text:
                number = int(token.text)
                if number not in INT64:
                    raise self.mistake("this number does not fit into 64 bits", token)
                return number
            case "number", "number":
                return float(token.text)
            case "boolean", "word" if token.text in ("true", "false"):
                return token.text == "true"
        raise self.mistake(f"{name} is compared with {_shown(token)}; it holds {KIND_WORDS[kind]}", token)

    def like(self, column: Column, name: str) -> Filter:
        token = self.token
        if token.kind != "text":
            self.value(name, "text")
        characters = _characters(self.take(), pattern=True)
        first, last = characters[:1] == [("%", False)], characters[-1:] == [("%", False)]
        inner = (
            characters[int(first) : len(characters) - int(last)] if len(characters) > 1 else characters[int(first) :]
        )
        if ("%", False) in inner:
            raise self.mistake(
                "a pattern may have % at its start, at its end or at both; write \\% for a percent sign", token
            )
        text = "".join(character for character, _ in inner)
        if not first and not last:
            return Equals(column, text)
        if not text or not first:
            return Like(column, "start", text)
        if self.negated:
            raise self.mistake("within not, a pattern may have % at its end only", token)
        return Like(column, "within" if last else "end", text)


def _kind(column: Column) -> FieldKind:
    return column.kind if isinstance(column, Metadata) else "text"


def _operators(kind: FieldKind) -> list[str]:
    if kind == "list":
        return ["has"]
    if kind == "boolean":
        return ["==", "!="]
    return ["==", "!=", *OPPOSITES, "in", *(["like"] if kind == "text" else [])]


def _characters(token: _Token, *, pattern: bool = False) -> list[tuple[str, bool]]:
    """A text's characters, each with whether it was escaped. Raises FilterError for an escape that has no meaning."""
    raw, found, at = token.text[1:-1], [], 0
    while at < len(raw):
        escape = _ESCAPE.match(raw, at)
        if escape is None:
            found.append((raw[at], False))
            at += 1
            continue
        code = escape[1]
        if code in _ESCAPES or (pattern and code == "%"):
            found.append((_ESCAPES.get(code, code), True))
        else:
            known = " ".join(f"\\{letter}" for letter in _ESCAPES)
            only = "" if pattern else " (\\% only in the pattern of like)"
            reason = f"\\{code} is no escape{only}; those are: {known}"
            raise FilterError(token.column + 1 + at, reason)
        at = escape.end()
    return found


def _shown(token: _Token) -> str:
    if token.kind == "end":
        return "the end"
    return token.text if len(token.text) <= 40 else f"{token.text[:40]}..."
