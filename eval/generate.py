"""A labelled set from one's own collection: `rag eval generate`.

Chunks are drawn by a seed, each gives a question by eval.questions' rules, and a question is kept when it stands the
round trip: its chunk is among the first hits of lexical or dense search, and no other hit says the same. The set is a
folder in BEIR layout, whose documents are the collection's chunks as they are embedded, heading first:

    corpus.jsonl    _id (the chunk's), title, text
    queries.jsonl   _id, text, metadata: rule, source, start_char, end_char (the answer's place in its document), value
    qrels/test.tsv  one relevant chunk a query

What it can say: which of one's own settings finds more, and what changed since yesterday. What it cannot: how good
retrieval is for people's questions. These are easier, since they use the documents' own words, which favours lexical
search; a question that neither search finds is not in the set, so that Success@k at the round trip's depth is near 1;
a relevant chunk without judgement counts as wrong; and each asks for one place, none for a comparison or a summary.
The folder holds the text of every document of the collection, those that only some groups may see among them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from eval.pool import write_rows
from eval.questions import Draft, Rule, Terms, draft_questions
from eval.retrieval import Say, search_here, search_steps
from ingest.chunk import embedding_text
from ingest.fingerprint import index_fingerprint
from rag.analyze import terms
from rag.config import Settings
from rag.connect import open_store
from rag.errors import InputError
from rag.local_steps import Models
from rag.store import MilvusStore
from rag.types import Chunk, Hit

# What a chunk has of a claim's terms when it says the same: some function words may differ.
TWIN_FRACTION = 0.9

Verdict = Literal["kept", "not found", "ambiguous"]
Find = Callable[[str], Awaitable[Sequence[Hit]]]  # a question -> what either search finds to the round trip's depth


class SourceChunk(NamedTuple):
    """A chunk with its document's facts."""

    chunk: Chunk
    title: str
    source: str


@dataclass(frozen=True, slots=True)
class Generated:
    """A question that stood the round trip; the answer is at `start_char:end_char` of the document's text."""

    text: str
    rule: Rule
    chunk_id: str
    source: str
    start_char: int
    end_char: int
    value: str | None


@dataclass(slots=True)
class Outcome:
    """The questions, and how many drafts had which fate."""

    questions: list[Generated] = field(default_factory=list)
    verdicts: Counter[Verdict] = field(default_factory=Counter)


def generate_set(
    folder: Path, settings: Settings, collection: str, *, count: int, seed: int, depth: int, say: Say
) -> dict[str, Any]:
    """Writes a set of `count` questions at most, and gives what became of the drafts; memory holds every chunk.

    `depth`: hits of each search in the round trip. Raises InputError where no question is left, and what the store and
    the models raise.
    """
    fingerprint = index_fingerprint(settings)
    with open_store(settings, fingerprint) as store:
        chunks = [SourceChunk(chunk, one.title, one.source) for chunk, one in store.every_chunk(collection)]
        if not chunks:
            raise InputError(
                f"collection {collection!r} is empty; fill it: rag ingest PATH... --collection {collection}"
            )
        say(f"{collection}: {len(chunks)} chunks")
        models = Models(settings)

        async def generate(store: MilvusStore) -> Outcome:
            steps = search_steps(store, models.embed, models.score, models.answerability)
            search = partial(search_here, collection=collection, steps=steps, settings=settings, depth=depth)

            async def find(question: str) -> Sequence[Hit]:
                return (await search(question, rerank=False)).hits

            try:
                return await generate_questions(chunks, find, terms, count=count, seed=seed)
            finally:
                await store.aclose()

        outcome = asyncio.run(generate(store))
    if not outcome.questions:
        raise InputError(
            f"no question about collection {collection!r} stands the round trip ({_describe(outcome.verdicts)}): "
            "its text has few whole sentences or says everything twice; judge questions by hand in BEIR layout instead"
        )
    write_set(folder, chunks, outcome.questions)
    return {
        "folder": str(folder),
        "collection": collection,
        "chunks": len(chunks),
        "questions": len(outcome.questions),
        "by_rule": Counter(question.rule for question in outcome.questions),
        "drafts": outcome.verdicts,
    }


async def generate_questions(
    chunks: Sequence[SourceChunk], find: Find, terms: Terms, *, count: int, seed: int
) -> Outcome:
    """At most `count` questions, one a chunk, in an order that `seed` and the chunks' ids decide; of the rules each
    gives as many as the chunks allow. The second of two drafts with one text counts as ambiguous."""
    headings = Counter(one.chunk.heading for one in chunks)
    parents = {one.chunk.heading.rpartition(" > ")[0] for one in chunks}
    outcome, rules, asked = Outcome(), Counter[Rule](), set[str]()
    chance = random.Random(seed)
    ordered = sorted(chunks, key=lambda one: one.chunk.chunk_id)
    chance.shuffle(ordered)
    for one in ordered:
        if len(outcome.questions) == count:
            break
        heading = one.chunk.heading
        own_heading = bool(heading) and headings[heading] == 1 and heading not in parents
        drafts = draft_questions(one.chunk, terms, own_heading=own_heading)
        chance.shuffle(drafts)
        # The rule with the fewest questions so far first: nearly every chunk has a heading.
        drafts.sort(key=lambda draft: rules[draft.rule])
        for draft in drafts:
            repeated = draft.text in asked
            verdict = "ambiguous" if repeated else judge_draft(draft, one.chunk, await find(draft.text), terms)
            outcome.verdicts[verdict] += 1
            asked.add(draft.text)
            if verdict == "kept":
                outcome.questions.append(_place(draft, one))
                rules[draft.rule] += 1
                break
    return outcome


def judge_draft(draft: Draft, chunk: Chunk, hits: Sequence[Hit], terms: Terms) -> Verdict:
    """What the round trip says: whether `chunk` is among the hits, and alone in what it says."""
    if all(hit.chunk.chunk_id != chunk.chunk_id for hit in hits):
        return "not found"
    claim = set(terms(draft.claim))
    for hit in hits:
        if hit.chunk.chunk_id != chunk.chunk_id:
            shared = claim & set(terms(embedding_text(hit.chunk)))
            if len(shared) >= TWIN_FRACTION * len(claim):
                return "ambiguous"
    return "kept"


def _place(draft: Draft, one: SourceChunk) -> Generated:
    start, end = (one.chunk.start_char + offset for offset in draft.span)
    return Generated(draft.text, draft.rule, one.chunk.chunk_id, one.source, start, end, draft.value)


def write_set(folder: Path, chunks: Sequence[SourceChunk], questions: Sequence[Generated]) -> None:
    """The folder, in BEIR layout; what an earlier run wrote is replaced."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = sorted(chunks, key=lambda one: (one.source, one.chunk.ordinal))
    write_rows(
        folder / "corpus.jsonl",
        ({"_id": one.chunk.chunk_id, "title": one.title, "text": embedding_text(one.chunk)} for one in corpus),
    )
    queries, judgements = [], ["query-id\tcorpus-id\tscore\n"]
    for number, question in enumerate(questions, start=1):
        facts = asdict(question)
        text, chunk_id = facts.pop("text"), facts.pop("chunk_id")
        queries.append({"_id": f"q{number}", "text": text, "metadata": facts})
        judgements.append(f"q{number}\t{chunk_id}\t1\n")
    write_rows(folder / "queries.jsonl", queries)
    (folder / "qrels" / "test.tsv").write_text("".join(judgements), encoding="utf-8")


def format_outcome(report: dict[str, Any]) -> str:
    """What generate_set gives, as sentences for people."""
    return (
        f"{report['questions']} questions ({_describe(report['by_rule'])}) about {report['chunks']} chunks; "
        f"drafts: {_describe(report['drafts'])}\nMeasure them: rag eval retrieval {report['folder']}\n"
    )


def _describe(counts: Counter[Any]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "none"
