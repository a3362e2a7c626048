"""The capacity model: hand-worked cases, borders of the index's choice, more asked never fewer, errors that help."""

from __future__ import annotations

import json
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import pytest

from eval import capacity
from eval.capacity import (
    Demand,
    Prices,
    ServiceTimes,
    StageTimes,
    estimate_gpu,
    pack_gpus,
    plan,
    plan_stage,
    read_times,
)
from eval.capacity_check import Fit, Line, Model, fit_line, within
from eval.capacity_gpu import GPUS, QWEN3_8B, decode_line, read_s, sequences
from eval.capacity_index import GIB, IndexSettings, choose_index, index_bytes, plan_index

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "infra" / "capacity"


def demand(**changes: Any) -> Demand:
    return Demand(**{"questions_per_s": 10, "chunks": 1000, **changes})


# --- stages ---


def test_replicas_by_hand() -> None:
    # 10/s of 0.2 s each are 2 busy servers; at most 0.7 busy each: 2 / 0.7 = 2.86, so 3, busy 2/3.
    found = plan_stage("s", StageTimes(call_s=0.2, replica_gib=1.5), demand())
    assert (found.replicas, found.memory_gib) == (3, 4.5)
    assert found.utilisation == pytest.approx(2 / 3)
    # M/M/3 with a load of 2: C = 4/9, wait = C * service / (c - a) = 4/9 * 0.2 / 1.
    assert found.wait_s == pytest.approx(4 / 9 * 0.2)


def test_batches_share_their_own_part() -> None:
    # A full batch of 8 takes 0.1 + 8 * 0.05 = 0.5 s: 16 calls/s, 11.2 of them at 0.7; 20 a question * 10 = 200/s.
    times = StageTimes(call_s=0.05, fixed_s=0.1, max_batch=8, calls=20, replica_gib=1)
    found = plan_stage("s", times, demand())
    assert found.replicas == 18  # 200 / 11.2 = 17.9
    assert found.wait_s is None


def test_a_replica_of_many_threads_has_as_many_cores() -> None:
    found = plan_stage("s", StageTimes(call_s=0.2, replica_gib=1, replica_cores=2), demand())
    assert (found.replicas, found.cores) == (3, 6)


def test_a_load_that_fits_exactly_needs_no_more() -> None:
    assert plan_stage("s", StageTimes(call_s=0.07, replica_gib=1), demand(questions_per_s=30)).replicas == 3


@pytest.mark.parametrize(("wanted", "calls_per_s"), [("always", 10.0), ("new", 8.0), ("generated", 6.0)])
def test_what_is_remembered_or_abstained_asks_less(wanted: Any, calls_per_s: float) -> None:
    times = StageTimes(call_s=0.1, replica_gib=1, wanted=wanted)
    found = plan_stage("s", times, demand(cached_share=0.2, abstained_share=0.25))
    assert found.calls_per_s == pytest.approx(calls_per_s)


def test_everything_is_summed_and_priced() -> None:
    stages = {
        "a": StageTimes(call_s=0.01, replica_gib=2),
        "b": StageTimes(call_s=0.1, replica_gib=4, replica_gpus=0.5),
    }
    times = ServiceTimes(source="by hand", stages=stages, index=IndexSettings(node_cores=8, node_gib=32, row_bytes=0))
    found = plan(demand(), times, Prices(core=1, gib=0.1, gpu=10, disk_gib=1))
    # 1 of a; 1 / 0.7 -> 2 of b, which are one GPU; one query node.
    assert (found.cores, found.gpus, found.memory_gib, found.disk_gib) == (3 + 8, 1, 2 + 8 + 32, 0)
    assert found.cost_per_month == pytest.approx((11 + 4.2 + 10) * 730)


@pytest.mark.parametrize(
    ("replicas", "gpus"),
    [
        ([(0.7, 1), (0.2, 1), (0.1, 1)], 1),
        ([(0.7, 3), (0.2, 3), (0.1, 3)], 3),
        ([(0.7, 5)], 5),  # 3.5 in sum, but none is cut
        ([(0.7, 2), (0.2, 6)], 3),  # one beside each large one, five on the third
        ([(0.7, 2), (0.2, 7)], 3),
        ([(0.7, 2), (0.2, 8)], 4),
        ([(0.1, 3), (0.3, 2)], 1),
        ([(2.0, 3), (0.0, 9)], 6),
        ([(0.3, 4)], 2),
    ],
)
def test_no_replica_is_cut_in_two(replicas: list[tuple[float, int]], gpus: int) -> None:
    assert pack_gpus(replicas) == gpus


@pytest.mark.parametrize("profile", ["embedded", "gpu"])
def test_more_questions_or_chunks_never_take_less(profile: str) -> None:
    times = read_times(SHIPPED / "embedded.json") if profile == "embedded" else estimate_gpu("H100", 4000, 200)
    rates = [plan(demand(questions_per_s=rate), times) for rate in (0.1, 1, 3, 10, 99, 1000, 10_000)]
    for fewer, more in pairwise(rates):
        assert all(a.replicas <= b.replicas for a, b in zip(fewer.stages, more.stages, strict=True))
        assert fewer.cores <= more.cores
        assert fewer.gpus <= more.gpus
    sizes = [plan(demand(chunks=10**power), times) for power in range(2, 10)]
    for fewer, more in pairwise(sizes):
        assert fewer.index.disk_bytes < more.index.disk_bytes
        assert fewer.index.shards <= more.index.shards


# --- the index ---


def test_memory_as_milvus_documentation_works_it_out() -> None:
    # "Index Explained": a million vectors of 128 dimensions; there 32 links (128 MB) and 2,000 clusters.
    million = 1_000_000
    assert index_bytes("FLAT", million, 128) == (512_000_000, 0)
    assert index_bytes("HNSW", million, 128) == (512_000_000 + million * 36 * 4, 0)
    assert index_bytes("IVF_SQ8", million, 128) == (128_000_000 + 4000 * 128 * 4 + 2 * million, 0)
    # DiskANN: 12.5 % for codes and 10 % for the cache; 512 + 4 + 56 * 4 = 740 bytes, 5 in a page of 4 KiB.
    assert index_bytes("DISKANN", million, 128) == (115_200_000, 200_000 * 4096)


def test_a_vector_larger_than_a_page_takes_whole_pages() -> None:
    assert index_bytes("DISKANN", 10, 1024)[1] == 10 * 2 * 4096


def test_the_choice_at_its_borders() -> None:
    settings = IndexSettings(dimension=1, flat_bytes=4000, memory_budget_gib=148 * 10_000 / GIB)
    assert choose_index(1000, settings) == "FLAT"
    assert choose_index(1001, settings) == "HNSW"
    assert choose_index(10_000, settings) == "HNSW"  # 4 + 36 * 4 = 148 bytes each
    assert choose_index(10_001, settings) == "DISKANN"
    assert choose_index(10_001, settings.model_copy(update={"nvme": False})) == "IVF_SQ8"


def test_a_billion_chunks_go_to_disk_and_keep_milvus_limit_of_shards() -> None:
    found = plan_index(10**9, 1, 0.7, IndexSettings())
    assert (found.index, found.shards) == ("DISKANN", 10)
    assert plan_index(10**10, 1, 0.7, IndexSettings()).shards == 16


def test_query_nodes_follow_memory_or_cores() -> None:
    settings = IndexSettings(node_gib=1, node_memory_share=1, node_cores=1, terms=0, flat_bytes=10**12, row_bytes=0)
    million = plan_index(1_000_000, 0.001, 0.5, settings)
    assert million.query_nodes == 2  # 1.43 GiB of vectors
    # 3.5 ms for 20,000 vectors are 175 ms for a million; 10/s are 1.75 cores, 3.5 at half.
    assert million.search_core_s == pytest.approx(0.175)
    assert plan_index(1_000_000, 10, 0.5, settings).query_nodes == 4
    assert plan_index(1_000_000, 0.001, 0.5, settings.model_copy(update={"copies": 3})).query_nodes == 5  # 4.29 GiB


# --- GPUs ---


def test_decoding_reads_every_weight_once() -> None:
    weights_s, sequence_s = decode_line(QWEN3_8B, 1000, GPUS["H100"])
    # 8.19e9 parameters of 2 bytes at 0.6 of 3.35 TB/s; keys and values: 2 * 36 layers * 8 heads * 128 * 2 bytes.
    assert weights_s == pytest.approx(8.19e9 * 2 / 2.01e12, rel=0.01)
    assert sequence_s == pytest.approx(147_456 * 1000 / 2.01e12)
    assert read_s(1e9, 1000, GPUS["H100"]) == pytest.approx(2e12 / (989e12 * 0.4))


def test_an_llm_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        sequences(QWEN3_8B, 4200, "L4", 0.6, 64)
    with pytest.raises(ValueError, match="choose one of L4"):
        estimate_gpu("TPU", 4000, 200)


# --- the command ---


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["capacity", *arguments])
    return capacity.main()


@pytest.mark.parametrize("profile", ["embedded", "gpu"])
def test_the_command_ends_with_json(
    profile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = str(SHIPPED / "prices.example.json")
    assert command(monkeypatch, "--profile", profile, "--chunks", "1e7", "--prices", prices) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["demand"]["chunks"] == 10**7
    assert found["cost_per_month"] > 0


def test_the_grid_reaches_ten_thousand_questions_and_a_billion_chunks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--profile", "gpu", "--grid") == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])[-1]["demand"]
    assert (last["questions_per_s"], last["chunks"]) == (10_000, 10**9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--questions-per-s", "0"], "questions_per_s"),
        (["--chunks", "0"], "chunks"),
        (["--utilisation", "1"], "utilisation"),
        (["--cached-share", "1"], "cached_share"),
        (["--profile", "gpu", "--gpu", "TPU"], "choose one of"),
        (["--service-times", "none.json"], "none.json"),
        (["--service-times", "WRONG"], "stages.a.call_s"),
    ],
)
def test_wrong_input_is_named(
    arguments: list[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"source": "x", "stages": {"a": {"call_s": -1, "replica_gib": 1}}}', encoding="utf-8")
    assert command(monkeypatch, *[str(wrong) if one == "WRONG" else one for one in arguments]) == 2
    assert named in capsys.readouterr().err


# --- the check's model of this machine ---


def test_a_line_through_its_points() -> None:
    assert fit_line([(1, 3.0), (2, 5.0), (4, 9.0)]) == Line(1.0, 2.0)
    assert fit_line([(1, 1.0), (2, 4.0), (4, 12.0)]).fixed_s == 0.0
    assert astuple(within(Line(1.0, 3.0), 2.0)) == (0.5, 1.5)
    assert within(Line(1.0, 3.0), 8.0) == Line(1.0, 3.0)


def test_the_model_gives_one_client_back_and_shares_the_cores() -> None:
    cpu_s = {"client": 0.002, "Orchestrator": 0.006, "Embedder": 0.012, "Retriever": 0.006, "Reranker": 0.004}
    fit = Fit(cpu_s, 0.0, [0.04, 0.06], [0, 0])
    model = Model("search", fit, Line(0.0, 0.012), Line(0.0, 0.0), [1.0, 2.0])
    assert 1000 / model.run(1).per_s == pytest.approx(50, rel=0.02)
    # 30 ms of CPU a request and no saving by batches: two cores do at most 66.7 a second.
    assert 0.9 * 2 / 0.030 < model.run(16).per_s < 2 / 0.030 * 1.01
    assert model.run(2).per_s < model.run(4).per_s <= model.run(16).per_s * 1.01


def test_one_clients_figures_are_service_times() -> None:
    names = ("Orchestrator", "Embedder", "Retriever", "Reranker", "Generator", "vLLM engine")
    fit = Fit(dict.fromkeys(names, 0.1), 0.0, [0.6, 0.6], [10, 0], 0.2)
    model = Model("ask", fit, Line(0.02, 0.03), Line(0.005, 0.005), [1.0, 2.0])
    found = ServiceTimes.model_validate({**model.service_times(dict.fromkeys(names, 512.0)), "source": "by hand"})
    embedder, generator = found.stages["embedder"], found.stages["generator"]
    assert (embedder.fixed_s, embedder.call_s, embedder.replica_gib) == (0.02, 0.08, 0.5)
    assert (generator.calls, generator.fixed_s, generator.replica_gib) == (5, 0.005, 1.0)
    assert generator.replica_cores == 1  # 0.1 s of CPU time in the 0.2 s that were waited for it and its replica
    assert generator.calls * (generator.fixed_s + generator.call_s) == pytest.approx(0.2)  # engine and replica
    assert found.stages["orchestrator"].call_s == 0.1


def test_the_llm_decodes_together() -> None:
    fit = Fit({"vLLM engine": 0.9, "Orchestrator": 0.01}, 0.0, [0.6, 0.6], [10, 10], 0.55)
    model = Model("ask", fit, Line(0.0, 0.0), Line(0.045, 0.005), [1.0, 2.0])
    assert model.described["prefill_ms"] == pytest.approx(50)
    alone, eight = model.run(1).per_s, model.run(8).per_s
    assert alone == pytest.approx(1 / 0.6, rel=0.02)
    # Eight at once: at best 10 steps of 45 + 8 * 5 ms and the prompts, 50 ms each; less where they are out of step.
    assert 3 * alone < eight < 8 / (10 * 0.085 + 8 * 0.05)


def test_an_engine_on_both_cores_that_others_use_a_fifth_of() -> None:
    fit = Fit({"vLLM engine": 0.8, "Orchestrator": 0.0}, 0.2, [0.5], [10], 0.5, 0.2)
    model = Model("ask", fit, Line(0.0, 0.0), Line(0.02, 0.01), [1.0, 2.0])
    assert model.described["llm_threads"] == 2
    assert model.described["prefill_ms"] == pytest.approx(100)  # .5 s on .8 of the cores, less ten steps of 30 ms
    assert model.described["pause_ms"] == pytest.approx(0, abs=0.01)
    assert mean(model.run(1, 0.2).latencies_s) == pytest.approx(0.5)


def test_a_flow_without_tokens_has_no_llm() -> None:
    fit = Fit({}, 0.0, [0.5, 0.1], [10, 0], 0.5)
    model = Model("ask", fit, Line(0.0, 0.0), Line(0.01, 0.0), [1.0, 2.0])
    ways = [model._flow(Random(seed)) for seed in range(20)]
    stations = [{visit.station for phase in way for branch in phase for visit in branch} for way in ways]
    assert {"LLM" in one for one in stations} == {True, False}
