"""The metrics and labels that an expression of PromQL names, and promtool, which knows whether it is one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

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


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Its run. Without promtool the test is skipped; in CI, which sets REQUIRE_PROMTOOL, it fails."""
    program = shutil.which("promtool")
    if program is None:
        reason = "promtool is not installed: it is in Debian's package prometheus"
        (pytest.fail if os.environ.get("REQUIRE_PROMTOOL") else pytest.skip)(reason)
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def check_expressions(expressions: Iterable[str], folder: Path) -> str:
    """What promtool has against them, empty where nothing; each becomes a recording rule of a file in `folder`."""
    rules = [{"record": f"checked:{number}", "expr": one} for number, one in enumerate(expressions)]
    path = folder / "expressions.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "checked", "rules": rules}]}), encoding="utf-8")
    done = promtool("check", "rules", path)
    return "" if done.returncode == 0 else done.stdout + done.stderr
