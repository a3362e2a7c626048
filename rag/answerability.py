"""Does a passage answer a question at all? A cross-encoder over (question, passage), merged from a base and an adapter.

The base is an embedder's encoder; the adapter, a safetensors file of a few MB, holds low-rank changes of its weights
and the heads. A passage's tokens are scored as start and end of an answer, [CLS] as start and end of none. How far they
are above it (the null score difference of SQuAD 2.0 systems) is one feature of the answerability, beside the [CLS]
vector and the vectors of the tokens that look like an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rag.batching import token_bounded_batches, token_lengths
from rag.cpu import computes_bfloat16
from rag.errors import ModelError
from rag.step_settings import EmbedderSettings

LOW_RANK = ("lora_a", "lora_b")  # suffixes of a changed weight's name: weight + scale * lora_b @ lora_a
# On a CPU a few sentences beside a longer text are read faster in passes of their own than padded to its length.
PASS_TOKENS = 256
_MASKED = -1e4


class Judged(NamedTuple):
    """Of a batch of pairs: log odds of an answer (pairs,), and the span's logits (pairs, tokens), [CLS] at 0."""

    log_odds: Any
    starts: Any
    ends: Any


def make_heads(hidden_size: int) -> Any:
    """`span`: a token to its start and end logits; `answer`: [CLS], answer vector, null difference to log odds."""
    from torch import nn

    return nn.ModuleDict({"span": nn.Linear(hidden_size, 2), "answer": nn.Linear(2 * hidden_size + 1, 1)})


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]], max_tokens: int) -> Any:
    """Tensors of [CLS] question [SEP] passage [SEP], and `offset_mapping`; the longer one's end is cut at the limit."""
    return tokenizer(
        [question for question, _ in pairs],
        [passage for _, passage in pairs],
        truncation="longest_first",
        max_length=max_tokens,
        padding=True,
        return_tensors="pt",
        return_offsets_mapping=True,
    )


def passage_tokens(tokens: Any) -> Any:
    """bool (pairs, tokens): the passage's own tokens, without the [SEP] behind them."""
    within = tokens["token_type_ids"].bool() & tokens["attention_mask"].bool()
    within[range(within.shape[0]), tokens["attention_mask"].sum(dim=1) - 1] = False
    return within


def judge_pairs(encoder: Any, heads: Any, tokens: Any) -> Judged:
    """One forward pass. A passage without tokens has the null score difference 0."""
    import torch

    names = ("input_ids", "token_type_ids", "attention_mask")
    states = encoder(**{name: tokens[name] for name in names}).last_hidden_state.float()
    allowed = passage_tokens(tokens)
    logits = heads["span"](states)
    within = logits.masked_fill(~allowed[..., None], _MASKED)
    counts = allowed.sum(dim=1, keepdim=True).clamp(min=1)
    # The mean in place of the sum of exponentials: a long passage is no likelier to answer.
    above_null = (within.logsumexp(dim=1) - counts.log() - logits[:, 0]).sum(dim=1, keepdim=True)
    above_null = above_null.masked_fill(~allowed.any(dim=1, keepdim=True), 0.0)
    looks_like_answer = within.mean(dim=2).softmax(dim=1) * allowed
    answer = torch.einsum("pt,pth->ph", looks_like_answer, states)
    log_odds = heads["answer"](torch.cat([states[:, 0], answer, above_null], dim=1)).squeeze(1)
    or_null = allowed.clone()  # which the backward pass needs as it is
    or_null[:, 0] = True
    starts, ends = logits.masked_fill(~or_null[..., None], _MASKED).unbind(dim=2)
    return Judged(log_odds, starts, ends)


def merge_low_rank(encoder: Any, tensors: Mapping[str, Any], scale: float) -> None:
    """Add every low-rank change to the encoder's weight that it is named after. Raises KeyError for an unknown one."""
    import torch

    weights = dict(encoder.named_parameters())
    first, second = LOW_RANK
    with torch.no_grad():
        for name in sorted(tensors):
            if name.endswith(f".{first}"):
                weight = name.removesuffix(f".{first}")
                weights[weight] += scale * tensors[f"{weight}.{second}"].float() @ tensors[name].float()


class AnswerabilityScorer:
    """How likely each passage answers its question; it blocks, and uses `settings.threads` threads of its own."""

    def __init__(self, settings: EmbedderSettings, located: str, adapter: Path) -> None:
        """`located`: the embedder's folder or hub name; `adapter`: the safetensors file of changes to it.

        Raises ModelError where they do not fit each other.
        """
        import torch
        from safetensors import SafetensorError, safe_open
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(settings.threads)
        self._settings = settings
        local = Path(located).is_dir()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(located, local_files_only=local)
            encoder = AutoModel.from_pretrained(located, local_files_only=local).eval()
            heads = make_heads(encoder.config.hidden_size).eval()
            with safe_open(adapter, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                scale = float(file.metadata()["scale"])
            merge_low_rank(encoder, {n: t for n, t in tensors.items() if n.endswith(LOW_RANK)}, scale)
            heads.load_state_dict(
                {n.removeprefix("heads."): t.float() for n, t in tensors.items() if n.startswith("heads.")}
            )
        except (OSError, ValueError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise ModelError(
                f"the answerability adapter {adapter} does not fit the embedder {settings.model}: {error}; train one "
                "for it (python -m eval.train_answerability), or set evidence.answerability to null"
            ) from error
        # Like a reranker's, its values are made anew for each question: a coarser format leaves nothing behind.
        on_cpu = "bfloat16" if computes_bfloat16() else "float32"
        dtype = getattr(torch, on_cpu if settings.device == "cpu" else settings.dtype)
        self._encoder, self._heads = encoder.to(settings.device, dtype), heads.to(settings.device)
        self._token_lengths = token_lengths(self._tokenizer, settings.max_tokens)

    def count_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens that each pair takes in a forward pass, about; in any thread."""
        return self._token_lengths([f"{question} {passage}" for question, passage in pairs])

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """See rag.types.Answerability."""
        import torch

        scores = np.empty(len(pairs), dtype=np.float32)
        limit = self._settings.batch_tokens
        if self._settings.device == "cpu":
            limit = min(limit, PASS_TOKENS)
        for batch in token_bounded_batches(self.count_tokens(pairs), limit):
            chosen = [pairs[index] for index in batch]
            tokens = encode_pairs(self._tokenizer, chosen, self._settings.max_tokens).to(self._settings.device)
            with torch.inference_mode():
                scores[batch] = judge_pairs(self._encoder, self._heads, tokens).log_odds.float().cpu().numpy()
        return scores
