"""Texts to unit vectors with any sentence-transformers model, and to the vectors of their tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag.batching import token_bounded_batches, token_lengths
from rag.errors import ModelError
from rag.imports import without_collection
from rag.step_settings import EmbedderSettings
from rag.token_vectors import encode_rotated, random_rotation
from rag.types import Embedding, TextKind

_KEPT_QUERIES = 256


class SentenceEmbedder:
    """Holds the model; what embeds blocks and uses `settings.threads` threads of its own.

    `model` is a folder or hub name (rag.models.locate_model). Raises ModelError when it cannot be loaded.
    """

    def __init__(self, settings: EmbedderSettings, model: str) -> None:
        with without_collection():
            import torch
            from sentence_transformers import SentenceTransformer

        torch.set_num_threads(settings.threads)
        self._settings = settings
        try:
            self._model = SentenceTransformer(
                model,
                device=settings.device,
                model_kwargs={"dtype": getattr(torch, settings.dtype)},
                local_files_only=Path(model).is_dir(),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"the embedder {settings.model} cannot be loaded: {error}") from error
        self._model.eval()
        self._model.max_seq_length = settings.max_tokens
        self._token_lengths = token_lengths(self._model.tokenizer, settings.max_tokens)
        self._tokenize(["", "a"])  # it keeps how it pads and cuts: set before two threads use it
        self._query_tokens: OrderedDict[str, np.ndarray] = OrderedDict()
        self._single_threads = ThreadPoolExecutor(
            settings.threads, thread_name_prefix="embed", initializer=lambda: torch.set_num_threads(1)
        )

    @property
    def dimension(self) -> int:
        return int(self._model.get_embedding_dimension() or 0)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens that each text takes in a forward pass, the model's cut and special tokens included; in any thread."""
        return self._token_lengths(texts)

    def encode(self, texts: list[str], kind: TextKind) -> np.ndarray:
        """n texts -> float32 (n, dim) in the given order, rows of L2 norm 1; `kind` picks the model's prefix."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        keep = kind == "query" and self._settings.token_vectors
        for batch, found, tokens in self._passes(texts, kind, tokens=keep):
            vectors[batch] = found
            if tokens is not None:
                self._remember([texts[index] for index in batch], tokens.split())
        return vectors

    def encode_tokens(self, texts: list[str], kind: TextKind) -> list[np.ndarray]:
        """n texts -> of each its content tokens' vectors, float32 (tokens, dim), rows of L2 norm 1, in the given order.

        Neither special tokens nor the prefix's are among them. Those of queries that were encoded lately are known.
        """
        known = self._query_tokens if kind == "query" else {}
        found = {text: known[text] for text in texts if text in known}
        missing = list(dict.fromkeys(text for text in texts if text not in found))
        for batch, _, tokens in self._passes(missing, kind, tokens=True):
            assert tokens is not None
            found.update(zip((missing[index] for index in batch), tokens.split(), strict=True))
        return [found[text] for text in texts]

    def embed_passages(self, texts: list[str]) -> list[Embedding]:
        """What an index keeps of each text: with its token vectors where the settings say so, of one forward pass.

        On a CPU several passes at once, a thread each: they wait for each other less than the threads of one pass do.
        """
        import torch

        prefix = self._settings.passage_prefix
        prefixed = [prefix + text for text in texts]
        batches = list(token_bounded_batches(self.count_tokens(prefixed), self._settings.batch_tokens))

        def embed(batch: list[int]) -> list[Embedding]:
            keep = len(prefix) if self._settings.token_vectors else None
            vectors, tokens = self._pass([prefixed[index] for index in batch], keep)
            coded = [b""] * len(batch) if tokens is None else tokens.encode()
            return [Embedding(vector, own) for vector, own in zip(vectors, coded, strict=True)]

        if self._settings.device == "cpu" and len(batches) > 1:
            batches.reverse()  # the longest first, so that the last ones end together
            embedded = list(self._single_threads.map(embed, batches))
            torch.set_num_threads(self._settings.threads)  # for threads to come: they take over what was set last
        else:
            embedded = list(map(embed, batches))
        found = {
            index: one
            for batch, own in zip(batches, embedded, strict=True)
            for index, one in zip(batch, own, strict=True)
        }
        return [found[index] for index in range(len(texts))]

    def _remember(self, queries: list[str], tokens: list[np.ndarray]) -> None:
        """Late interaction asks for a query's token vectors right after dense search asked for its vector."""
        # Copies: a part of its pass's tokens would keep all of them.
        self._query_tokens.update(zip(queries, (own.copy() for own in tokens), strict=True))
        while len(self._query_tokens) > _KEPT_QUERIES:
            self._query_tokens.popitem(last=False)

    def _passes(
        self, texts: list[str], kind: TextKind, *, tokens: bool
    ) -> Iterator[tuple[list[int], np.ndarray, _Tokens | None]]:
        """Forward passes of texts of like length: their indices, vectors, and with `tokens` their tokens' vectors."""
        prefix = self._settings.query_prefix if kind == "query" else self._settings.passage_prefix
        prefixed = [prefix + text for text in texts]
        for batch in token_bounded_batches(self.count_tokens(prefixed), self._settings.batch_tokens):
            yield batch, *self._pass([prefixed[index] for index in batch], len(prefix) if tokens else None)

    def _pass(self, texts: list[str], prefix: int | None) -> tuple[np.ndarray, _Tokens | None]:
        """`prefix`: the length of what the texts begin with and whose tokens are left out; None: no tokens."""
        import torch

        encoded = self._tokenize(texts)
        ends, special = encoded.pop("offset_mapping")[:, :, 1], encoded.pop("special_tokens_mask")
        with torch.inference_mode():
            features = self._model({name: value.to(self._model.device) for name, value in encoded.items()})
            vectors = _unit(features["sentence_embedding"]).numpy()
            if prefix is None:
                return vectors, None
            content = (special == 0) & (ends > prefix)
            tokens = _unit(features["token_embeddings"][content.to(self._model.device)])
        return vectors, _Tokens(tokens, content.sum(dim=1).tolist())

    def _tokenize(self, texts: list[str]) -> Any:
        return self._model.tokenizer(
            texts,
            truncation=True,
            max_length=self._settings.max_tokens,
            padding=True,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The token vectors of several texts, one text's after the other's: a float32 tensor (tokens of all, dim), and how
    many each text has."""

    vectors: Any
    counts: list[int]

    def split(self) -> list[np.ndarray]:
        """Of each text float32 (tokens, dim)."""
        return self._of_each(self.vectors.numpy())

    def encode(self) -> list[bytes]:
        """Of each text the bytes that an index keeps.

        Torch rotates them, all at once: a product by numpy would leave the threads of its own library spinning on the
        cores that the next pass wants, which is 7 % of an ingest.
        """
        import torch

        rotated = torch.matmul(self.vectors, torch.tensor(random_rotation(self.vectors.shape[1])))
        return [own.tobytes() for own in self._of_each(encode_rotated(rotated.numpy()))]

    def _of_each(self, rows: np.ndarray) -> list[np.ndarray]:
        return np.split(rows, np.cumsum(self.counts)[:-1])


def _unit(vectors: Any) -> Any:
    """A tensor's rows in main memory, normalised here, in float32, whatever the model's own last module and number
    format do."""
    exact = vectors.float().cpu()
    return exact / exact.norm(dim=-1, keepdim=True)
