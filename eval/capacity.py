"""What questions take: `python -m eval.capacity --questions-per-s 100 --chunks 1e6`.

Replicas of each stage, cores, GPUs, memory, the index with its query nodes, and their cost at your prices. The embedded
profile's service times were measured (infra/capacity/embedded.json, or --service-times FILE with figures of your own);
the gpu profile's are arithmetic over the GPU's data sheet until you have such a file. `--grid` prints the table of
infra/capacity.md. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from eval.bench_tables import format_table
from eval.capacity_gpu import (
    BGE_M3_PARAMETERS,
    QWEN3_8B,
    QWEN3_8B_PARAMETERS,
    decode_line,
    gpu_named,
    pass_s,
    read_s,
    sequences,
)
from eval.capacity_index import GIB, IndexPlan, IndexSettings, plan_index
from eval.queueing import mean_wait_s
from rag.config import load_settings
from rag.step_settings import StepSettings

FIGURES = Path(__file__).resolve().parent.parent / "infra" / "capacity"
GRID = [(1, 10**5), (10, 10**6), (100, 10**7), (1_000, 10**8), (10_000, 10**9)]
HOURS_A_MONTH = 730.0
QUESTION_TOKENS = 24


class StageTimes(StepSettings):
    """One stage's work. A batch of b calls takes `fixed_s + b * call_s`, up to `max_batch` of them."""

    call_s: float = Field(ge=0, description="seconds of a core, or of the GPU, that each call adds")
    fixed_s: float = Field(0.0, ge=0)
    max_batch: int = Field(1, ge=1)
    calls: float = Field(1.0, ge=0, description="of one question: the LLM's decoding steps are its tokens")
    wanted: Literal["always", "new", "generated"] = Field(
        "always", description="new: not for an answer that is remembered; generated: nor for one without the LLM"
    )
    replica_gib: float = Field(gt=0, description="main memory of a replica")
    replica_cores: float = Field(1.0, gt=0, description="that it keeps busy: an LLM's engine on a CPU has many threads")
    replica_gpus: float = Field(0.0, ge=0)


class ServiceTimes(StepSettings):
    """Every stage's work by its name, and where the figures come from."""

    source: str = Field(min_length=1)
    stages: dict[str, StageTimes] = Field(min_length=1)
    searches: float = Field(2.0, gt=0, description="of vectors, a question: what word search alone found has a second")
    index: IndexSettings = IndexSettings()


class Demand(StepSettings):
    """What is asked."""

    questions_per_s: float = Field(gt=0)
    chunks: int = Field(ge=1)
    cached_share: float = Field(0.0, ge=0, lt=1, description="answered from the answers remembered")
    abstained_share: float = Field(0.0, ge=0, le=1, description="of the others, those that need no LLM")
    utilisation: float = Field(0.7, gt=0, lt=1, description="of each replica, the rest for peaks and lost replicas")


class Prices(StepSettings):
    """Of an hour, in whatever currency; yours, there are none in here."""

    core: float = Field(ge=0)
    gib: float = Field(ge=0, description="a GiB of main memory")
    gpu: float = Field(ge=0)
    disk_gib: float = Field(ge=0, description="a GiB of local NVMe")


@dataclass(frozen=True, slots=True)
class StagePlan:
    """`wait_s` is the mean wait for a replica by M/M/c, None where batches make it no such queue."""

    stage: str
    calls_per_s: float
    replicas: int
    utilisation: float
    wait_s: float | None
    cores: float
    gpus: float
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Cores, GPUs and memory are of stages and query nodes together."""

    demand: Demand
    source: str
    stages: tuple[StagePlan, ...]
    index: IndexPlan
    cores: float
    gpus: int
    memory_gib: float
    disk_gib: float
    cost_per_month: float | None


def capacity_per_s(times: StageTimes) -> float:
    """Calls that a replica does in a second at most, its batches full: b / (fixed + b * call)."""
    return times.max_batch / (times.fixed_s + times.max_batch * times.call_s)


def plan_stage(name: str, times: StageTimes, demand: Demand) -> StagePlan:
    """The fewest replicas that are not busier than wanted (utilisation law: rate * work / servers)."""
    asked = demand.questions_per_s
    if times.wanted != "always":
        asked *= 1 - demand.cached_share
    if times.wanted == "generated":
        asked *= 1 - demand.abstained_share
    rate = asked * times.calls
    most = capacity_per_s(times)
    replicas = max(math.ceil(round(rate / (most * demand.utilisation), 9)), 1)
    busy = rate / (most * replicas)
    wait_s = mean_wait_s(replicas, rate, 1 / most) if times.max_batch == 1 else None
    return StagePlan(
        stage=name,
        calls_per_s=rate,
        replicas=replicas,
        utilisation=busy,
        wait_s=wait_s,
        cores=replicas * times.replica_cores,  # one on a GPU still has a core for its loop
        gpus=replicas * times.replica_gpus,
        memory_gib=replicas * times.replica_gib,
    )


def pack_gpus(replicas: Sequence[tuple[float, int]]) -> int:
    """GPUs for so many replicas of each share, none of which is cut in two: best fit, the largest first.

    Whole GPUs for shares of 1 and above. Source: best-fit decreasing (Johnson, Near-optimal bin packing, 1973).
    """
    free: Counter[int] = Counter()  # thousandths of a GPU -> GPUs that have them
    count = 0
    for share, left in sorted(replicas, reverse=True):
        wanted = round(share * 1000)
        if not wanted:
            continue
        if wanted >= 1000:
            count += left * math.ceil(wanted / 1000)
            continue
        for room in sorted(one for one in free if one >= wanted):
            used, each = min(free[room], left), room // wanted
            used = min(used, math.ceil(left / each))
            placed = min(left, used * each)
            free[room] -= used
            full, rest = divmod(placed, each)
            free[room - each * wanted] += full
            free[room - rest * wanted] += bool(rest)
            left -= placed
        full, rest = divmod(left, 1000 // wanted)
        count += full + bool(rest)
        free[1000 - 1000 // wanted * wanted] += full
        free[1000 - rest * wanted] += bool(rest)
    return count


def plan(demand: Demand, times: ServiceTimes, prices: Prices | None = None) -> Plan:
    """Everything together."""
    stages = tuple(plan_stage(name, one, demand) for name, one in times.stages.items())
    index = plan_index(demand.chunks, demand.questions_per_s * times.searches, demand.utilisation, times.index)
    cores = sum(one.cores for one in stages) + index.query_nodes * times.index.node_cores
    memory_gib = sum(one.memory_gib for one in stages) + index.query_nodes * times.index.node_gib
    gpus = pack_gpus([(times.stages[one.stage].replica_gpus, one.replicas) for one in stages])
    disk_gib = index.disk_bytes / GIB
    cost = None
    if prices is not None:
        hour = cores * prices.core + memory_gib * prices.gib + gpus * prices.gpu + disk_gib * prices.disk_gib
        cost = hour * HOURS_A_MONTH
    return Plan(demand, times.source, stages, index, cores, gpus, memory_gib, disk_gib, cost)


def estimate_gpu(gpu: str, tokens_in: int, tokens_out: int) -> ServiceTimes:
    """The gpu profile's service times by the roofline, see eval.capacity_gpu; its settings say the rest.

    The orchestrator's and retriever's cores are the embedded profile's, measured. Raises ValueError.
    """
    settings = load_settings(profile="gpu")
    card = gpu_named(gpu)
    measured = read_times(FIGURES / "embedded.json").stages
    llm, reranker = settings.generator, settings.reranker
    context = tokens_in + tokens_out
    at_once = sequences(QWEN3_8B, context, gpu, llm.memory_fraction, llm.max_num_seqs)
    step_s, sequence_s = decode_line(QWEN3_8B, context, card)
    # A prompt is read in the same engine: its seconds are spread over the steps that follow.
    reading_s = read_s(QWEN3_8B_PARAMETERS, tokens_in, card) / tokens_out
    pair_tokens = settings.chunk.max_tokens + QUESTION_TOKENS
    shares = settings.serve
    stages = {
        "orchestrator": measured["orchestrator"],
        "retriever": measured["retriever"],
        "embedder": StageTimes(
            call_s=read_s(BGE_M3_PARAMETERS, QUESTION_TOKENS, card) / shares.embedder.num_gpus,
            fixed_s=pass_s(BGE_M3_PARAMETERS, card) / shares.embedder.num_gpus,
            max_batch=64,
            replica_gib=4,
            replica_gpus=shares.embedder.num_gpus,
        ),
        "reranker": StageTimes(
            call_s=read_s(BGE_M3_PARAMETERS, reranker.candidates * pair_tokens, card) / shares.reranker.num_gpus,
            replica_gib=4,
            replica_gpus=shares.reranker.num_gpus,
            wanted="new",
        ),
        "generator": StageTimes(
            call_s=(sequence_s + reading_s) / shares.generator.num_gpus,
            fixed_s=step_s / shares.generator.num_gpus,
            max_batch=at_once,
            calls=tokens_out,
            replica_gib=24,
            replica_gpus=shares.generator.num_gpus,
            wanted="generated",
        ),
    }
    chunk = settings.chunk.max_tokens
    # 1,024 dimensions of bge-m3; some 4 bytes of text a token, twice: as it is and as its terms.
    index = IndexSettings(dimension=1024, row_bytes=8 * chunk + 1_000, terms=chunk // 2)
    return ServiceTimes(
        source=f"arithmetic over the data sheet of one {gpu}; nothing of it was measured", stages=stages, index=index
    )


def read_times(path: Path) -> ServiceTimes:
    """Raises OSError and ValueError (pydantic's among them), which name what is wrong."""
    return ServiceTimes.model_validate_json(path.read_text(encoding="utf-8"))


def table(found: Plan) -> str:
    """A line for each stage, then the index and the sums."""
    header = ["stage", "calls/s", "replicas", "busy", "mean wait ms", "cores", "GPUs", "GiB"]
    rows = [
        [
            one.stage,
            one.calls_per_s,
            one.replicas,
            round(one.utilisation, 3),
            None if one.wait_s is None else one.wait_s * 1000,
            one.cores,
            one.gpus,
            one.memory_gib,
        ]
        for one in found.stages
    ]
    index = found.index
    lines = [
        format_table(header, rows),
        f"index: {index.index}, {index.memory_bytes / GIB:,.1f} GiB of memory, {index.disk_bytes / GIB:,.1f} GiB of "
        f"disk, {index.shards} shards, {index.segments:,} segments, {index.search_core_s * 1000:,.1f} ms of a core a "
        f"search, {index.query_nodes:,} query nodes",
        f"together: {found.cores:,.0f} cores, {found.gpus:,} GPUs, {found.memory_gib:,.0f} GiB of memory, "
        f"{found.disk_gib:,.0f} GiB of disk",
        "cost: give --prices FILE" if found.cost_per_month is None else f"cost a month: {found.cost_per_month:,.0f}",
        f"service times: {found.source}",
    ]
    return "\n".join(lines)


def grid(times: ServiceTimes, demand: Demand, prices: Prices | None) -> list[Plan]:
    """The plans of infra/capacity.md, with the shares of `demand`."""
    shares = demand.model_dump(exclude={"questions_per_s", "chunks"})
    return [plan(Demand(questions_per_s=rate, chunks=chunks, **shares), times, prices) for rate, chunks in GRID]


def grid_table(plans: list[Plan]) -> str:
    """A column for each plan, in Markdown."""
    rows: list[tuple[str, list[str]]] = [
        ("chunks", [f"{one.demand.chunks:,}" for one in plans]),
        *(
            (f"{stage.stage} replicas", [f"{one.stages[number].replicas:,}" for one in plans])
            for number, stage in enumerate(plans[0].stages)
        ),
        ("index", [one.index.index for one in plans]),
        ("its memory, GiB", [f"{one.index.memory_bytes / GIB:,.1f}" for one in plans]),
        ("its disk, GiB", [f"{one.index.disk_bytes / GIB:,.0f}" for one in plans]),
        ("shards; segments", [f"{one.index.shards}; {one.index.segments:,}" for one in plans]),
        ("core ms a search", [f"{one.index.search_core_s * 1000:,.1f}" for one in plans]),
        ("query nodes", [f"{one.index.query_nodes:,}" for one in plans]),
        ("cores", [f"{one.cores:,.0f}" for one in plans]),
        ("GPUs", [f"{one.gpus:,}" for one in plans]),
        ("memory, GiB", [f"{one.memory_gib:,.0f}" for one in plans]),
    ]
    head = ["questions/s", *(f"{one.demand.questions_per_s:,.0f}" for one in plans)]
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Prints the table and the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions-per-s", type=float, default=1.0)
    parser.add_argument("--chunks", type=float, default=1e5, help="such as 1e6 (1e5)")
    parser.add_argument("--profile", choices=("embedded", "gpu"), default="embedded")
    parser.add_argument("--service-times", type=Path, metavar="FILE", help="measured figures in the profile's place")
    parser.add_argument("--gpu", default="H100", help="of the estimate of --profile gpu (H100)")
    parser.add_argument("--tokens-in", type=int, default=4000, help="a prompt's, of that estimate (4000)")
    parser.add_argument("--tokens-out", type=int, default=200, help="an answer's, of that estimate (200)")
    parser.add_argument("--cached-share", type=float, default=0.0, help="answers given again (0)")
    parser.add_argument("--abstained-share", type=float, default=0.0, help="of the others, those without the LLM (0)")
    parser.add_argument("--utilisation", type=float, default=0.7, help="of each replica (0.7)")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="yours, see infra/capacity/prices.example.json")
    parser.add_argument("--grid", action="store_true", help="from 1 question/s and 1e5 chunks to 10,000 and 1e9")
    chosen = parser.parse_args()
    try:
        demand = Demand(
            questions_per_s=chosen.questions_per_s,
            chunks=int(chosen.chunks),
            cached_share=chosen.cached_share,
            abstained_share=chosen.abstained_share,
            utilisation=chosen.utilisation,
        )
        if chosen.service_times is None and chosen.profile == "gpu":
            times = estimate_gpu(chosen.gpu, chosen.tokens_in, chosen.tokens_out)
        else:
            times = read_times(chosen.service_times or FIGURES / "embedded.json")
        prices = None
        if chosen.prices is not None:
            prices = Prices.model_validate_json(chosen.prices.read_text(encoding="utf-8"))
        plans = grid(times, demand, prices) if chosen.grid else [plan(demand, times, prices)]
    except ValidationError as error:
        for one in error.errors():
            print(f"capacity: {'.'.join(str(part) for part in one['loc'])}: {one['msg']}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"capacity: {error}", file=sys.stderr)
        return 2
    print(grid_table(plans) if chosen.grid else table(plans[0]))
    documents = [_document(one) for one in plans]
    print(json.dumps(documents if chosen.grid else documents[0]))
    return 0


def _document(found: Plan) -> dict[str, Any]:
    return {**asdict(found), "demand": found.demand.model_dump()}


if __name__ == "__main__":
    sys.exit(main())
