"""The entries used last, and with them queries that need not be embedded again. Each belongs to one event loop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np

from rag.types import Embed, TextKind, Vector

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
LookedUp = Callable[[int, int], None]


class Recent(Generic[Key, Value]):
    """At most `size` entries; what was used longest ago makes room."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The key's value, which counts as used now; None where there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: Key, value: Value) -> None:
        """Keeps the value under the key, in place of its former one."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def drop(self, key: Key) -> None:
        """Forgets the key; nothing where it is not there."""
        self._entries.pop(key, None)

    def items(self) -> list[tuple[Key, Value]]:
        """All entries; none of them counts as used."""
        return list(self._entries.items())


class QueryEmbeddings:
    """`embed` of one model, in whose place the vectors of the `size` queries embedded last are known.

    `looked_up` is told how many of a call's queries were known, and how many were not.

    A query is known by its exact text. Equal queries at the same time are each embedded: a call that they shared would
    have to outlive whoever made it.
    """

    def __init__(self, embed: Embed, size: int, looked_up: LookedUp) -> None:
        self._embed = embed
        self._known: Recent[str, Vector] = Recent(size)
        self._looked_up = looked_up

    async def __call__(self, texts: list[str], kind: TextKind) -> np.ndarray:
        """As `embed`, whose errors it raises and does not remember."""
        if kind != "query" or not texts:
            return await self._embed(texts, kind)
        found = {text: vector for text in texts if (vector := self._known.get(text)) is not None}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        self._looked_up(len(found), len(missing))
        made = await self._embed(missing, kind) if missing else ()
        for text, row in zip(missing, made, strict=True):
            found[text] = row.copy()  # a view would keep its whole batch
            self._known.put(text, found[text])
        return np.stack([found[text] for text in texts])
