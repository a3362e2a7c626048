"""What a question asks for, and sentences that have it."""

from __future__ import annotations

import pytest

from rag.analyze import terms
from rag.answer_kind import Kind, asked_kind, offers
from rag.claims import read_claims
from tests.unit.test_extract import extract


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("How many seats does the parliament have?", "number"),
        ("What percentage of the land is forest?", "number"),
        ("의회에는 의석이 몇 개인가?", "number"),
        ("When was the bridge opened?", "date"),
        ("In what year did the war end?", "date"),
        ("다리는 언제 개통되었나?", "date"),
        ("Who designed the bridge?", "name"),
        ("Which Polish city has the most bridges?", "name"),
        ("Why is the bridge closed?", None),
        ("What does the handle do?", None),
        ("Whether the port is free", None),
        ("다리는 누가 설계했나?", None),  # Korean names look like any noun
    ],
)
def test_the_kind_that_is_asked_for(question: str, kind: Kind | None) -> None:
    assert asked_kind(question) == kind


@pytest.mark.parametrize(
    ("sentence", "question", "offered"),
    [
        ("It has 129 seats.", "How many seats does it have?", True),
        ("It has many seats.", "How many seats does it have?", False),
        ("In 1999 it had many seats.", "How many seats did it have in 1999?", False),  # the question's own
        ("The bridge was opened one Sunday.", "When was the bridge opened?", True),
        ("The bridge was opened by the king.", "When was the bridge opened?", False),
        ("It was designed by Benjamin Baker.", "Who designed it?", True),
        ("Forth Bridge is of steel.", "Who designed the Forth Bridge?", False),
        ("다리는 1890년에 개통되었다.", "다리는 언제 개통되었나?", True),
    ],
)
def test_a_sentence_offers_what_the_question_does_not_say_itself(sentence: str, question: str, offered: bool) -> None:
    kind = asked_kind(question)
    assert kind is not None
    assert offers(read_claims(sentence, terms), read_claims(question, terms), kind) is offered


def test_of_two_sentences_alike_the_one_with_a_date_answers_when() -> None:
    passage = "The bridge was opened by the king. The bridge was opened in 1890."
    assert extract(passage, question="When was the bridge opened?")[0].text.endswith("1890.")
    assert extract(passage, question="Was the bridge opened?")[0].text.endswith("king.")
