"""Forms of token vectors: levels, projections, pooling, and the ranking by each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.dataset import Dataset, SetDocument
from eval.token_vectors import (
    FLOAT_BITS,
    Candidates,
    Form,
    blend,
    compare_forms,
    format_rows,
    make_forms,
    optimal_levels,
    pool_neighbours,
    principal_directions,
    unit_rows,
)
from rag.token_vectors import random_rotation

PLAIN = Form("float16", None, FLOAT_BITS, 1.0)


def vectors(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, dimension)))


def test_the_levels_of_one_and_two_bits_are_those_of_the_literature() -> None:
    assert optimal_levels(1) == pytest.approx([-math.sqrt(2 / math.pi), math.sqrt(2 / math.pi)], abs=1e-4)
    assert optimal_levels(2) == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=1e-3)


@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1175), (4, 0.0095)])
def test_the_levels_lose_what_max_tabulated(bits: int, error: float) -> None:
    values = np.random.default_rng(1).standard_normal(200_000)
    levels = optimal_levels(bits)
    kept = levels[np.abs(values[:, None] - levels).argmin(axis=1)]
    assert np.mean((values - kept) ** 2) == pytest.approx(error, rel=0.03)


def test_neighbours_are_pooled_in_groups_as_equal_as_may_be() -> None:
    five = np.eye(5, dtype=np.float32)
    pooled = pool_neighbours(five, 2)
    assert pooled.shape == (3, 5)
    assert pooled[0] == pytest.approx([math.sqrt(0.5), math.sqrt(0.5), 0, 0, 0])
    assert pooled[2] == pytest.approx([0, 0, 0, 0, 1])
    assert pool_neighbours(five, 1) is five


def test_a_rotation_keeps_every_inner_product() -> None:
    rotation, some = random_rotation(16), vectors(7, 16)
    assert (some @ rotation) @ (some @ rotation).T == pytest.approx(some @ some.T, abs=1e-5)


def test_the_first_directions_are_those_with_the_most_energy() -> None:
    sample = np.zeros((6, 4), dtype=np.float32)
    sample[:4, 2], sample[4:, 0] = 1, 1
    directions = principal_directions(sample)
    assert np.abs(directions[:, 0]) == pytest.approx([0, 0, 1, 0], abs=1e-6)
    assert np.abs(directions[:, 1]) == pytest.approx([1, 0, 0, 0], abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.sampled_from([4, 2, 1]), st.integers(1, 3))
def test_what_is_read_back_is_of_unit_length_and_of_the_told_size(tokens: int, bits: int, pool: int) -> None:
    form = Form("f", random_rotation(16)[:, :8], bits, 0.25, pool)
    restored = form.restore(vectors(tokens, 16))
    assert restored.shape[1] == 8
    assert form.bytes_of(tokens, 16) == len(restored) * 8 * bits / 8
    assert np.linalg.norm(restored, axis=1) == pytest.approx(np.ones(len(restored)), abs=1e-5)


def test_more_bits_keep_similarities_better() -> None:
    sample, query, text = vectors(2000, 32), vectors(40, 32, 1), vectors(200, 32, 2)
    forms = {form.name: form for form in make_forms(sample)}
    lost = [
        float(np.mean((forms[name].project(query) @ forms[name].restore(text).T - query @ text.T) ** 2))
        for name in ("rotation, 8 bits", "rotation, 4 bits", "rotation, 2 bits", "rotation, 1 bits")
    ]
    assert lost[0] < 1e-5
    assert lost == sorted(lost)


def test_the_blend_is_half_of_each_scaled() -> None:
    mixed = blend(np.array([0.2, 0.6, 0.4]), np.array([1, 2, 3]), rrf_k=60)
    middle = (1 / 62 - 1 / 63) / (1 / 61 - 1 / 63)
    assert mixed == pytest.approx([0.5, 0.5 + 0.5 * middle, 0.25])


def test_a_form_that_loses_nothing_ranks_as_the_whole_vectors_do_and_a_coarse_one_is_told_from_it() -> None:
    names = [f"d{number}" for number in range(30)]
    dataset = Dataset("s", tuple(SetDocument(name, "", name) for name in names), {"q": "q"}, {"q": {"d3": 1}})
    documents = {name: vectors(9, 16, number + 1) for number, name in enumerate(names)}
    one = Candidates(dataset, {"q": names}, {"q": documents["d3"][:4]}, documents)
    turned = Form("turned", random_rotation(16), FLOAT_BITS, 1.0)
    lossy = Form("lossy", random_rotation(16)[:, :1], 1, 0.25)
    rows = compare_forms([one], [PLAIN, turned, lossy], rrf_k=60)
    assert [row["alone"] for row in rows[:2]] == [1.0, 1.0]
    assert rows[2]["alone"] < 1.0
    assert [row["bytes"] for row in rows] == [9 * 16 * 2, 9 * 16 * 2, 9 / 8]
    table = format_rows(rows).splitlines()
    assert [line.split()[0] for line in table[-3:]] == ["float16", "turned", "lossy"]
