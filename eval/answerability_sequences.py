"""Groups of questions about one passage as sequences of tokens, in which each question sees the passage and itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.answerability_data import Group
from rag.answerability import PromptTokens

UNKNOWN = -100  # torch's target that costs nothing


@dataclass(frozen=True, slots=True)
class Tokens:
    """The passage's tokens, and behind them each question's, with its answer but for that one's last token.

    `positions`: each question's continue from the passage. `branches`: 0 for the passage, then 1, 2 for the questions.
    `targets`: the token that comes next, of answers alone. `decided`: where each question's answer begins.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    targets: tuple[int, ...]
    decided: tuple[int, ...]


def make_sequence(prompt: PromptTokens, group: Group, answer_tokens: int) -> Tokens:
    """With the answers, cut at `answer_tokens`; with 0 of them the questions alone."""
    tokens = prompt.passage(group.passage)
    length = len(tokens)
    positions, branches, targets, decided = list(range(length)), [0] * length, [UNKNOWN] * length, []
    for branch, (question, answer) in enumerate(group.asked, start=1):
        asked = prompt.question(question)
        answered = prompt.answer(answer, answer_tokens) if answer_tokens else [UNKNOWN]
        decided.append(len(tokens) + len(asked) - 1)
        own = [*asked, *answered[:-1]]
        tokens += own
        positions += range(length, length + len(own))
        branches += [branch] * len(own)
        targets += [UNKNOWN] * (len(asked) - 1) + answered
    return Tokens(tuple(tokens), tuple(positions), tuple(branches), tuple(targets), tuple(decided))


def plan_batches(sequences: Sequence[Tokens], max_tokens: int, chance: random.Random) -> list[list[Tokens]]:
    """Batches of sequences of like length, of `max_tokens` at most with their padding, in an order by chance."""
    order = list(sequences)
    chance.shuffle(order)
    batches: list[list[Tokens]] = []
    for start in range(0, len(order), 64):
        batch: list[Tokens] = []
        for one in sorted(order[start : start + 64], key=lambda sequence: len(sequence.tokens)):
            if batch and (len(batch) + 1) * len(one.tokens) > max_tokens:
                batches.append(batch)
                batch = []
            batch.append(one)
        batches.append(batch)
    chance.shuffle(batches)
    return batches


def read_states(model: Any, batch: Sequence[Tokens]) -> Any:
    """The LLM's last hidden states, (sequences, longest, hidden): each token sees those before it of its own branch
    and of the passage."""
    import torch

    longest = max(len(one.tokens) for one in batch)
    tokens, positions = torch.zeros(2, len(batch), longest, dtype=torch.long)
    branches = torch.full((len(batch), longest), -1)
    for row, one in enumerate(batch):
        length = len(one.tokens)
        tokens[row, :length] = torch.tensor(one.tokens)
        positions[row, :length] = torch.tensor(one.positions)
        branches[row, :length] = torch.tensor(one.branches)
    own = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    seen = torch.ones(longest, longest, dtype=torch.bool).tril() & own
    masked = torch.zeros(len(batch), 1, longest, longest, dtype=model.dtype)
    masked = masked.masked_fill(~seen[:, None], torch.finfo(model.dtype).min)
    found = model.model(input_ids=tokens, attention_mask=masked, position_ids=positions, use_cache=False)
    return found.last_hidden_state
