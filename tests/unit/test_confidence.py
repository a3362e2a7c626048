"""Measures of a confidence, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from eval.confidence import (
    area_under_risk,
    calibration_error,
    measure_auroc,
    operating_point,
    reliability,
    risk_by_coverage,
    threshold_for,
)

CONFIDENCE = np.array([0.9, 0.8, 0.8, 0.3, 0.1])
HOLDS = np.array([True, True, False, True, False])
EVEN = np.ones(5)


def test_auroc_counts_pairs_and_ties_half() -> None:
    # 0.9 beats both, 0.8 ties one and beats one, 0.3 beats one of the two: 4.5 of 6 pairs.
    assert measure_auroc(CONFIDENCE, HOLDS).mean == pytest.approx(0.75)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4))
def test_auroc_is_scikit_learns_and_lies_in_its_interval(rows: list[tuple[int, bool]]) -> None:
    confidence, holds = (np.array(column) for column in zip(*rows, strict=True))
    if min(holds.sum(), (~holds).sum()) < 2:
        with pytest.raises(ValueError, match="two questions"):
            measure_auroc(confidence / 5, holds)
        return
    area = measure_auroc(confidence / 5, holds)
    assert area.mean == pytest.approx(roc_auc_score(holds, confidence))
    assert 0 <= area.low <= area.mean <= area.high <= 1


def test_risk_rises_in_steps_of_equal_confidence() -> None:
    thresholds, coverage, risk = risk_by_coverage(CONFIDENCE, HOLDS, EVEN)
    assert thresholds.tolist() == [0.9, 0.8, 0.3, 0.1]
    assert coverage.tolist() == pytest.approx([0.2, 0.6, 0.8, 1.0])
    assert risk.tolist() == pytest.approx([0.0, 1 / 3, 1 / 4, 2 / 5])
    assert area_under_risk(CONFIDENCE, HOLDS, EVEN) == pytest.approx(0.4 / 3 + 0.2 / 4 + 0.2 * 2 / 5)


def test_a_question_of_weight_two_counts_as_two() -> None:
    twice = risk_by_coverage(CONFIDENCE, HOLDS, np.array([1.0, 1.0, 2.0, 1.0, 1.0]))
    _, coverage, risk = twice
    assert coverage.tolist() == pytest.approx([1 / 6, 4 / 6, 5 / 6, 1.0])
    assert risk.tolist() == pytest.approx([0.0, 2 / 4, 2 / 5, 3 / 6])


@pytest.mark.parametrize(("precision", "threshold"), [(1.0, 0.9), (0.7, 0.3), (0.6, 0.1), (0.0, 0.1)])
def test_the_lowest_threshold_that_keeps_the_precision(precision: float, threshold: float) -> None:
    assert threshold_for(CONFIDENCE, HOLDS, EVEN, precision) == threshold
    assert operating_point(CONFIDENCE, HOLDS, EVEN, threshold).precision >= precision


def test_a_precision_that_nothing_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no threshold reaches a precision of 0\.9; the best is 0\.500"):
        threshold_for(np.array([0.5, 0.5]), np.array([True, False]), np.ones(2), 0.9)


def test_operating_point() -> None:
    point = operating_point(CONFIDENCE, HOLDS, EVEN, 0.8)
    assert (point.precision, point.coverage, point.kept) == pytest.approx((2 / 3, 3 / 5, 2 / 3))
    nothing = operating_point(CONFIDENCE, HOLDS, EVEN, 0.95)
    assert (nothing.precision, nothing.coverage, nothing.kept) == (1.0, 0.0, 0.0)


def test_reliability_and_calibration_error() -> None:
    confidence, holds = np.array([0.1, 0.3, 0.9, 1.0]), np.array([False, True, True, True])
    low, high = reliability(confidence, holds, np.ones(4), 2)
    assert (low.confidence, low.holds, low.questions) == (pytest.approx(0.2), 0.5, 2)
    assert (high.confidence, high.holds, high.questions) == (pytest.approx(0.95), 1.0, 2)
    assert calibration_error(confidence, holds, np.ones(4), 2) == pytest.approx((0.3 + 0.05) / 2)
