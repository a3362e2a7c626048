"""The wire of the OpenAI-compatible door: what a chat request may say, and the shapes of what it gets.

Source: OpenAI's API reference, "Chat" and "Models", as its Python SDK's types have them. Fields that a request may have
there and that mean nothing here are ignored; those whose being ignored would give something else than was asked for are
refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rag.errors import InputError, UnknownModelError
from rag.types import Answer, Citation, Groups, Message, Question
from rag.wire import (
    MAX_COLLECTION_CHARS,
    MAX_QUESTION_CHARS,
    MAX_TURN_CHARS,
    MAX_TURNS,
    MODEL_CHARS,
    AnswerBody,
    ResponseModel,
)

MODEL = "rag"  # the default collection; another one is `rag/NAME`
DEFAULT_COLLECTION = "default"


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class ContentPart(_Lenient):
    """A part of a message. Only text can be read."""

    type: str
    text: str | None = None


class ChatMessage(_Lenient):
    """A message. Those of the person and of the assistant are the conversation; the others are not looked at."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None


class StreamOptions(_Lenient):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None


class ResponseFormat(_Lenient):
    """The only format is text: an answer is sentences with their citations."""

    type: Literal["text"]


class ChatRequest(_Lenient):
    """`POST /v1/chat/completions`; null means that the settings decide."""

    model: Annotated[str, Field(min_length=1, max_length=MODEL_CHARS + MAX_COLLECTION_CHARS)]
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=False)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    response_format: ResponseFormat | None = None

    def sticky_key(self, request_id: str) -> str:
        """What decides on the LLM: `user`, else the conversation's first question, else this request."""
        first = next((_text(turn) for turn in self.messages[:-1] if turn.role == "user"), None)
        return self.user or first or request_id

    def to_question(self, groups: Groups, llms: Sequence[str]) -> Question:
        """The last message as the question, those before it as its conversation; `llms` are the names of those served.

        Raises UnknownModelError, and InputError for a last message that is no question.
        """
        collection, model = read_model(self.model, llms)
        *earlier, last = self.messages
        if last.role != "user":
            raise InputError(f"messages: the last one has the role {last.role}; it must be the user's question")
        text = _text(last).strip()
        if not 1 <= len(text) <= MAX_QUESTION_CHARS:
            raise InputError(
                f"messages: the last one has {len(text)} characters; a question may have 1 to {MAX_QUESTION_CHARS}"
            )
        # A front end sends all there ever was: too long a history is cut, not refused.
        turns = [
            Message(turn.role, _text(turn)[:MAX_TURN_CHARS])
            for turn in earlier
            if turn.role == "user" or turn.role == "assistant"
        ][-MAX_TURNS:]
        return Question(
            text=text,
            collection=collection,
            conversation=tuple(turns),
            model=model,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            groups=groups,
        )


def read_model(name: str, llms: Sequence[str]) -> tuple[str, str | None]:
    """The collection and the LLM that a model's name means. Raises UnknownModelError."""
    if name == MODEL:
        return DEFAULT_COLLECTION, None
    if name.startswith(f"{MODEL}/") and len(name) > len(MODEL) + 1:
        return name.removeprefix(f"{MODEL}/"), None
    if name in llms:
        return DEFAULT_COLLECTION, name
    raise UnknownModelError(
        f"there is no model {name!r}: ask {MODEL!r} for the collection {DEFAULT_COLLECTION!r}, {MODEL + '/NAME'!r} for "
        f"another one, or an LLM: {', '.join(llms)}"
    )


def _text(message: ChatMessage) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    others = sorted({part.type for part in message.content} - {"text", "refusal"})
    if others:
        raise InputError(f"messages: only text can be read here, not a part of the type {others[0]}")
    return "\n".join(part.text for part in message.content if part.text)


class ModelBody(ResponseModel):
    """One model; `created` is when this service started, seconds since 1970."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelListBody(ResponseModel):
    """`GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelBody]


class CompletionMessage(ResponseModel):
    """The answer; an annotation a citation."""

    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: list[dict[str, Any]]


class Choice(ResponseModel):
    """The only one."""

    index: int
    message: CompletionMessage
    logprobs: None
    finish_reason: Literal["stop"]


class CompletionUsage(ResponseModel):
    """LLM tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionBody(ResponseModel):
    """`POST /v1/chat/completions`; `rag` is the response object of `/ask`."""

    id: str
    created: int
    model: str
    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: CompletionUsage
    rag: AnswerBody


class ErrorDetail(ResponseModel):
    """What is wrong, as OpenAI's clients read it: the `error` of a refusal of this door."""

    message: str
    type: str
    param: str | None
    code: str


def models_body(collections: Iterable[str], llms: Sequence[str], created: int) -> dict[str, Any]:
    """The response object of `/v1/models`: the default collection, the others by name, and the LLMs."""
    others = sorted(set(collections) - {DEFAULT_COLLECTION})
    names = [MODEL, *(f"{MODEL}/{name}" for name in others), *llms]
    return {"object": "list", "data": [model_body(name, created) for name in names]}


def model_body(name: str, created: int) -> dict[str, Any]:
    """One model; `created` is when this service started, seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "rag"}


class Completion:
    """The objects of one answer: they share its id, its time and its model's name."""

    def __init__(self, answer_id: str, created: int, model: str) -> None:
        self._common = {"id": f"chatcmpl-{answer_id}", "created": created, "model": model}

    def whole(self, answer: Answer, body: dict[str, Any]) -> dict[str, Any]:
        """A chat completion; `body` is the response object of `/ask`."""
        message = {
            "role": "assistant",
            "content": answer.answer,
            "refusal": None,
            "annotations": [_annotation(citation) for citation in answer.citations],
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        kind = "chat.completion"
        return {**self._common, "object": kind, "choices": [choice], "usage": _usage(answer), "rag": body}

    def start(self) -> dict[str, Any]:
        """The first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text(self, text: str) -> dict[str, Any]:
        """A chunk with the answer's next piece."""
        return self._chunk({"content": text})

    def citation(self, citation: Citation) -> dict[str, Any]:
        """A chunk with a citation of what was sent so far."""
        return self._chunk({"annotations": [_annotation(citation)]})

    def end(self, body: dict[str, Any]) -> dict[str, Any]:
        """The last chunk that has a choice."""
        return {**self._chunk({}, "stop"), "rag": body}

    def usage(self, answer: Answer) -> dict[str, Any]:
        """The chunk without a choice that `stream_options.include_usage` asks for."""
        return {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": _usage(answer)}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}


def _annotation(citation: Citation) -> dict[str, Any]:
    """OpenAI's annotation of the cited sentence, its `url` being the document's source; and the citation itself."""
    found = {
        "start_index": citation.answer_start,
        "end_index": citation.answer_end,
        "title": citation.title,
        "url": citation.source,
    }
    return {"type": "url_citation", "url_citation": found, "citation": asdict(citation)}


def _usage(answer: Answer) -> dict[str, int]:
    used = answer.usage
    total = used.prompt_tokens + used.completion_tokens
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": total,
    }
