"""Where a model comes from, and the folder or name that its loader is given.

A reference is one of
    a folder                 `./models/mine`, `/models/mine`
    `package:NAME[/PATH]`    weights that the installed Python package NAME carries; nothing is fetched
    a hub name               `BAAI/bge-m3`, fetched by the loader from the hub or from its local cache

A package that carries a single GGUF file is exported once to a folder that vLLM serves.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag.config import Settings
from rag.cpu import cpu_flags
from rag.errors import ModelError
from rag.step_settings import EmbedderSettings
from rag.types import CountTokens, Message, TokenOffsets

logger = logging.getLogger(__name__)

ADAPTER = "adapter.safetensors"  # of answerability, in its folder
MARKER = "complete.json"  # written last: a folder without it is an export that was cut off
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CHECK_PROMPTS = (
    "The capital of France is",
    "Monday, Tuesday, Wednesday, Thursday,",
    "2, 4, 6, 8, 10,",
)
_CHECK_TOKENS = 8
_CHECK_MARGIN = 1.0  # logits; a closer race between two tokens may be decided by rounding and proves nothing


@dataclass(frozen=True, slots=True)
class AnswerabilityAdapter:
    """Its file, and the reference of the LLM whose weights it changes."""

    path: Path
    base: str


@dataclass(frozen=True, slots=True)
class FormatCheck:
    """What a model continues `prompt_token_ids` with when computed in float32, greedily."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


def locate_model(reference: str, cache_dir: Path) -> str:
    """The folder (or hub name) to hand to a loader; exports a packaged GGUF file when needed.

    Raises ModelError when the folder or the package is not there, or the export fails.
    """
    if reference.startswith("package:"):
        folder = _package_folder(reference)
        if (folder / "config.json").is_file():
            return str(folder)
        return str(_export_gguf(_only_gguf(reference, folder), cache_dir))
    return str(_model_folder(reference) or reference)


def check_reference(reference: str) -> None:
    """Raises ModelError where a reference's folder or package is not there; a hub's name is not looked up."""
    if reference.startswith("package:"):
        _package_folder(reference)
    else:
        _model_folder(reference)


def model_file(located: str, filename: str) -> Path:
    """One file of a located model: within its folder, or fetched from the hub. Raises ModelError."""
    if Path(located).is_dir():
        path = Path(located) / filename
        if not path.is_file():
            raise ModelError(f"model folder {located} has no {filename}")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(located, filename))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"{filename} of the hub model {located} cannot be fetched ({error}); "
            "check the name and the network, or set the model to a local folder"
        ) from error


def hide_progress(located: str) -> None:
    """No bar of transformers while a local model is loaded, in a second; a hub's download, of minutes, keeps its."""
    from transformers.utils import logging as transformers_logging

    if Path(located).is_dir():
        transformers_logging.disable_progress_bar()


def load_token_counter(located: str, *, special_tokens: bool = False) -> CountTokens:
    """A function text -> number of tokens by the model's own tokenizer, never truncated."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_file(located, "tokenizer.json")))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    return count_tokens


def load_prompt_counter(settings: Settings) -> CountTokens:
    """A function text -> number of tokens of a prompt, which has to fit whichever LLM gets it. Raises ModelError."""
    models = dict.fromkeys(llm.model for llm in settings.llms.values())
    counters = [load_token_counter(locate_model(model, settings.cache_dir)) for model in models]

    def count_tokens(text: str) -> int:
        return max(count(text) for count in counters)

    return count_tokens


def load_chat_template(located: str) -> Callable[[list[Message]], list[int]]:
    """A function messages -> the tokens of the prompt, by the LLM's own chat template, up to its answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(located)

    def tokenize(messages: list[Message]) -> list[int]:
        tokens: list[int] = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            # A reasoning model's thoughts would take the answer's tokens; templates without this switch ignore it.
            enable_thinking=False,
        )
        return tokens

    return tokenize


def load_token_offsets(settings: EmbedderSettings, cache_dir: Path) -> TokenOffsets:
    """A function texts -> where the content tokens of each start and end in it, int (tokens, 2), in any thread.

    They are those whose vectors SentenceEmbedder.encode_tokens gives for passages: cut where the embedder cuts, without
    special tokens and those of the prefix. Loads no weights. Raises ModelError.
    """
    from tokenizers import Tokenizer

    located = locate_model(settings.model, cache_dir)
    tokenizer = Tokenizer.from_file(str(model_file(located, "tokenizer.json")))
    tokenizer.enable_truncation(settings.max_tokens)
    tokenizer.no_padding()
    prefix = settings.passage_prefix

    def offsets_of(texts: list[str]) -> list[np.ndarray]:
        found = []
        for encoded in tokenizer.encode_batch([prefix + text for text in texts]):
            offsets = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2) - len(prefix)
            content = (np.array(encoded.special_tokens_mask) == 0) & (offsets[:, 1] > 0)
            found.append(np.maximum(offsets[content], 0))
        return found

    return offsets_of


def embedding_dimension(settings: EmbedderSettings, cache_dir: Path) -> int:
    """The length of the embedder's vectors, read from its configuration without loading weights. Raises ModelError."""
    located = locate_model(settings.model, cache_dir)
    path = model_file(located, "config.json")
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["hidden_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the embedder {settings.model}: {path} says no hidden_size ({type(error).__name__}: {error}); "
            "fetch the model again, or set embedder.model to another"
        ) from error


def adapter_rank(folder: Path) -> int:
    """The rank of the LoRA adapter that PEFT saved in `folder`. Raises ModelError."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ModelError(f"the adapter's folder {folder} is not there")
    path = model_file(str(folder), "adapter_config.json")
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["r"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} says no rank `r` ({type(error).__name__}: {error}); save the adapter again"
        ) from error


def locate_answerability(settings: Settings) -> AnswerabilityAdapter | None:
    """The answerability adapter that the settings name; None without one. Raises ModelError where it or its LLM is not
    there; a hub's name is not looked up."""
    from safetensors import SafetensorError, safe_open

    reference = settings.evidence.answerability
    if reference is None:
        return None
    folder = _package_folder(reference) if reference.startswith("package:") else Path(reference).expanduser()
    path = folder / ADAPTER
    try:
        with safe_open(path, framework="numpy") as file:
            base = file.metadata()["base"]
    except (OSError, SafetensorError, LookupError, TypeError) as error:  # without metadata they are None
        raise ModelError(
            f"the answerability adapter {path} cannot be read ({error}); train it (python -m "
            "eval.train_answerability), or set evidence.answerability to null"
        ) from error
    check_reference(base)
    return AnswerabilityAdapter(path, base)


def choose_dtype(settings: Settings) -> str:
    """The LLM's number format. On a CPU: float16 where it computes it natively, else float32.

    bfloat16 is never chosen on a CPU: the CPU build of vLLM writes wrong text with it.
    """
    generator = settings.generator
    if generator.dtype != "auto" or generator.accelerator == "gpu":
        return generator.dtype
    return "float16" if cpu_flags() & {"avx512_fp16", "fphp"} else "float32"


def read_format_checks(located: str) -> list[FormatCheck]:
    """The float32 continuations saved with an exported model; empty for a model that was not exported here."""
    marker = Path(located) / MARKER
    if not marker.is_file():
        return []
    saved = json.loads(marker.read_text(encoding="utf-8"))["checks"]
    return [FormatCheck(tuple(check["prompt_token_ids"]), tuple(check["token_ids"])) for check in saved]


def _model_folder(reference: str) -> Path | None:
    """The folder that is meant, None for a hub's name."""
    folder = Path(reference).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model folder {folder} has no config.json; name a folder in Hugging Face layout")
        return folder
    if reference.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(reference):
        raise ModelError(
            f"model {reference!r} is no folder here; give an existing folder, package:NAME/PATH or a hub name"
        )
    return None


def _package_folder(reference: str) -> Path:
    name, _, inner = reference.removeprefix("package:").partition("/")
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a parent that is not there, an empty or relative name
        found = None
    if found is None or not found.submodule_search_locations:
        raise ModelError(
            f"model {reference!r}: there is no Python package {name!r} here; run `make setup`, "
            "or set the model to a folder or a hub name"
        )
    folder = Path(next(iter(found.submodule_search_locations))) / inner
    if not folder.is_dir():
        raise ModelError(f"model {reference!r}: the package {name} has no folder {inner!r}")
    return folder


def _only_gguf(reference: str, folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ModelError(f"model {reference!r}: {folder} holds neither config.json nor a single .gguf file")
    return files[0]


def _export_gguf(gguf: Path, cache_dir: Path) -> Path:
    """The folder with `gguf` dequantised; made when missing. Safe with several processes at once."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    target = cache_dir / "models" / f"{gguf.stem.lower()}-{digest}"
    if (target / MARKER).is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target.with_suffix(".lock")):
            if not (target / MARKER).is_file():
                logger.info("exporting %s once to %s (about 30 s)", gguf.name, target)
                _write_export(gguf, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = gguf.stat().st_size * 4 // 2**20
            raise ModelError(
                f"the disk is full while exporting {gguf.name} to {target.parent} (about {need} MiB are needed); "
                "free space there or point RAG_CACHE_DIR to a disk that has it"
            ) from error
        raise ModelError(f"exporting {gguf.name} to {target.parent} failed: {error}") from error
    return target


def _write_export(gguf: Path, target: Path) -> None:
    for left in target.parent.glob(f".{target.name}-*"):  # by a process that was killed: the lock is ours now
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        partial = Path(name) / "model"
        checks = _dequantise(gguf, partial)
        (partial / MARKER).write_text(json.dumps({"gguf": gguf.name, "checks": checks}), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)  # what an interrupted move of an older version may have left
        partial.rename(target)


def _dequantise(gguf: Path, folder: Path) -> list[dict[str, Any]]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    except ValueError as error:
        raise ModelError(f"{gguf} cannot be read ({error}); install the package that carries it again") from error
    try:
        # Half the bytes on disk; the weights were 4-bit, so float16 holds them exactly enough for every format.
        tokenizer.save_pretrained(folder)
        model.to(torch.float16).save_pretrained(folder)
    except SafetensorError as error:
        # safetensors reports a full disk as an error of its own, with the system's number only in its text.
        raise OSError(errno.ENOSPC if f"os error {errno.ENOSPC}" in str(error) else errno.EIO, str(error)) from error
    model.to(torch.float32)
    return [_float32_continuation(model, tokenizer, prompt) for prompt in _CHECK_PROMPTS]


def _float32_continuation(model: Any, tokenizer: Any, prompt: str) -> dict[str, Any]:
    """Greedy tokens for as long as each wins by more than rounding can turn."""
    import torch

    ids = tokenizer(prompt, return_tensors="pt").input_ids
    start = ids.shape[1]
    with torch.inference_mode():
        for _ in range(_CHECK_TOKENS):
            best = model(ids).logits[0, -1].topk(2)
            if best.values[0] - best.values[1] < _CHECK_MARGIN:
                break
            ids = torch.cat([ids, best.indices[:1].unsqueeze(0)], dim=1)
    return {"prompt_token_ids": ids[0, :start].tolist(), "token_ids": ids[0, start:].tolist()}


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file; the kernel frees it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """`python -m rag.models [--quiet]`: makes the profile's packaged models ready, for `make setup`."""
    from rag.config import load_settings
    from rag.errors import RagError

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        settings = load_settings()
        for reference in settings.model_references:
            located = locate_model(reference, settings.cache_dir)
            if "--quiet" not in sys.argv:
                logger.info("model %s: %s", reference, located)
    except RagError as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
