"""The question flow with a cache of answers, over documents that can be changed, and ways to change them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rag.answer_cache import AnswerCache
from rag.config import Settings
from rag.filters import Equals
from rag.pipeline import Steps, answer
from rag.serve_settings import OtherGenerator
from rag.types import Answer, Message, Question, StoredChunk, Usage
from tests.fakes import InMemoryStore
from tests.pipeline_fakes import (
    DOCUMENTS,
    FINGERPRINT,
    ReadingLLM,
    WordScorer,
    document_rows,
    make_settings,
    search_over,
    stored_documents,
)

PORT = Question("Which port does the service listen on?", groups=frozenset({"hr", "it"}))
NEW = {"new.md": ("The service listens on port 9000 since May.",)}
# What a question may differ in from PORT, but for its temperature and its deadline.
OTHERS: dict[str, Any] = {
    "text": "Which port does the service listen on now?",
    "collection": "other",
    "conversation": (Message("user", "Hello"),),
    "model": "another",
    "top_k": 2,
    "rerank_top_k": 2,
    "max_tokens": 32,
    "filter": Equals("source", "ports.md"),
    "groups": frozenset({"hr"}),
}


ANOTHER = OtherGenerator(model="/models/any", model_id=OTHERS["model"])


class Asked:
    """A store, an LLM and a cache; `ask` is the flow with the cache, `anew` without."""

    def __init__(self, settings: Settings | None = None, size: int = 100, **steps: Any) -> None:
        given = settings or make_settings()
        self.settings = given.model_copy(update={"generators": (ANOTHER,)})
        self.store: InMemoryStore = stored_documents(DOCUMENTS)
        self.store.ensure_collection("other", FINGERPRINT)
        self.store.upsert("other", document_rows(DOCUMENTS))
        self.llm = ReadingLLM()
        self.scorer = WordScorer()
        self.cache = AnswerCache(size)
        search = search_over(self.store, **{"score": self.scorer, **steps})
        self.steps = Steps(search, self.llm, lambda text: len(text.split()), answers=self.cache)

    async def ask(self, question: Question, settings: Settings | None = None) -> Answer:
        return await answer(question, self.steps, settings or self.settings)

    async def anew(self, question: Question) -> Answer:
        return await answer(question, replace(self.steps, answers=None), self.settings)


def told(given: Answer) -> Answer:
    """What an answer says, whoever made it and in whatever time."""
    return replace(given, timings_ms={}, usage=Usage(), cached=None)


def replaced(rows: list[StoredChunk], **changes: Any) -> list[StoredChunk]:
    return [replace(row, **changes) for row in rows]


def _shifted(row: StoredChunk) -> StoredChunk:
    chunk = row.chunk
    return replace(row, chunk=replace(chunk, start_char=chunk.start_char + 9, end_char=chunk.end_char + 9))


PORTS = document_rows({"ports.md": DOCUMENTS["ports.md"]})
WRITES: dict[str, Callable[[InMemoryStore], None]] = {
    "added": lambda store: store.upsert("default", document_rows(NEW)),
    "replaced": lambda store: store.upsert(
        "default", document_rows({"ports.md": ("🙂 This.", "The service listens on port 8001.")})
    ),
    "deleted": lambda store: store.delete("default", Equals("document_id", "ports.md")),
    "closed": lambda store: store.upsert("default", replaced(PORTS, acl=("board",))),
    "renamed": lambda store: store.upsert("default", replaced(PORTS, title="The ports")),
    "shifted": lambda store: store.upsert("default", [_shifted(row) for row in PORTS]),
    "moved": lambda store: store.upsert("default", replaced(PORTS, source="moved.md")),
}
