from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rag.config import load_settings
from rag.errors import ModelError
from rag.models import (
    MARKER,
    choose_dtype,
    embedding_dimension,
    load_token_counter,
    locate_model,
    model_file,
    read_format_checks,
)
from rag.profiles import MINILM
from rag.step_settings import EmbedderSettings

ROOT = Path(__file__).parents[2]


def model_folder(path: Path, **config: Any) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    assert locate_model(str(folder), tmp_path / "cache") == str(folder)
    assert not (tmp_path / "cache").exists()


def test_the_home_sign_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = model_folder(tmp_path / "mine")
    assert locate_model("~/mine", tmp_path) == str(folder)


def test_a_relative_folder_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "org" / "name")
    assert locate_model("org/name", tmp_path) == "org/name"
    assert Path(locate_model("org/name", tmp_path)).is_dir()


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "gpt2", "org/name-1.5_x"])
def test_a_hub_name_is_left_to_the_loader(tmp_path: Path, name: str) -> None:
    assert locate_model(name, tmp_path) == name


def test_the_packaged_embedder_is_found_without_a_network(tmp_path: Path) -> None:
    folder = Path(locate_model(MINILM, tmp_path))
    assert (folder / "config.json").is_file()
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("reference", "part"),
    [
        pytest.param("/no/such/folder", "is no folder here", id="folder"),
        pytest.param("./models/mine", "is no folder here", id="relative_folder"),
        pytest.param("~/models/mine", "is no folder here", id="home_folder"),
        pytest.param("a/b/c", "hub name", id="too_many_parts"),
        pytest.param("my model", "hub name", id="space"),
        pytest.param("package:no_such_package/model", "no_such_package", id="package"),
        pytest.param("package:no_such_package.inner/model", "no_such_package.inner", id="dotted_package"),
        pytest.param("package:", "make setup", id="no_package"),
        pytest.param("package:/etc", "make setup", id="path_without_package"),
        pytest.param("package:.relative", "make setup", id="relative_package"),
        pytest.param("package:os", "make setup", id="module_without_folder"),
        pytest.param("package:json/weights", "no folder 'weights'", id="folder_in_package"),
        pytest.param("package:json", "neither config.json nor a single .gguf", id="package_without_model"),
    ],
)
def test_what_is_not_there_is_named_with_what_to_do(tmp_path: Path, reference: str, part: str) -> None:
    with pytest.raises(ModelError) as caught:
        locate_model(reference, tmp_path)
    assert part in str(caught.value)
    assert reference in str(caught.value)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        locate_model(str(tmp_path), tmp_path)


def test_a_missing_file_of_a_folder_is_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    assert model_file(str(folder), "config.json") == folder / "config.json"
    with pytest.raises(ModelError, match=r"mine has no tokenizer\.json"):
        model_file(str(folder), "tokenizer.json")


@pytest.mark.parametrize("name", ["no-such-org/no-such-model", "x..y", "a--b"])
def test_a_hub_name_that_cannot_be_had_is_one_sentence(tmp_path: Path, name: str) -> None:
    """In a process of its own: the hub's client reads whether it is offline when it is imported."""
    code = (
        "from rag.errors import ModelError\n"
        "from rag.models import model_file\n"
        "try:\n"
        f"    model_file({name!r}, 'config.json')\n"
        "except ModelError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"config.json of the hub model {name} cannot be fetched" in done.stdout
    assert "local folder" in done.stdout


def test_the_embedder_s_dimension_is_read_without_its_weights(tmp_path: Path) -> None:
    assert embedding_dimension(EmbedderSettings(model=MINILM), tmp_path) == 384
    folder = model_folder(tmp_path / "mine", hidden_size=12)
    assert embedding_dimension(EmbedderSettings(model=str(folder)), tmp_path) == 12


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"hidden_size": null}', '{"hidden_size": "wide"}', ""])
def test_a_configuration_that_says_no_dimension_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json says no hidden_size"):
        embedding_dimension(EmbedderSettings(model=str(tmp_path)), tmp_path)


def test_tokens_are_counted_by_the_model_s_tokenizer_and_never_cut(tmp_path: Path) -> None:
    located = locate_model(MINILM, tmp_path)
    plain, special = load_token_counter(located), load_token_counter(located, special_tokens=True)
    assert plain("") == 0
    assert plain("port port") == 2
    assert special("port port") == 4
    assert plain("port " * 3000) == 3000  # far beyond the model's own 256


@pytest.mark.parametrize(
    ("dtype", "accelerator", "expected"),
    [
        ("float32", "cpu", {"float32"}),
        ("bfloat16", "cpu", {"bfloat16"}),
        ("float16", "gpu", {"float16"}),
        ("auto", "gpu", {"auto"}),
        ("auto", "cpu", {"float16", "float32"}),
    ],
)
def test_the_number_format_is_the_one_set_or_fits_the_machine(dtype: str, accelerator: str, expected: set[str]) -> None:
    settings = load_settings(profile="embedded", generator={"dtype": dtype, "accelerator": accelerator})
    assert choose_dtype(settings) in expected


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="needs /proc/cpuinfo")
def test_float16_is_chosen_only_where_this_cpu_computes_it() -> None:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    native = "avx512_fp16" in cpuinfo or "fphp" in cpuinfo
    assert choose_dtype(load_settings(profile="embedded")) == ("float16" if native else "float32")


def test_format_checks_are_read_from_the_marker(tmp_path: Path) -> None:
    assert read_format_checks(str(tmp_path)) == []
    assert read_format_checks("org/name") == []
    saved = {"gguf": "m.gguf", "checks": [{"prompt_token_ids": [1, 2], "token_ids": [3]}]}
    (tmp_path / MARKER).write_text(json.dumps(saved), encoding="utf-8")
    (check,) = read_format_checks(str(tmp_path))
    assert (check.prompt_token_ids, check.token_ids) == ((1, 2), (3,))
