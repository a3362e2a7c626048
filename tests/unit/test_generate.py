"""The round trip, the draw by a seed, and the folder that comes of them; the searches are BM25 and words in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from eval.dataset import read_dataset
from eval.generate import Find, Outcome, SourceChunk, format_outcome, generate_questions, judge_draft, write_set
from eval.questions import Draft, draft_questions
from ingest.chunk import embedding_text
from rag.analyze import terms
from rag.cli import main
from rag.types import Chunk, Hit, Scores

TOPICS = ("kettle", "lantern", "orchard", "harbour", "violin", "glacier", "beacon", "quarry")
KOREAN = ("주전자", "등불", "과수원", "항구")


def make_chunk(number: int, text: str, heading: str = "") -> SourceChunk:
    chunk = Chunk(f"c{number}", f"d{number}", "r1", 0, text, 50, 50 + len(text), heading)
    return SourceChunk(chunk, f"Title {number}", f"docs/{number}.md")


CHUNKS = [
    *(
        make_chunk(
            number, f"Long ago, people met here. The {topic} holds {number + 2} visitors.", f"Town > The {topic}s"
        )
        for number, topic in enumerate(TOPICS)
    ),
    *(make_chunk(20 + number, f"{topic}에는 손님 {number + 2}명이 들어갑니다.") for number, topic in enumerate(KOREAN)),
]


def word_search(chunks: Sequence[SourceChunk], depth: int) -> Find:
    """The chunks that share most terms with a question, ties by id, at most `depth`."""

    async def find(question: str) -> Sequence[Hit]:
        wanted = set(terms(question))
        shared = [(len(wanted & set(terms(embedding_text(one.chunk)))), one) for one in chunks]
        found = sorted((one for one in shared if one[0]), key=lambda one: (-one[0], one[1].chunk.chunk_id))
        return [Hit(one.chunk, one.title, one.source, float(score), Scores()) for score, one in found[:depth]]

    return find


async def generate(
    chunks: Sequence[SourceChunk] = CHUNKS, *, count: int = 100, seed: int = 0, depth: int = 3
) -> Outcome:
    return await generate_questions(chunks, word_search(chunks, depth), terms, count=count, seed=seed)


async def test_each_chunk_gives_one_question_that_finds_it() -> None:
    outcome = await generate()
    assert sorted(question.chunk_id for question in outcome.questions) == sorted(one.chunk.chunk_id for one in CHUNKS)
    find = word_search(CHUNKS, 3)
    for question in outcome.questions:
        assert question.chunk_id in [hit.chunk.chunk_id for hit in await find(question.text)]


async def test_the_answer_s_place_is_in_the_document() -> None:
    texts = {one.chunk.chunk_id: one.chunk for one in CHUNKS}
    facts = [question for question in (await generate()).questions if question.rule == "fact"]
    assert {question.chunk_id for question in facts} >= {"c20", "c21", "c22", "c23"}
    for question in facts:
        chunk = texts[question.chunk_id]
        sentence = chunk.text[question.start_char - chunk.start_char : question.end_char - chunk.start_char]
        assert question.value is not None
        assert question.value in sentence
        assert question.value not in question.text


async def test_the_rules_take_turns() -> None:
    rules = Counter(question.rule for question in (await generate(CHUNKS[: len(TOPICS)])).questions)
    assert rules == {"fact": 4, "heading": 4}


async def test_the_seed_decides_and_the_order_of_the_chunks_does_not() -> None:
    first = await generate(count=5, seed=1)
    assert await generate(CHUNKS[::-1], count=5, seed=1) == first
    assert len(first.questions) == 5
    assert await generate(count=5, seed=2) != first


async def test_what_no_search_finds_is_left_out() -> None:
    async def find_nothing(_: str) -> Sequence[Hit]:
        return ()

    outcome = await generate_questions(CHUNKS, find_nothing, terms, count=100, seed=0)
    assert outcome.questions == []
    assert set(outcome.verdicts) == {"not found"}


async def test_a_twin_that_says_the_same_makes_a_question_ambiguous() -> None:
    twin = make_chunk(90, "As we said: the kettle holds 5 visitors, today as ever.")
    alone = [one for one in (await generate()).questions if one.chunk_id == "c0"]
    (draft,) = [one for one in draft_questions(CHUNKS[0].chunk, terms, own_heading=False) if one.rule == "fact"]
    hits = await word_search([*CHUNKS, twin], 3)(draft.text)
    assert len(alone) == 1
    assert judge_draft(draft, CHUNKS[0].chunk, hits, terms) == "ambiguous"
    assert judge_draft(draft, CHUNKS[0].chunk, [hit for hit in hits if hit.source != twin.source], terms) == "kept"


async def test_a_twin_out_of_the_search_s_depth_is_not_seen() -> None:
    draft = Draft("fact", "The kettle holds how many visitors?", (0, 1), "The kettle holds visitors.")
    twin = make_chunk(90, "The kettle holds 5 visitors.")
    hits = await word_search([CHUNKS[0], twin], 1)(draft.text)
    assert judge_draft(draft, CHUNKS[0].chunk, hits, terms) == "kept"


async def test_a_heading_over_several_chunks_or_sections_is_not_asked_for() -> None:
    chunks = [
        make_chunk(1, "Nothing to count.", "Town > The old harbour"),
        make_chunk(2, "Nothing either.", "Town > The old harbour"),
        make_chunk(3, "An opening.", "Field > The long meadow"),
        make_chunk(4, "A part of it.", "Field > The long meadow > The northern fence"),
    ]
    outcome = await generate(chunks)
    assert [question.text for question in outcome.questions] == ["What is said about The northern fence?"]


async def test_the_folder_is_a_labelled_set(tmp_path: Path) -> None:
    outcome = await generate(count=6)
    write_set(tmp_path / "set", CHUNKS, outcome.questions)
    dataset = read_dataset(str(tmp_path / "set"))
    assert {one.document_id: one.text for one in dataset.documents} == {
        one.chunk.chunk_id: embedding_text(one.chunk) for one in CHUNKS
    }
    assert list(dataset.queries.values()) == [question.text for question in outcome.questions]
    assert list(dataset.qrels.values()) == [{question.chunk_id: 1} for question in outcome.questions]
    rows = [json.loads(line) for line in (tmp_path / "set" / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["metadata"]["start_char"] for row in rows] == [question.start_char for question in outcome.questions]


def test_the_outcome_is_told_in_numbers() -> None:
    report = {
        "folder": "set",
        "chunks": 12,
        "questions": 3,
        "by_rule": Counter(fact=2, heading=1),
        "drafts": Counter({"kept": 3, "not found": 4}),
    }
    assert format_outcome(report) == (
        "3 questions (2 fact, 1 heading) about 12 chunks; drafts: 3 kept, 4 not found\n"
        "Measure them: rag eval retrieval set\n"
    )


@pytest.mark.parametrize("option", [["--questions", "0"], ["--depth", "201"]])
def test_the_command_refuses_numbers_out_of_range(option: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["eval", "generate", str(tmp_path / "set"), *option])
    assert result.exit_code == 2
    assert option[0] in result.output
    assert not (tmp_path / "set").exists()
