from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rag.config import Settings, load_settings
from rag.errors import SettingsError
from rag.filter_language import METADATA_FIELDS
from rag.profiles import PROFILES
from rag.step_settings import EvidenceSettings


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("RAG_"):
            monkeypatch.delenv(name)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_each_profile_is_complete(profile: str) -> None:
    settings = load_settings(profile=profile)
    assert settings.profile == profile
    assert settings.embedder.model == PROFILES[profile]["embedder"]["model"]


def test_embedded_is_the_default_profile() -> None:
    assert load_settings() == load_settings(profile="embedded")


@pytest.mark.parametrize(
    ("in_file", "in_environment", "given", "expected"),
    [
        pytest.param(False, False, False, PROFILES["embedded"]["generator"]["max_tokens"], id="profile"),
        pytest.param(True, False, False, 71, id="file_over_profile"),
        pytest.param(True, True, False, 72, id="environment_over_file"),
        pytest.param(True, True, True, 73, id="command_line_over_all"),
        pytest.param(False, True, True, 73, id="command_line_over_environment"),
    ],
)
def test_precedence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_file: bool,
    in_environment: bool,
    given: bool,
    expected: int,
) -> None:
    file = write(tmp_path / "rag.yaml", "generator: {max_tokens: 71}") if in_file else None
    if in_environment:
        monkeypatch.setenv("RAG_GENERATOR__MAX_TOKENS", "72")
    overrides: dict[str, Any] = {"generator": {"max_tokens": 73}} if given else {}
    assert load_settings(file, **overrides).generator.max_tokens == expected


def test_sources_merge_within_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "rag.yaml", "serve: {max_inflight: 3, port: 1001, host: a}")
    monkeypatch.setenv("RAG_SERVE__PORT", "1002")
    serve = load_settings(file, serve={"host": "b"}).serve
    assert (serve.max_inflight, serve.port, serve.host) == (3, 1002, "b")


def test_profile_may_come_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "rag.yaml", "profile: gpu")
    assert load_settings(file).profile == "gpu"
    monkeypatch.setenv("RAG_PROFILE", "embedded")
    assert load_settings(file).profile == "embedded"
    assert load_settings(file, profile="gpu").profile == "gpu"


def test_config_file_from_the_environment_yields_to_the_one_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAG_CONFIG_FILE", str(write(tmp_path / "one.yaml", "serve: {port: 1001}")))
    assert load_settings().serve.port == 1001
    assert load_settings(write(tmp_path / "two.yaml", "serve: {port: 1002}")).serve.port == 1002


def test_a_file_does_not_change_the_profiles_for_the_next_call(tmp_path: Path) -> None:
    load_settings(write(tmp_path / "rag.yaml", "embedder: {model: mine}"))
    assert load_settings().embedder.model == PROFILES["embedded"]["embedder"]["model"]


def test_a_gate_of_a_file_takes_the_place_of_the_profiles_as_a_whole(tmp_path: Path) -> None:
    """One that was fitted before there was an adapter, say: nothing of the profile's judges beside it."""
    calibration = {"intercept": -1.0, "weights": {"rerank": 1.0}}
    gate = {"min_confidence": 0.6, "scales": {"rerank": calibration}}
    evidence = load_settings(write(tmp_path / "own.yaml", json.dumps({"evidence": gate}))).evidence
    assert evidence == EvidenceSettings.model_validate(gate)
    threshold = load_settings(write(tmp_path / "less.yaml", "evidence: {min_confidence: 0.6}")).evidence
    assert threshold.min_confidence == 0.6
    assert threshold.scales == load_settings().evidence.scales


def test_a_variable_may_say_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().evidence.answerability is not None
    monkeypatch.setenv("RAG_EVIDENCE__ANSWERABILITY", "null")
    monkeypatch.setenv("RAG_EMBEDDER__LANGUAGES", "null")
    settings = load_settings()
    assert settings.evidence.answerability is None
    assert settings.embedder.languages is None
    assert settings.evidence.min_confidence is not None


def test_empty_variables_count_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAG_DATA_DIR", "RAG_STORE__URI", "RAG_CONFIG_FILE", "RAG_PROFILE"):
        monkeypatch.setenv(name, "")
    assert load_settings() == load_settings(profile="embedded")
    assert load_settings().store.uri is None


def test_folders_follow_the_desktop_standard_and_the_home_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    settings = load_settings()
    assert (settings.data_dir, settings.cache_dir) == (Path("/home/someone/.local/share/rag"), Path("/fast/rag"))
    monkeypatch.setenv("RAG_DATA_DIR", "~/answers")
    assert load_settings().data_dir == Path("/home/someone/answers")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        pytest.param(
            {"embedder": {"dtype": "int8"}},
            ["embedder.dtype", "RAG_EMBEDDER__DTYPE", "'int8'", "'float32'", "'bfloat16'", "'float16'"],
            id="choice",
        ),
        pytest.param({"serve": {"port": 99999}}, ["serve.port", "RAG_SERVE__PORT", "99999", "65535"], id="bound"),
        pytest.param({"generator": {"max_tokens": "many"}}, ["generator.max_tokens", "'many'", "integer"], id="type"),
        pytest.param(
            {"reranker": {"calibration": {"slope": 0, "midpoint": 1}}},
            ["reranker.calibration.slope", "RAG_RERANKER__CALIBRATION__SLOPE", "greater than 0"],
            id="nested",
        ),
        pytest.param({"embedder": "big"}, ["setting embedder (", "'big'", "EmbedderSettings"], id="group_as_text"),
        pytest.param(
            {"chunk": {"max_tokens": 300}}, ["chunk.max_tokens is 300", "embedder.max_tokens (256)"], id="cut_chunks"
        ),
        pytest.param(
            {"prompt": {"passage_tokens": 5000}}, ["prompt.passage_tokens", "5264", "(2048)"], id="prompt_too_long"
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_is_valid(overrides: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    for part in parts:
        assert part in str(caught.value)


def test_every_wrong_setting_is_named() -> None:
    with pytest.raises(SettingsError, match=r"serve\.port.*store\.timeout_s|store\.timeout_s.*serve\.port"):
        load_settings(serve={"port": 0}, store={"timeout_s": 0})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param("serv: {port: 1}", ["no setting serv (", "serve", "embedder"], id="group"),
        pytest.param(
            "embedder: {modle: x}",
            ["no setting embedder.modle (RAG_EMBEDDER__MODLE)", "model, languages"],
            id="in_group",
        ),
        pytest.param(
            "serve: {embedder: {cpus: 1}}", ["serve.embedder.cpus", "replicas, max_replicas"], id="two_levels"
        ),
        pytest.param(
            "reranker: {calibration: {middle: 1, midpoint: 1, slope: 1}}",
            ["reranker.calibration.middle", "midpoint, slope"],
            id="optional_group",
        ),
    ],
)
def test_unknown_keys_are_refused_with_the_names_that_there_are(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path / "rag.yaml", text))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        pytest.param("RAG_EMBEDER__MODEL", "x", "did you mean RAG_EMBEDDER__MODEL?", id="misspelt_group"),
        pytest.param("RAG_SERVE_PORT", "8001", "did you mean RAG_SERVE__PORT?", id="one_sign_less"),
        pytest.param("rag_embeder__model", "x", "rag_embeder__model", id="lower_case"),
        pytest.param("RAG_COLOUR", "red", "the names are: RAG_PROFILE", id="nothing_near"),
        pytest.param("RAG_DATA_DIR__SUB", "x", "RAG_DATA_DIR holds a single value", id="below_a_value"),
        pytest.param("RAG_EMBEDDER__MODLE", "x", "no setting embedder.modle", id="in_group"),
        pytest.param("RAG_EMBEDDER", "not json", 'field "embedder"', id="group_that_is_no_json"),
        pytest.param("RAG_EMBEDDER__LANGUAGES", "ko", "RAG_EMBEDDER__LANGUAGES", id="list_that_is_no_json"),
    ],
)
def test_variables_that_set_nothing_are_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, part: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RAG_DATA_DIR", "/data"),
        ("RAG_CACHE_DIR", "/cache"),
        ("RAG_STORE__URI", "http://milvus:19530"),
        ("RAG_SERVE__EMBEDDER__NUM_CPUS", "2"),
        ("RAG_RERANKER__CALIBRATION__SLOPE", "3"),
        ("RAG_EMBEDDER__LANGUAGES", '["ko", "latin"]'),
        ("RAG_SERVE", '{"port": 8001}'),
        ("RAGE", "much"),
    ],
)
def test_variables_that_set_something_are_taken(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    before = load_settings()
    monkeypatch.setenv(variable, value)
    assert (load_settings() != before) is variable.startswith("RAG_")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RAG_SERVICE_HOST", "10.0.0.7"),
        ("RAG_SERVICE_PORT_HTTP", "8000"),
        ("RAG_PORT", "tcp://10.0.0.7:8000"),
        ("RAG_PORT_8000_TCP_ADDR", "10.0.0.7"),
        ("RAG_HEAD_SVC_SERVICE_PORT", "8000"),
    ],
)
def test_variables_that_kubernetes_sets_for_a_service_named_rag_are_let_be(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    before = load_settings()
    monkeypatch.setenv(variable, value)
    assert load_settings() == before


def test_a_port_that_is_no_kubernetes_link_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_PORT", "8001")
    with pytest.raises(SettingsError, match="RAG_PORT"):
        load_settings()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        pytest.param(b"a: [", "is not YAML", id="not_yaml"),
        pytest.param(b"\xff\xfe\x00", "is not YAML", id="not_utf8"),
        pytest.param(b"- a\n- b\n", "no mapping", id="list"),
        pytest.param(b"5", "no mapping", id="number"),
        pytest.param(b"1: {port: 2}", "no mapping", id="number_as_name"),
        pytest.param(b"serve:\n  1: 2\n", "serve", id="number_as_inner_name"),
        pytest.param(b"profile: [gpu]", "embedded, gpu", id="profile_as_list"),
        pytest.param(b"profile: huge", "embedded, gpu", id="unknown_profile"),
        pytest.param(b"embedder:\n", "embedder", id="empty_group"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "rag.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert part in str(caught.value)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "rag.yaml", "# nothing yet\n")
    assert load_settings(file).model_copy(update={"config_file": None}) == load_settings()


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="name a readable YAML file"):
        load_settings(tmp_path / name)


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    settings = load_settings(store={"token": "hunter2"})
    assert settings.store.token is not None
    assert settings.store.token.get_secret_value() == "hunter2"
    for shown in (repr(settings), str(settings), repr(settings.store), settings.model_dump_json()):
        assert "hunter2" not in shown


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("store: {token: {is: hunter2}}", id="wrong_type"),
        pytest.param("store: {tokn: hunter2}", id="misspelt"),
        pytest.param("store: {token: [hunter2]}", id="list"),
        pytest.param("store: [token, hunter2]", id="whole_group"),
    ],
)
def test_errors_do_not_show_secrets(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path / "rag.yaml", text))
    assert "hunter2" not in str(caught.value)


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.serve.port = 1  # type: ignore[misc]


def test_every_group_is_described() -> None:
    groups = [field.annotation for field in Settings.model_fields.values() if hasattr(field.annotation, "model_fields")]
    assert len(groups) > 8
    assert all(group.__doc__ for group in groups)


@pytest.mark.parametrize("given", [{"team": "text"}, {"year": "number", "draft": "boolean"}], ids=str)
def test_declared_metadata_fields_are_added_to_the_default_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str]
) -> None:
    file = write(tmp_path / "rag.yaml", json.dumps({"store": {"metadata_fields": given}}))
    assert load_settings(file).store.metadata_fields == {**METADATA_FIELDS, **given}
    monkeypatch.setenv("RAG_STORE__METADATA_FIELDS", json.dumps(given))
    assert load_settings().store.metadata_fields == {**METADATA_FIELDS, **given}


@pytest.mark.parametrize(
    ("given", "told"), [('{"a b": "text"}', "'a b' cannot name a field"), ('{"a": "date"}', "'list'"), ('["a"]', "")]
)
def test_a_field_that_cannot_be_declared_is_named(monkeypatch: pytest.MonkeyPatch, given: str, told: str) -> None:
    monkeypatch.setenv("RAG_STORE__METADATA_FIELDS", given)
    with pytest.raises(SettingsError, match=r"store\.metadata_fields") as raised:
        load_settings()
    assert told in str(raised.value)


def test_a_caller_without_a_key_has_no_groups_unless_the_settings_give_some(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().serve.anonymous_groups == ()
    monkeypatch.setenv("RAG_SERVE__ANONYMOUS_GROUPS", '["staff"]')
    assert load_settings().serve.anonymous_groups == ("staff",)
