"""Each runbook has its four parts, its commands parse, its links lead somewhere, and each alert has a page."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli
from ray.serve.scripts import cli as serve_cli

from deployments.ingress import create_api
from rag.cli import main
from rag.config import load_settings
from tests.k8s_manifests import INGEST, SERVICE, applied, find, identity, kubectl, pod_templates, walk

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
SHORT = {"pvc": "PersistentVolumeClaim", "rayservice": "RayService"}
# What the operators make of our manifests, with the labels that they give it; Milvus' gives `podLabels` to pods alone.
THEIRS = {
    "raycluster": {"ray.io/originated-from-cr-name": "rag"},
    "deployment": {"app.kubernetes.io/instance": "rag", "app.kubernetes.io/name": "milvus"},
    "nodes": {"karpenter.sh/nodepool": "rag-gpu"},
}
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


def selected(words: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The kinds that a kubectl command names, each with one choice of the labels that it selects by."""
    if words[0] != "kubectl" or "-l" not in words:
        return
    rest = words[3:] if words[1] == "-n" else words[1:]
    verb, of = rest[0], rest[2] if rest[0] == "rollout" else rest[1]
    kinds = ["pods"] if verb in ("logs", "top") else of.split(",")
    selector = words[words.index("-l") + 1]
    sets = dict(re.findall(r"([\w./-]+) in \(([\w,.-]+)\)", selector))
    equal = dict(one.split("=") for one in re.sub(r"[\w./-]+ in \([^)]*\),?", "", selector).split(",") if one)
    for values in itertools.product(*(named.split(",") for named in sets.values())):
        yield from ((kind, equal | dict(zip(sets, values, strict=True))) for kind in kinds)


def labelled(kind: str) -> list[dict[str, str]]:
    """The labels of what there is of a kind, by the manifests and by the operators that make things of them."""
    manifests = applied(INGEST)
    if kind in THEIRS:
        return [THEIRS[kind]]
    if kind in ("pod", "pods"):
        milvus = find(manifests, "Milvus")["spec"]["components"]["podLabels"]
        return [milvus, *(one["metadata"]["labels"] for one in manifests for one in pod_templates(one))]
    return [one["metadata"].get("labels", {}) for one in manifests if one["kind"].lower() == kind]


def stands(patch: dict[str, Any], manifest: dict[str, Any]) -> bool:
    """Whether the manifest says something, too, of what the patch sets."""
    return any(
        key in manifest and (not isinstance(value, dict) or stands(value, manifest[key]))
        for key, value in patch.items()
    )


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

    def test_labels_select_what_is_there(self, path: Path) -> None:
        for words in (*commands(path), *mentions(path)):
            for kind, labels in selected(words):
                assert any(labels.items() <= one.items() for one in labelled(kind)), words

    def test_no_log_is_asked_for_that_a_pod_never_has(self, path: Path) -> None:
        # Ray's containers never restart in their pod, so none has a log of a run before.
        assert {one["restartPolicy"] for one in walk(applied(INGEST)) if "restartPolicy" in one} == {"Never"}
        of_rays = [words for words in commands(path) if {"ray-head", "ray-worker"} & set(words)]
        assert [words for words in of_rays if "--previous" in words] == []

    def test_what_is_patched_by_hand_is_not_what_the_manifests_say(self, path: Path) -> None:
        # The next `kubectl apply -k` would take it back, or be refused, as a claim is that would get smaller.
        for words in commands(path):
            if words[0] == "kubectl" and "patch" in words:
                kind, name = words[words.index("patch") + 1 :][:2]
                (manifest,) = [one for one in applied(INGEST) if (SHORT[kind], name) == identity(one)]
                assert not stands(yaml.safe_load(words[words.index("-p") + 1]), manifest), words

    def test_what_is_deleted_and_no_operator_makes_again_is_applied_again(self, path: Path) -> None:
        for kind, name in (identity(one) for one in applied(SERVICE)):
            _, deleted, then = read(path).partition(f" delete {kind.lower()} {name}")
            assert not deleted or "kubectl apply -k" in then, name

    def test_links_and_paths_lead_to_files(self, path: Path) -> None:
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", read(path))]
        assert [link for link in links if not (FOLDER / link).is_file()] == []
        root = FOLDER.parents[1]
        named = re.findall(r"\binfra/[\w./-]*\w", read(path))
        assert [name for name in named if not (root / name).exists()] == []


def test_the_claim_is_raised_by_a_patch_that_the_overlay_takes(tmp_path: Path) -> None:
    (patch,) = re.findall(r"^```yaml\n(.*?)^```$", read(FOLDER / "ingest-stuck.md"), re.MULTILINE | re.DOTALL)
    infra = tmp_path / "infra"
    shutil.copytree(FOLDER.parent, infra, ignore=shutil.ignore_patterns("locks", "docker"))
    overlay = infra / "k8s" / SERVICE / "kustomization.yaml"
    overlay.write_text(f"{read(overlay).rstrip()}\n{patch}", encoding="utf-8")
    command = [kubectl(), "kustomize", str(overlay.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = ({identity(one): one for one in of} for of in (applied(SERVICE), yaml.safe_load_all(done.stdout)))
    (changed,) = [key for key, one in after.items() if one != before[key]]
    assert changed == ("PersistentVolumeClaim", "rag-data")
    sizes = [one[changed]["spec"]["resources"]["requests"]["storage"] for one in (before, after)]
    assert [int(size.removesuffix("Gi")) for size in sizes] == [50, 100]


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
