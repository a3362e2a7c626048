from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.batching import token_bounded_batches

lengths = st.lists(st.integers(0, 600), max_size=60)
limits = st.integers(1, 2000)


@given(lengths, limits)
def test_each_index_appears_once(lengths: list[int], max_tokens: int) -> None:
    batches = list(token_bounded_batches(lengths, max_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@given(lengths, limits)
def test_no_padded_batch_is_above_the_bound_but_a_single_text(lengths: list[int], max_tokens: int) -> None:
    for batch in token_bounded_batches(lengths, max_tokens):
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= max_tokens


@given(lengths, limits)
def test_lengths_rise_and_equal_ones_keep_their_order(lengths: list[int], max_tokens: int) -> None:
    order = [index for batch in token_bounded_batches(lengths, max_tokens) for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda index: (lengths[index], index))


@given(lengths, limits)
def test_no_two_neighbouring_batches_would_fit_into_one(lengths: list[int], max_tokens: int) -> None:
    batches = list(token_bounded_batches(lengths, max_tokens))
    for batch, following in pairwise(batches):
        assert lengths[following[0]] * (len(batch) + 1) > max_tokens


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "expected"),
    [
        pytest.param([], 10, [], id="nothing"),
        pytest.param([5], 10, [[0]], id="one"),
        pytest.param([50], 10, [[0]], id="one_too_long"),
        pytest.param([2, 2, 2, 2, 2], 4, [[0, 1], [2, 3], [4]], id="equal"),
        pytest.param([9, 1, 5, 1], 10, [[1, 3], [2], [0]], id="mixed"),
        pytest.param([50, 60, 1], 10, [[2], [0], [1]], id="two_too_long"),
    ],
)
def test_known_cases(lengths: list[int], max_tokens: int, expected: list[list[int]]) -> None:
    assert list(token_bounded_batches(lengths, max_tokens)) == expected
