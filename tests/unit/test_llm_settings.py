"""Settings of several LLMs, and what the graph makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.build_app import build_app as build_serve_app

from deployments.app import build_app
from deployments.generator import Generator
from rag.config import load_settings
from rag.errors import ModelError, SettingsError
from rag.models import adapter_rank

FIRST = "smollm2-135m-instruct"
LARGE: dict[str, Any] = {"model": "Qwen/Large", "model_id": "large"}


def test_one_llm_is_all_that_there_is_unless_others_are_listed() -> None:
    settings = load_settings(profile="embedded")
    assert list(settings.llms) == [FIRST]
    assert settings.shares == {FIRST: 1.0}
    assert settings.for_llm(FIRST) is settings


def test_llms_come_from_a_file_each_with_its_own_serving(tmp_path: Path) -> None:
    file = tmp_path / "rag.yaml"
    file.write_text(
        "generator: {fallback: [large]}\n"
        "generators:\n"
        "  - {model: Qwen/Large, model_id: large, max_tokens: 99, serving: {num_gpus: 1, max_replicas: 3}}\n"
        "split: {smollm2-135m-instruct: 90, large: 10}\n",
        encoding="utf-8",
    )
    settings = load_settings(file)
    assert list(settings.llms) == [FIRST, "large"]
    assert settings.shares == {FIRST: 90, "large": 10}
    assert settings.llms[FIRST].fallback == ("large",)
    assert settings.model_references[-1] == "Qwen/Large"
    own = settings.for_llm("large")
    assert (own.generator.model, own.generator.max_tokens) == ("Qwen/Large", 99)
    assert own.serve.generator.num_gpus == 1
    assert own.serve.port == settings.serve.port
    assert settings.for_llm(FIRST).serve.generator.num_gpus == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        pytest.param({"split": {"huge": 1}}, ["split names 'huge'", FIRST, "large"], id="unknown_in_the_split"),
        pytest.param({"split": {FIRST: 0}}, [f"split.{FIRST} is 0", "above 0"], id="weight_not_positive"),
        pytest.param({"split": {FIRST: "many"}}, ["setting split", "'many'"], id="weight_no_number"),
        pytest.param(
            {"generators": [LARGE, LARGE]}, ["two LLMs are called 'large'", "another model_id"], id="name_twice"
        ),
        pytest.param(
            {"generators": [{**LARGE, "model_id": FIRST}]}, [f"two LLMs are called '{FIRST}'"], id="first_twice"
        ),
        pytest.param(
            {"generators": [{**LARGE, "model_id": "rag/notes"}]}, ["'rag/notes'", "collections"], id="collection_s_name"
        ),
        pytest.param(
            {"generators": [{**LARGE, "model_id": "a,b"}]}, ["generators.model_id", "'a,b'", "A-Za-z0-9"], id="letters"
        ),
        pytest.param(
            {"generators": [{**LARGE, "fallback": ["huge"]}]},
            ["the fallback of large names 'huge'", FIRST],
            id="unknown_fallback",
        ),
        pytest.param(
            {"generators": [{**LARGE, "fallback": ["large"]}]}, ["names 'large'", FIRST], id="fallback_to_itself"
        ),
        pytest.param(
            {"generators": [{**LARGE, "max_tokens": 2000}]},
            ["generators.max_tokens of large", "(2048)"],
            id="no_room_for_a_question",
        ),
        pytest.param(
            {"generators": [{**LARGE, "sizes": 1}]}, ["no setting generators.sizes", "model_id"], id="unknown_setting"
        ),
    ],
)
def test_what_cannot_be_is_named_with_what_can(given: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(profile="embedded", **{"generators": [LARGE], **given})
    for part in told:
        assert part in str(refused.value)


def test_each_llm_is_a_deployment_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}', encoding="utf-8")
    others = [
        {**LARGE, "serving": {"num_cpus": 2, "max_replicas": 3}},
        {**LARGE, "model_id": "org/two", "adapters": {"tuned": str(tmp_path)}},
    ]
    settings = load_settings(profile="embedded", generators=others)
    built = build_serve_app(build_app(settings), name="rag")
    found = {one.name: one for one in built.deployments if one.func_or_class is Generator}
    assert list(found) == ["Generator", "Generator-large", "Generator-org-two"]
    scaling = found["Generator-large"]._deployment_config.autoscaling_config
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    assert found["Generator"].num_replicas == 1
    for name, model_id in zip(found, [FIRST, "large", "org/two"], strict=True):
        given: Any = found[name].init_args[0]
        assert given.generator.model_id == model_id
    cpus = [one._replica_config.placement_group_bundles[0]["CPU"] for one in found.values()]
    assert cpus == [2, 3, 2]  # a worker's CPU and the replica's own


def test_an_adapter_is_asked_for_like_an_llm_and_has_its_engine_s_settings(tmp_path: Path) -> None:
    generator = {"adapters": {"tuned": str(tmp_path)}}
    settings = load_settings(profile="embedded", generator=generator, split={FIRST: 1, "tuned": 1})
    assert list(settings.llms) == [FIRST, "tuned"]
    assert list(settings.engines) == [FIRST]
    assert settings.llms["tuned"] is settings.generator
    with pytest.raises(SettingsError, match="names 'tuned'; it may name: none, it is the only LLM"):
        load_settings(profile="embedded", generator={**generator, "fallback": ["tuned"]})
    with pytest.raises(SettingsError, match="two LLMs are called 'tuned'"):
        load_settings(profile="embedded", generator=generator, generators=[{**LARGE, "model_id": "tuned"}])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        pytest.param(None, "no adapter_config.json", id="no_adapter"),
        pytest.param("{", "says no rank", id="no_json"),
        pytest.param('{"peft_type": "LORA"}', "says no rank", id="no_rank"),
    ],
)
def test_a_folder_that_holds_no_adapter_is_named(tmp_path: Path, config: str | None, told: str) -> None:
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ModelError) as refused:
        adapter_rank(tmp_path)
    assert told in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_an_adapter_s_rank_is_what_peft_saved(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 12}', encoding="utf-8")
    assert adapter_rank(tmp_path) == 12
    with pytest.raises(ModelError, match="is not there"):
        adapter_rank(tmp_path / "missing")
