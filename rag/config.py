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
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
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
from rag.filter_language import METADATA_FIELDS, check_field_names
from rag.filters import FieldKind
from rag.language import Language
from rag.profiles import PROFILES

Profile = Literal["embedded", "gpu"]
MIB = 1024 * 1024
_SERVICE_VARIABLE = re.compile(r"RAG_(?:[A-Z0-9_]+_)?(?:SERVICE_(?:HOST|PORT\w*)|PORT_\d+_(?:TCP|UDP|SCTP)\w*)")


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EmbedderSettings(_Step):
    """Texts to vectors. `max_tokens` is the model's own cut, special tokens included."""

    model: str
    languages: tuple[Language, ...] | None = Field(None, description="what the model understands; none: everything")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = Field(256, ge=16)
    batch_tokens: int = Field(4096, ge=64, description="padded tokens of one forward pass")
    batch_wait_s: float = Field(0.005, ge=0)
    threads: int = Field(2, ge=1)
    device: str = "cpu"


class StoreSettings(_Step):
    """Milvus; without `uri` the embedded one. `metadata_fields`: what a filter may name, with what each holds."""

    uri: str | None = None
    token: SecretStr | None = None
    timeout_s: float = Field(10.0, gt=0)
    start_timeout_s: float = Field(30.0, gt=0, description="how long the embedded server may take to start")
    metadata_fields: Annotated[Mapping[str, FieldKind], AfterValidator(check_field_names)] = METADATA_FIELDS


class ChunkSettings(_Step):
    """Sizes in the embedder's own tokens, heading included."""

    max_tokens: int = Field(200, ge=16)
    overlap_tokens: int = Field(24, ge=0)


class IngestSettings(_Step):
    """Limits on one document, how formats are read, and batch sizes. With `ocr` the time limits are for each page."""

    parse_memory_bytes: int = Field(1536 * MIB, ge=64 * MIB)
    parse_cpu_s: int = Field(60, ge=1)
    parse_wall_s: float = Field(90.0, gt=0)
    max_file_bytes: int = Field(100 * MIB, ge=1, description="of JSON lines: what a row may have, not the file")
    max_pages: int = Field(5000, ge=1)
    max_chars: int = Field(20_000_000, ge=1)
    pdf_passwords: tuple[SecretStr, ...] = Field((), description="tried in this order on an encrypted PDF")
    ocr: bool = Field(False, description="PDF pages without text are read from their image; needs the extra `ocr`")
    ocr_languages: str = Field("eng+kor", min_length=1, description="tesseract's names of them, joined by +")
    embed_batch: int = Field(256, ge=1, description="chunks sorted by length and embedded together")


class RetrievalSettings(_Step):
    """Search depth of each branch and reciprocal rank fusion's constant."""

    top_k: int = Field(30, ge=1, le=1000)
    rrf_k: int = Field(60, ge=1)


class CalibrationSettings(_Step):
    """A raw score to the chance that a passage answers: 1 / (1 + exp(-slope * (score - midpoint)))."""

    midpoint: float
    slope: float = Field(gt=0)


class RerankerSettings(_Step):
    """How fused hits are reordered.

    `maxsim` ranks by late interaction over token vectors, `cross-encoder` by any sentence-transformers CrossEncoder.
    The order is by `blend * rerank + (1 - blend) * fused`, both scaled to 0..1 within the candidates. A question in
    a language that the model does not understand is scored by the words that it shares with a passage instead.
    """

    kind: Literal["maxsim", "cross-encoder"] = "maxsim"
    model: str
    languages: tuple[Language, ...] | None = Field(None, description="what the model understands; none: everything")
    calibration: CalibrationSettings | None = Field(None, description="none: the model's scores are calibrated already")
    words_calibration: CalibrationSettings = CalibrationSettings(midpoint=0.6, slope=12.0)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on a CPU that computes it, else float32"
    )
    max_tokens: int = Field(256, ge=16)
    candidates: int = Field(20, ge=1, description="fused hits that are reranked")
    top_k: int = Field(5, ge=1, description="hits kept for the prompt")
    blend: float = Field(1.0, ge=0, le=1)
    batch_tokens: int = Field(4096, ge=64)
    batch_wait_s: float = Field(0.005, ge=0)
    threads: int = Field(2, ge=1)
    device: str = "cpu"
    cached_texts: int = Field(
        256, ge=0, description="texts whose token vectors are kept for the grounding that follows"
    )


class EvidenceSettings(_Step):
    """Thresholds of the evidence gate, one per scale; None: that scale cannot judge."""

    min_rerank: float | None = Field(None, ge=0, le=1)
    min_dense: float | None = Field(None, ge=-1, le=1)


class PromptSettings(_Step):
    """Token budgets of the prompt's parts, in the LLM's tokens."""

    passage_tokens: int = Field(2000, ge=64)
    history_tokens: int = Field(500, ge=0)


class GroundingSettings(_Step):
    """When a sentence counts as supported, and when the evidence itself is the better answer."""

    reader: Literal["strong", "weak"] = Field(
        "strong", description="weak: the LLM's refusals are not believed and its unsupported sentences are left out"
    )
    min_support: float = Field(0.65, ge=0, le=1)
    max_score_gap: float | None = Field(
        None,
        ge=0,
        description="a generated sentence whose quote answers the question worse than the best evidence by more "
        "than this is replaced",
    )
    extract_sentences: int = Field(2, ge=1, le=5)


class GeneratorSettings(_Step):
    """The LLM behind vLLM."""

    model: str
    model_id: str
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    accelerator: Literal["cpu", "gpu"] = "cpu"
    max_model_len: int = Field(2048, ge=256)
    max_num_seqs: int = Field(16, ge=1)
    memory_fraction: float = Field(
        0.9, gt=0, le=1, description="vLLM's gpu_memory_utilization; on a CPU the share of RAM"
    )
    kv_cache_gib: int = Field(1, ge=1, description="key-value cache on a CPU")
    tensor_parallel: int = Field(1, ge=1)
    accelerator_type: str | None = None
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    enforce_eager: bool = False


class DeadlineSettings(_Step):
    """One deadline for a request and the most that each stage may take of it, in seconds."""

    total_s: float = Field(30.0, gt=0)
    max_s: float = Field(300.0, gt=0, description="the longest deadline that a client may ask for")
    embed_s: float = Field(2.0, gt=0)
    dense_s: float = Field(2.0, gt=0)
    lexical_s: float = Field(2.0, gt=0)
    rerank_s: float = Field(4.0, gt=0)
    generate_s: float = Field(25.0, gt=0)
    ground_s: float = Field(4.0, gt=0)


class StageServing(_Step):
    """Ray's view of one deployment: replicas and logical shares."""

    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0.1, ge=0)
    num_gpus: float = Field(0.0, ge=0)


class ServeSettings(_Step):
    """The HTTP address, the request limits and every deployment's share."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    fast_path: bool = True
    max_inflight: int = Field(16, ge=1, description="questions worked on at once")
    max_queued: int = Field(32, ge=0, description="questions waiting beyond those; more are refused with 503")
    max_body_bytes: int = Field(1 * MIB, ge=1024)
    max_upload_bytes: int = Field(200 * MIB, ge=1024, description="a multipart body of POST /documents")
    max_text_bytes: int = Field(16 * MIB, ge=1024, description="a JSON body of POST /documents")
    max_upload_files: int = Field(100, ge=1, description="files of one POST /documents")
    max_uploads: int = Field(4, ge=1, description="uploads received at once; more are refused with 503")
    max_stored_bytes: int = Field(2048 * MIB, ge=1024, description="uploads that wait for their jobs, all together")
    keep_jobs_days: int = Field(7, ge=1, description="how long GET /jobs/{id} knows a finished job")
    anonymous_groups: tuple[str, ...] = Field((), description="whose documents a caller without a key may see")
    logical_cpus: int = Field(8, ge=1, description="what Ray counts as this machine's CPUs when it is started here")
    object_store_bytes: int = Field(256 * MIB, ge=78 * MIB)
    orchestrator: StageServing = StageServing()
    embedder: StageServing = StageServing()
    retriever: StageServing = StageServing()
    reranker: StageServing = StageServing()
    generator: StageServing = StageServing(num_cpus=1)
    indexer: StageServing = StageServing()


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
        return {**_merge(PROFILES[profile], file_values), "profile": profile}


class Settings(BaseSettings):
    """Everything that may be set; see the classes above for each step's own."""

    model_config = SettingsConfigDict(
        env_prefix="RAG_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
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
    deadlines: DeadlineSettings = DeadlineSettings()
    serve: ServeSettings = ServeSettings()

    @field_validator("data_dir", "cache_dir")
    @classmethod
    def _expand_home(cls, path: Path) -> Path:
        return path.expanduser()

    @model_validator(mode="after")
    def _fit_models(self) -> Self:
        """Texts that a model would cut, or refuse, are an error of the settings, not of each request."""
        if self.chunk.max_tokens > self.embedder.max_tokens:
            raise ValueError(
                f"chunk.max_tokens is {self.chunk.max_tokens}, above embedder.max_tokens ({self.embedder.max_tokens}): "
                "the end of a chunk would never be found; lower the one or raise the other"
            )
        needed = self.prompt.passage_tokens + self.prompt.history_tokens + self.generator.max_tokens
        if needed >= self.generator.max_model_len:
            raise ValueError(
                f"prompt.passage_tokens, prompt.history_tokens and generator.max_tokens add up to {needed}; "
                f"generator.max_model_len ({self.generator.max_model_len}) has no room left for a question: "
                "lower them or raise it"
            )
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
