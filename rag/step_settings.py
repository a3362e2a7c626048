"""What can be set for each step: one small frozen model a step. rag.config reads them.

Names of settings that a person may change stand in the README's table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from rag.filter_language import METADATA_FIELDS, check_field_names
from rag.filters import FieldKind
from rag.language import Language

MIB = 1024 * 1024


class StepSettings(BaseModel):
    """Frozen; an unknown name is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EmbedderSettings(StepSettings):
    """Texts to vectors. `max_tokens` is the model's own cut, special tokens included.

    `token_vectors` are what the reranker `maxsim` compares; those that an index does not keep are made anew each time.
    """

    model: str
    languages: tuple[Language, ...] | None = Field(None, description="what the model understands; none: everything")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = Field(256, ge=16)
    token_vectors: bool = Field(False, description="keep those of each chunk in the index")
    # On a CPU passes of 4096 are no faster, and the heap of an ingest swells by 400 MiB with their large tensors.
    batch_tokens: int = Field(1024, ge=64, description="padded tokens of one forward pass")
    batch_wait_s: float = Field(0.005, ge=0)
    threads: int = Field(2, ge=1)
    device: str = "cpu"


class StoreSettings(StepSettings):
    """Milvus; without `uri` the embedded one. `metadata_fields`: what a filter may name, with what each holds."""

    uri: str | None = None
    token: SecretStr | None = None
    timeout_s: float = Field(10.0, gt=0)
    start_timeout_s: float = Field(30.0, gt=0, description="how long the embedded server may take to start")
    metadata_fields: Annotated[Mapping[str, FieldKind], AfterValidator(check_field_names)] = METADATA_FIELDS


class ChunkSettings(StepSettings):
    """Sizes in the embedder's own tokens, heading included; in a language that it does not understand two characters
    count as one."""

    max_tokens: int = Field(200, ge=16)
    overlap_tokens: int = Field(24, ge=0)


class IngestSettings(StepSettings):
    """Limits on one document, how formats are read, and batch sizes. With `ocr` the time limits are for each page."""

    parse_memory_bytes: int = Field(1536 * MIB, ge=64 * MIB)
    parse_cpu_s: int = Field(60, ge=1)
    parse_wall_s: float = Field(90.0, gt=0)
    max_file_bytes: int = Field(100 * MIB, ge=1, description="of JSON lines: what a row may have, not the file")
    max_pages: int = Field(5000, ge=1)
    max_chars: int = Field(20_000_000, ge=1)
    pdf_passwords: tuple[SecretStr, ...] = Field((), description="tried in this order on an encrypted PDF")
    ocr: bool = Field(False, description="PDF pages without text are read from their image; needs the extra `ocr`")
    ocr_languages: str = Field(
        "kor+eng",
        min_length=1,
        description="tesseract's names of them, joined by +; it reads Korean better where that is first",
    )
    embed_batch: int = Field(512, ge=1, description="chunks sorted by length and embedded together")
    ray_documents: int | None = Field(
        1000, ge=1, description="from so many new documents on `rag ingest` reads and embeds over Ray Data; none: never"
    )
    ray_embedders: int = Field(1, ge=1, description="models that Ray Data loads to embed with")


class RetrievalSettings(StepSettings):
    """Search depth of each branch and reciprocal rank fusion's constant."""

    top_k: int = Field(50, ge=1, le=1000)
    rrf_k: int = Field(60, ge=1)


class CalibrationSettings(StepSettings):
    """A raw score to the chance that a passage answers: 1 / (1 + exp(-slope * (score - midpoint)))."""

    midpoint: float
    slope: float = Field(gt=0)


class RerankerSettings(StepSettings):
    """How fused hits are reordered.

    `maxsim` ranks by late interaction over the embedder's token vectors, `cross-encoder` by any sentence-transformers
    CrossEncoder: `model`, and how it computes, are the latter's. The order is by `blend` of its score and the rest of
    the searches' own, see rag.fuse.order_by_blend. For a question in a language that the model does not understand the
    fused order stays.
    """

    kind: Literal["maxsim", "cross-encoder"] = "maxsim"
    model: str | None = Field(None, description="of a cross-encoder; maxsim uses the embedder's")
    languages: tuple[Language, ...] | None = Field(None, description="what the model understands; none: everything")
    calibration: CalibrationSettings | None = Field(None, description="none: the model's scores are calibrated already")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on a CPU that computes it, else float32"
    )
    max_tokens: int = Field(256, ge=16)
    candidates: int = Field(20, ge=1, description="fused hits that are reranked")
    top_k: int = Field(5, ge=1, description="hits kept for the prompt")
    blend: float = Field(1.0, ge=0, le=1)
    dense_share: float = Field(0.6, ge=0, le=1, description="of dense search in what the blend leaves to the searches")
    batch_tokens: int = Field(4096, ge=64)
    batch_wait_s: float = Field(0.005, ge=0)
    threads: int = Field(2, ge=1)
    device: str = "cpu"
    cached_texts: int = Field(
        256,
        ge=0,
        description="texts whose token vectors, where the index keeps none, stay in memory after their making",
    )

    @model_validator(mode="after")
    def _name_a_model(self) -> Self:
        if self.kind == "cross-encoder" and self.model is None:
            raise ValueError("a cross-encoder needs reranker.model: a folder or a hub name")
        if self.kind == "maxsim" and self.model is not None:
            raise ValueError("maxsim compares the embedder's token vectors; reranker.model must be null")
        return self


EvidenceScale = Literal["answerability", "rerank", "words", "dense", "lexical"]
EvidenceFeature = Literal["rerank", "sentence", "dense", "coverage", "names", "numbers", "negation", "answerability"]


class EvidenceCalibration(StepSettings):
    """Features of question and passages to the chance that the passages hold the answer, see rag.evidence.

    1 / (1 + exp(-(intercept + sum of weight * feature))).
    """

    intercept: float
    weights: Mapping[EvidenceFeature, float] = Field(min_length=1)


class FittedModels(StepSettings):
    """Those whose scores a gate was fitted to, as the settings name them."""

    embedder: str
    reranker: str
    answerability: str | None = None


class EvidenceSettings(StepSettings):
    """The evidence gate: a calibration for each scale that scores may be on; one without cannot judge."""

    min_confidence: float | None = Field(None, ge=0, le=1, description="below it the service abstains; none: never")
    scales: Mapping[EvidenceScale, EvidenceCalibration] = Field(
        default_factory=dict, description="fitted for this embedder and reranker by python -m eval.gate fit"
    )
    answerability: str | None = Field(
        None,
        description="a folder, or package:NAME/PATH, with the adapter.safetensors that python -m "
        "eval.train_answerability makes of an LLM; none: the gate goes without",
    )
    answerability_languages: tuple[Language, ...] | None = Field(
        None, description="what that LLM understands; none: everything"
    )
    fitted_for: FittedModels | None = Field(None, description="with other models no service starts; none: with any")


class CacheSettings(StepSettings):
    """What each replica of the orchestrator remembers: so many entries, those used last; 0: none. See rag.cache and
    rag.answer_cache."""

    embeddings: int = Field(4096, ge=0, description="queries with their vectors")
    answers: int = Field(1024, ge=0, description="questions with their answers")
    min_similarity: float | None = Field(
        None,
        gt=0,
        le=1,
        description="cosine from which on a question in other words gets another one's answer; none: never",
    )

    @model_validator(mode="after")
    def _keep_answers(self) -> Self:
        if self.min_similarity is not None and not self.answers:
            raise ValueError(
                "cache.min_similarity finds nothing while cache.answers is 0: raise that, or set no min_similarity"
            )
        return self


class PromptSettings(StepSettings):
    """Token budgets of the prompt's parts, in the LLM's tokens."""

    passage_tokens: int = Field(2000, ge=64)
    history_tokens: int = Field(500, ge=0)


class GroundingSettings(StepSettings):
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
    extract_sentences: int = Field(3, ge=1, le=5)
    max_sentences: int | None = Field(
        None, ge=1, description="supported sentences after which the LLM is stopped; none: it ends by itself"
    )


LLMName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/+-]{1,200}$")]


class GeneratorSettings(StepSettings):
    """An LLM behind vLLM. `model_id` is its name for whoever asks, and not `rag`, which names collections."""

    model: str
    model_id: LLMName
    adapters: Mapping[LLMName, Path] = Field(
        default_factory=dict, description="its LoRA adapters: the name that each is asked for by -> its folder"
    )
    fallback: tuple[str, ...] = Field((), description="model_ids of those asked, in this order, where it is down")
    languages: tuple[Language, ...] | None = Field(None, description="what the model understands; none: everything")
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


class DeadlineSettings(StepSettings):
    """One deadline for a request and the most that each stage may take of it, in seconds."""

    total_s: float = Field(30.0, gt=0)
    max_s: float = Field(300.0, gt=0, description="the longest deadline that a client may ask for")
    embed_s: float = Field(2.0, gt=0)
    dense_s: float = Field(2.0, gt=0)
    lexical_s: float = Field(2.0, gt=0)
    rerank_s: float = Field(4.0, gt=0)
    generate_s: float = Field(25.0, gt=0)
    ground_s: float = Field(4.0, gt=0)


class TraceSettings(StepSettings):
    """Spans of requests, sent to an OpenTelemetry collector."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/]+/?$",
        description="the collector's address for OTLP over HTTP, such as http://127.0.0.1:4318; none: no traces",
    )
    sample_fraction: float = Field(
        0.1, ge=0, le=1, description="of the requests whose caller did not decide it by its traceparent"
    )
