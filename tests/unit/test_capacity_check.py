"""The capacity check's measuring half, over a small server of its own in place of the service."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eval.bench_load import asks, searches
from eval.bench_service import BenchError
from eval.capacity_check import Fit, both, compare, fit_one_client, load, main, table, whole_rounds
from eval.hardware import measure_speeds
from eval.load import Load
from eval.queueing import Station, Visit, simulate_closed


@asynccontextmanager
async def serving(answer: dict[str, Any], work_s: float = 0.0) -> AsyncIterator[tuple[str, list[str]]]:
    """The address, and what was asked."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return writer.close()
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            asked.append(next(iter(json.loads(await reader.readexactly(length)).values())))
            ends = time.process_time() + work_s
            while time.process_time() < ends:
                pass
            body = json.dumps(answer).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


async def test_one_client_is_fitted_with_its_own_requests_and_work() -> None:
    async with serving({"degraded": [], "usage": {"completion_tokens": 7}, "timings_ms": {"generate": 3.0}}, 0.004) as (
        url,
        asked,
    ):
        fit = await fit_one_client(url, os.getpid(), asks(["a", "b"]), 8, 0.1)
    assert asked == [f"{'ab'[number % 2]} {number}" for number in range(8)]
    assert set(fit.tokens) == {7}
    assert fit.generate_s == pytest.approx(0.003)
    assert len(fit.latencies_s) == len(fit.tokens) == 8
    assert fit.cpu_s["client"] >= 0.004  # server and client are one process here
    assert min(fit.latencies_s) >= 0.004


def test_the_one_client_before_and_the_one_after_count_alike() -> None:
    joined = both(
        Fit({"a": 1.0, "b": 2.0}, 0.25, [0.1, 0.1], [1, 1], 0.5), Fit({"a": 3.0}, 0.75, [0.3], [4], 0.25, 0.5)
    )
    assert joined == Fit({"a": 2.0, "b": 1.0}, 0.5, [0.1, 0.1, 0.3], [1, 1, 4], 0.375, 0.25)


async def test_what_was_left_out_ends_the_check() -> None:
    async with serving({"degraded": ["rerank"]}) as (url, _):
        with pytest.raises(BenchError, match="rerank"):
            await load(url, 2, searches(["a"]), 3)
    with pytest.raises(BenchError, match="connection failed"):
        await load(url, 1, searches(["a"]), 3)


@pytest.mark.parametrize(("seconds", "requests"), [(1.0, 40), (40.0, 40), (41.0, 80), (90.0, 120)])
def test_every_load_asks_each_question_equally_often(seconds: float, requests: int) -> None:
    assert whole_rounds(40, 1.0, seconds) == whole_rounds(40, 2.0, seconds / 2) == requests


@pytest.mark.parametrize("wrong", [("--sample", "0"), ("--sample", "-3"), ("--seconds", "0"), ("--seconds", "-1")])
def test_wrong_numbers_are_refused_before_anything_starts(
    wrong: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "questions.txt").write_text("Who?\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["capacity_check", str(tmp_path), str(tmp_path / "questions.txt"), *wrong])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main() == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    said = capsys.readouterr()
    assert "--sample 1 or more" in said.out + said.err
    assert "raw models" not in said.out + said.err


def test_a_row_sets_the_two_side_by_side() -> None:
    simulated = simulate_closed([Station("s")], lambda _: [[[Visit("s", 0.1)]]], clients=2, requests=200)
    found: Load[int] = Load(2, 10.0, [200.0] * 80, [0] * 80, Counter())
    row = compare(2, simulated, found)
    assert (row["predicted_per_s"], row["measured_per_s"], row["ratio"]) == (
        pytest.approx(10),
        8.0,
        pytest.approx(1.25),
    )
    assert table({"curve": [{**row, "other_cores": 0.1}]}).splitlines()[-1].split()[:4] == ["2", "10", "8", "1.25"]


def test_speeds_begin_with_one_core_alone() -> None:
    speeds = measure_speeds(0.1)
    assert speeds[0] == 1.0
    assert len(speeds) == len(os.sched_getaffinity(0))
