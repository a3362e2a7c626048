"""The hard rules: numbers, names, negation and opposites, in English and Korean."""

from __future__ import annotations

import pytest

from rag.analyze import terms
from rag.claims import Reason, contradiction, read_claims


def check(sentence: str, quote: str, question: str = "", label: str = "", passage: str = "") -> Reason | None:
    return contradiction(
        read_claims(sentence, terms),
        read_claims(quote, terms),
        read_claims(question, terms),
        label,
        frozenset(terms(passage)),
    )


@pytest.mark.parametrize(
    ("sentence", "quote", "reason"),
    [
        ("The limit is 5.", "The limit is 5 requests.", None),
        ("The limit is 6.", "The limit is 5 requests.", "number"),
        ("The limit is 5 minutes.", "The limit is 5 seconds.", "number"),
        ("The limit is five seconds.", "The limit is 5 s.", None),
        ("It holds 1000 rows.", "It holds 1,000 rows.", None),
        ("기본값은 5초입니다.", "기본값은 5초이다.", None),
        ("기본값은 6초입니다.", "기본값은 5초이다.", "number"),
        ("기본값은 5분입니다.", "기본값은 5초이다.", "number"),
    ],
)
def test_every_number_is_in_the_quote_with_its_unit(sentence: str, quote: str, reason: Reason | None) -> None:
    assert check(sentence, quote) == reason


@pytest.mark.parametrize(
    ("sentence", "quote", "reason"),
    [
        ("It was written by George Miller.", "It was written by George Miller in Leeds.", None),
        ("It was written by George Tanner.", "It was written by George Miller in Leeds.", "name"),
        ("Lyon is the seat of the firm.", "Paris is the seat of the firm.", "name"),
        ("Delhi.", "Its seat is in Mumbai.", "name"),
        ("Set the limit with care.", "The limit needs care.", None),
        ("Set `max_queue` to raise it.", "The setting max_queue raises it.", None),
        ("Set `min_queue` to raise it.", "The setting max_queue raises it.", "name"),
        ("It needs GPUs.", "It needs a GPU.", None),
        ("It is a Korean firm.", "It is a firm from Korea.", None),
        ("It runs on Ray 2.60.1.", "It runs on Ray 2.60.0.", "name"),
        ("It is served by v1.", "It is served by v10.", "name"),
        ("He calls it 'the slow path' himself.", "He calls it “the slow path”.", None),
        ("He calls it 'the fast path' himself.", "He calls it “the slow path”.", "name"),
        ("It takes 1.5 GB.", "It takes 1.5GB.", None),
    ],
)
def test_every_name_is_in_the_quote(sentence: str, quote: str, reason: Reason | None) -> None:
    assert check(sentence, quote) == reason


def test_a_name_may_stand_in_the_question_or_the_heading() -> None:
    assert check("Milvus is found on 19530.", "It is found on 19530.") == "name"
    assert check("Milvus is found on 19530.", "It is found on 19530.", question="Where is Milvus?") is None
    assert check("Milvus is found on 19530.", "It is found on 19530.", label="Milvus > Ports") is None


def test_a_number_may_not_stand_in_the_question_alone() -> None:
    assert check("It was built in 1990.", "It was built by monks.", question="Who built it in 1990?") == "number"


@pytest.mark.parametrize(
    ("sentence", "quote", "passage", "reason"),
    [
        ("본사는 서울에 있습니다.", "본사는 서울에 있다.", "", None),
        ("본사는 부산에 있습니다.", "본사는 서울에 있다.", "", "name"),
        ("회사의 본사는 서울에 있습니다.", "본사는 서울에 있다.", "이 회사는 크다. 본사는 서울에 있다.", None),
        ("FastAPI를 씁니다.", "서버는 Flask를 쓴다.", "", "name"),
    ],
)
def test_korean_nouns_are_in_the_quote_or_its_passage(
    sentence: str, quote: str, passage: str, reason: Reason | None
) -> None:
    assert check(sentence, quote, passage=passage) == reason


@pytest.mark.parametrize(
    ("sentence", "quote", "reason"),
    [
        ("The store keeps old versions.", "The store does not keep old versions.", "negation"),
        ("The store does not keep old versions.", "The store keeps old versions.", "negation"),
        ("The store doesn’t keep old versions.", "The store never keeps old versions.", None),
        ("The default is 5.", "The default is 5, and it cannot be raised.", None),
        ("The default can be raised.", "The default is 5, and it cannot be raised.", "negation"),
        ("The store keeps old versions.", "The store keeps not only new but old versions.", None),
        ("It lasts 5 days.", "It lasts no more than 5 days.", None),
        ("암호가 걸린 파일은 읽을 수 있습니다.", "암호가 걸린 파일은 읽을 수 없습니다.", "negation"),
        ("암호가 걸린 파일은 읽지 못합니다.", "암호가 걸린 파일은 읽을 수 없습니다.", None),
        ("캐시를 사용하지 않습니다.", "캐시를 사용합니다.", "negation"),
    ],
)
def test_negation_agrees_in_the_nearest_clause(sentence: str, quote: str, reason: Reason | None) -> None:
    assert check(sentence, quote) == reason


def test_a_negated_question_may_be_answered_without_negation() -> None:
    quote = "The embedded store does not support aliases."
    assert check("The embedded store: aliases.", quote) == "negation"
    assert check("The embedded store: aliases.", quote, question="What does the store not support?") is None


@pytest.mark.parametrize(
    ("question", "sentence", "quote", "reason"),
    [
        ("Can't I return it after a month?", "You can get a refund.", "You cannot get a refund after it.", "negation"),
        ("한 달 뒤에는 환불이 안 되나요?", "환불이 됩니다.", "30일 이후에는 환불이 되지 않습니다.", "negation"),
        ("Which items aren't covered?", "Labour is covered.", "Labour is not covered.", "negation"),
        ("Which items aren't covered?", "Labour.", "Labour is not covered.", None),
        ("무엇을 지원하지 않나요?", "별칭입니다.", "별칭은 지원하지 않습니다.", None),
    ],
)
def test_what_a_negated_question_asks_for_is_named_and_not_asserted(
    question: str, sentence: str, quote: str, reason: Reason | None
) -> None:
    assert check(sentence, quote, question) == reason


@pytest.mark.parametrize(
    ("sentence", "quote", "reason"),
    [
        ("The deadline is Monday.", "The deadline is Friday, not Monday.", "negation"),
        ("The deadline is Friday.", "The deadline is Friday, not Monday.", None),
        ("The deadline is not Monday.", "The deadline is Friday, not Monday.", None),
        ("The warranty covers labour.", "The warranty covers parts, but not labour.", "negation"),
        ("The warranty covers parts.", "The warranty covers parts, but not labour.", None),
        ("Gift cards are refundable.", "All items are refundable except gift cards.", "negation"),
        ("Gift cards are not refundable.", "All items are refundable except gift cards.", None),
        ("All items are refundable.", "Except for gift cards, all items are refundable.", None),
        ("All items except gift cards are refundable.", "All items are refundable, excluding gift cards.", None),
        ("기프트 카드는 환불됩니다.", "기프트 카드를 제외한 모든 상품은 환불됩니다.", "negation"),
        ("상품은 환불됩니다.", "기프트 카드를 제외한 모든 상품은 환불됩니다.", None),
        ("회원은 상품을 받습니다.", "회원은 기프트 카드를 빼고 모든 상품을 받습니다.", None),
        ("기프트 카드는 환불되지 않습니다.", "기프트 카드를 제외한 모든 상품은 환불됩니다.", None),
        ("It keeps new versions.", "It keeps not only old but new versions.", None),
        ("Tax is excluded.", "The price is 100, excluding tax.", None),
        ("Apart from gift cards, all items are refundable.", "All items are refundable except gift cards.", None),
        ("No items are refundable, and gift cards neither.", "All items are refundable except gift cards.", "negation"),
        ("Only the manager can approve it.", "No one other than the manager can approve it.", None),
        ("공휴일에는 쉽니다.", "공휴일을 제외하고 매일 운영합니다.", None),
    ],
)
def test_what_is_left_out_is_not_said_of_the_rest(sentence: str, quote: str, reason: Reason | None) -> None:
    assert check(sentence, quote) == reason


def test_what_is_left_out_may_be_named_when_asked_for() -> None:
    quote = "All items are refundable except gift cards."
    assert check("Gift cards.", quote, "Which items are not refundable?") is None
    assert check("Gift cards are refundable.", quote, "Which items are not refundable?") == "negation"
    assert check("Gift cards.", quote, "Which items are refundable?") == "negation"


@pytest.mark.parametrize(
    ("sentence", "quote", "reason"),
    [
        ("환불이 가능합니다.", "개봉한 상품은 환불이 불가능합니다.", "negation"),
        ("환불이 불가능합니다.", "개봉한 상품은 환불이 가능합니다.", "negation"),
        ("환불할 수 없습니다.", "개봉한 상품은 환불이 불가능합니다.", None),
        ("환불 가능.", "개봉한 상품은 환불 불가.", "name"),
        ("회원은 쿠폰을 쓸 수 있습니다.", "비회원은 쿠폰을 쓸 수 있습니다.", "opposite"),
        ("비회원은 쿠폰을 쓸 수 있습니다.", "회원은 쿠폰을 쓸 수 있습니다.", "name"),
        ("회원은 쿠폰을 쓸 수 있습니다.", "회원과 비회원은 쿠폰을 쓸 수 있습니다.", None),
        ("배송비가 포함됩니다.", "배송비는 미포함입니다.", "opposite"),
        ("서류가 필요합니다.", "서류가 불필요합니다.", "negation"),
        ("문서는 공개입니다.", "문서는 비공개입니다.", "opposite"),
        ("비밀번호를 5번 입력하면 잠깁니다.", "잘못된 비밀번호를 5번 입력하면 잠깁니다.", None),
        ("불가피한 사유가 있습니다.", "불가피한 사유가 있습니다.", None),
        ("7일 이내에 환불할 수 있습니다.", "7일 이내에는 환불가능합니다.", None),
        ("7일 이내에는 환불할 수 없습니다.", "7일 이내에는 환불가능합니다.", "negation"),
        ("카드로 지불할 수 없습니다.", "카드로 지불가능합니다.", "negation"),
        ("환불할 수 없습니다.", "개봉 상품은 환불불가입니다.", None),
        ("납기를 연장할 수 있습니다.", "불가항력의 경우 납기를 연장할 수 있다.", None),
        ("납기를 연장할 수 없습니다.", "불가항력의 경우 납기를 연장할 수 있다.", "negation"),
    ],
)
def test_a_negating_prefix_is_read(sentence: str, quote: str, reason: Reason | None) -> None:
    assert check(sentence, quote) == reason


@pytest.mark.parametrize(
    ("sentence", "quote", "reason"),
    [
        ("The minimum is 5.", "The maximum is 5.", "opposite"),
        ("It takes 30 min at most.", "It takes up to 30 minutes.", None),
        ("It can take 30 min.", "It can take up to 30 minutes.", None),
        ("Children under 12 pay half.", "Children over 12 pay half.", "opposite"),
        ("The trial lasts five days.", "The trial lasts twenty-five days.", "number"),
        ("배송비는 5천 원입니다.", "배송비는 1만 5천 원입니다.", "number"),
        ("At least 5 are kept.", "At most 5 are kept.", "opposite"),
        ("At most 5 are kept.", "No more than 5 are kept.", None),
        ("The cache is enabled by default.", "The cache is disabled by default.", "opposite"),
        ("The minimum is 5.", "The minimum is 5 and the maximum is 9.", None),
        ("최소 크기는 5입니다.", "최대 크기는 5이다.", "opposite"),
        ("5개 이상을 지원합니다.", "5개 이하를 지원한다.", "opposite"),
    ],
)
def test_the_quote_does_not_say_the_opposite(sentence: str, quote: str, reason: Reason | None) -> None:
    assert check(sentence, quote, passage="최소 크기와 최대 크기") == reason


@pytest.mark.parametrize("word", ["가", "a", "not, ", "불가", "가나 ", "except ", "25 ", "두 "])
def test_a_long_text_is_read(word: str) -> None:
    text = f"{word * 20_000} 가"
    assert read_claims(text, str.split).text == text


@pytest.mark.parametrize(
    "sentence",
    [
        "The service listens on port 8000 and keeps its data in `RAG_DATA_DIR`.",
        "It is not started twice, unless RAY_ADDRESS is set.",
        "서비스는 8000번 포트에서 시작하며 두 번 시작하지 않습니다.",
    ],
)
def test_a_sentence_never_contradicts_itself(sentence: str) -> None:
    assert check(sentence, sentence) is None
