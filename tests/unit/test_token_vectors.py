"""Token vectors in few bytes: sizes, and the products that they are kept for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.token_vectors import optimal_levels, unit_rows
from rag.token_vectors import (
    BITS,
    DISTORTION,
    LEVELS,
    count_coded,
    decode_tokens,
    encode_tokens,
    random_rotation,
    rotate,
)


def vectors(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, dimension)))


def test_the_levels_are_the_best_for_a_normal_distribution() -> None:
    best = optimal_levels(BITS)
    assert pytest.approx(best, abs=1e-3) == LEVELS
    values = np.random.default_rng(1).standard_normal(400_000)
    error = np.mean((values - best[np.abs(values[:, None] - best).argmin(axis=1)]) ** 2)
    assert pytest.approx(error, rel=0.02) == DISTORTION


def test_the_rotation_keeps_products_and_is_the_same_everywhere() -> None:
    some = vectors(7, 16)
    assert rotate(some) @ rotate(some).T == pytest.approx(some @ some.T, abs=1e-5)
    # What an index holds is read by other processes, on other machines.
    assert random_rotation(16)[0, :3] == pytest.approx([0.039848, -0.039958, 0.167107], abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 20), st.sampled_from([4, 6, 64, 127]))
def test_the_size_is_that_of_the_tokens(tokens: int, dimension: int) -> None:
    coded = encode_tokens(vectors(tokens, dimension))
    assert len(coded) == tokens * -(-dimension * BITS // 8)
    assert count_coded(coded, dimension) == tokens
    assert decode_tokens([coded], dimension).shape == (tokens, dimension)


@pytest.mark.parametrize("cosine", [1.0, 0.8, 0.4, 0.0])
def test_products_are_the_cosines_on_average(cosine: float) -> None:
    texts, others = vectors(600, 384), vectors(600, 384, 1)
    others = unit_rows(others - (others * texts).sum(axis=1, keepdims=True) * texts)
    queries = cosine * texts + np.sqrt(1 - cosine**2) * others
    products = (rotate(queries) * decode_tokens([encode_tokens(texts)], 384)).sum(axis=1)
    assert products.mean() == pytest.approx(cosine, abs=0.01)
    assert products.std() < 0.03


def test_texts_are_decoded_together_as_alone() -> None:
    coded = [encode_tokens(vectors(count, 8, count)) for count in (3, 0, 5)]
    alone = np.concatenate([decode_tokens([one], 8) for one in coded])
    np.testing.assert_array_equal(decode_tokens(coded, 8), alone)


def test_bytes_of_another_dimension_are_refused() -> None:
    coded = encode_tokens(vectors(3, 8))
    with pytest.raises(ValueError, match="6 bytes are no token vectors of 384 numbers"):
        decode_tokens([coded], 384)
