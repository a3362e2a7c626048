"""Texts of unlike length into forward passes of bounded size, and concurrent calls into one."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


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


class Joined(Generic[In, Out]):
    """Calls that come while one is at work are made together when it ends: `work` gives each of n inputs its result.

    Each of them raises what `work` raises; a call that is cancelled leaves the others alone.
    """

    def __init__(self, work: Callable[[list[In]], Awaitable[list[Out]]]) -> None:
        self._work = work
        self._busy = asyncio.Lock()
        self._inputs: list[In] = []
        self._task: asyncio.Task[list[Out]] | None = None  # that will take what is in `_inputs`

    async def __call__(self, inputs: list[In]) -> list[Out]:
        start = len(self._inputs)
        self._inputs += inputs
        if self._task is None:
            self._task = asyncio.create_task(self._take())
        found = await asyncio.shield(self._task)
        return found[start : start + len(inputs)]

    async def _take(self) -> list[Out]:
        async with self._busy:
            inputs, self._inputs, self._task = self._inputs, [], None
            return await self._work(inputs)
