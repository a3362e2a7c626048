"""The batch benchmark's own arithmetic: what is missing or twice, what is alike, which rate is beside which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval.bench_batch import check_answers, compare_answers, compare_rates, count_lines, format_report


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answered(row_id: str, answer: str = "8000", *quotes: str) -> dict[str, Any]:
    citations = [{"quote": quote} for quote in quotes]
    return {"id": row_id, "answer": answer, "answer_source": "generated", "citations": citations, "degraded": []}


def naive(questions: int, seconds: float, generate_s: float, tokens: list[int]) -> dict[str, Any]:
    parts = {"prepare_s": 1.0, "generate_s": generate_s, "finish_s": 1.0}
    return {"questions": questions, "seconds": seconds, **parts, "generated_tokens": tokens}


def test_what_is_missing_twice_and_foreign_is_counted(tmp_path: Path) -> None:
    abstained = {"id": "1", "answer": "none", "answer_source": None, "degraded": ["rerank"]}
    rows = [answered("0"), abstained, answered("0"), answered("9"), {"id": "3", "error": {}}]
    found = check_answers(["a", "b", "c", "d"], write(tmp_path / "out.jsonl", *rows))
    assert (found["lines"], found["missing"], found["twice"], found["foreign"], found["degraded"]) == (5, 1, 1, 1, 1)
    assert found["kinds"] == {"generated": 3, "abstained": 1, "error": 1}


def test_answers_are_compared_letter_by_letter_with_their_quotes(tmp_path: Path) -> None:
    out = write(tmp_path / "out.jsonl", answered("0", "8000", "a"), answered("5", "8000", "a"), answered("6", "9000"))
    other = {"status": "answered", "answer": "8000", "quotes": ["a"]}
    naively = {0: other, 5: {**other, "quotes": ["b"]}, 6: other}
    assert compare_answers(naively, out) == {"compared": 3, "same_answer": 2, "same_answer_and_quotes": 1}


def test_rates_are_of_both_loops_together_and_of_every_run_of_the_batch() -> None:
    runs = [{"seconds": 30.0}, {"seconds": 20.0}]
    found = compare_rates(naive(10, 20.0, 10.0, [5, 7]), naive(30, 60.0, 30.0, [9]), runs, 100)
    assert (found["batch_per_s"], found["naive_per_s"], found["naive_generate_per_s"]) == (2.0, 0.5, 1.0)
    assert (found["ratio"], found["ratio_to_generate"]) == (4.0, 2.0)
    assert found["generated_tokens"] == {"p5": 5, "p50": 7, "p95": 9, "p100": 9}


def test_whole_lines_are_counted(tmp_path: Path) -> None:
    assert count_lines(tmp_path / "none") == 0
    (tmp_path / "out").write_text("a\nb\nc", encoding="utf-8")
    assert count_lines(tmp_path / "out") == 2


def test_the_report_says_what_was_measured(tmp_path: Path) -> None:
    runs = [{"seconds": 30.0, "answers": 60}, {"seconds": 20.0, "answers": 100}]
    report = {
        "commit": "abc",
        "hardware": {"cpu_model": "a CPU", "cpu_count_usable": 2, "load_average_1min": 1.0},
        "chunks": 7,
        "check": check_answers(["a"], write(tmp_path / "out.jsonl", answered("0"))),
        "same": {"compared": 40, "same_answer": 39, "same_answer_and_quotes": 38},
        **compare_rates(naive(10, 20.0, 10.0, [5]), naive(30, 60.0, 30.0, [9]), runs, 100),
        "batch": {"runs": runs},
    }
    text = format_report(report)
    for part in ("rag ask-batch", "ratio 4.0 to the loop, 2.0 to its", "60 there after 30.0 s", "lines 1, missing 0"):
        assert part in text
