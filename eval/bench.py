"""The benchmark, `make bench`: `python -m eval.bench [--quick] [--url URL]`. Last line of stdout: one JSON document.

It starts a service of its own (free port, temporary data directory), ingests examples/corpus, measures over HTTP,
stops it, and only then runs the same models without it, each in a process of its own. Machines are noisy and the load
generator shares the cores: read the ratios. What is measured:

embedding   There is no public route that embeds. `/search` with rerank=false embeds its query once, so its
            `timings_ms.embed` is the stage as the orchestrator waits for it (handle call, queue, waiting for a batch,
            forward pass), and the searches answered in a second are a LOWER bound of what the stage could embed: they
            include both searches and HTTP. Raw: SentenceEmbedder.encode of the same texts, as many in one call as
            there are connections; its latency is the call's.
generation  `/ask` with stream=true over the example questions that reach the LLM. Its TTFT is the first `token` event
            at the client, and the service holds a sentence until it is grounded: where no sentence is, the evidence is
            sent after the LLM's last token. Raw: vLLM's AsyncLLM with the very same prompts (rebuilt with rag.prompt
            and checked against the service's prompt hash), settings and max_tokens. Tokens are the LLM's own (usage).
            Both find the instructions that all prompts begin with in the engine's cache, and nothing more: the boundary
            behind them is drawn anew. `stages_first_ms` has the first time that each question was asked.
routes      Closed loops over kept-alive connections; `/search` as a client would call it, reranked.
memory      The peak of the summed PSS (main memory) of `rag serve` and everything below it while all this ran.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

from eval.bench_http import CONCURRENCY, EXAMPLES, WARM_UP_TOKENS, Plan, measure_service, say
from eval.bench_service import BenchError, ingest, run_child, started_service, with_variables
from eval.bench_tables import format_report
from eval.hardware import TreeUse, describe_machine, git_commit
from eval.load import RequestError
from rag.config import Settings, load_settings
from rag.errors import RagError
from rag.models import load_token_counter, locate_model
from rag.prompt import build_prompt
from rag.types import Chunk, Hit, Scores

FULL = Plan(questions=8, asks={1: 8, 8: 24, 32: 48}, ask_limit_s=60, route_s=4, search_s=5, encode_s=3, max_tokens=None)
QUICK = Plan(
    questions=4, asks={1: 4, 8: 16, 32: 32}, ask_limit_s=20, route_s=1, search_s=1.5, encode_s=1, max_tokens=16
)
RAW_TIMEOUT_S = 400


def service_variables(settings: Settings, folder: Path) -> dict[str, str]:
    """What the benchmark's service is given on top of the settings found: its data, and room for 32 questions.

    It remembers nothing: the same questions are asked again and again, and each is to be answered.
    """
    return {
        "RAG_DATA_DIR": str(folder / "data"),
        "RAG_CACHE__EMBEDDINGS": "0",
        "RAG_CACHE__ANSWERS": "0",
        "RAG_SERVE__MAX_INFLIGHT": str(max(settings.serve.max_inflight, max(CONCURRENCY))),
        "RAG_SERVE__MAX_QUEUED": str(max(settings.serve.max_queued, max(CONCURRENCY))),
    }


def rebuild_prompts(first: list[tuple[str, dict[str, Any]]], settings: Settings) -> list[list[dict[str, str]]]:
    """The messages that the service sent to its LLM for each answer. Raises BenchError when a prompt's hash differs."""
    count_tokens = load_token_counter(locate_model(settings.generator.model, settings.cache_dir))
    prompts = []
    for question, answer in first:
        hits = [to_hit(passage) for passage in answer["passages"][: settings.reranker.top_k]]
        prompt = build_prompt(question, hits, (), count_tokens=count_tokens, settings=settings.prompt)
        if prompt.hash != answer["prompt_hash"]:
            raise BenchError(f"the prompt rebuilt for {question!r} is not the service's; it runs with other settings")
        prompts.append([{"role": message.role, "content": message.content} for message in prompt.messages])
    return prompts


def to_hit(passage: dict[str, Any]) -> Hit:
    """A passage of `/ask` with explain=true, as far as a prompt needs it."""
    chunk = Chunk(
        chunk_id=passage["chunk_id"],
        document_id=passage["document_id"],
        revision="",
        ordinal=0,
        text=passage["text"],
        start_char=passage["char_start"],
        end_char=passage["char_end"],
        heading=passage["heading"],
    )
    return Hit(chunk, passage["title"], passage["source"], passage["score"], Scores())


def run_raw(
    kind: str, task: dict[str, Any], variables: dict[str, str], folder: Path, timeout_s: float = RAW_TIMEOUT_S
) -> dict[str, Any]:
    """A task of eval.raw in a process of its own."""
    task_path, result_path = folder / f"{kind}-task.json", folder / f"{kind}-result.json"
    task_path.write_text(json.dumps(task), encoding="utf-8")
    command = [sys.executable, "-m", "eval.raw", kind, str(task_path), str(result_path)]
    run_child(with_variables(variables, command), folder / f"{kind}.txt", timeout_s)
    result: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
    return result


def measure_raw(measured: dict[str, Any], plan: Plan, settings: Settings, folder: Path) -> dict[str, Any]:
    """The same models without the service, over the texts and prompts that it was measured with."""
    generator = settings.generator
    rounds = math.ceil(max(plan.asks.values()) / len(measured["first"]))
    prompts = [prompt for _ in range(rounds) for prompt in rebuild_prompts(measured["first"], settings)]
    passages = sorted({passage["text"] for _, answer in measured["first"] for passage in answer["passages"]})
    say("raw encode")
    encode_task = {
        "texts": measured["embedded_texts"],
        "passages": passages[:64],
        "texts_per_call": CONCURRENCY,
        "limit_s": plan.encode_s,
    }
    encode = run_raw("encode", encode_task, {"TOKENIZERS_PARALLELISM": "false"}, folder)
    say("raw vLLM")
    generate_task = {
        "prompts": prompts,
        "runs": [{"concurrency": at_once, "requests": requests} for at_once, requests in plan.asks.items()],
        "limit_s": plan.ask_limit_s,
        "max_tokens": plan.max_tokens or generator.max_tokens,
        "warm_up_tokens": WARM_UP_TOKENS,
    }
    return {"encode": encode, "generate": run_raw("generate", generate_task, {}, folder)}


def run_bench(plan: Plan, url: str | None, folder: Path) -> dict[str, Any]:
    """The report. Without `url` the service is the benchmark's own."""
    settings = load_settings()
    began = time.perf_counter()
    report: dict[str, Any] = {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "startup_s": None,
        "memory": None,
        "raw": None,
        "service_variables": {},
    }
    if url is not None:
        measured = asyncio.run(measure_service(url, plan))
    else:
        report["service_variables"] = variables = service_variables(settings, folder)
        say("starting the service")
        with started_service(variables, folder / "serve.txt") as service:
            report["startup_s"] = service.startup_s
            with TreeUse(service.pid) as memory:
                say("ingesting the examples")
                ingested = ingest(variables, EXAMPLES / "corpus")
                report["ingest"] = {"chunks": ingested["chunks"], "seconds": ingested["seconds"]}
                measured = asyncio.run(measure_service(service.url, plan))
            report["memory"] = memory.summary()
            say("stopping the service")
        report["raw"] = measure_raw(measured, plan, settings, folder)
    for name in ("embed", "ask", "routes", "stages_ms", "stages_first_ms"):
        report[name] = measured[name]
    if report["raw"]:
        report["ratios"], report["limits"] = compare(report)
    report["settings"] = settings.model_dump(mode="json")
    report["bench_s"] = round(time.perf_counter() - began, 1)
    return report


def compare(report: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The service against the raw models at each concurrency (ratios, service / raw), and both against the hardware.

    A token of one request alone reads every weight once, so it cannot take less than their bytes at copy speed.
    """
    encode, generate = report["raw"]["encode"], report["raw"]["generate"]
    ratios = []
    for embed, ask, calls, written in zip(
        report["embed"], report["ask"], encode["calls"], generate["runs"], strict=True
    ):
        ratios.append(
            {
                "concurrency": embed["concurrency"],
                "embed_texts_per_s_ratio": ratio(embed["texts_per_s_at_least"], calls["texts_per_s"]),
                "embed_p50_ratio": ratio(embed["embed_stage_p50_ms"], calls["p50_ms"]),
                "output_tokens_per_s_ratio": ratio(ask["output_tokens_per_s"], written["output_tokens_per_s"]),
                "ttft_p50_ratio": ratio(ask["ttft_p50_ms"], written["ttft_p50_ms"]),
                "e2e_p50_ratio": ratio(ask["e2e_p50_ms"], written["e2e_p50_ms"]),
            }
        )
    alone = generate["runs"][0]["tpot_p50_ms"]
    ceiling = encode["limits"]["copy_gb_per_s"] * 1e9 / generate["weight_bytes"]
    return ratios, {
        **encode["limits"],
        "weight_mb": round(generate["weight_bytes"] / 1e6, 1),
        "decode_ceiling_tokens_per_s": round(ceiling, 1),
        "raw_decode_tokens_per_s": ratio(1000, alone),
        "raw_decode_fraction_of_ceiling": ratio(1000, alone * ceiling if alone else None),
        "raw_encode_gflop_per_s": encode["passages"]["gflop_per_s"],
        "raw_encode_fraction_of_matmul": encode["passages"]["fraction_of_matmul"],
    }


def ratio(value: float | None, other: float | None) -> float | None:
    """To 3 places; None where one is missing or nothing was measured."""
    return round(value / other, 3) if value is not None and other else None


@contextmanager
def work_folder() -> Iterator[Path]:
    """A temporary folder that is kept, and named, when the benchmark does not come to its end."""
    folder = Path(tempfile.mkdtemp(prefix="rag-bench-"))
    with ExitStack() as unless_ended:
        unless_ended.callback(say, f"logs are kept in {folder}")
        yield folder
        unless_ended.pop_all()
    rmtree(folder, ignore_errors=True)


def main() -> int:
    """Prints the tables and the JSON document; exit status 1 when something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter runs of 16 tokens: about 4 minutes on two cores")
    parser.add_argument(
        "--url",
        help="measure this service, which has examples/corpus in its collection `default`; raw models, start-up and "
        "memory are then left out; it has to admit 32 requests at once, with cache.embeddings and cache.answers at 0",
    )
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the service is stopped then, too
    try:
        with work_folder() as folder:
            report = run_bench(QUICK if chosen.quick else FULL, chosen.url, folder)
    except RequestError as error:
        say(f"the service did not answer a request that had to succeed: {error}")
        return 1
    except (BenchError, RagError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    print(format_report(report))
    print(json.dumps({**report, "quick": chosen.quick}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
