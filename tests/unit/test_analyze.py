from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.analyze import MAX_OUTPUT_BYTES, MAX_TERM_CHARS, analyze, terms

MIXED = st.text(
    st.one_of(
        st.sampled_from(" \n_-.,'’()/:0123456789aAbBzZ"),
        st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3),
        st.characters(min_codepoint=0x3041, max_codepoint=0x9FFF),
        st.characters(),
    ),
    max_size=60,
)


@pytest.mark.parametrize(
    "text", ["서울", "서울이다", "서울에서", "서울은", "(서울)은", "'서울'에서", "Seoul(서울)에서", "https://a.b/서울"]
)
def test_a_korean_noun_is_found_whatever_is_attached_to_it(text: str) -> None:
    assert "서울" in terms(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("데이터베이스를 시작한다", ["데이터베이스", "시작"]),
        ("예쁜 꽃", ["예쁘", "꽃"]),
        ("예뻤던 꽃이", ["예쁘", "꽃"]),
        ("빠르게 달렸다", ["빠르", "달리"]),
        ("기본값은 5이며", ["기본값", "5"]),
        ("FastAPI에서", ["fastapi", "fast", "api"]),
        ("1,000으로", ["1000"]),
    ],
    ids=[
        "nouns",
        "adjective",
        "adjective:past",
        "verb:past",
        "number",
        "particle_after_latin",
        "particle_after_number",
    ],
)
def test_korean_keeps_content_morphemes_and_drops_particles_and_endings(text: str, expected: list[str]) -> None:
    assert [term for term in terms(text) if term in expected] == expected
    assert not {"를", "은", "이", "에서", "으로", "다", "며", "게", "었"} & set(terms(text))


def test_a_korean_compound_is_found_whole_and_by_its_parts() -> None:
    assert {"컨테이너", "컨테이너화"} <= set(terms("컨테이너화했다"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("running runs", ["run", "run"]),
        ("Connections connected", ["connect", "connect"]),
        ("Ray's", ["ray"]),
        ("Ray’s", ["ray"]),
        ("max_ongoing_requests", ["max_ongoing_requests", "max", "ongo", "request"]),
        ("X-Request-ID", ["x-request-id", "x", "request", "id"]),
        ("2.5.1", ["2.5.1", "2", "5", "1"]),
        ("MilvusStore", ["milvusstore", "milvus", "store"]),
        ("HTTPServer", ["httpserver", "http", "server"]),
        ("IDs", ["id"]),
        ("__init__", ["init"]),
        ("1,000 1,234,567", ["1000", "1234567"]),
        ("1,2 3", ["1", "2", "3"]),
        ("ＦＵＬＬ ｗｉｄｔｈ", ["full", "width"]),
        ("café", ["café"]),
        ("東京都", ["東京", "京都"]),
        ("カタカナ", ["カタ", "タカ", "カナ"]),
        ("山", ["山"]),
        ("end.", ["end"]),
        ("?!, …", []),
        ("", []),
    ],
)
def test_words_identifiers_numbers_and_han(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


def test_an_identifier_is_found_by_its_words_in_a_sentence() -> None:
    assert set(terms("ongoing requests")) <= set(terms("`max_ongoing_requests`를 바꿉니다"))


def test_the_words_of_asking_are_left_out_but_names_in_capitals_stay() -> None:
    assert terms("What is the default port?") == ["default", "port"]
    assert terms("the WHO and IT") == ["who", "it"]
    assert terms("기본값은 무엇인가요?") == ["기본값"]


def test_mixed_text_keeps_its_order() -> None:
    assert terms("서울에서 Ray 2.60 東京") == ["서울", "ray", "2.60", "2", "60", "東京"]


@pytest.mark.parametrize("text", ["가나 " * 40_000, "word " * 40_000, "a" * 200_000, "한" * 50_000, "漢字" * 60_000])
def test_output_fits_a_milvus_varchar_and_ends_with_a_whole_term(text: str) -> None:
    analysed = analyze(text)
    assert 0 < len(analysed.encode()) <= MAX_OUTPUT_BYTES
    assert analysed.split() == terms(text)
    assert all(len(term) <= MAX_TERM_CHARS for term in terms(text))


def test_the_bound_cuts_between_terms() -> None:
    kept = terms("abcdefghi " * 7_000)
    assert set(kept) == {"abcdefghi"}
    assert len(kept) == (MAX_OUTPUT_BYTES + 1) // 10


@settings(max_examples=200, deadline=None)
@given(MIXED)
def test_terms_are_clean_and_deterministic(text: str) -> None:
    analysed = analyze(text)
    assert analysed == analyze(text)
    assert analysed == " ".join(terms(text))
    assert analysed == analysed.lower()
    assert all(0 < len(term) <= MAX_TERM_CHARS for term in terms(text))
    assert len(analyze(analysed).encode()) <= MAX_OUTPUT_BYTES


def test_threads_share_the_analyzer() -> None:
    nouns = ["학교", "병원", "시간", "사람", "나라", "바다", "하늘", "도시", "음악", "영화", "역사", "과학"]
    particles = ["에서", "에게", "까지", "부터", "으로", "보다", "처럼", "만큼"]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(terms, [noun + particle for particle in particles for noun in nouns]))
    assert [noun in each for noun, each in zip(nouns * len(particles), found, strict=True)] == [True] * len(found)
