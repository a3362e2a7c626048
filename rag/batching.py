"""Texts of unlike length into forward passes of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


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
