from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deployments.schemas import hit_body
from eval.bench import compare, ratio, rebuild_prompts, to_hit
from eval.bench_http import ask_rates, degraded, example_questions, stage_timings
from eval.bench_service import BenchError, parse_steps, run_child, with_variables
from eval.bench_tables import format_report, format_table
from eval.hardware import TreeUse, describe_machine, git_commit
from eval.load import Load
from rag.prompt import build_prompt
from rag.step_settings import PromptSettings
from rag.types import Chunk, Hit, Scores


def make_hit(number: int) -> Hit:
    text = f"The service listens on port {8000 + number}. 기본 포트입니다."
    chunk = Chunk(f"c{number}", "d", "r", number, text, 10, 10 + len(text), heading="Guide > Ports", first_page=2)
    return Hit(chunk, "Guide", "guide.md", 0.5, Scores(dense=0.4, rerank=0.9))


def test_a_prompt_rebuilt_from_the_wire_is_the_same() -> None:
    hits = [make_hit(number) for number in range(4)]
    wire = json.loads(json.dumps([hit_body(hit) for hit in hits]))
    settings = PromptSettings(passage_tokens=64)
    prompts = [
        build_prompt("Which port?", those, (), count_tokens=lambda text: len(text.split()), settings=settings)
        for those in (hits, [to_hit(passage) for passage in wire])
    ]
    assert prompts[0].hash == prompts[1].hash
    assert len(prompts[0].passages) > 1


def test_the_ready_line_gives_seconds_by_step() -> None:
    line = "ready: http://127.0.0.1:8123  (ray 3.2 s, http 1 s, graph 0 s, stages 44.9 s, warm_up 2.1 s)\n"
    assert parse_steps(line) == {"ray": 3.2, "http": 1.0, "graph": 0.0, "stages": 44.9, "warm_up": 2.1}


def test_example_questions_are_spread_over_the_file() -> None:
    every = example_questions()
    some = example_questions(4)
    assert len(every) > 8
    assert len(some) == len(set(some)) == 4
    assert [every.index(question) for question in some] == sorted(every.index(question) for question in some)
    assert any("포트" in question or "서비스" in question for question in example_questions(8))


def test_a_child_that_fails_or_hangs_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with pytest.raises(BenchError, match=r"(?s)ended with 3.*last words"):
        run_child([sys.executable, "-c", "import sys; print('last words'); sys.exit(3)"], log, 20)
    began = time.perf_counter()
    with pytest.raises(BenchError, match=r"more than 0\.3 s"):
        run_child([sys.executable, "-c", "import time; time.sleep(60)"], log, 0.3)
    assert time.perf_counter() - began < 10


def test_variables_reach_the_command(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    code = "import os; print(os.environ['BENCH_TEST'], len(os.environ) > 1)"
    run_child(with_variables({"BENCH_TEST": "a b"}, [sys.executable, "-c", code]), log, 20)
    assert log.read_text() == "a b True\n"


def test_memory_of_a_tree_holds_its_children() -> None:
    code = (
        "import sys; block = bytearray(b'x' * (80 << 20)); sum(range(10**7)); print('up', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        assert child.stdout.readline() == b"up\n"
        with TreeUse(os.getpid()) as memory:
            time.sleep(0.2)
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()
    summary = memory.summary()
    assert summary["samples"] >= 1
    assert summary["cpu_s"] > 0.1
    assert summary["processes_at_peak"] >= 2
    assert summary["pss_at_peak_by_group_mib"]["driver"] > 5
    assert summary["peak_pss_sum_mib"] >= 80 + summary["pss_at_peak_by_group_mib"]["driver"]


def response(**given: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 100, "completion_tokens": 30}
    return {"usage": usage, "answer_source": "generated", "degraded": [], "timings_ms": {}, **given}


def test_stage_timings_are_over_the_answers_that_had_the_stage() -> None:
    timings = [{"embed": 10.0, "total": 100.0}, {"embed": 30.0, "total": 300.0}, {"total": 200.0}]
    found = stage_timings([response(timings_ms=timing) for timing in timings])
    assert found == {
        "embed": {"p50_ms": 10.0, "p95_ms": 30.0, "answers": 2},
        "total": {"p50_ms": 200.0, "p95_ms": 300.0, "answers": 3},
    }


def test_ask_rates_count_what_was_left_out_and_what_failed() -> None:
    from collections import Counter

    from eval.bench_http import Asked

    results = [Asked(100.0, response()), Asked(300.0, response(degraded=["rerank"], answer_source="extracted"))]
    rates = ask_rates(Load(8, 4.0, [500.0, 900.0], results, Counter({"HTTP 503": 2})))
    assert rates["output_tokens_per_s"] == 15.0  # 60 tokens in 4 s
    assert (rates["ttft_p50_ms"], rates["e2e_p95_ms"]) == (100.0, 900.0)
    assert rates["answer_sources"] == {"generated": 1, "extracted": 1}
    assert rates["degraded"] == {"rerank": 1} == degraded([one.response for one in results])
    assert rates["errors"] == {"HTTP 503": 2}


def make_report() -> dict[str, Any]:
    """A report of one concurrency with round numbers."""
    run = {"concurrency": 1, "p50_ms": 4.0, "p95_ms": 6.0, "errors": {}, "requests": 10}
    asked = {
        **run,
        "output_tokens_per_s": 5.0,
        "ttft_p50_ms": 900.0,
        "e2e_p50_ms": 4000.0,
        "degraded": {"generate": 1},
    }
    return {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "bench_s": 12.3,
        "startup_s": {"ray": 3.0},
        "memory": {
            "peak_pss_sum_mib": 4000,
            "pss_at_peak_by_group_mib": {"Ray": 4000},
            "processes_at_peak": 9,
            "samples": 5,
        },
        "embed": [{**run, "texts_per_s_at_least": 50.0, "embed_stage_p50_ms": 20.0, "embed_stage_p95_ms": 25.0}],
        "ask": [asked],
        "routes": {"/healthz": [{**run, "requests_per_s": 1234.5, "degraded": {}}]},
        "stages_ms": {"embed": {"p50_ms": 10.0, "p95_ms": 12.0, "answers": 3}},
        "stages_first_ms": {},
        "raw": {
            "encode": {
                "calls": [{"texts_per_s": 200.0, "p50_ms": 5.0, "p95_ms": 6.0}],
                "passages": {"gflop_per_s": 40.0, "fraction_of_matmul": 0.5},
                "limits": {"copy_gb_per_s": 20.0, "matmul_gflop_per_s": 80.0, "matmul_dtype": "float32", "threads": 2},
            },
            "generate": {
                "runs": [
                    {
                        "concurrency": 1,
                        "requests": 4,
                        "output_tokens_per_s": 10.0,
                        "ttft_p50_ms": 300.0,
                        "tpot_p50_ms": 100.0,
                        "e2e_p50_ms": 2000.0,
                    }
                ],
                "weight_bytes": 500_000_000,
            },
        },
    }


def test_ratios_and_limits_are_those_computed_by_hand() -> None:
    ratios, limits = compare(make_report())
    assert ratios == [
        {
            "concurrency": 1,
            "embed_texts_per_s_ratio": 0.25,
            "embed_p50_ratio": 4.0,
            "output_tokens_per_s_ratio": 0.5,
            "ttft_p50_ratio": 3.0,
            "e2e_p50_ratio": 2.0,
        }
    ]
    # 20 GB/s over 0.5 GB a token: 40 tokens/s; 100 ms a token: 10 tokens/s
    assert limits["decode_ceiling_tokens_per_s"] == 40.0
    assert limits["raw_decode_tokens_per_s"] == 10.0
    assert limits["raw_decode_fraction_of_ceiling"] == 0.25
    assert ratio(None, 3.0) is None
    assert ratio(3.0, 0.0) is None


@pytest.mark.parametrize("with_raw", [True, False], ids=["own_service", "url_given"])
def test_the_report_shows_every_part_that_was_measured(with_raw: bool) -> None:
    report = make_report()
    if with_raw:
        report["ratios"], report["limits"] = compare(report)
    else:
        report |= {"raw": None, "memory": None, "startup_s": None}
    text = format_report(report)
    for title in ("EMBEDDING", "GENERATION", "ROUTES", "STAGES"):
        assert title in text
    assert ("PHYSICAL LIMITS" in text) is with_raw
    assert ("4000 MiB" in text) is with_raw
    assert "generate 1" in text  # what was left out is shown
    assert json.loads(json.dumps(report)) == report


def test_a_table_is_aligned_and_shows_what_is_missing() -> None:
    text = format_table(("name", "ms"), [("a", 1234.6), ("long name", None), ("b", {})])
    assert text.splitlines() == [
        "     name     ms",
        "---------  -----",
        "        a  1,235",
        "long name      -",
        "        b      0",
    ]


def test_a_prompt_of_other_settings_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    from rag.config import load_settings

    (tmp_path / "config.json").write_text("{}")
    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    settings = load_settings(generator={"model": str(tmp_path)}, cache_dir=tmp_path)
    answer = {"passages": [hit_body(make_hit(1))], "prompt_hash": "another"}
    with pytest.raises(BenchError, match="other settings"):
        rebuild_prompts([("Which port?", answer)], settings)
