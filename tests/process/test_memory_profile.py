"""What `rag profile-memory` runs in a replica, in a process of its own; tests/serve has the rest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rag.cli import main

ROOT = Path(__file__).parents[2]
REPLICA = """
import sys, time
from pathlib import Path
from deployments.memory_profile import draw, start_tracking, take_tracked

before = bytearray(64 * 2**20)
folder = start_tracking(None, 1.0)
try:
    start_tracking(None, 1.0)
except RuntimeError as error:
    print(error)
held = bytearray(32 * 2**20)
assert take_tracked(None, folder) is None
while (tracked := take_tracked(None, folder)) is None:
    time.sleep(0.05)
after = bytearray(128 * 2**20)
assert not Path(folder).exists()
print(draw(tracked, Path(sys.argv[1])))
again = start_tracking(None, 0.01)
"""


@pytest.mark.skipif(importlib.util.find_spec("memray") is None, reason="memray: the profile extra")
def test_a_process_tracks_what_it_allocates_for_a_while_and_no_second_time_at_once(tmp_path: Path) -> None:
    page = tmp_path / "new" / "memory.html"
    done = subprocess.run(
        [sys.executable, "-c", REPLICA, str(page)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    refused, peak = done.stdout.splitlines()
    assert "one Tracker" in refused
    assert 32 * 2**20 <= int(peak) < 60 * 2**20  # neither what was there before nor what came after
    assert "<html" in page.read_text(encoding="utf-8")


@pytest.mark.skipif(importlib.util.find_spec("memray") is not None, reason="memray is installed")
def test_without_memray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = CliRunner().invoke(main, ["profile-memory", "embedder", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "install the project's extra `profile`" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_service_nothing_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAG_DATA_DIR", str(tmp_path))
    done = CliRunner().invoke(main, ["profile-memory", "embedder"])
    assert done.exit_code == 3
    assert "no service has been started in" in done.stderr
