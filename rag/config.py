"""Settings: one frozen model per step, and the only reader of the environment.

Precedence, highest first: command line, `RAG_*` variables (`RAG_EMBEDDER__MODEL`; an empty one
counts as not set), the `--config` file, the profile.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableVariableError

from rag.errors import SettingsError
from rag.profiles import PROFILES
from rag.serve_settings import OtherGenerator, ServeSettings
from rag.split import check_split
from rag.step_settings import (
    CacheSettings,
    ChunkSettings,
    DeadlineSettings,
    EmbedderSettings,
    EvidenceSettings,
    GeneratorSettings,
    GroundingSettings,
    IngestSettings,
    PromptSettings,
    RerankerSettings,
    RetrievalSettings,
    StoreSettings,
    TraceSettings,
)

Profile = Literal["embedded", "gpu"]
UPLOADS = "uploads"  # in the data directory
# What a running service takes without a restart, beside `split`: no deployment but the orchestrator reads it, and each
# question anew.
LIVE: Mapping[str, frozenset[str]] = {
    "evidence": frozenset({"min_confidence"}),
    "retrieval": frozenset({"top_k", "rrf_k"}),
    "reranker": frozenset({"candidates", "top_k", "blend", "dense_share"}),
    "prompt": frozenset({"passage_tokens", "history_tokens"}),
    "grounding": frozenset({"min_support"}),
}
LIVE_NAMES = ("split", *sorted(f"{group}.{name}" for group, names in LIVE.items() for name in names))
_SERVICE_VARIABLE = re.compile(r"RAG_(?:[A-Z0-9_]+_)?(?:SERVICE_(?:HOST|PORT\w*)|PORT_\d+_(?:TCP|UDP|SCTP)\w*)")


class _ProfileSource(PydanticBaseSettingsSource):
    """The profile's defaults and the `--config` file, below the environment."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        given = dict(self.current_state)
        file_values = _read_yaml(given.get("config_file"))
        profile = given.get("profile") or file_values.get("profile") or "embedded"
        if not isinstance(profile, str) or profile not in PROFILES:
            raise SettingsError(f"profile is {profile!r}; it must be one of: {', '.join(PROFILES)}")
        defaults = PROFILES[profile]
        gate = file_values.get("evidence")
        if isinstance(gate, dict) and "scales" in gate:
            # A gate takes the place of the profile's as a whole: coefficients of two fits would judge together.
            defaults = {**defaults, "evidence": {}}
        return {**_merge(defaults, file_values), "profile": profile}


class Settings(BaseSettings):
    """Everything that may be set; see the classes above for each step's own."""

    model_config = SettingsConfigDict(
        env_prefix="RAG_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        env_parse_none_str="null",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    profile: Profile
    config_file: Path | None = None
    data_dir: Path = Field(default_factory=lambda: _xdg("XDG_DATA_HOME", ".local/share"))
    cache_dir: Path = Field(default_factory=lambda: _xdg("XDG_CACHE_HOME", ".cache"))
    embedder: EmbedderSettings
    store: StoreSettings = StoreSettings()
    chunk: ChunkSettings = ChunkSettings()
    ingest: IngestSettings = IngestSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    reranker: RerankerSettings
    evidence: EvidenceSettings = EvidenceSettings()
    prompt: PromptSettings = PromptSettings()
    grounding: GroundingSettings = GroundingSettings()
    generator: GeneratorSettings
    generators: tuple[OtherGenerator, ...] = Field((), description="LLMs beside `generator`")
    split: Mapping[str, float] = Field(
        default_factory=dict, description="model_id -> weight, for questions that name no LLM; none: `generator` alone"
    )
    cache: CacheSettings = CacheSettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    serve: ServeSettings = ServeSettings()
    trace: TraceSettings = TraceSettings()

    @property
    def reranker_model(self) -> str:
        """The model that the reranker's scores come from: maxsim compares the embedder's token vectors."""
        return self.reranker.model or self.embedder.model

    @property
    def model_references(self) -> tuple[str, ...]:
        """Every model that the service loads, once each."""
        llms = (engine.model for engine in self.engines.values())
        return tuple(dict.fromkeys((self.embedder.model, self.reranker_model, *llms)))

    @property
    def engines(self) -> dict[str, GeneratorSettings]:
        """Every LLM with an engine of its own by its model_id, `generator` first."""
        return {llm.model_id: llm for llm in (self.generator, *self.generators)}

    @property
    def llms(self) -> dict[str, GeneratorSettings]:
        """What may be asked for: each engine by its name, and then each adapter, with its engine."""
        engines = self.engines
        return engines | {name: engine for engine in engines.values() for name in engine.adapters}

    @property
    def shares(self) -> dict[str, float]:
        """The weights by which questions that name no LLM get one."""
        return dict(self.split) or {self.generator.model_id: 1.0}

    def for_llm(self, model_id: str) -> Settings:
        """These settings with the engine of that name as `generator`, its serving included. Raises KeyError."""
        llm = self.engines[model_id]
        if not isinstance(llm, OtherGenerator):
            return self
        serve = self.serve.model_copy(update={"generator": llm.serving})
        return self.model_copy(update={"generator": llm, "serve": serve})

    def with_live(self, user_config: Mapping[str, Any]) -> Settings:
        """These with what an orchestrator's `user_config` changes of them; of `split` and LIVE, nothing else may be.

        Raises SettingsError.
        """
        changed: dict[str, Any] = {}
        try:
            for group, given in user_config.items():
                if group == "split":
                    check_split(given, self.llms)
                    changed[group] = given
                    continue
                names = list(given) if isinstance(given, Mapping) and given else [""]
                if unknown := [f"{group}.{name}".rstrip(".") for name in names if name not in LIVE.get(group, ())]:
                    raise SettingsError(
                        f"{unknown[0]} does not change while a service runs; these do: {', '.join(LIVE_NAMES)}"
                    )
                old: BaseModel = getattr(self, group)
                changed[group] = type(old).model_validate({**old.model_dump(), **given})
            live = self.model_copy(update=changed)
            live._check_sizes()
        except ValidationError as error:
            problems = [{**problem, "loc": (group, *problem["loc"])} for problem in error.errors()]
            raise SettingsError("; ".join(_sentence(cast(ErrorDetails, one)) for one in problems)) from error
        except ValueError as error:
            raise SettingsError(str(error)) from error
        return live

    @property
    def uploads_dir(self) -> Path:
        """Where uploaded files wait for their jobs: absolute, links followed, and perhaps not there."""
        return (self.data_dir / UPLOADS).resolve()

    @field_validator("data_dir", "cache_dir")
    @classmethod
    def _expand_home(cls, path: Path) -> Path:
        return path.expanduser()

    @model_validator(mode="after")
    def _fit_models(self) -> Self:
        self._check_sizes()
        return self

    def _check_sizes(self) -> None:
        """Texts that a model would cut, or refuse, are an error of the settings, not of each request.

        Chunks in a language that the embedder does not understand are not meant: only their words are searched.
        """
        if self.chunk.max_tokens > self.embedder.max_tokens:
            raise ValueError(
                f"chunk.max_tokens is {self.chunk.max_tokens}, above embedder.max_tokens ({self.embedder.max_tokens}): "
                "the end of a chunk would never be found; lower the one or raise the other"
            )
        for llm in (self.generator, *self.generators):
            setting = "generators" if isinstance(llm, OtherGenerator) else "generator"
            needed = self.prompt.passage_tokens + self.prompt.history_tokens + llm.max_tokens
            if needed >= llm.max_model_len:
                raise ValueError(
                    f"prompt.passage_tokens, prompt.history_tokens and {setting}.max_tokens of {llm.model_id} add up "
                    f"to {needed}; its max_model_len ({llm.max_model_len}) has no room left for a question: "
                    "lower them or raise it"
                )

    @model_validator(mode="after")
    def _fit_names(self) -> Self:
        """Each LLM has a name of its own, and those named elsewhere exist."""
        names = [name for llm in (self.generator, *self.generators) for name in (llm.model_id, *llm.adapters)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two LLMs are called {name!r}; give one of them another model_id")
            if name == "rag" or name.startswith("rag/"):
                raise ValueError(f"an LLM is called {name!r}: `rag` and what begins with `rag/` name collections")
        for llm in (self.generator, *self.generators):
            others = [name for name in names if name != llm.model_id and name not in llm.adapters]
            unknown = [name for name in llm.fallback if name not in others]
            if unknown:
                raise ValueError(
                    f"the fallback of {llm.model_id} names {unknown[0]!r}; it may name: "
                    f"{', '.join(others) or 'none, it is the only LLM'}"
                )
        if self.split:
            check_split(self.split, names)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _ProfileSource(settings_cls)


def load_settings(config_file: Path | None = None, profile: str | None = None, **overrides: Any) -> Settings:
    """Settings from all sources. Raises SettingsError naming each wrong setting, its value and what is valid."""
    _refuse_unknown_variables()
    given: dict[str, Any] = {"profile": profile, "config_file": config_file}
    try:
        return Settings(**overrides, **{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(problem) for problem in error.errors())) from error
    except UnreadableVariableError as error:
        raise SettingsError(
            f"{error}: a variable that names a group of settings holds a JSON object; "
            "or set one at a time, as in RAG_SERVE__PORT=8001"
        ) from error


def _refuse_unknown_variables() -> None:
    """Raises SettingsError for a `RAG_*` variable that no setting reads: a misspelt one would go unnoticed."""
    known = {f"RAG_{name.upper()}": field for name, field in Settings.model_fields.items()}
    for variable, value in sorted(os.environ.items()):
        name, nested, _ = variable.upper().partition("__")
        if not name.startswith("RAG_") or _is_set_by_kubernetes(variable, value):
            continue
        if name not in known:
            steps = ((group, _step_of(field)) for group, field in known.items())
            full = [f"{group}__{inner.upper()}" for group, step in steps if step for inner in step.model_fields]
            near = difflib.get_close_matches(variable.upper(), [*known, *full], n=1, cutoff=0.75)
            hint = f"did you mean {near[0]}?" if near else f"the names are: {', '.join(known)}"
        elif nested and _step_of(known[name]) is None:
            hint = f"{name} holds a single value"
        else:
            continue
        raise SettingsError(f"the variable {variable} sets nothing: {hint}")


def _is_set_by_kubernetes(variable: str, value: str) -> bool:
    """Whether it describes a Service called `rag` or `rag-...`: Kubernetes puts such variables into every pod."""
    return _SERVICE_VARIABLE.fullmatch(variable) is not None or (variable.endswith("_PORT") and "://" in value)


def _sentence(problem: ErrorDetails) -> str:
    """A wrong setting: its name, its value, what is wrong with it."""
    path = [part for part in problem["loc"] if isinstance(part, str)]
    if not path:  # settings that do not fit each other
        return problem["msg"].removeprefix("Value error, ")
    name, variable = ".".join(path), "RAG_" + "__".join(path).upper()
    field, siblings = _look_up(path)
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {name} ({variable}); the names here are: {', '.join(siblings)}"
    if problem["type"] == "missing":
        return f"setting {name} ({variable}) is missing"
    value: object = problem["input"]
    if field is not None and SecretStr in get_args(field.annotation):
        value = SecretStr("x")
    shown = f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(value)
    return f"setting {name} ({variable}) is {shown}: {problem['msg']}"


def _look_up(path: list[str]) -> tuple[FieldInfo | None, list[str]]:
    """The setting at `path`, None when there is no such, and the names that its group has."""
    group: type[BaseModel] = Settings
    for part in path[:-1]:
        group = _step_of(group.model_fields[part]) or group
    return group.model_fields.get(path[-1]), list(group.model_fields)


def _step_of(field: FieldInfo) -> type[BaseModel] | None:
    """The group of settings that a field holds, None when it holds a value."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _read_yaml(path: Path | str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}; name a readable YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path} is not YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise SettingsError(f"--config {path} holds no mapping of settings; write for example `serve: {{port: 8001}}`")
    return loaded


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "rag"
