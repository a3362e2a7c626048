"""The report of the evidence gate: figures of each scale, tables for people, a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval.bench_tables import format_table
from eval.confidence import (
    area_under_risk,
    calibration_error,
    measure_auroc,
    operating_point,
    reliability,
    risk_by_coverage,
)
from eval.gate_samples import Samples
from eval.metrics import Estimate

BINS = 10
CURVE_POINTS = 100
UNANSWERED = ("look-alike", "off-corpus")


def describe_scale(
    samples: Samples, confidence: np.ndarray, threshold: float, steps: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """A scale's figures; `steps`: the confidence (samples,) of smaller sets of features, by their names."""
    holds, weights = samples.holds, samples.weights
    kinds = np.array([one.kind for one in samples.rows])
    sets = np.array([one.dataset for one in samples.rows])
    _, coverage, risk = risk_by_coverage(confidence, holds, weights)
    shown = np.unique(np.linspace(0, coverage.size - 1, CURVE_POINTS).astype(int))
    return {
        "scale": samples.scale,
        "questions": {kind: int((kinds == kind).sum()) for kind in np.unique(kinds)},
        "held": int(holds.sum()),
        "auroc": _contrasts(confidence, holds, kinds),
        "auroc_by_set": {
            str(name): _contrasts(confidence[sets == name], holds[sets == name], kinds[sets == name])
            for name in np.unique(sets)
        },
        "auroc_by_features": {names: _contrasts(values, holds, kinds) for names, values in steps.items()},
        "aurc": area_under_risk(confidence, holds, weights),
        "ece": calibration_error(confidence, holds, weights, BINS),
        "reliability": [asdict(one) for one in reliability(confidence, holds, weights, BINS)],
        "threshold": asdict(operating_point(confidence, holds, weights, threshold)),
        "answered": {str(kind): float((confidence[kinds == kind] >= threshold).mean()) for kind in np.unique(kinds)},
        "risk_by_coverage": [[float(coverage[index]), float(risk[index])] for index in shown],
    }


def _contrasts(confidence: np.ndarray, holds: np.ndarray, kinds: np.ndarray) -> dict[str, dict[str, float]]:
    """AUROC of the questions whose passages hold the answer against those of each other kind that is there."""
    found = {}
    for kind in UNANSWERED:
        inside = holds | (kinds == kind)
        if min((kinds == kind).sum(), holds.sum()) > 1:
            found[kind] = asdict(measure_auroc(confidence[inside], holds[inside]))
    return found


def format_gate(report: Mapping[str, Any]) -> str:
    """Tables for people."""
    machine = report["hardware"]
    mix = ", ".join(f"{kind} {share:g}" for kind, share in report["mix"].items())
    lead = (
        f"{report['task']} on {', '.join(report['sets'])}; commit {report['commit']}; {machine['cpu_model']}; "
        f"{report['wall_s']} s\nmix: {mix}; answered from confidence {report['evidence']['min_confidence']} on"
    )
    return "\n\n".join([lead, _operating(report["scales"]), *map(_format_scale, report["scales"])]) + "\n"


def _operating(scales: Sequence[Mapping[str, Any]]) -> str:
    kinds = list(dict.fromkeys(kind for one in scales for kind in one["answered"]))
    header = ("scale", "precision", "coverage", "kept", "AURC", "ECE", *(f"{kind} answered" for kind in kinds))
    rows = [
        (
            one["scale"],
            *(f"{one['threshold'][name]:.3f}" for name in ("precision", "coverage", "kept")),
            f"{one['aurc']:.3f}",
            f"{one['ece']:.3f}",
            *(f"{one['answered'][kind]:.3f}" if kind in one["answered"] else None for kind in kinds),
        )
        for one in scales
    ]
    return format_table(header, rows)


def _format_scale(one: Mapping[str, Any]) -> str:
    rows = [("all sets", one["auroc"]), *one["auroc_by_set"].items(), *one["auroc_by_features"].items()]
    counts = ", ".join(f"{kind} {count}" for kind, count in one["questions"].items())
    title = f"{one['scale']}: {counts}; of {one['held']} the passages hold the answer. AUROC (95 %)"
    cells = [(name, *(_area(contrasts.get(kind)) for kind in UNANSWERED)) for name, contrasts in rows]
    return f"{title}\n{format_table(('', *UNANSWERED), cells)}"


def _area(value: Mapping[str, float] | None) -> str | None:
    if value is None:
        return None
    area = Estimate(**value)
    return f"{area.mean:.3f} ({area.low:.3f}-{area.high:.3f})"


def draw_gate(report: Mapping[str, Any], path: Path) -> None:
    """Reliability beside risk by coverage, a line for each scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    reliable, risky = figure.subplots(1, 2)
    reliable.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for one in report["scales"]:
        bins = one["reliability"]
        confidence, holds = [each["confidence"] for each in bins], [each["holds"] for each in bins]
        line = reliable.plot(confidence, holds, label=one["scale"])
        every = sum(each["questions"] for each in bins)
        sizes = [10 + 200 * each["questions"] / every for each in bins]
        reliable.scatter(confidence, holds, sizes, color=line[0].get_color())
        curve = np.array(one["risk_by_coverage"])
        risky.plot(curve[:, 0], curve[:, 1], color=line[0].get_color(), label=one["scale"])
        risky.plot(one["threshold"]["coverage"], 1 - one["threshold"]["precision"], "o", color=line[0].get_color())
    reliable.set(xlabel="confidence", ylabel="passages hold the answer", xlim=(0, 1), ylim=(0, 1))
    risky.set(
        xlabel="coverage: questions answered", ylabel="risk: answered without the answer", xlim=(0, 1), ylim=(0, 1)
    )
    reliable.legend(frameon=False)
    figure.savefig(path, dpi=120)
