"""How well spans of texts match queries: late interaction over token vectors, or a cross-encoder.

Both give, for each text, a float32 array (queries, spans) within 0..1. A passage is reranked by one span over the whole
of it; a sentence is scored as a span within its passage.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from rag.batching import token_bounded_batches, token_lengths
from rag.cpu import computes_bfloat16
from rag.errors import ModelError
from rag.step_settings import RerankerSettings
from rag.token_vectors import count_coded, decode_tokens, encode_tokens, rotate
from rag.types import Span, TextKind, TokenOffsets

T = TypeVar("T")


class EmbedTokens(Protocol):
    """n texts -> of each its content tokens' vectors, float32 (tokens, dim), rows of L2 norm 1."""

    def __call__(self, texts: list[str], kind: TextKind) -> Awaitable[list[np.ndarray]]: ...


class MaxSimReranker:
    """Late interaction: the mean over the query's tokens of the largest cosine to any token of the span.

    Source: ColBERT (Khattab and Zaharia, 2020), here with an embedder's own last-layer token vectors, untrained,
    and a mean in place of the sum so that queries of unlike length share one scale. Negative means become 0.
    A text's tokens were encoded with the whole of it, so that a sentence's know their paragraph, and are sliced by
    `offsets`. A text that comes without its token vectors gets them from `embed_tokens`, coded as an index has them, so
    that a score does not hang on where they come from; those of the last `kept` texts, and queries, stay in memory.
    """

    def __init__(self, embed_tokens: EmbedTokens, offsets: TokenOffsets, dimension: int, kept: int) -> None:
        self._embed_tokens = embed_tokens
        self._offsets = offsets
        self._dimension = dimension
        self._queries = _Recent[np.ndarray](kept)
        self._texts = _Recent[bytes](kept)

    async def score(
        self, queries: list[str], texts: list[str], spans: list[list[Span]], token_vectors: list[bytes]
    ) -> list[np.ndarray]:
        """See rag.types.Score. A span without tokens (cut off by the model's limit, or blank) scores 0."""
        if not texts:
            return []
        parts = [index for index, own in enumerate(spans) if own != [(0, len(texts[index]))]]
        # Whole texts need none: that is all that reranking asks.
        found = await asyncio.to_thread(self._offsets, [texts[index] for index in parts]) if parts else []
        offsets = dict(zip(parts, found, strict=True))
        stored = [
            # Others than the text has tokens are another text's: the document changed since the search.
            b"" if index in offsets and count_coded(coded, self._dimension) != len(offsets[index]) else coded
            for index, coded in enumerate(token_vectors)
        ]
        # One after the other, in the caller's own task: one model embeds both.
        rotated = await self._queries.get(queries, self._rotated)
        missing = [text for text, coded in zip(texts, stored, strict=True) if not coded]
        rest = iter(await self._texts.get(missing, self._coded))
        coded = [own or next(rest) for own in stored]
        return await asyncio.to_thread(self._compare, rotated, spans, coded, offsets)

    async def _rotated(self, queries: list[str]) -> list[np.ndarray]:
        return [rotate(vectors) for vectors in await self._embed_tokens(queries, "query")]

    async def _coded(self, texts: list[str]) -> list[bytes]:
        vectors = await self._embed_tokens(texts, "passage")
        return await asyncio.to_thread(lambda: [encode_tokens(own) for own in vectors])

    def _compare(
        self,
        queries: Sequence[np.ndarray],
        spans: Sequence[Sequence[Span]],
        coded: Sequence[bytes],
        offsets: dict[int, np.ndarray],
    ) -> list[np.ndarray]:
        vectors = decode_tokens(coded, self._dimension)
        similarity = np.concatenate(queries) @ vectors.T  # (query tokens of all, text tokens of all)
        parts_of_queries = np.cumsum([len(query) for query in queries])[:-1]
        ends = np.cumsum([count_coded(own, self._dimension) for own in coded])[:-1]
        results = []
        for index, own in enumerate(np.split(similarity, ends, axis=1)):
            scores = np.zeros((len(queries), len(spans[index])), dtype=np.float32)
            for column, span in enumerate(spans[index]):
                inside = own[:, _within(offsets[index], span)] if index in offsets else own
                if not inside.shape[1]:
                    continue
                for row, best in enumerate(np.split(inside.max(axis=1), parts_of_queries)):
                    scores[row, column] = np.clip(best.mean(), 0.0, 1.0) if len(best) else 0.0
            results.append(scores)
        return results


class _Recent(Generic[T]):
    """What was made of the last `size` texts."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[str, T] = OrderedDict()

    async def get(self, texts: list[str], make: Callable[[list[str]], Awaitable[list[T]]]) -> list[T]:
        """Of each text what `make` gives, once for texts that are alike."""
        found = {text: self._kept[text] for text in texts if text in self._kept}
        if missing := sorted(set(texts) - found.keys()):
            found.update(zip(missing, await make(missing), strict=True))
        for text in texts:
            self._kept[text] = found[text]
            self._kept.move_to_end(text)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return [found[text] for text in texts]


def _within(offsets: np.ndarray, span: Span) -> np.ndarray:
    """bool (tokens,): a token belongs to a span when it lies wholly within it."""
    inside: np.ndarray = (offsets[:, 0] >= span[0]) & (offsets[:, 1] <= span[1])
    return inside


class ScoreRequest(NamedTuple):
    """`spans[i]` are the spans of `texts[i]` to score against every query."""

    queries: list[str]
    texts: list[str]
    spans: list[list[Span]]


class CrossEncoderScorer:
    """Any sentence-transformers CrossEncoder with one output; its score through a sigmoid.

    A span is scored as the pair (query, text[start:end]).
    """

    def __init__(self, settings: RerankerSettings, model: str) -> None:
        import torch

        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._model = _load(settings, model)
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
        """For each request, per text a float32 array (queries, spans) within 0..1; they share forward passes."""
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


def _dtype(settings: RerankerSettings) -> str:
    """Scores are made anew for each question, so that a coarser format leaves nothing behind (its parity is tested)."""
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if settings.device == "cpu" and computes_bfloat16() else "float32"


def _load(settings: RerankerSettings, model: str) -> Any:
    import torch
    from sentence_transformers import CrossEncoder

    try:
        return CrossEncoder(
            model,
            device=settings.device,
            model_kwargs={"dtype": getattr(torch, _dtype(settings))},
            local_files_only=Path(model).is_dir(),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the reranker {settings.model} cannot be loaded: {error}") from error
