"""promtool, which knows whether an expression is PromQL."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Its run. Without promtool the test is skipped; in CI, which sets REQUIRE_PROMTOOL, it fails."""
    program = shutil.which("promtool")
    if program is None:
        reason = "promtool is not installed: it is in Debian's package prometheus"
        (pytest.fail if os.environ.get("REQUIRE_PROMTOOL") else pytest.skip)(reason)
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def check_expressions(expressions: Iterable[str], folder: Path) -> str:
    """What promtool has against them, empty where nothing; each becomes a recording rule of a file in `folder`."""
    rules = [{"record": f"checked:{number}", "expr": one} for number, one in enumerate(expressions)]
    path = folder / "expressions.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "checked", "rules": rules}]}), encoding="utf-8")
    done = promtool("check", "rules", path)
    return "" if done.returncode == 0 else done.stdout + done.stderr
