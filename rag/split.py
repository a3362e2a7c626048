"""Which LLM answers a question that names none: by weights, and the same one for the same key."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping


def check_split(split: Mapping[str, float], llms: Collection[str]) -> None:
    """Raises ValueError when a weight is not positive, when there is none, or when it is not of one of `llms`."""
    if not isinstance(split, Mapping) or not split:
        raise ValueError(f"split names no LLM; give a weight to one or more of: {', '.join(llms)}")
    for name, weight in split.items():
        if name not in llms:
            raise ValueError(f"split names {name!r}; the LLMs are: {', '.join(llms)}")
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"split.{name} is {weight!r}: a weight must be above 0; leave out who is to get none")


def choose_llm(key: str, split: Mapping[str, float]) -> str:
    """The LLM for a key: the name with the weight w_i gets w_i / sum(w) of all keys.

    Weighted rendezvous hashing: the least of exponential variables with the rates w_i, each drawn by the hash of key
    and name, is number i with just that chance. After a change of weights a key moves only to a name that gained.
    Source: C. Schindelhauer, G. Schomaker, "Weighted distributed hash tables", SPAA 2005 (the logarithmic method).
    """
    return min(split, key=lambda name: -math.log(_uniform(key, name)) / split[name])


def _uniform(key: str, name: str) -> float:
    """A number in (0, 1] that key and name decide."""
    digest = hashlib.sha256(f"{name}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") + 1) / 2**64
