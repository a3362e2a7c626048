"""Settings of several LLMs, and what the graph makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployments.generator import generator_options
from rag.config import load_settings
from rag.errors import SettingsError

FIRST = "smollm2-135m-instruct"
LARGE: dict[str, Any] = {"model": "/models/large", "model_id": "large"}


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
        "  - {model: /models/large, model_id: large, max_tokens: 99, serving: {num_gpus: 1, max_replicas: 3}}\n"
        "split: {smollm2-135m-instruct: 90, large: 10}\n",
        encoding="utf-8",
    )
    settings = load_settings(file)
    assert list(settings.llms) == [FIRST, "large"]
    assert settings.shares == {FIRST: 90, "large": 10}
    assert settings.llms[FIRST].fallback == ("large",)
    assert settings.model_references[-1] == "/models/large"
    own = settings.for_llm("large")
    assert (own.generator.model, own.generator.max_tokens) == ("/models/large", 99)
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
        pytest.param(
            {"serve": {"generator": {"replicas": 3, "max_replicas": 2}}},
            ["serve.generator", "max_replicas (2)", "replicas (3)"],
            id="bounds",
        ),
    ],
)
def test_what_cannot_be_is_named_with_what_can(given: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(profile="embedded", **{"generators": [LARGE], **given})
    for part in told:
        assert part in str(refused.value)


def test_an_llm_scales_between_its_bounds_where_it_has_two() -> None:
    fixed = load_settings(profile="embedded", serve={"generator": {"replicas": 2}})
    assert fixed.serve.generator.num_cpus == 1
    assert generator_options(fixed.generator, fixed.serve.generator)["num_replicas"] == 2
    scaled = load_settings(profile="embedded", serve={"generator": {"max_replicas": 4}})
    options = generator_options(scaled.generator, scaled.serve.generator)
    assert "num_replicas" not in options
    assert options["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": scaled.generator.max_num_seqs / 2,
    }
