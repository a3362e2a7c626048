"""What `rag doctor` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `remedy` says what to run or to set when it is not ok."""

    subject: str
    found: str
    ok: bool = True
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
