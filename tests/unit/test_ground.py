"""Sentences of an answer to verbatim quotes, and the text that is sent with its offsets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.analyze import terms
from rag.ground import (
    AnswerText,
    Evidence,
    Grounded,
    Quote,
    answers_question,
    ground_sentence,
    is_verbatim,
    lexical_similarity,
    question_relevance,
    split_evidence,
    strip_markers,
)
from rag.sentences import split_sentences
from rag.step_settings import GroundingSettings
from rag.types import Chunk, Hit, Passage, Scores

SETTINGS = GroundingSettings(min_support=0.7)
LIMITS = (
    "A replica takes five requests at once by default. The setting max_ongoing_requests raises that number. "
    "Requests beyond it wait in a queue."
)
TIMES = "A replica starts in 44 seconds. It never starts twice."


def passage(marker: int, text: str, *, start_char: int = 0, heading: str = "", title: str = "Serving") -> Passage:
    chunk = Chunk(
        chunk_id=f"chunk{marker}",
        document_id=f"document{marker}",
        revision="r",
        ordinal=0,
        text=text,
        start_char=start_char,
        end_char=start_char + len(text),
        heading=heading,
        first_page=2,
        last_page=3,
        page_starts=(start_char, start_char + 60),
    )
    return Passage(marker, Hit(chunk, title, f"{title}.pdf", 0.0, Scores()))


def evidence_of(*texts: str, question: str = "") -> Evidence:
    passages = [passage(marker, text) for marker, text in enumerate(texts, start=1)]
    return split_evidence(passages, question, split_sentences, terms)


def ground(sentence: str, evidence: Evidence, settings: GroundingSettings = SETTINGS) -> Grounded:
    similarity = lexical_similarity(strip_markers(sentence), evidence, terms)
    relevance = question_relevance(evidence, lexical_similarity(evidence.question.text, evidence, terms))
    return ground_sentence(sentence, evidence, similarity, relevance, terms=terms, settings=settings)


def quoted(grounded: Grounded) -> str | None:
    return grounded.quote.text if grounded.quote else None


def test_the_quote_is_the_verbatim_sentence_that_says_it() -> None:
    grounded = ground("By default a replica takes 5 requests at once. [2]", evidence_of(TIMES, LIMITS))
    assert grounded.text == "By default a replica takes 5 requests at once."
    assert quoted(grounded) == "A replica takes five requests at once by default."
    assert grounded.quote is not None
    assert grounded.quote.passage.marker == 2
    assert 0.7 <= grounded.support <= 1.0


def test_a_pair_of_sentences_does_not_lend_a_number_to_what_the_other_sentence_says() -> None:
    codes = evidence_of(
        "A 503 response carries a Retry-After header with the number of seconds to wait. "
        "The status code 504 means that the deadline of the request passed before an answer was ready.",
        question="Which status code means that the deadline of the request passed?",
    )
    assert quoted(ground("The status code 503 means that the deadline of the request passed.", codes)) is None
    assert quoted(ground("The status code 504 means that the deadline of the request passed.", codes)) is not None


def test_a_sentence_may_take_a_number_from_each_of_two_sentences() -> None:
    limits = evidence_of("A question has at most 4000 characters. A body has at most 12 lines.")
    both = ground("A question has at most 4000 characters and a body has at most 12 lines.", limits)
    assert quoted(both) == "A question has at most 4000 characters. A body has at most 12 lines."


@pytest.mark.parametrize(
    "sentence",
    [
        "A replica takes 6 requests at once by default.",
        "A replica starts in 44 minutes.",
        "The setting max_queued_requests raises that number.",
        "A replica starts twice.",
        "Bananas are yellow and sweet.",
    ],
)
def test_what_the_passages_do_not_say_has_no_quote(sentence: str) -> None:
    grounded = ground(sentence, evidence_of(LIMITS, TIMES))
    assert grounded == Grounded(sentence, None)


def test_a_wrong_marker_does_not_win_over_the_evidence() -> None:
    grounded = ground("A replica starts in 44 seconds [1].", evidence_of(LIMITS, TIMES))
    assert grounded.text == "A replica starts in 44 seconds."
    assert grounded.quote is not None
    assert grounded.quote.passage.marker == 2


def test_markers_decide_between_equal_quotes_and_order_does_without_them() -> None:
    evidence = evidence_of(TIMES, TIMES)
    unmarked, marked = (
        ground("A replica starts in 44 seconds.", evidence),
        ground("A replica starts in 44 seconds. [2]", evidence),
    )
    assert unmarked.quote is not None
    assert marked.quote is not None
    assert (unmarked.quote.passage.marker, marked.quote.passage.marker) == (1, 2)


def test_two_adjacent_sentences_are_quoted_together_only_where_one_does_not_do() -> None:
    evidence = evidence_of(LIMITS)
    both = ground("A replica takes five requests at once and max_ongoing_requests raises that number.", evidence)
    assert quoted(both) == LIMITS[: LIMITS.index(" Requests beyond")]
    assert quoted(ground("A replica takes five requests at once.", evidence)) == LIMITS[: LIMITS.index(" The setting")]


def test_sentences_of_two_passages_are_never_joined() -> None:
    grounded = ground("Requests wait in a queue and a replica starts in 44 seconds.", evidence_of(LIMITS, TIMES))
    assert grounded.quote is None


def test_a_question_in_the_passage_is_no_evidence() -> None:
    assert ground("The port is 8000.", evidence_of("Is the port 8000?")).quote is None
    assert ground("The port is 8000.", evidence_of("Is the port 8000? The port is 8000.")).quote is not None


def test_a_short_answer_takes_the_quote_that_answers_the_question() -> None:
    texts = ("The log keeps 5 files.", "Each replica takes 5 requests.")
    grounded = ground("5.", evidence_of(*texts, question="How many requests does a replica take?"))
    assert quoted(grounded) == texts[1]


def test_a_subject_named_by_the_heading_counts() -> None:
    passages = [passage(1, "It is found on port 19530.", heading="Ports > Milvus")]
    evidence = split_evidence(passages, "", split_sentences, terms)
    assert quoted(ground("Milvus is found on port 19530.", evidence)) == "It is found on port 19530."
    assert ground("Kafka is found on port 19530.", evidence).quote is None


def test_korean() -> None:
    evidence = evidence_of("서비스는 8000번 포트에서 시작합니다. 데이터는 홈 폴더에 보관됩니다.")
    assert quoted(ground("서비스의 포트는 8000번입니다.", evidence)) == "서비스는 8000번 포트에서 시작합니다."
    assert ground("서비스의 포트는 8001번입니다.", evidence).quote is None
    assert ground("데이터는 서울 폴더에 보관됩니다.", evidence).quote is None
    assert ground("데이터는 홈 폴더에 보관되지 않습니다.", evidence).quote is None


def test_min_support_is_the_least_that_counts() -> None:
    evidence, sentence = evidence_of("Replicas start slowly on old disks."), "Replicas start slowly."
    rows = [np.array([0.5], dtype=np.float32)]
    found = ground_sentence(sentence, evidence, rows, rows, terms=terms, settings=GroundingSettings(min_support=0))
    assert found.support == pytest.approx(0.75)  # (similarity 0.5 + coverage 1) / 2
    at = GroundingSettings(min_support=0.75)
    above = GroundingSettings(min_support=0.76)
    assert ground_sentence(sentence, evidence, rows, rows, terms=terms, settings=at).quote is not None
    assert ground_sentence(sentence, evidence, rows, rows, terms=terms, settings=above).quote is None


def test_new_terms_weigh_twice_those_of_the_question() -> None:
    evidence = evidence_of("The queue is red.", question="What colour is the queue?")
    rows = [np.zeros(1, dtype=np.float32)]
    grounded = ground_sentence(
        "The queue is green.", evidence, rows, rows, terms=terms, settings=GroundingSettings(min_support=0)
    )
    assert grounded.support == pytest.approx((0 + 0.5 / 1.5) / 2 - 0.05)  # "queue" held at 0.5, "green" known nowhere


def test_each_word_that_is_known_nowhere_costs_support() -> None:
    long = "Our service sends every question of a caller first to its orchestrator and then to the next free replica."
    settings = GroundingSettings(min_support=0)
    rows = [np.ones(2, dtype=np.float32)]
    passages = evidence_of(f"{long} It has a cache.", question="Where is a shield?")

    def support(word: str) -> float:
        sentence = long.replace("caller", word)
        return ground_sentence(sentence, passages, rows, rows, terms=terms, settings=settings).support

    known, asked, made_up = support("cache"), support("shield"), support("banana")
    assert support("caller") == pytest.approx(1.0)
    assert known == pytest.approx(made_up + 0.05)  # it stands elsewhere in the passage
    assert asked > made_up + 0.05  # and weighs half, besides
    assert support("ripe yellow banana") < made_up - 2 * 0.05


def test_of_korean_words_the_nouns_alone_are_compared() -> None:
    evidence, rows = evidence_of("서비스는 8000번 포트에서 시작합니다."), [np.ones(1, dtype=np.float32)]
    settings = GroundingSettings(min_support=0)
    grounded = ground_sentence(
        "서비스는 8000번 포트에서 열립니다.", evidence, rows, rows, terms=terms, settings=settings
    )
    sentence, quote = set(terms("서비스는 8000번 포트에서 열립니다.")), set(terms(evidence.sentences[0][0].claims.text))
    assert grounded.support == pytest.approx((1 + len(sentence & quote) / len(sentence)) / 2)


def test_no_passages_support_nothing() -> None:
    assert ground("Anything goes.", evidence_of()) == Grounded("Anything goes.", None)


@pytest.mark.parametrize(("gap", "answers"), [(None, True), (0.4, True), (0.2, False)])
def test_answers_question_compares_with_the_best_evidence(gap: float | None, answers: bool) -> None:
    relevance = [np.array([0.9, 0.6], dtype=np.float32), np.array([], dtype=np.float32)]
    grounded = Grounded("It.", Quote(passage(1, "It is."), 0, 6), support=1.0, relevance=0.6)
    assert answers_question(grounded, relevance, GroundingSettings(max_score_gap=gap)) is answers


def test_an_unsupported_sentence_never_answers() -> None:
    assert not answers_question(Grounded("It.", None), [np.zeros(1)], GroundingSettings(max_score_gap=None))


@pytest.mark.parametrize(
    ("sentence", "stripped"),
    [
        ("The default is 5. [1]", "The default is 5."),
        ("The default is 5 [1].", "The default is 5."),
        ("The default[1] is 5 [2, 3][4].", "The default is 5."),
        ("Read items[0] first.", "Read items[0] first."),
        ("Read `items[1]` first [1].", "Read `items[1]` first."),
        ("See [1](https://example.org).", "See [1](https://example.org)."),
    ],
)
def test_strip_markers(sentence: str, stripped: str) -> None:
    assert strip_markers(sentence) == stripped


def test_the_answer_of_the_contract() -> None:
    text = "max_ongoing_requests defaults to 5. More is said elsewhere."
    source = passage(1, text, start_char=10423)
    written = AnswerText()
    assert written.add(Grounded("The default is 5.", Quote(source, 0, 34), support=0.98)) == "The default is 5. [1]"
    (citation,) = written.citations
    assert (citation.answer_start, citation.answer_end) == (0, 17)
    assert (citation.quote, citation.char_start, citation.char_end) == (
        "max_ongoing_requests defaults to 5",
        10423,
        10457,
    )
    assert (citation.marker, citation.page, citation.verified, citation.score) == (1, 2, True, 0.98)
    assert (citation.document_id, citation.chunk_id) == ("document1", "chunk1")
    assert (citation.title, citation.source) == ("Serving", "Serving.pdf")


def test_the_page_is_that_of_the_quote() -> None:
    source = passage(1, "x" * 59 + "\nOn the next page.", start_char=100)
    written = AnswerText()
    written.add(Grounded("On the next page.", Quote(source, 60, 77)))
    assert written.citations[0].page == 3


def test_an_unsupported_sentence_is_recorded_without_a_marker() -> None:
    written = AnswerText()
    written.add(Grounded("It is 5.", Quote(passage(1, "It is 5."), 0, 8)))
    assert written.add(Grounded("It is red.", None)) == " It is red."
    (span,) = written.unsupported
    assert (span.start, span.end, span.text) == (13, 23, "It is red.")
    assert written.text == "It is 5. [1] It is red."


def test_a_quote_outside_its_chunk_is_dropped_and_its_sentence_unsupported() -> None:
    written = AnswerText()
    assert written.add(Grounded("It is 5.", Quote(passage(1, "It is 5."), 0, 9))) == "It is 5."
    assert written.citations == []
    assert [span.text for span in written.unsupported] == ["It is 5."]


def test_is_verbatim_compares_text_and_offsets() -> None:
    source = passage(1, "It is 5. It is 6.", start_char=40)
    written = AnswerText()
    written.add(Grounded("It is 6.", Quote(source, 9, 17)))
    (citation,) = written.citations
    assert is_verbatim(citation, source)
    assert not is_verbatim(citation, passage(1, "It is 5. It is 7.", start_char=40))
    assert not is_verbatim(citation, passage(1, "It is 5. It is 6.", start_char=41))
    assert not is_verbatim(citation, passage(1, "It is 5. It is 6.", start_char=50))


SENTENCE = st.text(st.sampled_from("ab 5한글😀.\n"), min_size=1, max_size=20).filter(lambda text: text.strip())


@given(st.lists(st.tuples(SENTENCE, st.booleans(), st.sampled_from([" ", "\n\n", "\n- "])), max_size=8))
def test_pieces_join_to_the_text_and_offsets_point_at_the_sentences(parts: list[tuple[str, bool, str]]) -> None:
    written = AnswerText()
    pieces = []
    for number, (sentence, supported, lead) in enumerate(parts, start=1):
        quote = Quote(passage(number, f"…{sentence}…"), 1, 1 + len(sentence)) if supported else None
        pieces.append(written.add(Grounded(sentence, quote), lead))
    assert "".join(pieces) == written.text
    found = [(one.answer_start, one.answer_end, one.quote) for one in written.citations]
    found += [(one.start, one.end, one.text) for one in written.unsupported]
    assert [written.text[start:end] for start, end, _ in found] == [text for _, _, text in found]
    assert sorted(text for _, _, text in found) == sorted(sentence for sentence, _, _ in parts)


def test_lexical_similarity_is_the_fraction_of_terms_found() -> None:
    evidence = evidence_of("Replicas wait. Requests wait in a queue.")
    (row,) = lexical_similarity("Requests wait", evidence, terms)
    assert row.tolist() == [0.5, 1.0]
