from __future__ import annotations

import pytest

from rag.analyze import terms
from rag.paraphrase import is_paraphrase

ALIKE = [
    ("How do I stop the service?", "How can I stop the service?"),
    ("Which port does the service listen on?", "On what port does the service listen?"),
    ("Which port does the service listen on?", "What is the port that the service listens on?"),
    ("What is the refund policy?", "Tell me the refund policy."),
    ("Who founded Acme Corp in 1998?", "Who was it that founded Acme Corp in 1998?"),
    ("Why is the upload not allowed?", "Why was that upload not allowed?"),
    ("서비스의 기본 포트는 무엇입니까?", "서비스의 기본 포트는 뭐예요?"),
]
UNLIKE = [
    # names, numbers, negation, opposites
    ("How many people live in Seoul?", "How many people live in Busan?"),
    ("What happened in 1914?", "What happened in 1915?"),
    ("Does it wait 5 seconds?", "Does it wait 5 minutes?"),
    ("Does it wait 5 seconds?", "Does it wait five or 6 seconds?"),
    ("Which files are read?", "Which files are not read?"),
    ("What is the maximum size?", "What is the minimum size?"),
    ("Is the policy valid before June?", "Is the policy valid after June?"),
    ("What does top_k do?", "What does rerank_top_k do?"),
    ("서울의 인구는 얼마입니까?", "부산의 인구는 얼마입니까?"),
    ("문서를 읽습니까?", "문서를 읽지 않습니까?"),
    # what is asked for
    ("When was the sundial carved?", "Who carved the sundial?"),
    ("When was the sundial carved?", "Where was the sundial carved?"),
    ("Why was the sundial carved?", "When was the sundial carved?"),
    ("서비스는 언제 시작합니까?", "서비스는 왜 시작합니까?"),
    # a word in the place of another one, and the order
    ("How do I start the service?", "How do I stop the service?"),
    ("Which port does redis use?", "Which port does mysql use?"),
    ("How is the left valve opened?", "How is the right valve opened?"),
    ("what is the dose for adults?", "what is the dose for children?"),
    ("Did Anna beat Bob?", "Did Bob beat Anna?"),
    # languages, and questions without a word to compare
    ("What is the port?", "포트는 무엇입니까?"),
    ("What is it?", "What was that?"),
]


@pytest.mark.parametrize(("first", "second"), ALIKE)
def test_function_words_make_no_other_question(first: str, second: str) -> None:
    assert is_paraphrase(first, second, terms)
    assert is_paraphrase(second, first, terms)


@pytest.mark.parametrize(("first", "second"), UNLIKE)
def test_what_can_be_checked_makes_another_question(first: str, second: str) -> None:
    assert not is_paraphrase(first, second, terms)
    assert not is_paraphrase(second, first, terms)
