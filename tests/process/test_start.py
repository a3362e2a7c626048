"""What is imported, and which limits hold, when a program starts, seen in a new interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "module",
    ["rag.cli", "rag.client", "rag.doctor", "deployments.launch", "deployments.app", "deployments.bulk", "ingest.run"],
)
def test_commands_start_without_the_heavy_libraries(module: str) -> None:
    heavy = {"torch", "vllm", "ray", "transformers", "sentence_transformers", "kiwipiepy"}
    if module in ("rag.cli", "rag.client"):
        heavy |= {"pymilvus", "numpy", "fastapi"}
    if module == "deployments.app":
        heavy -= {"ray"}
    code = f"import {module}, sys; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_reading_child_starts_no_thread_and_loads_no_numpy() -> None:
    """It forks, and a thread pool would count against each file's memory."""
    code = (
        "import ingest.child, ingest.read_pdf, ingest.read_html, ingest.read_docx, ingest.read_markdown, sys, os\n"
        "print(len(os.listdir('/proc/self/task')), sorted({'numpy', 'pydantic', 'rag'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "[]"]


def test_serve_gives_up_its_proxy_no_sooner_than_its_wait_for_it() -> None:
    """With Serve's own limits a start on a machine busy with other work ended with a proxy killed after 15 s."""
    code = (
        "from deployments.environment import serve_environment\n"
        "from rag.config import load_settings\n"
        "with serve_environment(load_settings(profile='embedded')):\n"
        "    from ray.serve._private import constants as c\n"
        "checks_s = c.PROXY_READY_CHECK_TIMEOUT_S * c.PROXY_HEALTH_CHECK_UNHEALTHY_THRESHOLD\n"
        "print(checks_s, c.RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S, c.HTTP_PROXY_TIMEOUT)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    checks_s, haproxy_s, wait_s = map(float, done.stdout.split())
    assert min(checks_s, haproxy_s) >= wait_s
