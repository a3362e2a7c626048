"""The share of a query's words that a text has: the score where the reranker cannot read the question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rag.retrieve import shared_words


def words_of(text: str) -> list[str]:
    return text.lower().split()


@pytest.mark.parametrize(
    ("query", "texts", "expected"),
    [
        pytest.param("a b c d", ["a b", "d d d", "x", "d c b a e"], [0.5, 0.25, 0.0, 1.0], id="fractions"),
        pytest.param("a a b", ["a"], [0.5], id="distinct_terms"),
        pytest.param("", ["a"], [0.0], id="no_terms"),
        pytest.param("a", [], [], id="no_texts"),
    ],
)
def test_shared_words_is_a_fraction_of_the_query(query: str, texts: Sequence[str], expected: list[float]) -> None:
    scores = shared_words(query, texts, words_of)
    assert scores.dtype == np.float32
    assert scores.tolist() == expected
