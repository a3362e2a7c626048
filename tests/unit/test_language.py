from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.language import Language, language_of, understands


@pytest.mark.parametrize(
    ("text", "language"),
    [
        pytest.param("Which port does the service listen on?", "latin", id="english"),
        pytest.param("Où est le café, señor Müller?", "latin", id="accents"),
        pytest.param("서비스의 기본 포트 번호는 무엇인가요?", "ko", id="korean"),
        pytest.param("max_ongoing_requests의 기본값은 얼마인가요?", "ko", id="korean_with_identifier"),
        pytest.param("RAG_DATA_DIR 변수는 무엇을 정하나요?", "ko", id="korean_with_variable"),
        pytest.param("What does the word 서울 mean in this long English sentence?", "latin", id="english_with_korean"),
        pytest.param("ㅋㅋㅋ", "ko", id="jamo"),
        pytest.param("ポートは何番ですか", "ja", id="japanese"),
        pytest.param("サービスの port は何番ですか", "ja", id="japanese_with_english"),
        pytest.param("默认端口是多少", "zh", id="chinese"),
        pytest.param("", "latin", id="empty"),
        pytest.param("42 + 1 = ?", "latin", id="no_letters"),
        pytest.param("🙂🙂", "latin", id="emoji"),
    ],
)
def test_the_script_that_says_most_decides(text: str, language: str) -> None:
    assert language_of(text) == language


def test_korean_is_known_in_either_normal_form() -> None:
    assert language_of(unicodedata.normalize("NFD", "포트 번호")) == "ko"


@given(st.text())
def test_any_text_has_one_of_the_languages(text: str) -> None:
    assert language_of(text) in ("ko", "ja", "zh", "latin")


@given(st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x24F)))
def test_latin_letters_and_signs_alone_are_latin(text: str) -> None:
    assert language_of(text) == "latin"


@pytest.mark.parametrize(
    ("languages", "text", "expected"),
    [
        (None, "기본 포트는 무엇인가요?", True),
        (("latin",), "기본 포트는 무엇인가요?", False),
        (("latin", "ko"), "기본 포트는 무엇인가요?", True),
        (("latin",), "Which port is the default?", True),
        (("ko",), "Which port is the default?", False),
    ],
)
def test_what_a_model_understands(languages: tuple[Language, ...] | None, text: str, expected: bool) -> None:
    assert understands(languages, text) is expected
