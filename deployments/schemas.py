"""The wire models of the HTTP doors, as CONTRACT has them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from rag.filters import Filter
from rag.types import Answer, Groups, Hit, Message, Question, SearchResult

MAX_COLLECTION_CHARS = 255  # Milvus takes no longer name
MAX_QUESTION_CHARS = 4000
MAX_TURNS, MAX_TURN_CHARS = 100, 20_000
MODEL_CHARS = 200

_Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUESTION_CHARS, pattern=r"\S")]
_Collection = Annotated[str, StringConstraints(min_length=1, max_length=MAX_COLLECTION_CHARS)]
_Model = Annotated[str, StringConstraints(min_length=1, max_length=MODEL_CHARS)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Turn(_Request):
    """An earlier turn of the conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[str, StringConstraints(max_length=MAX_TURN_CHARS)]


class AskRequest(_Request):
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

    def sticky_key(self, request_id: str) -> str:
        """What decides on the LLM: the conversation's first question, from the second on; before it, this request."""
        return next((turn.content for turn in self.conversation if turn.role == "user"), request_id)

    def to_question(self, groups: Groups, where: Filter | None) -> Question:
        """What the pipeline takes; `groups` are the caller's, `where` is the filter once parsed."""
        return Question(
            text=self.question,
            collection=self.collection,
            conversation=tuple(Message(turn.role, turn.content) for turn in self.conversation),
            model=self.model,
            top_k=self.top_k,
            rerank_top_k=self.rerank_top_k,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            deadline_s=self.deadline_s,
            filter=where,
            groups=groups,
        )


class SearchRequest(_Request):
    """`POST /search`."""

    query: _Text
    collection: _Collection = "default"
    filter: str | None = Field(None, description="an expression of rag.filter_language")
    top_k: Annotated[int, Field(ge=1, le=200)] = 10
    rerank: bool = True


def answer_id() -> str:
    """A new answer's id."""
    return f"ans_{uuid.uuid4().hex}"


def degraded_header(stages: Sequence[str]) -> dict[str, str]:
    """The header that names the stages left out, where there are some."""
    return {"X-Degraded": ",".join(stages)} if stages else {}


def answer_body(answer: Answer, own_id: str, request_id: str, *, explain: bool) -> dict[str, Any]:
    """The response object of `/ask`."""
    body: dict[str, Any] = {
        "id": own_id,
        "request_id": request_id,
        "status": answer.status,
        "answer": answer.answer,
        "answer_source": answer.answer_source,
        "citations": [asdict(citation) for citation in answer.citations],
        "unsupported": [asdict(span) for span in answer.unsupported],
        "confidence": answer.confidence,
        "degraded": list(answer.degraded),
        "collection": answer.collection,
        "index_version": answer.index_version,
        "model": answer.model,
        "usage": asdict(answer.usage),
        "timings_ms": dict(answer.timings_ms),
    }
    if answer.reason is not None:
        body["reason"] = answer.reason
    if explain:
        body["query"] = answer.query
        body["passages"] = [hit_body(hit) for hit in answer.hits]
        body["prompt_hash"] = answer.prompt_hash
    return body


def search_body(result: SearchResult, degraded: list[str], timings_ms: dict[str, float]) -> dict[str, Any]:
    """The response object of `/search`."""
    return {
        "hits": [hit_body(hit) for hit in result.hits],
        "degraded": degraded,
        "timings_ms": timings_ms,
        "index_version": result.index_version,
    }


def hit_body(hit: Hit) -> dict[str, Any]:
    """A hit with its text and every stage's score."""
    return {
        "chunk_id": hit.chunk.chunk_id,
        "document_id": hit.chunk.document_id,
        "title": hit.title,
        "source": hit.source,
        "heading": hit.chunk.heading,
        "page": hit.chunk.first_page,
        "char_start": hit.chunk.start_char,
        "char_end": hit.chunk.end_char,
        "text": hit.chunk.text,
        "score": hit.score,
        "scores": asdict(hit.scores),
    }
