from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eval.metrics import MEASURES, compare_values, estimate, read_qrels, read_run, score_run, write_qrels, write_run
from rag.errors import InputError

QRELS = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"d": 1}, "q3": {"e": 1}}
values_of_queries = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


def test_values_are_those_computed_by_hand() -> None:
    values = score_run(QRELS, {"q1": ["c", "b", "x", "a"], "q2": ["x", "d"]})
    # q1: gains 0, 1, 0, 2 at ranks 1 to 4, at best 2, 1.
    ideal = 2 + 1 / math.log2(3)
    ndcg = (1 / math.log2(3) + 2 / math.log2(5)) / ideal
    expected = {
        "nDCG@10": [ndcg, 1 / math.log2(3), 0],
        "RR@10": [1 / 2, 1 / 2, 0],
        "AP": [(1 / 2 + 2 / 4) / 2, 1 / 2, 0],
        "R@10": [1, 1, 0],
        "Success@1": [0, 0, 0],
        "Success@5": [1, 1, 0],
    }
    assert set(expected) < set(MEASURES)
    for measure, by_hand in expected.items():
        assert values[measure] == pytest.approx(by_hand), measure


def test_what_is_past_the_cut_does_not_count() -> None:
    tail = [f"x{number}" for number in range(9)]
    values = score_run(QRELS, {"q2": ["d"], "q3": [*tail, "y", "e"]})
    assert values["nDCG@10"] == pytest.approx([0, 1, 0])
    assert values["RR@10"] == pytest.approx([0, 1, 0])
    assert values["R@50"] == pytest.approx([0, 1, 1])
    assert values["AP"] == pytest.approx([0, 1, 1 / 11])


def test_a_run_of_nothing_is_0_for_every_query() -> None:
    for run in ({}, {"q1": []}, {"other": ["a"]}):
        assert all((values == 0).all() and values.shape == (3,) for values in score_run(QRELS, run).values())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from("abcdefgh"), unique=True))
def test_every_value_is_within_0_and_1_and_grows_with_the_depth(ranking: list[str]) -> None:
    whole = score_run(QRELS, {"q1": ranking})
    cut = score_run(QRELS, {"q1": ranking[:-1]})
    for measure in MEASURES:
        assert 0 <= cut[measure][0] <= whole[measure][0] <= 1


# --- uncertainty ---


@settings(deadline=None, max_examples=15)
@given(values_of_queries)
def test_an_interval_holds_its_mean_and_stays_within_the_values(values: np.ndarray) -> None:
    found = estimate(values)
    assert found == estimate(values)
    assert found.mean == pytest.approx(values.mean())
    assert values.min() - 1e-9 <= found.low <= found.high <= values.max() + 1e-9


def test_an_interval_is_that_of_the_normal_where_there_are_many_queries() -> None:
    values = np.repeat([0.0, 1.0], 200)
    found = estimate(values)
    assert (found.low, found.high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.01)


@pytest.mark.parametrize(
    ("changes", "p_value"),
    [
        ([0.0, 0.0], 1.0),
        ([0.5], 1.0),  # one query, two signs: both as far from 0
        ([0.25] * 4, 2 / 16),  # all four up, or all four down, of sixteen
        ([0.25] * 4 + [0.0] * 9, 2 / 16),  # queries that do not differ add nothing
        ([0.25, 0.25, 0.25, -0.25], 10 / 16),  # at most one of another sign than the rest
    ],
)
def test_the_paired_test_counts_the_ways_to_change_signs(changes: list[float], p_value: float) -> None:
    first = np.full(len(changes), 0.5)
    found = compare_values(first, first + changes)
    assert found.p_value == pytest.approx(p_value)
    assert found.change.mean == pytest.approx(np.mean(changes))


def test_many_queries_that_change_alike_are_no_chance() -> None:
    generator = np.random.default_rng(1)
    first = generator.uniform(0, 0.5, 300)
    assert compare_values(first, first + generator.uniform(0, 0.1, 300)).p_value < 0.001
    noise = compare_values(first, first + generator.choice([-0.1, 0.1], 300))
    assert noise.p_value > 0.01


@settings(deadline=None, max_examples=15)
@given(values_of_queries)
def test_a_comparison_turned_round_has_the_other_sign(values: np.ndarray) -> None:
    other = values[::-1].copy()
    there, back = compare_values(values, other), compare_values(other, values)
    assert there.change.mean == pytest.approx(-back.change.mean)
    assert (there.won, there.lost, there.tied) == (back.lost, back.won, back.tied)
    assert there.won + there.lost + there.tied == values.size


# --- files ---


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(names, st.lists(names, unique=True, min_size=1), max_size=4))
def test_a_run_file_gives_the_run_back(tmp_path_factory: pytest.TempPathFactory, run: dict[str, list[str]]) -> None:
    path = tmp_path_factory.mktemp("run") / "a.run"
    write_run(path, run, "a tag")
    assert read_run(path) == run


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(names, st.dictionaries(names, st.integers(0, 3), min_size=1), max_size=4))
def test_a_qrels_file_gives_the_judgements_back(
    tmp_path_factory: pytest.TempPathFactory, qrels: dict[str, dict[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("qrels") / "qrels.txt"
    write_qrels(path, qrels)
    assert read_qrels(path) == qrels


def test_a_run_file_has_trecs_six_columns_and_falling_scores(tmp_path: Path) -> None:
    path = tmp_path / "a.run"
    write_run(path, {"q 1": ["a", "b"]}, "fused")
    assert path.read_text(encoding="utf-8") == "q%201 Q0 a 1 2 fused\nq%201 Q0 b 2 1 fused\n"


def test_another_programs_run_is_read_by_its_scores(tmp_path: Path) -> None:
    path = tmp_path / "a.run"
    path.write_text("q Q0 low 1 0.1 x\nq Q0 tied 3 0.5 x\nq Q0 first 2 0.5 x\n", encoding="utf-8")
    assert read_run(path) == {"q": ["first", "tied", "low"]}


@pytest.mark.parametrize("content", ["q Q0 d 1 0.5\n", "q Q0 d one 0.5 x\n"])
def test_a_file_that_is_no_run_is_named_with_its_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.run"
    path.write_text(f"q Q0 d 1 0.5 x\n{content}", encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.run:2"):
        read_run(path)
    with pytest.raises(InputError, match="no line of TREC qrels"):
        read_qrels(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_run(tmp_path / "gone.run")
