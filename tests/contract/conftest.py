"""The real servers that contract tests run over."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from rag.embedded_store import ensure_server
from tests.standalone_milvus import running_milvus


@pytest.fixture(scope="session")
def lite_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Milvus Lite, as the embedded profile runs it."""
    if importlib.util.find_spec("milvus_lite") is None:
        pytest.skip("needs milvus-lite: the cpu extra")
    with ensure_server(tmp_path_factory.mktemp("store"), start_timeout_s=30, idle_s=1) as server:
        yield server.uri


@pytest.fixture(scope="session")
def standalone_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Milvus standalone 2.3.5, a server without BM25."""
    if importlib.util.find_spec("milvus") is None:
        pytest.skip("needs the package milvus: the dev extra")
    with running_milvus(tmp_path_factory.mktemp("milvus")) as uri:
        yield uri
