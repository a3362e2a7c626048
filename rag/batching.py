"""Texts of unlike length into forward passes of bounded size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def token_bounded_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by similar length, shortest first, so that longest x count <= `max_tokens`.

    Each index appears once; a text longer than `max_tokens` gets a batch of its own. Little is padded since
    neighbours in the order have similar lengths.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[index] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def token_lengths(tokenizer: Any, max_tokens: int) -> Callable[[list[str]], list[int]]:
    """A function texts -> tokens that each takes in a forward pass, the cut at `max_tokens` and special ones included.

    It may be called from any thread, while the model works. A transformers tokenizer keeps its padding and truncation
    from call to call, so that one shared with the model was seen to make passes of ragged rows: this one is a copy,
    set once.
    """
    own = copy.deepcopy(tokenizer)

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in own(texts, truncation=True, max_length=max_tokens)["input_ids"]] if texts else []

    count([""])
    return count
