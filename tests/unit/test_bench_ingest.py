from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eval.bench_ingest import _wait_for_milvus, compare, format_report, goes_over_ray, parse_sizes
from eval.bench_service import BenchError
from eval.pool import Cut, cut_pool, pool_sets, write_cut, write_rows
from ingest.chunk import embedding_text
from ingest.load import load_documents
from ingest.prepare import prepare_document
from rag.config import load_settings
from rag.errors import InputError
from rag.types import Document

ROOT = Path(__file__).resolve().parents[2]


def make_beir(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    write_rows(
        folder / "corpus.jsonl",
        ({"_id": f"d{number}", "title": "Title", "text": text} for number, text in enumerate(texts)),
    )
    return folder


def make_text(sentences: int) -> str:
    return " ".join(f"This is sentence {number} of a text that has to be split." for number in range(sentences))


def count_words(text: str) -> int:
    return len(text.split())


# --- pooling ---


def test_a_text_is_pooled_once_and_the_order_is_mixed_but_fixed(tmp_path: Path) -> None:
    first = make_beir(tmp_path / "first", [f"a{number}" for number in range(40)])
    second = make_beir(tmp_path / "second", ["a0", *(f"b{number}" for number in range(40))])
    rows = pool_sets([first, second], None)
    assert sorted(row["text"] for row in rows) == sorted(f"{name}{number}" for name in "ab" for number in range(40))
    assert len({row["id"] for row in rows}) == 80
    assert rows == pool_sets([first, second], None)
    assert 8 <= sum(row["metadata"]["tags"] == ["first"] for row in rows[:40]) <= 32


def test_the_limit_counts_the_new_texts_of_each_set(tmp_path: Path) -> None:
    first = make_beir(tmp_path / "first", ["a", "b", "c"])
    second = make_beir(tmp_path / "second", ["a", "b", "d", "e", "f"])
    assert {row["text"] for row in pool_sets([first, second], 2)} == {"a", "b", "d", "e"}


def test_two_sets_of_one_name_would_share_ids(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [make_beir(tmp_path / "set", ["a"]), make_beir(tmp_path / "other" / "set", ["b"])]
    with pytest.raises(InputError, match="called set"):
        pool_sets(paths, None)


# --- sizes ---


def pooled(path: Path, documents: int) -> Path:
    write_rows(path, ({"id": str(number), "title": "T", "text": make_text(40)} for number in range(documents)))
    return path


def test_a_cut_is_the_shortest_beginning_with_the_chunks_wanted(tmp_path: Path) -> None:
    pool, settings = pooled(tmp_path / "pool.jsonl", 6), load_settings()
    whole = cut_pool(pool, settings, count_words, [10_000])[0]
    each = len(whole.texts) // 6
    assert each > 1
    cuts = cut_pool(pool, settings, count_words, [3 * each, 2 * each - 1, 2 * each])
    assert [(cut.documents, len(cut.texts)) for cut in cuts] == [(2, 2 * each), (3, 3 * each)]
    assert cuts[1].texts == whole.texts[: 3 * each]
    assert max(map(count_words, whole.texts)) <= settings.chunk.max_tokens


def test_a_pool_is_split_as_ingestion_splits_it(tmp_path: Path) -> None:
    pool, settings = tmp_path / "pool.jsonl", load_settings(profile="embedded")
    write_rows(pool, [{"id": "1", "text": "서비스는 요청을 기다린다. " * 60}])
    (document,) = load_documents(pool, max_file_bytes=settings.ingest.max_file_bytes)
    assert isinstance(document, Document)
    prepared = prepare_document(document, pool, settings, len)
    assert cut_pool(pool, settings, len, [10_000])[0].texts == list(map(embedding_text, prepared.chunks))


def test_a_pool_that_is_too_small_is_taken_as_a_whole(tmp_path: Path) -> None:
    pool, settings = pooled(tmp_path / "pool.jsonl", 3), load_settings()
    cuts = cut_pool(pool, settings, count_words, [1, 10_000])
    assert [cut.documents for cut in cuts] == [1, 3]


def test_a_row_that_ingestion_refuses_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    write_rows(path, [{"id": "1", "text": "a"}, {"id": "1", "text": "b"}])
    with pytest.raises(BenchError, match=r"pool\.jsonl:2"):
        cut_pool(path, load_settings(), count_words, [10])


def test_a_cut_is_written_as_documents_and_as_chunks(tmp_path: Path) -> None:
    pool = pooled(tmp_path / "pool.jsonl", 3)
    path = write_cut(Cut(2, ["가", "b", "c"], 0.0), pool, tmp_path)
    assert path.read_text(encoding="utf-8").splitlines() == pool.read_text(encoding="utf-8").splitlines()[:2]
    chunks = [json.loads(line) for line in (tmp_path / "chunks-3.jsonl").read_text(encoding="utf-8").splitlines()]
    assert chunks == [{"id": "0", "text": "가"}, {"id": "1", "text": "b"}, {"id": "2", "text": "c"}]


def test_sizes_are_numbers_above_zero() -> None:
    assert parse_sizes("5000,20000") == (5000, 20000)
    for wrong in ("", "5000,", "0", "-3", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match="5000,20000"):
            parse_sizes(wrong)


# --- rates and tables ---


def raw_run(texts: int, seconds: float) -> dict[str, Any]:
    return {
        "texts": texts,
        "encode_s": seconds,
        "texts_per_s": texts / seconds,
        "cpu_s": 2 * seconds,
        "peak_rss_mib": 700,
        "mean_text_tokens": 150.5,
    }


def ingest_run(chunks: int, seconds: float) -> dict[str, Any]:
    return {
        "chunks": chunks,
        "documents": 7,
        "command_s": seconds,
        "command_peak_rss_mib": 812,
        "command": {
            "peak_pss_sum_mib": 900,
            "processes_at_peak": 4,
            "pss_at_peak_by_group_mib": {"driver": 500},
            "cpu_s": 33.0,
        },
        "milvus": {"peak_pss_sum_mib": 123, "cpu_s": 4.0},
    }


def test_ratios_are_to_both_raw_runs_with_and_without_the_start() -> None:
    compared = compare(ingest_run(1000, 50.0), raw_run(1000, 10.0), raw_run(1000, 30.0), startup_s=10.0)
    assert compared["raw_texts_per_s"] == 50.0  # 2,000 texts in 40 s, not the mean of two rates
    assert compared["raw_cpu_s"] == 40.0  # the ingest's 1,000 chunks, half of what both runs encoded in 80 s
    assert compared["chunks_per_s"] == 20.0
    assert compared["steady_chunks_per_s"] == 25.0
    assert (compared["ratio_whole"], compared["ratio_steady"]) == (0.4, 0.5)


def test_an_ingest_no_longer_than_the_start_has_no_steady_rate() -> None:
    compared = compare(ingest_run(2, 9.0), raw_run(2, 1.0), raw_run(2, 1.0), startup_s=10.0)
    assert compared["steady_chunks_per_s"] is compared["ratio_steady"] is None
    assert compared["ratio_whole"] is not None


def test_the_report_is_two_tables_with_a_line_for_each_size() -> None:
    raw = [raw_run(1000, 10.0), raw_run(1000, 30.0)]
    rest = {"split_s": 1.5, "raw": raw, "over_ray": True, "startup_s": 10.0}
    sizes = [{**compare(ingest_run(count, 50.0), *raw, startup_s=10.0), **rest} for count in (1000, 4000)]
    shown = format_report(
        {
            "commit": "abc",
            "hardware": {"cpu_model": "C", "cpu_count_usable": 2, "memory_gib": 4.0, "load_average_1min": 0.1},
            "sizes": sizes,
            "sets": ["cisi", "cranfield"],
            "bench_s": 99.0,
        }
    ).splitlines()
    assert [line.split()[0] for line in shown if line.strip()[:4] in ("1000", "4000")] == ["1000", "4000"] * 2
    widths = {len(line) for line in shown if line.strip()[:4] in ("chun", "1000", "4000")}
    assert len(widths) == 2
    assert any("cisi, cranfield; 150.5 tokens" in line for line in shown)


@pytest.mark.parametrize(("documents", "least", "expected"), [(9, 9, True), (8, 9, False), (9, None, False)])
def test_a_size_takes_ray_data_as_the_settings_say(documents: int, least: int | None, expected: bool) -> None:
    assert goes_over_ray(Cut(documents, [], 0.0), load_settings(ingest={"ray_documents": least})) is expected


def test_a_command_that_ends_before_milvus_is_up_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("no space left")
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(BenchError, match=r"ended with 3 before Milvus was up: no space left"):
        _wait_for_milvus(tmp_path, process, log)


@pytest.fixture
def comparison() -> ModuleType:
    """The script, which is in no package."""
    path = ROOT / "eval" / "compare_ingest" / "compare.py"
    spec = importlib.util.spec_from_file_location("compare_ingest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_comparison_is_to_all_raw_runs(comparison: ModuleType) -> None:
    run = {"batch_size": 32, "chunks": 100, "cpu_s": 9.0, "peak_rss_mib": 600}
    seconds = [("raw", 1.0), ("haystack", 4.0), ("raw", 3.0)]
    runs = [{**run, "name": name, "index_s": took, "chunks_per_s": 100 / took} for name, took in seconds]
    header, *lines = comparison.format_runs(runs).splitlines()
    assert len({len(line) for line in (header, *lines)}) == 1
    assert [line.split()[5] for line in lines] == ["2.000", "0.500", "0.667"]


def test_the_comparison_has_the_products_versions_of_what_both_use() -> None:
    wanted = (ROOT / "eval" / "compare_ingest" / "requirements.txt").read_text(encoding="utf-8")
    pins = [line for line in wanted.splitlines() if line and not line.startswith("#")]
    lock = (ROOT / "infra" / "locks" / "cpu.lock").read_text(encoding="utf-8")
    others = [pin for pin in pins if f"\n{pin} " not in lock]
    assert all("==" in pin for pin in pins)
    assert {pin.split("==")[0].split("-")[0] for pin in others} == {"haystack", "llama", "sentence"}
