"""The wire models of questions and searches: what the service takes and answers, and what its clients send and read.

A request with an unknown field is refused. A response may have more fields than are named here: a client keeps them, so
that it can read a newer service.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_COLLECTION_CHARS = 255  # Milvus takes no longer name
MAX_QUESTION_CHARS = 4000
MAX_TURNS, MAX_TURN_CHARS = 100, 20_000
MODEL_CHARS = 200

_Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUESTION_CHARS, pattern=r"\S")]
_Collection = Annotated[str, StringConstraints(min_length=1, max_length=MAX_COLLECTION_CHARS)]
_Model = Annotated[str, StringConstraints(min_length=1, max_length=MODEL_CHARS)]


class RequestModel(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ResponseModel(BaseModel):
    """What the service answers."""

    model_config = ConfigDict(extra="allow")

    def as_sent(self) -> dict[str, Any]:
        """The JSON object that it was read from, with every field and no other."""
        return self.model_dump(mode="json", exclude_unset=True)


class Turn(RequestModel):
    """An earlier turn of the conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[str, StringConstraints(max_length=MAX_TURN_CHARS)]


class AskRequest(RequestModel):
    """`POST /ask`; null means that the settings decide."""

    question: _Text
    collection: _Collection = "default"
    conversation: Annotated[list[Turn], Field(max_length=MAX_TURNS)] = []
    filter: str | None = Field(None, description="an expression of rag.filter_language")
    model: _Model | None = None
    top_k: Annotated[int, Field(ge=1, le=200)] | None = None
    rerank_top_k: Annotated[int, Field(ge=1, le=50)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=False)] | None = None
    deadline_s: Annotated[float, Field(gt=0, strict=False)] | None = None
    stream: bool = False
    explain: bool = False


class SearchRequest(RequestModel):
    """`POST /search`."""

    query: _Text
    collection: _Collection = "default"
    filter: str | None = Field(None, description="an expression of rag.filter_language")
    top_k: Annotated[int, Field(ge=1, le=200)] = 10
    rerank: bool = True


class CitationBody(ResponseModel):
    """A verbatim quote that supports `answer[answer_start:answer_end]`.

    It stands in its document's text at `char_start:char_end`; `page` is null for formats without pages.
    """

    marker: int
    answer_start: int
    answer_end: int
    quote: str
    verified: bool
    document_id: str
    chunk_id: str
    title: str
    source: str
    page: int | None
    char_start: int
    char_end: int
    score: float


class UnsupportedBody(ResponseModel):
    """A sentence of the answer, `answer[start:end]`, for which the passages hold no evidence."""

    start: int
    end: int
    text: str


class UsageBody(ResponseModel):
    """LLM tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int


class ScoresBody(ResponseModel):
    """What each stage gave a hit, higher is better; null where the stage did not see it."""

    dense: float | None
    lexical: float | None
    fused: float | None
    rerank: float | None


class HitBody(ResponseModel):
    """A chunk that a search returned; `score` is what the last stage orders by."""

    chunk_id: str
    document_id: str
    title: str
    source: str
    heading: str
    page: int | None
    char_start: int
    char_end: int
    text: str
    score: float
    scores: ScoresBody


class AnswerBody(ResponseModel):
    """`POST /ask`. `reason` is there where it abstained; the last three fields where `explain` was asked for."""

    id: str
    request_id: str
    status: Literal["answered", "abstained"]
    answer: str
    answer_source: Literal["generated", "extracted"] | None
    citations: list[CitationBody]
    unsupported: list[UnsupportedBody]
    confidence: float | None
    degraded: list[str]
    collection: str
    index_version: str
    model: str | None
    usage: UsageBody
    timings_ms: dict[str, float]
    cached: Literal["exact", "semantic"] | None = None
    reason: Literal["no_documents", "no_evidence"] | None = None
    query: str | None = None
    passages: list[HitBody] | None = None
    prompt_hash: str | None = None


class SearchBody(ResponseModel):
    """`POST /search`: hits best first."""

    hits: list[HitBody]
    degraded: list[str]
    timings_ms: dict[str, float]
    index_version: str


class PassageBody(ResponseModel):
    """A passage that was found, as a stream's first event names it."""

    chunk_id: str
    title: str
    source: str
    scores: ScoresBody


class RetrievalEvent(ResponseModel):
    """A stream's first event: what was found, best first."""

    passages: list[PassageBody]


class TokenEvent(ResponseModel):
    """The next piece of the answer's text."""

    text: str


class CitationEvent(CitationBody):
    """A citation of the text so far."""


class WarningEvent(ResponseModel):
    """Stages that were left out."""

    degraded: list[str]


class DoneEvent(AnswerBody):
    """A stream's last event: the whole response."""


Event = RetrievalEvent | TokenEvent | CitationEvent | WarningEvent | DoneEvent
EVENTS: dict[str, type[Event]] = {
    "retrieval": RetrievalEvent,
    "token": TokenEvent,
    "citation": CitationEvent,
    "warning": WarningEvent,
    "done": DoneEvent,
}


class Problem(ResponseModel):
    """RFC 9457: what is wrong with a request, or with the service."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    retryable: bool
    stage: str | None = None
    errors: list[dict[str, Any]] | None = None


class RerankerBody(ResponseModel):
    """How hits are reranked, and by which model."""

    kind: str
    model: str


class ModelsBody(ResponseModel):
    """The models served."""

    embedder: str
    reranker: RerankerBody
    generators: list[str]
    split: dict[str, float]


class InfoBody(ResponseModel):
    """`GET /info`; `index_versions` by collection."""

    version: str
    profile: str
    models: ModelsBody
    limits: dict[str, int | float]
    index_versions: dict[str, str]


class HealthBody(ResponseModel):
    """`GET /readyz`: each stage's state, `ok` where it answers; `required` are those without which none is answered."""

    status: str
    stages: dict[str, str]
    required: list[str]
