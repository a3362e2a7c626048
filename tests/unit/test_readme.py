"""The README and the measured figures say what is so: defaults, files, commands, versions, an example that quotes its
document verbatim."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

from rag.cli import main
from rag.config import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = (ROOT / "eval" / "MEASURED.md").read_text(encoding="utf-8")
BOTH = README + MEASURED
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", BOTH, flags=re.MULTILINE | re.DOTALL))
CODE = [*SHELL, *SPANS]  # everything that a person may type
SETTING_ROW = re.compile(r"^\| `([a-z_.]+)` \| `(RAG_\w+)` \| (.+?) \| (.+?) \|", re.MULTILINE)
RAG_COMMAND = re.compile(r"(?:^|/)rag ((?:--\w+ \w+ )*)([a-z][a-z-]*)([^#>]*)")


@pytest.fixture(autouse=True)
def without_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("RAG_", "XDG_"))]:
        monkeypatch.delenv(name)


def block(kind: str, start: str) -> str:
    found: str
    (found,) = [text for one, text in BLOCKS if one == kind and text.startswith(start)]
    return found


# --- settings ---


def shown(settings: Settings, name: str) -> str:
    """A setting's value as the table writes it."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    match value:
        case None:
            return "none"
        case Path():
            return f"~/{value.relative_to(Path.home())}"
        case float():
            return f"{value:.15g}"
        case tuple():
            return json.dumps(value)
        case _:
            return str(value)


@pytest.mark.parametrize(("profile", "column"), [("embedded", 2), ("gpu", 3)])
def test_the_settings_table_has_the_defaults(profile: str, column: int) -> None:
    rows = SETTING_ROW.findall(README)
    assert len(rows) >= 20
    settings = load_settings(profile=profile)
    stated = {row[0]: row[column] for row in rows}
    assert stated == {name: shown(settings, name) for name in stated}


def test_a_setting_is_named_as_its_variable() -> None:
    for name, variable, *_ in SETTING_ROW.findall(README):
        assert variable == "RAG_" + name.replace(".", "__").upper()


# --- the tree ---


def tree() -> list[str]:
    """Paths of the annotated tree, folders with a slash at the end."""
    paths: list[str] = []
    folder = ""
    for line in block("text", "Makefile").splitlines():
        name = line.split()[0]
        path = folder + name if line.startswith("  ") else name
        if not line.startswith("  "):
            folder = name if name.endswith("/") else ""
        paths.append(path)
    return paths


def test_everything_in_the_tree_exists() -> None:
    paths = tree()
    assert len(paths) == len(set(paths))
    missing = [path for path in paths if not ((ROOT / path).is_dir() if path[-1] == "/" else (ROOT / path).is_file())]
    assert missing == []


@pytest.mark.parametrize("package", ["rag", "ingest", "deployments", "eval"])
def test_every_module_is_in_the_tree(package: str) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
    modules.discard(f"{package}/__init__.py")  # the package's own line stands for it
    assert modules
    assert modules - set(tree()) == set()


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


# --- commands ---


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for text in CODE for name in re.findall(r"^make ([a-z-]+)", text)}
    assert {"demo", "test", "serve"} <= named
    assert named - targets == set()


def test_every_rag_command_and_option_exists() -> None:
    used: set[str] = set()
    for text in CODE:
        for before, name, rest in RAG_COMMAND.findall(text):
            assert name in main.commands, text
            used.add(name)
            assert options(before) <= options_of(main), text
            assert options(rest) <= options_of(subcommand(main.commands[name], rest)), text
    assert {"ingest", "ask", "serve", "doctor"} <= used


def subcommand(command: click.Command, rest: str) -> click.Command:
    """The command of a group that `rest` begins with; the command itself where it is no group, or named alone."""
    words = rest.split()
    if not isinstance(command, click.Group) or not words:
        return command
    return command.commands[words[0]]


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<!\S)--[a-z-]+", text))


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


def test_every_module_that_is_run_exists() -> None:
    named = {name for text in CODE for name in re.findall(r"python -m ([\w.]+)", text)}
    assert named
    assert [name for name in named if find_spec(name) is None] == []


# --- facts ---


def test_the_carried_packages_are_the_locked_ones() -> None:
    lock = (ROOT / "infra" / "locks" / "cpu.lock").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` ([\d.]+) \|", README, re.MULTILINE)
    assert len(rows) == 3
    assert [row for row in rows if f"\n{row[0]}=={row[1]} " not in lock] == []


def test_the_example_response_cites_its_document_verbatim() -> None:
    response = json.loads(block("json", "{"))
    (citation,) = response["citations"]
    path = ROOT / "examples" / citation["source"].partition("/examples/")[2]
    text = path.read_text(encoding="utf-8")
    assert text[citation["char_start"] : citation["char_end"]] == citation["quote"]
    supported = response["answer"][citation["answer_start"] : citation["answer_end"]]
    assert response["answer"] == f"{supported} [{citation['marker']}]"
    assert supported == citation["quote"]
    assert citation["title"] == text.splitlines()[0].removeprefix("# ")


def test_no_figure_is_left_out() -> None:
    assert re.findall(r"\{\{.*?\}\}|^@", BOTH, re.MULTILINE) == []
