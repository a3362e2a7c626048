"""Between the wire models, which are in rag.wire for clients too, and the values of the question flow."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rag.errors import UnknownModelError
from rag.filters import Filter
from rag.split import choose_llm
from rag.types import Answer, Groups, Hit, Message, Question, SearchResult
from rag.wire import AskRequest


def to_question(body: AskRequest, groups: Groups, where: Filter | None) -> Question:
    """What the pipeline takes; `groups` are the caller's, `where` is the filter once parsed."""
    return Question(
        text=body.question,
        collection=body.collection,
        conversation=tuple(Message(turn.role, turn.content) for turn in body.conversation),
        model=body.model,
        top_k=body.top_k,
        rerank_top_k=body.rerank_top_k,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        deadline_s=body.deadline_s,
        filter=where,
        groups=groups,
    )


def sticky_key(body: AskRequest, request_id: str) -> str:
    """What decides on the LLM: the conversation's first question, from the second on; before it, this request."""
    return next((turn.content for turn in body.conversation if turn.role == "user"), request_id)


def with_llm(question: Question, key: str, split: Mapping[str, float], llms: Collection[str]) -> Question:
    """The question with the LLM that is to answer it: the one that it names, else the key's by the split.

    Raises UnknownModelError for one that is none of `llms`.
    """
    if question.model is None:
        return replace(question, model=choose_llm(key, split))
    if question.model not in llms:
        raise UnknownModelError(f"no LLM is served as {question.model!r}; there are: {', '.join(llms)}")
    return question


def answer_id() -> str:
    """A new answer's id."""
    return f"ans_{uuid.uuid4().hex}"


def degraded_header(stages: Sequence[str]) -> dict[str, str]:
    """The header that names the stages left out, where there are some."""
    return {"X-Degraded": ",".join(stages)} if stages else {}


def answer_body(answer: Answer, own_id: str, request_id: str, *, explain: bool) -> dict[str, Any]:
    """The response object of `/ask`.

    `cached` is null, `exact` where the same question got this answer before, or `semantic` where a similar one did.
    `id`, `request_id` and `timings_ms` are this request's own, and `usage` is 0: the LLM wrote nothing for it.
    """
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
        "cached": answer.cached,
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
