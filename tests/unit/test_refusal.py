"""Sentences in which the LLM says that it has no answer."""

from __future__ import annotations

import pytest

from rag.refusal import is_refusal


@pytest.mark.parametrize(
    "sentence",
    [
        "I don't know.",
        "I’m sorry, I cannot answer that.",
        "The documents do not say.",
        "The documents do not say. [1]",
        "The passages don't mention the price.",
        "The provided context does not contain this information.",
        "This is not mentioned in the passages.",
        "There is no information about it.",
        "문서에 없습니다.",
        "문서에 답이 없습니다.",
        "문서에는 이에 대한 정보가 없습니다.",
        "제공된 문서에서 답을 찾을 수 없습니다.",
        "알 수 없습니다.",
        "잘 모르겠습니다.",
        "문서에는 가격이 언급되어 있지 않습니다.",
    ],
)
def test_refusals(sentence: str) -> None:
    assert is_refusal(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "The default is 5.",
        "The store does not keep old versions.",
        "The text is not stored.",
        "If we cannot find the key, we answer 401.",
        "Documents are not deleted by an upgrade.",
        "The setting has no default.",
        "문서는 삭제되지 않습니다.",
        "문서가 없으면 404를 반환합니다.",
        "암호가 걸린 PDF는 읽을 수 없습니다.",
        "기본값은 없습니다.",
    ],
)
def test_claims_with_a_negation_are_no_refusals(sentence: str) -> None:
    assert not is_refusal(sentence)
