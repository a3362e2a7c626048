"""The guard itself: what blocks is found with the way to it, what does not is let be."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from rag.analyze import analyze
from tests.loop_guard import LoopGuard, free_loop


def in_ours(function: Callable[[], Any]) -> Callable[[], Any]:
    """The same function as if it stood in one of our own deployments."""
    code = function.__code__.replace(co_filename="/x/deployments/stage.py", co_name="stage")
    return FunctionType(code, {**globals()}, "stage", None, function.__closure__)


def read_file() -> None:
    Path(__file__).read_bytes()


def write_file() -> None:
    with Path("/dev/null").open("w") as file:
        file.write("x")


def look() -> None:
    Path("/nowhere").exists()


def query() -> None:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("select 1")


def run() -> None:
    subprocess.run([sys.executable, "--version"], check=True, capture_output=True)


def wait() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 0.05).result()


def wait_event() -> None:
    threading.Event().wait(0.01)


@pytest.mark.parametrize(
    ("blocking", "name"),
    [
        (lambda: time.sleep(0), "time.sleep"),
        (read_file, "open"),
        (write_file, "TextIOWrapper.write"),
        (look, "os.stat"),
        (query, "sqlite3 execute"),
        (run, "subprocess.py Popen.__init__"),
        (wait, "threading.py Condition.wait"),
        (wait_event, "threading.py Event.wait"),
        (lambda: analyze("ports"), "rag.analyze.analyze"),
    ],
)
async def test_a_blocking_call_of_ours_is_found_with_the_way_to_it(blocking: Callable[[], Any], name: str) -> None:
    with LoopGuard(analyze) as guard:
        in_ours(blocking)()
    assert any(one.startswith(f"{name} <- ") and "/x/deployments/stage.py" in one for one in guard.found), guard.found


async def test_it_makes_a_test_fail_and_says_where() -> None:
    told = r"move these to a thread:\ntime\.sleep <- /x/deployments/stage\.py"
    with pytest.raises(AssertionError, match=told), free_loop():
        in_ours(lambda: time.sleep(0))()


async def test_what_a_thread_does_blocks_no_loop() -> None:
    with free_loop(analyze):
        for blocking in (read_file, query, look, lambda: time.sleep(0), lambda: analyze("ports")):
            await asyncio.to_thread(in_ours(blocking))
        await asyncio.sleep(0)


async def test_sockets_that_do_not_wait_block_no_loop() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    with free_loop():
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()


def test_outside_of_a_loop_nothing_is_blocked() -> None:
    with free_loop():
        in_ours(lambda: time.sleep(0))()
