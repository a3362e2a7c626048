"""How well spans of texts match queries: late interaction over token vectors, or a cross-encoder.

Both have one method, `score(requests)`: for each request, per text a float32 array (queries, spans) within 0..1.
A passage is reranked by one span over the whole of it; a sentence is scored as a span within its passage. The
requests of one call share forward passes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rag.batching import token_bounded_batches, token_lengths
from rag.cpu import cpu_flags
from rag.errors import ModelError
from rag.step_settings import RerankerSettings
from rag.types import Span


class ScoreRequest(NamedTuple):
    """`spans[i]` are the spans of `texts[i]` to score against every query."""

    queries: list[str]
    texts: list[str]
    spans: list[list[Span]]


@dataclass(frozen=True, slots=True)
class _TokenVectors:
    """One text's content tokens: unit vectors (tokens, dim) and where each token starts and ends."""

    vectors: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class MaxSimScorer:
    """Late interaction: the mean over the query's tokens of the largest cosine to any token of the span.

    Source: ColBERT (Khattab and Zaharia, 2020), here with an embedder's own last-layer token vectors, untrained,
    and a mean in place of the sum so that queries of unlike length share one scale. Negative means become 0.
    A text is encoded whole, so that a sentence's tokens know their paragraph, and sliced by offsets.
    """

    def __init__(self, settings: RerankerSettings, model: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._model = _load(SentenceTransformer, settings, model)
        self._model.max_seq_length = settings.max_tokens
        self._token_lengths = token_lengths(self._model.tokenizer, settings.max_tokens)
        self._kept: OrderedDict[str, _TokenVectors] = OrderedDict()

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens that each text takes in a forward pass; in any thread."""
        return self._token_lengths(texts)

    def score(self, requests: list[ScoreRequest]) -> list[list[np.ndarray]]:
        """See the module. A span without tokens (cut off by the model's limit, or blank) scores 0."""
        encoded = self._encode([text for request in requests for text in (*request.queries, *request.texts)])
        return [
            [
                _span_scores([encoded[query].vectors for query in request.queries], encoded[text], spans)
                for text, spans in zip(request.texts, request.spans, strict=True)
            ]
            for request in requests
        ]

    def token_vectors(self, texts: list[str]) -> list[np.ndarray]:
        """Per text the unit vectors of its content tokens, float32 (tokens, dim), in the given order."""
        encoded = self._encode(texts)
        return [encoded[text].vectors for text in texts]

    def _encode(self, texts: list[str]) -> dict[str, _TokenVectors]:
        """Token vectors by text; texts seen lately are not encoded again."""
        found = {text: self._kept[text] for text in texts if text in self._kept}
        missing = sorted(set(texts) - found.keys())
        if missing:
            for batch in token_bounded_batches(self.count_tokens(missing), self._settings.batch_tokens):
                found.update(self._encode_batch([missing[index] for index in batch]))
        for text in texts:
            self._kept[text] = found[text]
            self._kept.move_to_end(text)
        while len(self._kept) > self._settings.cached_texts:
            self._kept.popitem(last=False)
        return found

    def _encode_batch(self, texts: list[str]) -> dict[str, _TokenVectors]:
        import torch

        tokens = self._model.tokenizer(
            texts,
            truncation=True,
            max_length=self._settings.max_tokens,
            padding=True,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        offsets = tokens.pop("offset_mapping").numpy()
        special = tokens.pop("special_tokens_mask").numpy()
        with torch.inference_mode():
            features = self._model[0]({name: value.to(self._model.device) for name, value in tokens.items()})
            vectors = torch.nn.functional.normalize(features["token_embeddings"].float(), dim=-1).cpu().numpy()
        result = {}
        for row, text in enumerate(texts):
            keep = special[row] == 0
            result[text] = _TokenVectors(vectors[row][keep], offsets[row][keep, 0], offsets[row][keep, 1])
        return result


class CrossEncoderScorer:
    """Any sentence-transformers CrossEncoder with one output; its score through a sigmoid.

    A span is scored as the pair (query, text[start:end]).
    """

    def __init__(self, settings: RerankerSettings, model: str) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._model = _load(CrossEncoder, settings, model)
        self._token_lengths = token_lengths(self._model.tokenizer, settings.max_tokens)
        self._sigmoid = torch.nn.Sigmoid()
        if self._model.num_labels != 1:
            raise ModelError(
                f"the reranker {settings.model} has {self._model.num_labels} outputs; a CrossEncoder with one is needed"
            )

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens that each text takes in a forward pass, without the query's; in any thread."""
        return self._token_lengths(texts)

    def score(self, requests: list[ScoreRequest]) -> list[list[np.ndarray]]:
        """See the module."""
        pairs = [
            (query, text[start:end])
            for request in requests
            for text, spans in zip(request.texts, request.spans, strict=True)
            for query in request.queries
            for start, end in spans
        ]
        flat = self._predict(pairs)
        results, at = [], 0
        for request in requests:
            arrays = []
            for spans in request.spans:
                size = len(request.queries) * len(spans)
                arrays.append(flat[at : at + size].reshape(len(request.queries), len(spans)))
                at += size
            results.append(arrays)
        return results

    def _predict(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """One score per pair, float32, in the given order."""
        scores = np.empty(len(pairs), dtype=np.float32)
        lengths = self.count_tokens([f"{query} {text}" for query, text in pairs])
        for batch in token_bounded_batches(lengths, self._settings.batch_tokens):
            scores[batch] = self._model.predict(
                [pairs[index] for index in batch],
                batch_size=len(batch),
                activation_fn=self._sigmoid,
                show_progress_bar=False,
            )
        return scores


Scorer = MaxSimScorer | CrossEncoderScorer


def load_scorer(settings: RerankerSettings, model: str) -> Scorer:
    """The scorer that the settings name; `model` is a folder or hub name. Raises ModelError."""
    return MaxSimScorer(settings, model) if settings.kind == "maxsim" else CrossEncoderScorer(settings, model)


def _dtype(settings: RerankerSettings) -> str:
    """Scores are made anew for each question, so that a coarser format leaves nothing behind (its parity is tested)."""
    if settings.dtype != "auto":
        return settings.dtype
    computes_it = settings.device == "cpu" and cpu_flags() & {"avx512_bf16", "amx_bf16"}
    return "bfloat16" if computes_it else "float32"


def _load(loader: Any, settings: RerankerSettings, model: str) -> Any:
    import torch

    try:
        return loader(
            model,
            device=settings.device,
            model_kwargs={"dtype": getattr(torch, _dtype(settings))},
            local_files_only=Path(model).is_dir(),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the reranker {settings.model} cannot be loaded: {error}") from error


def _span_scores(queries: list[np.ndarray], text: _TokenVectors, spans: list[Span]) -> np.ndarray:
    """(queries, spans): a token belongs to a span when it lies wholly within it."""
    scores = np.zeros((len(queries), len(spans)), dtype=np.float32)
    similarities = [query @ text.vectors.T for query in queries]  # each (query tokens, text tokens)
    for column, (start, end) in enumerate(spans):
        inside = (text.starts >= start) & (text.ends <= end)
        if not inside.any():
            continue
        for row, similarity in enumerate(similarities):
            if similarity.shape[0]:
                scores[row, column] = np.clip(similarity[:, inside].max(axis=1).mean(), 0.0, 1.0)
    return scores
