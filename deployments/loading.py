"""Loading a model so that the stage that takes longest to start is not held up by the others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_LOWEST = 19

T = TypeVar("T")


def load_behind(load: Callable[[], T]) -> T:
    """What `load` gives, made on a thread of the lowest priority; raises what it raises.

    Imports and weights cost each model stage seconds of a core, and the LLM three times as many, one after the other:
    where cores are few, a service is up sooner when the LLM gets one first. Linux counts priority by thread, and this
    one ends with the loading.
    """

    def run() -> T:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
        return load()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(run).result()
