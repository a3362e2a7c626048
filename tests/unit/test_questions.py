"""Questions by rules, from English and Korean sentences."""

from __future__ import annotations

import pytest

from eval.questions import ask_definition, ask_heading, draft_questions, mask_fact
from rag.analyze import terms
from rag.types import Chunk

TEXT = (
    "A hit is a chunk with its scores. It is found by two searches.\n\n"
    "- The queue holds 32 questions.\n\n"
    "| port | 8000 |\n\n"
    "질문은 한 번에 최대 16개까지 처리합니다."
)


def make_chunk(text: str = TEXT, heading: str = "Guide > How does it start?", **changes: object) -> Chunk:
    facts = {"chunk_id": "c1", "document_id": "d1", "revision": "r1", "ordinal": 0, "start_char": 100}
    return Chunk(**{**facts, "end_char": 100 + len(text), "text": text, "heading": heading, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("A hit is a chunk with its scores.", "What is a hit?"),
        ("The required stages are the embedder and the retriever.", "What are the required stages?"),
        ("To abstain means to say that there is no answer.", "What does to abstain mean?"),
        ("서비스의 기본 포트 번호는 8000번입니다.", "서비스의 기본 포트 번호는 무엇입니까?"),
        ("벡터란 숫자의 목록을 말합니다.", "벡터란 무엇입니까?"),
        ("서울은 대한민국의 수도이다.", "서울은 무엇입니까?"),
    ],
)
def test_a_definition_is_asked_for_by_what_it_names(sentence: str, question: str) -> None:
    assert ask_definition(sentence) == question


@pytest.mark.parametrize(
    "sentence",
    [
        "It is a chunk with its scores.",
        "This limit is a safeguard.",
        "The first way is a command.",
        "The service that answers is a deployment.",
        "The queue is full.",
        "Lexical search compares words.",
        "그것은 대한민국의 수도이다.",
        "이 문서는 운영자를 위한 안내서입니다.",
        "프로세스가 살아 있는 동안은 정상입니다.",
        "JSONL 파일에서는 한 줄이 한 문서입니다.",
        "서비스를 멈추려면 Ctrl-C를 누릅니다.",
    ],
)
def test_what_defines_nothing_or_points_elsewhere_is_not_asked_for(sentence: str) -> None:
    assert ask_definition(sentence) is None


@pytest.mark.parametrize(
    ("sentence", "question", "value"),
    [
        ("A question may have 4,000 characters.", "A question may have how many characters?", "4,000"),
        ("It starts at 3 and the file has 8 GiB.", None, None),
        ("The cache takes 8 GiB at most.", "The cache takes how many GiB at most?", "8"),
        ("Usage grew by 12% a year.", "Usage grew by how many% a year?", "12"),
        ("The service listens on port 8000.", "The service listens on port what?", "8000"),
        ("A wrong body has status 422 and a detail.", "A wrong body has status what and a detail?", "422"),
        (
            "The gpu profile writes 512 tokens, and the embedded profile writes at most 64 tokens, since it is small.",
            "The embedded profile writes at most how many tokens?",
            "64",
        ),
        ("Two ways lead there: it takes 5 minutes.", "Two ways lead there: it takes how many minutes?", "5"),
        ("질문은 최대 16개까지 처리합니다.", "질문은 최대 몇 개까지 처리합니까?", "16"),
        ("질문은 최대 4,000자까지 처리한다.", "질문은 최대 몇 자까지 처리하는가?", "4,000"),
        ("응답은 3초 안에 왔다.", "응답은 몇 초 안에 왔는가?", "3"),
        ("기본 포트는 8000번이다.", "기본 포트는 몇 번인가?", "8000"),
        ("디스크에 8 GiB의 빈 공간이 있어야 합니다.", "디스크에 몇 GiB의 빈 공간이 있어야 합니까?", "8"),
        ("남은 파일 3개가 없다.", "남은 파일 몇 개가 없는가?", "3"),
    ],
)
def test_a_fact_s_number_is_masked_where_it_stands(sentence: str, question: str | None, value: str | None) -> None:
    fact = mask_fact(sentence)
    assert (fact and fact[:2]) == (question and (question, value))


@pytest.mark.parametrize(
    "sentence",
    [
        "Nothing is counted here.",
        "8 replicas are started.",
        "The port listens on 127.0.0.1 only.",
        "Use the model all-MiniLM-L6-v2 here.",
        "준비되지 않은 단계가 있으면 503을 돌려줍니다.",
        "최대 16개까지 처리하십시오.",
    ],
)
def test_a_sentence_without_a_number_that_can_be_masked_gives_no_fact(sentence: str) -> None:
    assert mask_fact(sentence) is None


def test_the_claim_of_a_fact_is_the_sentence_without_its_number() -> None:
    assert mask_fact("The queue holds 32 questions.") == (
        "The queue holds how many questions?",
        "32",
        "The queue holds  questions",
    )


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("FAQ > Can two services run on one machine?", "Can two services run on one machine?"),
        ("자주 묻는 질문 > 파일 크기에 제한이 있나요?", "파일 크기에 제한이 있나요?"),
        ("Guide > Load limits", "What is said about Load limits?"),
        ("Security notes > Secrets", "What is said about Security notes: Secrets?"),
        ("운영 안내 > 데이터 위치", "데이터 위치에 대해 무엇을 말합니까?"),
        ("Limits", None),
        ("", None),
    ],
)
def test_a_heading_is_asked_with_its_parent_where_it_says_too_little(path: str, question: str | None) -> None:
    assert ask_heading(path, terms) == question


def test_a_chunk_s_questions_know_where_their_answers_stand() -> None:
    chunk = make_chunk()
    drafts = draft_questions(chunk, terms, own_heading=True)
    assert [(draft.rule, chunk.text[slice(*draft.span)], draft.value) for draft in drafts] == [
        ("definition", "A hit is a chunk with its scores.", None),
        ("fact", "The queue holds 32 questions.", "32"),
        ("fact", "질문은 한 번에 최대 16개까지 처리합니다.", "16"),
        ("heading", TEXT, None),
    ]


def test_a_heading_that_others_share_is_not_asked_for() -> None:
    rules = [draft.rule for draft in draft_questions(make_chunk(), terms, own_heading=False)]
    assert "heading" not in rules
