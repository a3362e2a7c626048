"""MilvusStore when its server is away, hangs, or comes back."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from eval.ports import free_ports
from rag.errors import StoreUnavailableError
from rag.filters import Equals
from rag.store import MilvusStore
from rag.types import Chunk, IndexFingerprint, StoredChunk

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("milvus_lite") is None, reason="needs milvus-lite: the cpu extra"
)

TIMEOUT_S = 1.0
SLACK_S = 2.0  # for a busy machine
PATIENCE_S = 30.0  # within it a busy machine answers, too
FINGERPRINT = IndexFingerprint("m", 2, True, "", "", "s", "1")
VECTOR = np.array([1, 0], dtype=np.float32)


class Server:
    """Milvus Lite as a process at a fixed port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        found = importlib.util.find_spec("milvus_lite")
        assert found is not None
        assert found.origin is not None
        library = Path(found.origin).parent / "lib"
        command: list[Path | str] = [library / "milvus", self._folder / "store.db", f"127.0.0.1:{self.port}", "ERROR"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env={**os.environ, "LD_LIBRARY_PATH": str(library)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert time.monotonic() < deadline, "Milvus Lite did not start"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()
        if number == signal.SIGSTOP:
            os.waitpid(self._process.pid, os.WUNTRACED)  # its threads stop one after the other

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.signal(signal.SIGKILL)


@contextmanager
def fails_in_time(uri: str) -> Iterator[None]:
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=uri):
        yield
    assert time.monotonic() - started < TIMEOUT_S + SLACK_S


def stored_row() -> StoredChunk:
    return StoredChunk(Chunk("a", "d", "r", 0, "text", 0, 4), VECTOR, "text", "", "", (), {}, 1, None, "")


async def check_all_calls_fail(store: MilvusStore, uri: str) -> None:
    with fails_in_time(uri):
        store.collections()
    with fails_in_time(uri):
        store.ensure_collection("c", FINGERPRINT)
    with fails_in_time(uri):
        store.upsert("c", [stored_row()])
    with fails_in_time(uri):
        store.delete("c", Equals("ordinal", 0))
    with fails_in_time(uri):
        store.stored_documents("c")
    with fails_in_time(uri):
        store.drop_collection("c")
    with fails_in_time(uri):
        await store.ping()
    with fails_in_time(uri):
        await store.dense_search("c", VECTOR, 3)
    with fails_in_time(uri):
        await store.lexical_search("c", "text", 3)


def store_of_one_row(uri: str) -> MilvusStore:
    patient = MilvusStore(uri, timeout_s=PATIENCE_S, fingerprint=FINGERPRINT)
    patient.ensure_collection("c", FINGERPRINT)
    patient.upsert("c", [stored_row()])
    patient.close()
    return MilvusStore(uri, timeout_s=TIMEOUT_S, fingerprint=FINGERPRINT)


async def wait_until_it_works(store: MilvusStore) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await check_works(store)
        except StoreUnavailableError:
            assert time.monotonic() < deadline, "the store does not work again"
            await asyncio.sleep(0.1)


async def check_works(store: MilvusStore) -> None:
    await store.ping()
    assert len((await store.dense_search("c", VECTOR, 3)).hits) == 1
    assert len((await store.lexical_search("c", "text", 3)).hits) == 1
    assert len(store.stored_documents("c")) == 1
    store.upsert("c", [stored_row()])
    assert store.collections() == ["c"]


async def test_a_dead_port_is_told_within_the_timeout(tmp_path: Path) -> None:
    uri = Server(tmp_path).uri
    await check_all_calls_fail(MilvusStore(uri, timeout_s=TIMEOUT_S, fingerprint=FINGERPRINT), uri)


async def test_a_port_that_never_answers_is_told_within_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        await check_all_calls_fail(MilvusStore(uri, timeout_s=TIMEOUT_S, fingerprint=FINGERPRINT), uri)


async def test_a_password_in_the_uri_is_not_told() -> None:
    store = MilvusStore("http://user:secret@127.0.0.1:9", timeout_s=TIMEOUT_S)
    with pytest.raises(StoreUnavailableError) as told:
        await store.ping()
    assert "secret" not in str(told.value)


async def test_the_same_store_works_again_after_the_server_was_killed(server: Server) -> None:
    store = store_of_one_row(server.uri)
    await wait_until_it_works(store)
    server.signal(signal.SIGKILL)
    await check_all_calls_fail(store, server.uri)
    server.start()
    await wait_until_it_works(store)
    await store.aclose()


async def test_a_hung_server_is_told_and_forgiven(server: Server) -> None:
    store = store_of_one_row(server.uri)
    await wait_until_it_works(store)
    server.signal(signal.SIGSTOP)
    await check_all_calls_fail(store, server.uri)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.02)
            beats += 1

    heart = asyncio.create_task(beat())
    with fails_in_time(server.uri):
        await store.dense_search("c", VECTOR, 3)
    heart.cancel()
    assert beats > TIMEOUT_S / 0.02 / 3  # the event loop went on
    server.signal(signal.SIGCONT)
    await wait_until_it_works(store)
    await store.aclose()


def test_a_store_serves_one_event_loop_after_another(server: Server) -> None:
    store = store_of_one_row(server.uri)
    for _ in range(3):
        asyncio.run(wait_until_it_works(store))
    store.close()
