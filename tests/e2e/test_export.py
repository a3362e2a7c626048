"""A packaged LLM's export to a folder, by real processes: at once, killed, out of space, from a damaged file.

The LLM is a tiny one of this file's making; the embedded profile's own is exported by `make setup` and checked by the
service when it starts.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from rag.errors import ModelError
from rag.models import MARKER, locate_model, read_format_checks

ROOT = Path(__file__).parents[2]
WIDTH, INNER, LAYERS, CONTEXT = 64, 128, 2, 64
WEIGHTS_LIMIT = 2**16  # bytes: more than any other file of the tiny model's folder, less than its weights
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


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `tiny_llm`: a Llama of two layers that reads bytes, in one GGUF file."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "tiny_llm").mkdir()
    (folder / "tiny_llm" / "__init__.py").touch()
    tokens = ["<|end|>", *sorted(ByteLevel.alphabet()), "th"]
    writer = gguf.GGUFWriter(folder / "tiny_llm" / "tiny.gguf", "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(["t h"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        add(0)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}_norm": (WIDTH,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{layer}.attn_{name}": (WIDTH, WIDTH) for name in ("q", "output")}
        shapes |= {f"blk.{layer}.attn_{name}": (WIDTH // 2, WIDTH) for name in ("k", "v")}
        shapes |= {f"blk.{layer}.ffn_{name}": (INNER, WIDTH) for name in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down"] = (WIDTH, INNER)
    chance = np.random.default_rng(7)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", chance.normal(0, 1.5, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def start(packages: Path, cache: Path, *, file_bytes: int | None = None) -> subprocess.Popen[str]:
    """A process that locates the tiny model; `file_bytes` is the largest file that it may write."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return subprocess.Popen(
        [sys.executable, "-c", LOCATE, "package:tiny_llm", str(cache)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        },
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


def test_two_processes_at_once_end_with_one_complete_folder_after_a_killed_one(packages: Path, tmp_path: Path) -> None:
    killed = start(packages, tmp_path)
    deadline = time.monotonic() + 120
    while not partial_folders(tmp_path):
        assert time.monotonic() < deadline
        assert killed.poll() is None, wait(killed)
        time.sleep(0.02)
    killed.kill()
    wait(killed)
    assert partial_folders(tmp_path)
    assert not list((tmp_path / "models").glob(f"*/{MARKER}"))

    both = [start(packages, tmp_path) for _ in range(2)]
    (status, folder, err), other = (wait(process) for process in both)
    assert status == 0, err
    assert other[:2] == (0, folder)
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == [Path(folder)]  # nothing partial
    names = {path.name for path in Path(folder).iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", MARKER}
    checks = read_format_checks(folder)
    assert any(check.token_ids for check in checks)

    written = (Path(folder) / "model.safetensors").stat().st_mtime_ns
    assert wait(start(packages, tmp_path))[:2] == (0, folder)
    assert (Path(folder) / "model.safetensors").stat().st_mtime_ns == written


def test_weights_that_cannot_be_written_are_one_sentence_and_leave_nothing(packages: Path, tmp_path: Path) -> None:
    status, out, err = wait(start(packages, tmp_path, file_bytes=WEIGHTS_LIMIT))
    assert (status, out) == (1, "")
    sentence = err.splitlines()[-1]
    assert sentence.startswith(f"exporting tiny.gguf to {tmp_path / 'models'} failed")
    assert "Traceback" not in err
    assert partial_folders(tmp_path) == []
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]


@pytest.mark.parametrize("content", [b"no GGUF", b""], ids=["junk", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    package = tmp_path / "packages" / "damaged_model"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "weights.gguf").write_bytes(content)
    monkeypatch.syspath_prepend(package.parent)
    with pytest.raises(ModelError, match=re.escape(f"{package / 'weights.gguf'} cannot be read")):
        locate_model("package:damaged_model", tmp_path / "cache")
    assert partial_folders(tmp_path / "cache") == []
