"""Each runbook has its four parts, its commands parse, its links lead somewhere, and each alert has a page."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest
from ray.scripts.scripts import cli as ray_cli
from ray.serve.scripts import cli as serve_cli

from deployments.ingress import create_api
from rag.cli import main
from rag.config import load_settings
from tests.k8s_manifests import INGEST, applied, kubectl, walk

FOLDER = Path(__file__).parents[2] / "infra" / "runbooks"
INDEX = FOLDER / "README.md"
PAGES = sorted(set(FOLDER.glob("*.md")) - {INDEX})
ALERTS = {
    *("RagUnavailable", "RagLatencyHigh", "RagDegraded", "RagAbstentionJump", "RagQueueOld", "RagKvCacheFull"),
    *("RagReplicaRestarts", "RagIngestStuck", "RagDiskFull", "RagMilvusDown"),
}
# On one machine; each says what was seen.
PLAYED = {"oom-spiral", "milvus-lost-or-full", "ingest-stuck", "autoscaler-oscillation", "bad-model-rollout"}
COMMANDS: dict[str, click.Command] = {"rag": main, "ray": ray_cli, "serve": serve_cli}
ROW = re.compile(r"^\| \[[^]]+\]\(([\w-]+\.md)\) \| (.+) \|$", re.MULTILINE)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def shell_lines(text: str) -> Iterator[str]:
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a pipeline or list, also within $( ); what follows `--` is a command of its own."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            if "--" in words:
                at = words.index("--")
                yield words[:at]
                words = words[at + 1 :]
            yield words
            words = []
        else:
            words.append(word)


def commands(path: Path) -> list[list[str]]:
    """Those of the blocks, as they are typed."""
    return [words for line in shell_lines(read(path)) for words in simple_commands(line) if words]


def mentions(path: Path) -> list[list[str]]:
    """What stands between backquotes and begins like a command; its arguments may be left out."""
    spans = re.findall(r"`((?:kubectl|rag|ray|serve) [^`]+)`", re.sub(r"\s+", " ", read(path)))
    return [words for span in spans for words in simple_commands(span) if words]


def parse(words: list[str]) -> None:
    """As click does before it runs a command. Raises click.ClickException."""
    command, (name, *arguments) = COMMANDS[words[0]], words
    # With its own settings: click keeps the help option that a command is first asked for.
    context = click.Context(command, info_name=name, **command.context_settings)
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=name, **command.context_settings)
        found, resolved, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command, name = resolved, str(found)
    command.make_context(name, arguments, parent=context)


@functools.cache
def kubectl_options(*words: str) -> set[str]:
    """The options of a command of kubectl, by its own help, and those of all commands."""
    found: set[str] = set()
    for arguments in ((*words, "--help"), ("options",)):
        done = subprocess.run([kubectl(), *arguments], capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            if match := re.match(r"\s+(?:(-\w), )?(--[a-z-]+)=", line):
                found |= set(match.groups()) - {None}
    return found


def check_kubectl(words: list[str]) -> None:
    """Raises AssertionError for a command or option that there is not."""
    rest = words[3:] if words[1] == "-n" else words[1:]
    verb = rest[:1]
    if verb[0] in ("rollout", "top"):
        verb = rest[:2]
    elif verb[0] == "create" and rest[1] == "secret":
        verb = rest[:3]
    options = {word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)}
    options = {f"-{letter}" for one in options if one == "-it" for letter in "it"} | (options - {"-it"})
    assert options <= kubectl_options(*verb), words


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
class TestPage:
    def test_it_is_a_page_and_has_its_parts(self, path: Path) -> None:
        text = read(path)
        assert 40 <= len(text.splitlines()) <= 80
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == ["Signs", "First look", "Fix", "Proof that it is fixed"]
        assert len(re.findall(r"^Not tried here: .", text, re.MULTILINE)) == 1
        assert bool(re.search(r"^Played on \d", text, re.MULTILINE)) == (path.stem in PLAYED)
        assert max(map(len, text.splitlines())) <= 140

    def test_first_look_and_proof_are_commands(self, path: Path) -> None:
        parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", read(path), re.MULTILINE | re.DOTALL))
        for name in ("First look", "Proof that it is fixed"):
            assert "```bash\n" in parts[name], name

    def test_its_alerts_are_those_of_the_index(self, path: Path) -> None:
        (listed,) = [names for page, names in ROW.findall(read(INDEX)) if page == path.name]
        first = read(path).split("\n\n")[1]
        assert set(re.findall(r"`(Rag\w+)`", first)) == set(re.findall(r"`(Rag\w+)`", listed))


@pytest.mark.parametrize("path", [*PAGES, INDEX], ids=lambda path: path.stem)
class TestCommands:
    def test_the_projects_and_rays_parse(self, path: Path) -> None:
        for words in commands(path):
            if words[0] in COMMANDS:
                parse(words)
        for words in mentions(path):
            if words[0] in COMMANDS:
                with suppress(click.MissingParameter):
                    parse(words)

    def test_those_of_kubectl_are_there(self, path: Path) -> None:
        theirs = [words for words in (*commands(path), *mentions(path)) if words[0] == "kubectl"]
        assert len(theirs) >= 3
        for words in theirs:
            check_kubectl(words)

    def test_routes_and_labels_are_there(self, path: Path) -> None:
        routes = {name.partition("/{")[0] for name in create_api(load_settings(profile="gpu").serve).openapi()["paths"]}
        asked = {f"/{name}" for name in re.findall(r"localhost:8000/(\w+)", read(path))}
        assert asked <= routes
        roles = {one["rag-role"] for one in walk(applied(INGEST)) if isinstance(one.get("rag-role"), str)}
        assert set(re.findall(r"rag-role=([\w-]+)", read(path))) <= roles

    def test_links_and_paths_lead_to_files(self, path: Path) -> None:
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", read(path))]
        assert [link for link in links if not (FOLDER / link).is_file()] == []
        root = FOLDER.parents[1]
        named = re.findall(r"\binfra/[\w./-]*\w", read(path))
        assert [name for name in named if not (root / name).exists()] == []


def test_every_page_is_in_the_index_and_every_alert_has_one() -> None:
    rows = ROW.findall(read(INDEX))
    assert sorted(page for page, _ in rows) == [path.name for path in PAGES]
    assert {name for _, names in rows for name in re.findall(r"`(Rag\w+)`", names)} == ALERTS


@pytest.mark.parametrize(
    "line",
    ["rag documents jobs", "rag doctor --fix", "rag ask --json", "ray list actor --details", "serve state"],
)
def test_a_command_that_is_not_there_is_noticed(line: str) -> None:
    (words,) = simple_commands(line)
    with pytest.raises(click.ClickException):
        parse(words)


@pytest.mark.parametrize("line", ["kubectl -n rag get pods --follow", "kubectl -n rag logs job/x --watch"])
def test_an_option_that_kubectl_has_not_is_noticed(line: str) -> None:
    (words,) = simple_commands(line)
    with pytest.raises(AssertionError):
        check_kubectl(words)
