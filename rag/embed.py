"""Texts to unit vectors with any sentence-transformers model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rag.batching import token_bounded_batches, token_lengths
from rag.errors import ModelError
from rag.step_settings import EmbedderSettings
from rag.types import TextKind


class SentenceEmbedder:
    """Holds the model; `encode` blocks and uses `settings.threads` threads.

    `model` is a folder or hub name (rag.models.locate_model). Raises ModelError when it cannot be loaded.
    """

    def __init__(self, settings: EmbedderSettings, model: str) -> None:
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
        self._model.max_seq_length = settings.max_tokens
        self._token_lengths = token_lengths(self._model.tokenizer, settings.max_tokens)

    @property
    def dimension(self) -> int:
        return int(self._model.get_embedding_dimension() or 0)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens that each text takes in a forward pass, the model's cut and special tokens included; in any thread."""
        return self._token_lengths(texts)

    def encode(self, texts: list[str], kind: TextKind) -> np.ndarray:
        """n texts -> float32 (n, dim) in the given order, rows of L2 norm 1; `kind` picks the model's prefix."""
        prefix = self._settings.query_prefix if kind == "query" else self._settings.passage_prefix
        prefixed = [prefix + text for text in texts]
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for batch in token_bounded_batches(self.count_tokens(prefixed), self._settings.batch_tokens):
            encoded = self._model.encode(
                [prefixed[index] for index in batch],
                batch_size=len(batch),
                convert_to_tensor=True,
                show_progress_bar=False,
            )
            vectors[batch] = encoded.float().cpu().numpy()
        # Normalised here, in float32, whatever the model's own last module and number format do.
        unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit
