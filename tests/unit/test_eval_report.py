from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eval import retrieval
from eval.compare import compare_paths, format_comparison
from eval.dataset import Dataset, SetDocument, pool_datasets
from eval.hardware import describe_machine
from eval.report import PLOT, REPORT, describe_model, describe_set, draw_plot, format_report, write_runs
from eval.retrieval import StageRuns
from rag import cli_eval
from rag.cli import main
from rag.cli_eval import check_libraries
from rag.config import load_settings
from rag.errors import InputError, SettingsError
from tests.http_fake import INFO, found, hit, reply, serving

QUERIES = {f"q{number}": f"Question {number}?" for number in range(1, 7)}
DATASET = Dataset("tiny", (SetDocument("a", "", "text"),), QUERIES, {query: {"a": 1} for query in QUERIES})
BEST, SECOND = ["a", "b"], ["b", "a"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("RAG_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def stage_runs(depth: int | None = None, **rankings: dict[str, list[str]]) -> StageRuns:
    return StageRuns(depth, dict(rankings), {"queue": [0.0], "total": [1.0, 2.0, 3.0, 10.0]})


def make_report(folder: Path, runs: list[StageRuns], served: str, dataset: Dataset = DATASET) -> dict[str, Any]:
    write_runs(folder / dataset.name, dataset, runs)
    report = {
        "commit": "abc",
        "hardware": describe_machine(),
        "served": served,
        "models": None,
        "sets": [describe_set(dataset, runs)],
    }
    (folder / REPORT).write_text(json.dumps(report), encoding="utf-8")
    return report


def all_queries(ranking: list[str]) -> dict[str, list[str]]:
    return dict.fromkeys(QUERIES, ranking)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# --- the report ---


def test_a_set_s_report_has_every_stage_s_means_intervals_and_times() -> None:
    half = dict.fromkeys(list(QUERIES)[:3], BEST)
    described = describe_set(DATASET, [stage_runs(lexical=half), stage_runs(50, lexical=all_queries(SECOND))])
    first, second = described["stages"]
    assert (first["stage"], first["depth"], first["run"]) == ("lexical", None, "tiny/lexical.run")
    assert second["run"] == "tiny/lexical@50.run"
    assert first["measures"]["Success@1"]["mean"] == 0.5
    assert 0 < first["measures"]["RR@10"]["low"] < 0.5 < first["measures"]["RR@10"]["high"] < 1
    assert second["measures"]["RR@10"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert described["timings_ms"][0] == {"depth": None, "total": {"queries": 4, "p50_ms": 2.0, "p95_ms": 10.0}}


def test_a_pool_is_measured_by_the_sets_that_it_is_made_of_too() -> None:
    one = Dataset("one", (SetDocument("a", "", "x"),), {"q": "?"}, {"q": {"a": 1}})
    other = Dataset("other", (SetDocument("a", "", "y"),), {"q": "?", "r": "?"}, {"q": {"a": 1}, "r": {"a": 1}})
    pool = pool_datasets([one, other])
    runs = stage_runs(fused={"one/q": ["one/a"], "other/q": ["other/a"]})
    (stage,) = describe_set(pool, [runs], ["one", "other"])["stages"]
    assert stage["by_origin"] == {"one": 1.0, "other": 0.5, "mean of the sets": 0.75}
    assert stage["measures"]["nDCG@10"]["mean"] == pytest.approx(2 / 3)


def test_run_files_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    write_runs(tmp_path, DATASET, [stage_runs(lexical=all_queries(BEST), dense=all_queries(BEST))])
    write_runs(tmp_path, DATASET, [stage_runs(lexical=all_queries(BEST))])
    assert {path.name for path in tmp_path.iterdir()} == {"lexical.run", "qrels.txt", "queries.jsonl"}


def test_tables_have_a_line_for_each_stage(tmp_path: Path) -> None:
    runs = [stage_runs(lexical=all_queries(SECOND), fused=all_queries(BEST)), stage_runs(9, fused=all_queries(BEST))]
    shown = format_report(make_report(tmp_path, runs, "fused")).splitlines()
    found = {line.split()[0]: line.split()[1:3] for line in shown if line.strip()[:5] in ("lexic", "fused")}
    assert found == {
        "lexical": ["0.631", "0.631-0.631"],
        "fused": ["1.000", "1.000-1.000"],
        "fused@9": ["1.000", "1.000-1.000"],
    }
    assert "ms a query, p50 (p95)@9: total 2.0 (10.0)" in shown


def test_the_plot_is_an_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the eval extra")
    runs = [stage_runs(lexical=all_queries(SECOND), fused={"q1": BEST})]
    draw_plot(make_report(tmp_path, runs, "fused"), tmp_path / PLOT)
    assert (tmp_path / PLOT).read_bytes().startswith(b"\x89PNG")


def test_a_model_of_other_weights_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert describe_model(str(tmp_path), load_settings())["weights_sha256"] is None
    digests = set()
    for weights in (b"one", b"two"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        digests.add(describe_model(str(tmp_path), load_settings())["weights_sha256"])
    assert len(digests) == 2
    assert describe_model("BAAI/bge-m3", load_settings()) == {"model": "BAAI/bge-m3", "weights_sha256": None}


# --- comparisons ---


def test_two_reports_are_compared_stage_by_stage_and_what_they_serve_first(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make_report(first, [stage_runs(lexical=all_queries(BEST), fused=all_queries(SECOND))], "fused")
    better = {**all_queries(BEST), "q6": ["x"]}
    make_report(second, [stage_runs(rerank=better, lexical=all_queries(BEST))], "rerank")
    served, lexical = compare_paths(first, second)["comparisons"]
    assert (served["stage"], lexical["stage"]) == ("served", "lexical")
    found = served["measures"]["RR@10"]
    assert (found["first"], found["second"]) == pytest.approx((0.5, 5 / 6))
    assert found["change"]["mean"] == pytest.approx(1 / 3)
    assert (found["won"], found["lost"], found["tied"]) == (5, 1, 0)
    # Sums of six changes of a half under random signs: +2 or more extreme for 7 ways of one side.
    assert found["p_value"] == pytest.approx(14 / 64)
    assert [one["query"] for one in served["lost"]] == ["q6"]
    assert [one["text"] for one in served["lost"]] == ["Question 6?"]
    assert len(served["won"]) == 5
    assert lexical["measures"]["RR@10"]["p_value"] == 1.0
    assert lexical["won"] == lexical["lost"] == []


def test_run_files_are_compared_by_the_judgements_beside_them(tmp_path: Path) -> None:
    make_report(tmp_path, [stage_runs(lexical=all_queries(SECOND), fused=all_queries(BEST))], "fused")
    folder = tmp_path / "tiny"
    (one,) = compare_paths(folder / "lexical.run", folder / "fused.run")["comparisons"]
    assert (one["set"], one["measures"]["Success@1"]["change"]["mean"]) == ("tiny", 1.0)
    other = tmp_path / "elsewhere.run"
    (folder / "fused.run").rename(other)
    with pytest.raises(InputError, match="--qrels FILE"):
        compare_paths(folder / "lexical.run", other)
    (again,) = compare_paths(folder / "lexical.run", other, folder / "qrels.txt")["comparisons"]
    assert again["measures"] == one["measures"]


def test_what_was_judged_otherwise_is_not_compared(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make_report(first, [stage_runs(fused=all_queries(BEST))], "fused")
    other = Dataset("tiny", DATASET.documents, QUERIES, {query: {"b": 1} for query in QUERIES})
    make_report(second, [stage_runs(fused=all_queries(BEST))], "fused", other)
    with pytest.raises(InputError, match="other queries or judgements"):
        compare_paths(first, second)
    make_report(second, [stage_runs(dense=all_queries(BEST))], "fused")
    with pytest.raises(InputError, match="no stage of a data set in common"):
        compare_paths(first, second)
    with pytest.raises(InputError, match="two report folders or two run files"):
        compare_paths(first, first / "tiny" / "fused.run")
    (second / REPORT).write_text("{}")
    with pytest.raises(InputError, match="make one: rag eval retrieval DATASET --out"):
        compare_paths(first, second)


def test_a_comparison_is_shown_with_the_queries_that_changed_most(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make_report(first, [stage_runs(fused=all_queries(SECOND))], "fused")
    make_report(second, [stage_runs(fused={**all_queries(BEST), "q2": []})], "fused")
    shown = format_comparison(compare_paths(first, second))
    assert shown.count("won most, nDCG@10:") == 1
    assert "0.631 -> 1.000  q1  Question 1?" in shown
    assert "0.631 -> 0.000  q2  Question 2?" in shown
    (line, _) = [line for line in shown.splitlines() if line.strip().startswith("Success@1 ")]
    assert line.split()[1:4] == ["0.000", "0.833", "+0.833"]


# --- the command ---


def test_the_command_knows_every_stage() -> None:
    assert cli_eval.STAGES == retrieval.STAGES


def test_the_command_compares_two_reports(tmp_path: Path) -> None:
    for name, ranking in (("first", SECOND), ("second", BEST)):
        make_report(tmp_path / name, [stage_runs(fused=all_queries(ranking))], "fused")
    result = run("eval", "compare", tmp_path / "first", tmp_path / "second", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == compare_paths(tmp_path / "first", tmp_path / "second")
    shown = run("eval", "compare", tmp_path / "first", tmp_path / "second")
    assert shown.stdout == format_comparison(compare_paths(tmp_path / "first", tmp_path / "second"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retrieval", "nowhere"], "nowhere is no data set here"),
        (["retrieval", "x", "--stages", "lexical,magic"], "'magic' is none of lexical, dense"),
        (["retrieval", "x", "--depth", "10,0"], "no list of numbers from 1 to 1000"),
        (["retrieval", "x", "--blend", "half"], "no list of shares from 0 to 1"),
        (["compare", ".", "."], "holds no report"),
        (["compare", "gone", "."], "does not exist"),
    ],
)
def test_wrong_usage_is_a_sentence_and_exit_status_2(arguments: list[str], message: str) -> None:
    pytest.importorskip("matplotlib", reason="the eval extra")
    result = run("eval", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_missing_library_is_named_with_the_extra_that_brings_it() -> None:
    check_libraries("json")
    with pytest.raises(SettingsError, match=r"needs no_such_library: .*rag\[eval\]"):
        check_libraries("json", "no_such_library")


def test_a_service_is_measured_by_the_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the eval extra")
    folder = tmp_path / "tiny"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "a", "text": "one"}\n{"_id": "b", "text": "two"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "one?"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    with serving(info=reply(INFO), search=reply(found(hit(source="b"), hit(source="a")))) as service:
        result = run("eval", "retrieval", folder, "--service", service.url, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / REPORT).read_text(encoding="utf-8"))
    assert report["service"] == {"url": service.url, **INFO}
    (one,) = report["sets"]
    assert {stage["stage"]: stage["measures"]["RR@10"]["mean"] for stage in one["stages"]} == {
        "fused": 0.5,
        "served": 0.5,
    }
    assert result.stdout == (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "tiny" / "served.run").read_text() == "q Q0 b 1 2 served\nq Q0 a 2 1 served\n"
