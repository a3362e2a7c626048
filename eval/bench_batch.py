"""`rag ask-batch` beside the naive loop, and killed: `python -m eval.bench_batch DATASET... [--questions 2000]`.

The sets' documents are ingested as one collection and their questions asked, all with the settings' own longest answer
(RAG_GENERATOR__MAX_TOKENS); how long an answer gets is the LLM's matter. In one run, one after the other:

naive   eval.naive_batch, a loop of synchronous `LLM.generate` calls over batches of 32, over the first questions
batch   `rag ask-batch` over all of them, killed with SIGKILL `--kills` times when about as many answers as fall on a
        run are there, and run again until it ends
naive   over as many others: a machine's speed wanders, and what lies between two others is compared with both

Seconds of the naive loop leave out its start. Those of the batch are of its commands as a whole: each start, and what
was at work at a kill, is in them. Every question must then have one answer; answers that both ways gave are compared.

The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from eval.bench import ratio, work_folder
from eval.bench_http import say
from eval.bench_service import RAG, BenchError, ingest, kill_tree, run_child, tail, with_variables
from eval.bench_tables import format_table
from eval.dataset import read_dataset
from eval.hardware import describe_machine, git_commit
from eval.load import percentile
from eval.pool import pool_sets, write_rows
from rag.config import load_settings
from rag.errors import RagError

SEED = 0
NAIVE_QUESTIONS = 160
NAIVE_TIMEOUT_S = 3600.0
END_S = 60.0  # in which everything that a killed command started has to be gone
POLL_S = 0.05
COLLECTION = "default"


def run_naive(questions: Sequence[str], variables: dict[str, str], folder: Path, name: str) -> dict[str, Any]:
    """The naive loop over the questions, in a process of its own."""
    say(f"naive loop: {len(questions)} questions")
    task, result = folder / f"{name}-task.json", folder / f"{name}-result.json"
    task.write_text(json.dumps({"questions": questions, "collection": COLLECTION}), encoding="utf-8")
    command = [sys.executable, "-m", "eval.naive_batch", str(task), str(result)]
    run_child(with_variables(variables, command), folder / f"{name}.txt", NAIVE_TIMEOUT_S)
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def run_batch(source: Path, target: Path, variables: dict[str, str], folder: Path, kills: int) -> dict[str, Any]:
    """`rag ask-batch`, killed so often, until it ends; its seconds by run, and its last report.

    Raises BenchError when it fails, or leaves a process behind.
    """
    total = sum(1 for _ in source.open("rb"))
    chance = random.Random(SEED)
    runs: list[dict[str, Any]] = []
    for number in range(kills + 1):
        say(f"rag ask-batch, run {number + 1} of {kills + 1}")
        wanted = round((number + chance.uniform(0.8, 1.2)) * total / (kills + 1)) if number < kills else None
        log, output = folder / f"batch-{number}.txt", folder / f"batch-{number}.json"
        began = time.perf_counter()
        with log.open("wb") as errors, output.open("wb") as results:
            command = with_variables(variables, [RAG, "ask-batch", str(source), str(target), "--json"])
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=results, stderr=errors)
        try:
            first_s = _watch(process, target, wanted, count_lines(target), began)
        finally:
            kill_tree(process)
        seconds = time.perf_counter() - began
        if wanted is None and process.returncode:
            raise BenchError(f"rag ask-batch ended with {process.returncode}: {tail(log)}")
        runs.append({"seconds": round(seconds, 1), "first_answer_s": first_s, "answers": count_lines(target)})
    return {"runs": runs, "report": json.loads(output.read_text(encoding="utf-8"))}


def _watch(
    process: subprocess.Popen[bytes], target: Path, wanted: int | None, known: int, began: float
) -> float | None:
    """Waits for the end, or for so many answers and kills it; the seconds until the first new answer.

    Raises BenchError when something that it started does not end.
    """
    first_s: float | None = None
    while process.poll() is None:
        answers = count_lines(target)
        if answers > known and first_s is None:
            first_s = round(time.perf_counter() - began, 1)
        if wanted is not None and answers >= wanted:
            # Milvus is to stay for a while: the next run finds it.
            below = psutil.Process(process.pid).children(recursive=True)
            ray = [one for one in below if "milvus" not in " ".join(one.cmdline())]
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            say(f"killed with {answers} answers there")
            _, left = psutil.wait_procs(ray, END_S)
            if left:
                raise BenchError(f"{len(left)} processes outlived the command: {[one.name() for one in left]}")
            return first_s
        time.sleep(POLL_S)
    return first_s


def count_lines(path: Path) -> int:
    """Whole lines; 0 of a file that is not there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check_answers(questions: Sequence[str], target: Path) -> dict[str, Any]:
    """How many questions have how many answers, by id, and what these are."""
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    times = Counter(row["id"] for row in rows)
    wanted = set(map(str, range(len(questions))))
    return {
        "questions": len(questions),
        "lines": len(rows),
        "missing": len(wanted - times.keys()),
        "foreign": len(times.keys() - wanted),
        "twice": sum(1 for count in times.values() if count > 1),
        "kinds": Counter("error" if "error" in row else row.get("answer_source") or "abstained" for row in rows),
        "degraded": sum(1 for row in rows if row.get("degraded")),
    }


def compare_answers(naive: dict[int, dict[str, Any]], target: Path) -> dict[str, int]:
    """How many answers, and how many with their quotes, are letter by letter those of the naive loop."""
    rows = {row["id"]: row for row in map(json.loads, target.read_text(encoding="utf-8").splitlines())}
    alike = whole = 0
    for number, other in naive.items():
        row = rows[str(number)]
        quotes = [citation["quote"] for citation in row.get("citations", ())]
        alike += row.get("answer") == other["answer"]
        whole += row.get("answer") == other["answer"] and quotes == other["quotes"]
    return {"compared": len(naive), "same_answer": alike, "same_answer_and_quotes": whole}


def run_bench(paths: Sequence[Path], count: int, naive_count: int, kills: int, folder: Path) -> dict[str, Any]:
    """The report."""
    settings, began = load_settings(), time.perf_counter()
    every = [text for path in paths for text in read_dataset(str(path)).queries.values()]
    questions = random.Random(SEED).sample(every, min(count, len(every)))
    if len(questions) < max(count, 2 * naive_count):
        raise BenchError(f"the sets hold {len(every)} questions; name more of them, or ask fewer")
    variables = {"RAG_DATA_DIR": str(folder / "data")}
    documents = folder / "pool.jsonl"
    write_rows(documents, pool_sets(paths, None))
    say("rag ingest")
    ingested = ingest(variables, documents)
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    write_rows(source, ({"id": str(number), "question": text} for number, text in enumerate(questions)))
    first, last = range(naive_count), range(len(questions) - naive_count, len(questions))
    before = run_naive([questions[number] for number in first], variables, folder, "naive-before")
    batch = run_batch(source, target, variables, folder, kills)
    after = run_naive([questions[number] for number in last], variables, folder, "naive-after")
    answers = dict(zip([*first, *last], [*before.pop("answers"), *after.pop("answers")], strict=True))
    return {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "settings": settings.model_dump(mode="json"),
        "sets": [path.resolve().name for path in paths],
        "chunks": ingested["chunks"],
        "check": check_answers(questions, target),
        "same": compare_answers(answers, target),
        **compare_rates(before, after, batch["runs"], len(questions)),
        "batch": batch,
        "bench_s": round(time.perf_counter() - began, 1),
    }


def compare_rates(
    before: dict[str, Any], after: dict[str, Any], runs: Sequence[dict[str, Any]], count: int
) -> dict[str, Any]:
    """Questions/s of the batch and of both naive loops taken together, its `LLM.generate` calls alone too."""
    asked = before["questions"] + after["questions"]
    tokens = before.pop("generated_tokens") + after.pop("generated_tokens")
    batch_per_s = count / sum(run["seconds"] for run in runs)
    naive_per_s = asked / (before["seconds"] + after["seconds"])
    generate_per_s = asked / (before["generate_s"] + after["generate_s"])
    return {
        "batch_per_s": round(batch_per_s, 3),
        "naive_per_s": round(naive_per_s, 3),
        "naive_generate_per_s": round(generate_per_s, 3),
        "ratio": ratio(batch_per_s, naive_per_s),
        "ratio_to_generate": ratio(batch_per_s, generate_per_s),
        "generated_tokens": {f"p{percent}": percentile(tokens, percent) for percent in (5, 50, 95, 100)},
        "naive": [before, after],
    }


def format_report(report: dict[str, Any]) -> str:
    """A table for people, and what was checked."""
    machine, check, same = report["hardware"], report["check"], report["same"]
    rows: list[tuple[object, ...]] = [
        (
            f"naive, {name}",
            one["questions"],
            one["seconds"],
            round(one["questions"] / one["seconds"], 3),
            *(one[f"{part}_s"] for part in ("prepare", "generate", "finish")),
        )
        for name, one in zip(("before", "after"), report["naive"], strict=True)
    ]
    seconds = sum(run["seconds"] for run in report["batch"]["runs"])
    rows.insert(1, ("rag ask-batch", check["questions"], round(seconds, 1), report["batch_per_s"], None, None, None))
    table = format_table(("way", "questions", "s", "questions/s", "prepare s", "generate s", "finish s"), rows)
    lengths = ", ".join(f"{name} {value:g}" for name, value in report["generated_tokens"].items())
    runs = "; ".join(f"{run['answers']} there after {run['seconds']} s" for run in report["batch"]["runs"])
    return (
        f"commit {report['commit']}; {machine['cpu_model']}, {machine['cpu_count_usable']} cores; "
        f"load average at the end {machine['load_average_1min']}; {report['chunks']} chunks\n\n{table}\n\n"
        f"ratio {report['ratio']} to the loop, {report['ratio_to_generate']} to its LLM.generate calls alone\n"
        f"tokens generated a question: {lengths}\n"
        f"runs: {runs}\n"
        f"lines {check['lines']}, missing {check['missing']}, twice {check['twice']}, foreign {check['foreign']}; "
        f"{dict(check['kinds'])}, degraded {check['degraded']}\n"
        f"of {same['compared']} answers {same['same_answer']} as by the naive loop, "
        f"{same['same_answer_and_quotes']} with their quotes\n"
    )


def main() -> int:
    """Prints the table and the JSON document; exit status 1 when something could not be measured, or a row is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="DATASET")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--naive", type=int, default=NAIVE_QUESTIONS, help="questions of each naive loop")
    parser.add_argument("--kills", type=int, default=2, help="how often the batch is killed")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is stopped then, too
    try:
        with work_folder() as folder:
            report = run_bench(chosen.paths, chosen.questions, chosen.naive, chosen.kills, folder)
    except (BenchError, RagError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    print(format_report(report))
    print(json.dumps(report, ensure_ascii=False))
    check = report["check"]
    return 1 if check["missing"] or check["twice"] or check["foreign"] else 0


if __name__ == "__main__":
    sys.exit(main())
