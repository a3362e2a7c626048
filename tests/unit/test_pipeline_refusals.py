"""What an LLM says that it does not know is no answer, unless a document says so word for word."""

from __future__ import annotations

import pytest

from rag.pipeline import answer
from rag.refusal import ABSTENTION
from rag.types import Question
from tests.pipeline_checks import answer_of
from tests.pipeline_fakes import make_search, make_settings, make_steps, says

PORT = Question("Which port does the service listen on?")
RIGHT = "The service listens on port 8000."


async def test_refusals_of_a_strong_reader_are_believed() -> None:
    given = await answer_of(PORT, make_steps(says("The documents do not say.")), make_settings("strong"))
    assert (given.status, given.reason, given.answer) == ("abstained", "no_evidence", ABSTENTION["latin"])


async def test_refusals_of_a_weak_reader_are_not_believed() -> None:
    given = await answer_of(PORT, make_steps(says("The documents do not say.")), make_settings("weak"))
    assert (given.status, given.answer_source) == ("answered", "extracted")
    assert given.answer.startswith(RIGHT)


@pytest.mark.parametrize("reader", ["strong", "weak"])
@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("Are refunds given after a month?", "We do not provide refunds after 30 days."),
        ("개인정보를 제3자에게 주나요?", "개인정보는 제3자에게 제공하지 않습니다."),
    ],
)
async def test_what_a_document_says_is_no_refusal(question: str, sentence: str, reader: str) -> None:
    steps = make_steps(says(sentence), make_search({"rules.md": (sentence,)}))
    given = await answer(Question(question), steps, make_settings(reader))
    assert (given.status, given.answer) == ("answered", f"{sentence} [1]")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("비밀번호는 운영자도 알 수 없습니다.", "알 수 없습니다."),
        ("If you cannot find the password of the service, ask the desk.", "I cannot find the password."),
    ],
)
async def test_a_refusal_of_a_documents_words_is_one(document: str, said: str) -> None:
    steps = make_steps(says(said), make_search({"rules.md": (document,)}))
    given = await answer(Question(document), steps, make_settings("strong"))
    assert (given.status, given.reason) == ("abstained", "no_evidence")


@pytest.mark.parametrize("reader", ["strong", "weak"])
async def test_a_refusal_beside_an_answer_is_left_out(reader: str) -> None:
    given = await answer_of(PORT, make_steps(says("I do not know the answer.", RIGHT)), make_settings(reader))
    assert (given.status, given.answer) == ("answered", f"{RIGHT} [1]")
