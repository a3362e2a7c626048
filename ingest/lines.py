"""What readers say of a file, in lines; for those that run in the child, so it imports nothing of this project."""

from __future__ import annotations

import struct
import unicodedata
import zlib
from collections.abc import Mapping
from typing import Any, Literal

Line = dict[str, Any]
Request = Mapping[str, Any]

# Why a reader gives a file up; isolate.py has the sentence for each.
RefusalKind = Literal["encrypted", "password", "damaged", "pages", "chars", "memory", "library", "ocr"]

# What parsers raise on damaged input, beside their own errors. MemoryError is not among them: it ends the file.
DAMAGE: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,  # with it RecursionError, and what pypdf raises for a feature of PDF that it lacks
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}  # "ﬁ" and its like


class RefusedError(Exception):
    """The reader gives the whole file up."""

    def __init__(self, kind: RefusalKind, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


def storable(text: str) -> str:
    """Text that UTF-8 and the store can hold and a search can find.

    NFC, Latin ligatures as their letters, surrogate pairs joined, lone surrogates and NULs left out.
    """
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return unicodedata.normalize("NFC", joined.replace("\0", "").translate(_LIGATURES))


def describe(error: BaseException) -> str:
    """An error's kind and words, short enough for a report."""
    return f"{type(error).__name__}: {error}"[:300]
