"""Does a text answer a question at all? An LLM, with an adapter's low-rank changes merged in, reads both and judges.

It was trained (eval.train_answerability) to write the answer's phrase behind them, or the word "none" where the text
holds no answer. Nothing is written here: one pass says how likely it is that the first word would not be "none".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag.batching import token_bounded_batches
from rag.cpu import computes_bfloat16
from rag.errors import ModelError
from rag.step_settings import EmbedderSettings

LOW_RANK = ("lora_a", "lora_b")  # suffixes of a changed weight's name: weight + scale * lora_b @ lora_a
PASSAGE_TOKENS = 330  # what is read of a longer passage, as in training
_QUESTION_TOKENS = 160
# On a CPU a few sentences beside a longer text are read faster in passes of their own than padded to its length.
_PASS_TOKENS = 256


class PromptTokens:
    """The tokens of passage, question and answer, apart: where they meet, none is shared. In any thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.none = self._encode(" none")[0]

    def passage(self, text: str) -> list[int]:
        """Cut at PASSAGE_TOKENS."""
        return self._encode(f"Passage: {text.strip()}\n")[:PASSAGE_TOKENS]

    def question(self, text: str) -> list[int]:
        """Up to where the answer begins; of a question that is too long its end is left out."""
        asked = self._encode(f"Question: {text.strip()}")[:_QUESTION_TOKENS]
        return [*asked, *self._encode("\nAnswer from the passage, or none:")]

    def answer(self, text: str | None, max_tokens: int) -> list[int]:
        """The phrase, cut at `max_tokens`, or "none" for None; and the end of the text."""
        phrase = [self.none] if text is None else self._encode(f" {text.strip()}")[:max_tokens]
        return [*phrase, self._tokenizer.eos_token_id]

    def _encode(self, text: str) -> list[int]:
        # A document that spells the LLM's control tokens out gets none of them.
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def answer_log_odds(logits: Any, none: int) -> Any:
    """Of any other first token of the answer than `none`: logits (questions, vocabulary) -> float32 (questions,)."""
    logits = logits.float()
    others = logits.clone()
    others[:, none] = float("-inf")
    return others.logsumexp(dim=1) - logits[:, none]


def merge_low_rank(model: Any, tensors: Mapping[str, Any], scale: float) -> None:
    """Add every low-rank change to the model's weight that it is named after. Raises KeyError for an unknown one."""
    import torch

    weights = dict(model.named_parameters())
    first, second = LOW_RANK
    with torch.no_grad():
        for name in sorted(tensors):
            if name.endswith(f".{first}"):
                weight = name.removesuffix(f".{first}")
                weights[weight] += scale * tensors[f"{weight}.{second}"].float() @ tensors[name].float()


class AnswerabilityScorer:
    """How likely each passage answers its question; it blocks, and uses `settings.threads` threads of its own."""

    def __init__(self, settings: EmbedderSettings, located: str, adapter: Path) -> None:
        """`settings` are of the replica that it runs in; `located`: the folder or hub name of the LLM that the
        safetensors file `adapter` changes. Raises ModelError where these two do not fit each other.
        """
        import torch
        from safetensors import SafetensorError, safe_open
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(settings.threads)
        self._settings = settings
        local = Path(located).is_dir()
        try:
            tokenizer = AutoTokenizer.from_pretrained(located, local_files_only=local)
            model = AutoModelForCausalLM.from_pretrained(located, local_files_only=local, dtype=torch.float32).eval()
            with safe_open(adapter, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                scale = float(file.metadata()["scale"])
            merge_low_rank(model, tensors, scale)
        except (OSError, ValueError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise ModelError(
                f"the answerability adapter {adapter} does not fit its model {located}: {error}; train one for it "
                "(python -m eval.train_answerability), or set evidence.answerability to null"
            ) from error
        # Its values are made anew for each question, so that a coarser format leaves nothing behind.
        on_cpu = "bfloat16" if computes_bfloat16() else "float32"
        dtype = getattr(torch, on_cpu if settings.device == "cpu" else settings.dtype)
        self._model = model.to(settings.device, dtype)
        self._prompt = PromptTokens(tokenizer)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """The tokens of each pair (question, passage), as `score` takes them; in any thread."""
        return [[*self._prompt.passage(passage), *self._prompt.question(question)] for question, passage in pairs]

    def score(self, encoded: Sequence[Sequence[int]]) -> np.ndarray:
        """Log odds that each pair's passage answers its question, float32 (pairs,), of what `encode` gives."""
        import torch

        scores = np.empty(len(encoded), dtype=np.float32)
        limit = self._settings.batch_tokens
        if self._settings.device == "cpu":
            limit = min(limit, _PASS_TOKENS)
        for batch in token_bounded_batches([len(tokens) for tokens in encoded], limit):
            chosen = [torch.tensor(encoded[index]) for index in batch]
            # Padded behind its end, where no token that counts looks: no mask is needed.
            padded = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True).to(self._settings.device)
            last = torch.tensor([len(tokens) - 1 for tokens in chosen], device=padded.device)
            with torch.inference_mode():
                states = self._model.model(input_ids=padded, use_cache=False).last_hidden_state
                logits = self._model.lm_head(states[range(len(batch)), last])
                scores[batch] = answer_log_odds(logits, self._prompt.none).cpu().numpy()
        return scores
