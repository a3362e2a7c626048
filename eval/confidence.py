"""How well a confidence tells the questions that can be answered from those that cannot.

`confidence` is float64 (questions,) in 0..1, `holds` bool (questions,): whether the passages do hold the answer, and
`weights` float64 (questions,), how much each question counts. A question is answered where its confidence is at least
the threshold; coverage is the share of questions answered, risk the share of those answered whose passages do not hold
the answer, precision its complement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.metrics import Estimate

Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a threshold does: `kept` is the share of the questions with an answer that are answered."""

    threshold: float
    precision: float
    coverage: float
    kept: float


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Questions of like confidence: its mean, the share whose passages hold the answer, and how many they are."""

    confidence: float
    holds: float
    questions: int


def measure_auroc(confidence: np.ndarray, holds: np.ndarray) -> Estimate:
    """Area under the ROC curve: how often a question with an answer has more confidence than one without, ties half.

    With its 95 % interval, from the variance of DeLong, DeLong and Clarke-Pearson (Biometrics 1988). Raises ValueError
    with fewer than two questions of either kind.
    """
    with_answer, without = np.sort(confidence[holds]), np.sort(confidence[~holds])
    if min(with_answer.size, without.size) < 2:
        raise ValueError("an AUROC needs two questions with an answer and two without one at least")
    above, below = _beats(with_answer, without), 1.0 - _beats(without, with_answer)
    area = float(above.mean())
    error = float(np.sqrt(above.var(ddof=1) / above.size + below.var(ddof=1) / below.size))
    return Estimate(area, max(area - Z_95 * error, 0.0), min(area + Z_95 * error, 1.0))


def _beats(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each value, the share of the sorted others that it is above, ties half."""
    return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * others.size)


def risk_by_coverage(
    confidence: np.ndarray, holds: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, coverages and risks, one for each distinct confidence, coverage rising.

    Source: El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification, JMLR 2010.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    last = np.flatnonzero(np.diff(ranked, append=-np.inf))  # equal confidences are answered together
    answered = np.cumsum(weights[order])[last]
    wrong = np.cumsum((weights * ~holds)[order])[last]
    return ranked[last], answered / weights.sum(), wrong / answered


def area_under_risk(confidence: np.ndarray, holds: np.ndarray, weights: np.ndarray) -> float:
    """The mean risk over all coverages (AURC); of a constant confidence it is the risk of answering everything."""
    _, coverage, risk = risk_by_coverage(confidence, holds, weights)
    return float((risk * np.diff(coverage, prepend=0.0)).sum())


def operating_point(confidence: np.ndarray, holds: np.ndarray, weights: np.ndarray, threshold: float) -> OperatingPoint:
    """What happens at a threshold; precision is 1 where nothing is answered."""
    answered = confidence >= threshold
    right = float(weights[answered & holds].sum())
    total = float(weights[answered].sum())
    return OperatingPoint(
        threshold, right / total if total else 1.0, total / float(weights.sum()), right / float(weights[holds].sum())
    )


def threshold_for(confidence: np.ndarray, holds: np.ndarray, weights: np.ndarray, precision: float) -> float:
    """The lowest confidence from which on at least `precision` of the answered questions have their answer.

    Raises ValueError where no threshold reaches it.
    """
    thresholds, _, risk = risk_by_coverage(confidence, holds, weights)
    reached = thresholds[1.0 - risk >= precision]
    if not reached.size:
        raise ValueError(
            f"no threshold reaches a precision of {precision}; the best is {1 - risk.min():.3f}: name a lower one"
        )
    return float(reached.min())


def reliability(confidence: np.ndarray, holds: np.ndarray, weights: np.ndarray, bins: int) -> list[ReliabilityBin]:
    """Questions by confidence, in bins of equal width within 0..1; empty ones are left out."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for index in np.unique(place):
        inside = place == index
        found.append(
            ReliabilityBin(
                float(np.average(confidence[inside], weights=weights[inside])),
                float(np.average(holds[inside], weights=weights[inside])),
                int(inside.sum()),
            )
        )
    return found


def calibration_error(confidence: np.ndarray, holds: np.ndarray, weights: np.ndarray, bins: int) -> float:
    """Expected calibration error: the mean distance of confidence and truth over the bins, by their weight.

    Source: Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    off = weights * (confidence - holds)
    return float(sum(abs(off[place == index].sum()) for index in np.unique(place)) / weights.sum())
