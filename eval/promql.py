"""The metrics and labels that an expression of PromQL names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^]]*\]|[a-zA-Z_:][\w:]*|\d[\w.]*|=~|!~|!=|\S')
_LABELS_FOLLOW = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}


@dataclass(slots=True)
class Named:
    """What an expression names: each metric with the labels that it is selected by; and labels to group or join by."""

    selectors: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)

    @property
    def metrics(self) -> set[str]:
        return {name for name, _ in self.selectors}


def names_in(expression: str) -> Named:
    """Of an expression that parses."""
    found = Named()
    tokens = [*_TOKEN.findall(expression), ""]
    at = 0
    while at < len(tokens) - 1:
        token, after = tokens[at], tokens[at + 1]
        at += 1
        if not re.match(r"[a-zA-Z_:]", token) or token in _WORDS:
            continue
        if token in _LABELS_FOLLOW:
            end = tokens.index(")", at)
            found.labels |= set(tokens[at + 1 : end]) - {","}
            at = end + 1
        elif after == "{":
            end = tokens.index("}", at)
            inside = tokens[at + 1 : end]
            found.selectors.append((token, {inside[i]: inside[i + 2].strip('"') for i in range(0, len(inside), 4)}))
            at = end + 1
        elif after not in ("(", "by", "without"):  # else a function, or an aggregation
            found.selectors.append((token, {}))
    return found
