"""What a running service takes without a restart: `user_config`, by Settings.with_live and the orchestrator."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from rag.cli import main
from rag.config import LIVE, LIVE_NAMES, load_settings
from rag.errors import SettingsError
from tests.pipeline_fakes import make_settings

OTHER: dict[str, float] = {
    "evidence.min_confidence": 0.75,
    "retrieval.top_k": 17,
    "retrieval.rrf_k": 33,
    "reranker.candidates": 11,
    "reranker.top_k": 3,
    "reranker.blend": 0.25,
    "reranker.dense_share": 0.125,
    "prompt.passage_tokens": 111,
    "prompt.history_tokens": 22,
    "grounding.min_support": 0.625,
}


def test_every_live_setting_changes_and_nothing_else_with_it() -> None:
    settings = load_settings(profile="embedded")
    assert OTHER.keys() == set(LIVE_NAMES) - {"split"}
    for full_name, value in OTHER.items():
        group, name = full_name.split(".")
        live = settings.with_live({group: {name: value}})
        assert getattr(getattr(live, group), name) == value
        before, after = settings.model_dump(), live.model_dump()
        before[group].pop(name), after[group].pop(name)
        assert after == before


def test_the_shares_are_whole() -> None:
    others = [{"model": "/models/large", "model_id": "large"}]
    first = load_settings(profile="embedded").generator.model_id
    settings = load_settings(profile="embedded", generators=others, split={first: 90, "large": 10})
    assert settings.with_live({"split": {"large": 1}}).shares == {"large": 1}
    assert settings.with_live({}).shares == {first: 90, "large": 10}


@pytest.mark.parametrize(
    ("user_config", "told"),
    [
        ({"evidence": {"min_confidence": 2}}, ["evidence.min_confidence", "is 2", "less than or equal to 1"]),
        ({"prompt": {"passage_tokens": 2000}}, ["max_model_len (2048)", "no room left"]),
        ({"embedder": {"model": "x"}}, ["embedder.model does not change while a service runs", "retrieval.top_k"]),
        ({"reranker": {"kind": "maxsim"}}, ["reranker.kind does not change", "reranker.top_k"]),
        ({"retrieval": {"top_kk": 3}}, ["retrieval.top_kk does not change", "retrieval.top_k"]),
        ({"retrieval": 5}, ["retrieval does not change", "retrieval.top_k"]),
        ({"split": {}}, ["split names no LLM"]),
        ({"split": {"huge": 1}}, ["split names 'huge'"]),
    ],
    ids=str,
)
def test_what_cannot_change_is_refused_with_what_can(user_config: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(profile="embedded").with_live(user_config)
    for part in told:
        assert part in str(refused.value)


def test_the_names_are_settings() -> None:
    settings = make_settings()
    for group, names in LIVE.items():
        assert names <= set(type(getattr(settings, group)).model_fields)


@pytest.mark.parametrize(
    ("changes", "status", "told"),
    [
        ([], 2, "Missing argument 'NAME=VALUE...'"),
        (["evidence.min_confidence=high"], 2, "'high' is no number"),
        (["split.small=1"], 2, "changed by `rag split`"),
        (["serve.port=8001"], 2, "serve.port does not change while a service runs"),
        (["retrieval.top_k=20"], 3, "no service has been started in"),
    ],
)
def test_the_command_says_what_it_does_not_take(
    changes: list[str], status: int, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAG_DATA_DIR", str(tmp_path))
    done = CliRunner().invoke(main, ["set", *changes])
    assert done.exit_code == status, done.output
    assert told in done.stderr
