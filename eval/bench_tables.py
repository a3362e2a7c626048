"""The benchmark's report as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NOTES = {
    "embed": "service: texts/s is of /search without reranking, a lower bound of the stage's; p50 and p95 are the "
    "stage's own (timings_ms.embed).\nraw: SentenceEmbedder.encode with as many texts in one call; p50, p95 of a call.",
    "ask": "same prompts, each with a boundary of its own on both sides. TTFT of /ask: the first sentence once it is "
    "grounded, at the client; of vLLM: the first token.",
    "routes": "closed loops, connections kept alive; /search is reranked; the load generator shares the cores.",
}


def format_report(report: dict[str, Any]) -> str:
    """Every part that was measured, one table each."""
    parts = [_machine(report), _embed(report), _ask(report), _routes(report), _stages(report)]
    if report["raw"]:
        parts.append(_limits(report["limits"]))
    if report["memory"]:
        parts.append(_memory(report["memory"], report["startup_s"]))
    return "\n\n".join(parts) + "\n"


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, numbers to the right; None is shown as a dash."""
    cells = [[str(name) for name in header], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(value.rjust(width) for value, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "0"
    return str(value)


def _machine(report: dict[str, Any]) -> str:
    machine = report["hardware"]
    return (
        f"commit {report['commit']}; {machine['cpu_model']}, {machine['cpu_count_usable']} cores, "
        f"{machine['memory_gib']} GiB; load average at the start {machine['load_average_1min']}; "
        f"{report['bench_s']:.0f} s in all"
    )


def _beside(report: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The raw runs, one for each of the service's; empty ones when nothing raw was run."""
    if not report["raw"]:
        return [{}] * len(report["embed"])
    raw: list[dict[str, Any]] = (
        report["raw"]["encode"]["calls"] if kind == "embed" else report["raw"]["generate"]["runs"]
    )
    return raw


def _ratios(report: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = report.get("ratios", [{}] * len(report["embed"]))
    return found


def _embed(report: dict[str, Any]) -> str:
    rows = [
        (
            embed["concurrency"],
            raw.get("texts_per_s"),
            embed["texts_per_s_at_least"],
            ratio.get("embed_texts_per_s_ratio"),
            raw.get("p50_ms"),
            raw.get("p95_ms"),
            embed["embed_stage_p50_ms"],
            embed["embed_stage_p95_ms"],
            ratio.get("embed_p50_ratio"),
            embed["errors"],
        )
        for embed, raw, ratio in zip(report["embed"], _beside(report, "embed"), _ratios(report), strict=True)
    ]
    header = (
        "at once",
        "raw texts/s",
        "service texts/s >=",
        "ratio",
        "raw p50 ms",
        "raw p95 ms",
        "stage p50 ms",
        "stage p95 ms",
        "ratio p50",
        "errors",
    )
    return f"EMBEDDING\n{NOTES['embed']}\n{format_table(header, rows)}"


def _ask(report: dict[str, Any]) -> str:
    rows = [
        (
            ask["concurrency"],
            raw.get("output_tokens_per_s"),
            ask["output_tokens_per_s"],
            ratio.get("output_tokens_per_s_ratio"),
            raw.get("ttft_p50_ms"),
            ask["ttft_p50_ms"],
            raw.get("e2e_p50_ms"),
            ask["e2e_p50_ms"],
            ratio.get("e2e_p50_ratio"),
            f"{raw.get('requests', '-')}/{ask['requests']}",
            ask["degraded"],
            ask["errors"],
        )
        for ask, raw, ratio in zip(report["ask"], _beside(report, "ask"), _ratios(report), strict=True)
    ]
    header = (
        "at once",
        "vLLM tok/s",
        "/ask tok/s",
        "ratio",
        "vLLM TTFT p50 ms",
        "/ask TTFT p50 ms",
        "vLLM E2E p50 ms",
        "/ask E2E p50 ms",
        "ratio E2E",
        "requests",
        "degraded",
        "errors",
    )
    return f"GENERATION\n{NOTES['ask']}\n{format_table(header, rows)}"


def _routes(report: dict[str, Any]) -> str:
    rows = [
        (
            route,
            run["concurrency"],
            run["requests_per_s"],
            run["p50_ms"],
            run["p95_ms"],
            run["requests"],
            run["degraded"],
            run["errors"],
        )
        for route, runs in report["routes"].items()
        for run in runs
    ]
    header = ("route", "connections", "requests/s", "p50 ms", "p95 ms", "requests", "degraded", "errors")
    return f"ROUTES\n{NOTES['routes']}\n{format_table(header, rows)}"


def _stages(report: dict[str, Any]) -> str:
    again, first = report["stages_ms"], report["stages_first_ms"]
    rows = [
        (
            stage,
            *(timing.get(stage, {}).get(key) for timing in (again, first) for key in ("p50_ms", "p95_ms", "answers")),
        )
        for stage in {**first, **again}
    ]
    header = ("stage", "p50 ms", "p95 ms", "answers", "first p50 ms", "first p95 ms", "answers")
    title = "STAGES of /ask at 1 connection; `first`: when each question was asked for the first time"
    return f"{title}\n{format_table(header, rows)}"


def _limits(limits: dict[str, Any]) -> str:
    rows = [
        (
            "decode, 1 request, tokens/s",
            limits["raw_decode_tokens_per_s"],
            limits["decode_ceiling_tokens_per_s"],
            limits["raw_decode_fraction_of_ceiling"],
            f"{limits['weight_mb']} MB of weights a token at {limits['copy_gb_per_s']} GB/s (copy, read + written)",
        ),
        (
            "encode, passages, GFLOP/s",
            limits["raw_encode_gflop_per_s"],
            limits["matmul_gflop_per_s"],
            limits["raw_encode_fraction_of_matmul"],
            f"{limits['matmul_dtype']} matrix product, {limits['threads']} threads",
        ),
    ]
    return "PHYSICAL LIMITS\n" + format_table(("", "raw", "limit", "fraction", "the limit is"), rows)


def _memory(memory: dict[str, Any], startup_s: dict[str, float]) -> str:
    groups = ", ".join(f"{name} {size}" for name, size in memory["pss_at_peak_by_group_mib"].items())
    steps = ", ".join(f"{name} {seconds:g}" for name, seconds in startup_s.items())
    return (
        f"MEMORY  peak of the summed PSS of `rag serve` and all below it: {memory['peak_pss_sum_mib']} MiB "
        f"({memory['processes_at_peak']} processes, {memory['samples']} samples); then, in MiB: {groups}\n"
        f"START   seconds by step: {steps}"
    )
