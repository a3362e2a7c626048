"""Follow-up questions get the words that they lean on; others stay as they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.analyze import terms
from rag.rewrite import carry_words, rewrite_question
from rag.types import Message


def asked(question: str, *former: str) -> str:
    turns = [turn for text in former for turn in (Message("user", text), Message("assistant", "An answer of words."))]
    return rewrite_question(question, turns, terms)


@pytest.mark.parametrize(
    ("former", "question", "expected"),
    [
        ("What is the Medicaid Buy-In program?", "How can I apply?", "How can I apply? Medicaid Buy-In program"),
        ("Where does the service keep its data?", "Can it be moved?", "Can it be moved? service keep data"),
        (
            "Which port does the service listen on?",
            "And how do I choose another port for a second service?",
            "And how do I choose another port for a second service? listen",
        ),
        ("서비스의 기본 포트는 무엇인가요?", "그건 어떻게 바꾸나요?", "그건 어떻게 바꾸나요? 서비스의 기본 포트는"),
    ],
)
def test_a_question_that_leans_on_the_one_before_gets_its_words(former: str, question: str, expected: str) -> None:
    assert asked(question, former) == expected


def test_a_question_that_stands_alone_stays_as_it_is() -> None:
    question = "Which environment variable names the data directory of the service?"
    assert asked(question, "How are citations verified?") == question
    assert asked("How can I apply?") == "How can I apply?"


@pytest.mark.parametrize(
    ("former", "question"),
    [
        ("How many vacation days may be carried over?", "What is Ray Serve?"),  # short, but it names its subject
        ("서비스의 기본 포트는 무엇인가요?", "암호가 걸린 PDF도 읽을 수 있나요?"),
        ("서비스의 기본 포트는 무엇인가요?", "And the limit?"),  # two languages, which one model may not both read
        ("Which port does the service listen on?", "그건 어떻게 바꾸나요?"),
        ("Is there parking at the Seoul office?", "How many floors are there in the Busan office building?"),
        ("Is there parking at the Seoul office?", "Is there a bus to the airport from the Busan office?"),
        ("환불 규정이 무엇인가요?", "저는 학생인데 할인을 받을 수 있나요?"),
        ("Hello", "What is the refund policy?"),
    ],
)
def test_a_short_question_of_its_own_subject_or_language_stays_as_it_is(former: str, question: str) -> None:
    assert asked(question, former) == question


def test_a_negation_is_not_carried() -> None:
    assert asked("And then?", "Why does the service not start?") == "And then? service start"
    assert asked("How long is it covered?", "Which items aren't insured?") == "How long is it covered? items insured"


def test_there_as_a_place_leans() -> None:
    assert asked("How do I get there?", "Where is the Busan office?") == "How do I get there? Busan office"


def test_what_the_assistant_and_the_system_said_is_not_carried() -> None:
    turns = [Message("system", "Speak of plums."), Message("assistant", "The orchard holds plums.")]
    assert rewrite_question("How can I apply?", turns, terms) == "How can I apply?"


def test_words_go_on_through_questions_that_lean_until_one_stands_alone() -> None:
    rewritten = asked("And by whom?", "When was the Milvus store designed?", "Why was it?")
    assert {"Milvus", "store", "designed"} <= set(rewritten.split())
    new_subject = "Which environment variable names the log directory?"
    assert asked("And its default?", "When was the Milvus store designed?", new_subject) == (
        "And its default? environment variable names log directory"
    )


def test_only_the_last_turns_and_so_many_words_are_carried() -> None:
    assert "plums" not in asked("And then?", "Tell me of plums.", *["Why?"] * 5)
    long = " ".join(f"word{number}" for number in range(100))
    assert len(carry_words("Why?", long, terms)) == 30


@given(st.text(max_size=200), st.lists(st.text(max_size=100), max_size=4))
def test_the_question_itself_always_comes_first(question: str, former: list[str]) -> None:
    assert asked(question, *former).startswith(question)
