"""What this machine's processor can compute."""

from __future__ import annotations

from pathlib import Path


def cpu_flags() -> set[str]:
    """The processor's feature flags as Linux names them; empty where it does not say."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return set()
    for line in info.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def computes_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 itself; where it does not, they are slower than float32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
