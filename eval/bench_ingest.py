"""Ingestion beside raw encoding: `python -m eval.bench_ingest PATH... [--chunks 5000,20000]`.

Each PATH is a folder in BEIR layout (corpus.jsonl), a JSON-lines file, as .gz too, or a file like SQuAD's. Their
documents, each text once, are mixed and cut where the product's own splitter has made the chunks wanted. Then, one
after the other and each in a process of its own:

start-up    `rag ingest` of one short row into a new data directory: imports, Milvus, the model and, for sizes that go
            over Ray Data, Ray, all started and ended again. The faster of two runs, so that what is taken for start-up
            is never too much.
for a size  raw, ingest, raw: a machine's speed wanders, and what lies between two others is compared with both.
raw         SentenceEmbedder.encode of the texts that ingestion embeds, in one call, the model loaded and warm; of many
            texts every so many-th, so that it is RAW_TEXTS to twice as many.
ingest      the real `rag ingest --json` into a new data directory: reading, splitting, embedding, word analysis,
            writing to the embedded Milvus and its journal. The settings decide whether it takes Ray Data;
            RAG_INGEST__RAY_DOCUMENTS=1000000 keeps it in one process.

Two ratios to raw chunks/s, both of the chunks that were stored: `whole` has every second of the command, start-up and
end included; `steady` leaves out the start-up run's seconds, and is what a larger ingest comes near to.

Memory: the peak of the summed PSS of the command and all below it, Ray included; of the embedded Milvus, which is no
child of it; and the command's own peak RSS as the kernel counts it. CPU seconds say how much of the difference is work;
those of raw are for as many texts as there are chunks.

The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from eval.bench import ratio, run_raw, work_folder
from eval.bench_http import say
from eval.bench_service import RAG, BenchError, kill_tree, tail, with_variables
from eval.bench_tables import format_table
from eval.hardware import TreeUse, describe_machine, git_commit
from eval.pool import Cut, cut_pool, pool_sets, write_cut, write_rows
from rag.config import Settings, load_settings
from rag.errors import RagError
from rag.models import load_token_counter, locate_model

SIZES = (5_000, 20_000)
RAW_TIMEOUT_S = 3600
RAW_TEXTS = 2_500
MILVUS_STOP_S = 60
POLL_S = 0.05


def run_ingest(path: Path, data: Path, variables: dict[str, str]) -> dict[str, Any]:
    """`rag ingest --json` of a file into a new data directory, timed, with memory and CPU seconds of it and of Milvus.

    Milvus is stopped before this returns. Raises BenchError when the command fails or a document does.
    """
    output, log = data.with_suffix(".json"), data.with_suffix(".txt")
    command = with_variables({**variables, "RAG_DATA_DIR": str(data)}, [RAG, "ingest", str(path), "--json"])
    began = time.perf_counter()
    with output.open("wb") as results, log.open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=results, stderr=errors)
    keeper: psutil.Process | None = None
    try:
        with TreeUse(process.pid) as used:
            keeper = _wait_for_milvus(data, process, log)
            with TreeUse(keeper.pid) as used_by_milvus:
                _, status, usage = os.wait4(process.pid, 0)
                seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise BenchError(f"rag ingest {path} ended with {process.returncode}: {tail(log)}")
    finally:
        kill_tree(process)
        if keeper is not None:
            _stop(keeper)
    report = json.loads(output.read_text(encoding="utf-8"))
    return {
        "chunks": report["chunks"],
        "documents": report["documents"]["added"],
        "command_s": round(seconds, 2),
        "reported_s": report["seconds"],
        "command_peak_rss_mib": round(usage.ru_maxrss / 1024),
        "command": used.summary(),
        "milvus": used_by_milvus.summary(),
    }


def _wait_for_milvus(data: Path, process: subprocess.Popen[bytes], log: Path) -> psutil.Process:
    """The keeper of the embedded Milvus once it serves. Raises BenchError when the command ends before."""
    record = data / "milvus" / "server.json"
    while not record.exists():
        if process.poll() is not None:
            raise BenchError(f"rag ingest ended with {process.returncode} before Milvus was up: {tail(log)}")
        time.sleep(POLL_S)
    return psutil.Process(json.loads(record.read_text(encoding="ascii"))["keeper_pid"])


def _stop(keeper: psutil.Process) -> None:
    """Ends Milvus, which would idle beside the next measurement and write into a folder about to be removed."""
    with suppress(psutil.NoSuchProcess):
        keeper.terminate()
        keeper.wait(MILVUS_STOP_S)


def measure_startup(over_ray: bool, folder: Path) -> dict[str, Any]:
    """The faster of two runs of the command over one short row, by the way that a size takes."""
    path = folder / "one.jsonl"
    write_rows(path, [{"id": "one", "title": "One", "text": "A text of a single chunk."}])
    variables = {"RAG_INGEST__RAY_DOCUMENTS": "1"} if over_ray else {}
    # Names are short: Ray's sockets lie in the data directory only where its path is.
    names = [f"{'r' if over_ray else 's'}{number}" for number in (1, 2)]
    runs = [run_ingest(path, folder / name, variables) for name in names]
    return {"over_ray": over_ray, **min(runs, key=lambda run: float(run["command_s"]))}


def goes_over_ray(cut: Cut, settings: Settings) -> bool:
    """Whether `rag ingest` reads and embeds these documents over Ray Data."""
    return settings.ingest.ray_documents is not None and cut.documents >= settings.ingest.ray_documents


def measure_size(cut: Cut, pool: Path, startup: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One size: raw, ingest, raw. Raises BenchError where ingestion made other chunks than were encoded."""
    count = len(cut.texts)
    path = write_cut(cut, pool, folder)
    task = {"texts": cut.texts[:: max(1, count // RAW_TEXTS)]}
    say(f"{count} chunks: raw encode")
    before = run_raw("passages", task, {}, folder, RAW_TIMEOUT_S)
    say(f"{count} chunks: rag ingest")
    ingested = run_ingest(path, folder / str(count), {})
    if ingested["chunks"] != count:
        raise BenchError(f"rag ingest stored {ingested['chunks']} chunks, the splitter made {count} before")
    say(f"{count} chunks: raw encode again")
    after = run_raw("passages", task, {}, folder, RAW_TIMEOUT_S)
    return {
        "over_ray": startup["over_ray"],
        "startup_s": startup["command_s"],
        "split_s": round(cut.split_s, 1),
        **compare(ingested, before, after, startup["command_s"]),
        "raw": [before, after],
    }


def compare(
    ingested: dict[str, Any], before: dict[str, Any], after: dict[str, Any], startup_s: float
) -> dict[str, Any]:
    """Rates of an ingest, their ratios to the rate of both raw runs taken together, and what those would take of the
    CPU for as many texts as there are chunks."""
    raw_texts = before["texts"] + after["texts"]
    raw_per_s = raw_texts / (before["encode_s"] + after["encode_s"])
    whole_per_s = ingested["chunks"] / ingested["command_s"]
    steady_s = ingested["command_s"] - startup_s
    steady_per_s = ingested["chunks"] / steady_s if steady_s > 0 else None  # of a few chunks it may be noise
    return {
        **ingested,
        "chunks_per_s": round(whole_per_s, 2),
        "steady_chunks_per_s": round(steady_per_s, 2) if steady_per_s else None,
        "raw_texts_per_s": round(raw_per_s, 2),
        "raw_cpu_s": round((before["cpu_s"] + after["cpu_s"]) / raw_texts * ingested["chunks"], 1),
        "ratio_whole": ratio(whole_per_s, raw_per_s),
        "ratio_steady": ratio(steady_per_s, raw_per_s),
    }


def run_bench(paths: Sequence[Path], wanted: Sequence[int], limit: int | None, folder: Path) -> dict[str, Any]:
    """The report."""
    settings = load_settings()
    began = time.perf_counter()
    report: dict[str, Any] = {"commit": git_commit(), "hardware": describe_machine(), "limit": limit}
    pool, cuts = make_cuts(paths, wanted, limit, settings, folder)
    say("start-up")
    ways = [goes_over_ray(cut, settings) for cut in cuts]
    startups = {over_ray: measure_startup(over_ray, folder) for over_ray in sorted(set(ways))}
    report["startups"] = list(startups.values())
    report["sizes"] = [
        measure_size(cut, pool, startups[over_ray], folder) for cut, over_ray in zip(cuts, ways, strict=True)
    ]
    report["sets"] = [path.resolve().name for path in paths]
    report["settings"] = settings.model_dump(mode="json")
    report["bench_s"] = round(time.perf_counter() - began, 1)
    return report


def make_cuts(
    paths: Sequence[Path], wanted: Sequence[int], limit: int | None, settings: Settings, folder: Path
) -> tuple[Path, list[Cut]]:
    """The pooled file and its cuts; says so where the sets hold fewer chunks than wanted. Raises BenchError."""
    pool = folder / "pool.jsonl"
    rows = pool_sets(paths, limit)
    if not rows:
        raise BenchError("the sets hold no text")
    write_rows(pool, rows)
    say(f"{len(rows)} documents pooled; splitting")
    count_tokens = load_token_counter(locate_model(settings.embedder.model, settings.cache_dir))
    cuts = cut_pool(pool, settings, count_tokens, wanted)
    found = len(cuts[-1].texts)
    if found < max(wanted):
        say(f"the sets hold only {found} chunks, fewer than the {max(wanted)} wanted; name more of them for more")
    return pool, cuts


def format_report(report: dict[str, Any]) -> str:
    """Two tables for people: speed, then memory and CPU seconds."""
    machine, sizes = report["hardware"], report["sizes"]
    speed = {
        "chunks": [size["chunks"] for size in sizes],
        "documents": [size["documents"] for size in sizes],
        "Ray Data": ["yes" if size["over_ray"] else "no" for size in sizes],
        "command s": [size["command_s"] for size in sizes],
        "start-up s": [size["startup_s"] for size in sizes],
        "chunks/s whole": [size["chunks_per_s"] for size in sizes],
        "chunks/s steady": [size["steady_chunks_per_s"] for size in sizes],
        "raw before": [size["raw"][0]["texts_per_s"] for size in sizes],
        "raw after": [size["raw"][1]["texts_per_s"] for size in sizes],
        "ratio whole": [size["ratio_whole"] for size in sizes],
        "ratio steady": [size["ratio_steady"] for size in sizes],
    }
    use = {
        "chunks": [size["chunks"] for size in sizes],
        "command PSS MiB": [size["command"]["peak_pss_sum_mib"] for size in sizes],
        "its processes": [size["command"]["processes_at_peak"] for size in sizes],
        "of it `rag`": [size["command"]["pss_at_peak_by_group_mib"]["driver"] for size in sizes],
        "`rag` RSS MiB": [size["command_peak_rss_mib"] for size in sizes],
        "Milvus PSS MiB": [size["milvus"]["peak_pss_sum_mib"] for size in sizes],
        "raw RSS MiB": [size["raw"][0]["peak_rss_mib"] for size in sizes],
        "command CPU s": [size["command"]["cpu_s"] for size in sizes],
        "Milvus CPU s": [size["milvus"]["cpu_s"] for size in sizes],
        "raw CPU s": [size["raw_cpu_s"] for size in sizes],
        "splitting alone s": [size["split_s"] for size in sizes],
    }
    tokens = sizes[-1]["raw"][0]["mean_text_tokens"]
    return (
        f"commit {report['commit']}; {machine['cpu_model']}, {machine['cpu_count_usable']} cores, "
        f"{machine['memory_gib']} GiB; load average at the start {machine['load_average_1min']}; "
        f"{report['bench_s']:.0f} s in all\n"
        f"{', '.join(report['sets'])}; {tokens} tokens a chunk (mean)\n\n"
        "SPEED  raw: texts/s of encoding alone, before and after the ingest; steady: less the start-up\n"
        f"{format_table(list(speed), list(zip(*speed.values(), strict=True)))}\n\n"
        "MEMORY AND WORK  peaks\n"
        f"{format_table(list(use), list(zip(*use.values(), strict=True)))}\n"
    )


def write_pool(paths: Sequence[Path], wanted: Sequence[int], limit: int | None, folder: Path) -> None:
    """Only the files: what is ingested, and its chunks for eval/compare_ingest. Raises BenchError."""
    folder.mkdir(parents=True, exist_ok=True)
    pool, cuts = make_cuts(paths, wanted, limit, load_settings(), folder)
    for cut in cuts:
        print(write_cut(cut, pool, folder))


def parse_sizes(text: str) -> tuple[int, ...]:
    """`5000,20000` as numbers above 0. Raises ArgumentTypeError."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers above 0 like 5000,20000")
    return sizes


def main() -> int:
    """Prints the tables and the JSON document; exit status 1 when something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="data sets")
    parser.add_argument("--chunks", type=parse_sizes, default=SIZES, help="sizes to measure [default: 5000,20000]")
    parser.add_argument("--limit", type=int, help="most documents taken of each set")
    parser.add_argument("--pool", type=Path, metavar="FOLDER", help="only write pooled files there, to compare")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is stopped then, too
    try:
        if chosen.pool:
            write_pool(chosen.paths, chosen.chunks, chosen.limit, chosen.pool)
            return 0
        with work_folder() as folder:
            report = run_bench(chosen.paths, chosen.chunks, chosen.limit, folder)
    except (BenchError, RagError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    print(format_report(report))
    print(json.dumps(report, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
