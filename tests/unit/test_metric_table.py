"""The table of metrics against the code that feeds it, and against Prometheus' conventions."""

from __future__ import annotations

import ast
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments import metrics
from deployments.launch import choose_metrics_port
from deployments.metrics import TABLE, Metric
from rag.errors import SettingsError
from rag.serve_settings import ServeSettings

ROOT = Path(__file__).parents[2]
KINDS = {"count": "counter", "observe": "histogram", "set_gauge": "gauge"}


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_names_and_buckets_are_as_prometheus_has_them(metric: Metric) -> None:
    """Source: Prometheus' documentation, "Metric and label naming"."""
    assert re.fullmatch(r"rag(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help.endswith(".")
    assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert not re.search(r"_(ms|millis|bytes_per|ratio_percent)", metric.name)


def test_no_two_rows_have_one_name() -> None:
    assert len({metric.name for metric in TABLE}) == len(TABLE)


def recordings() -> Iterator[tuple[str, str, str, set[str]]]:
    """Every call that records: where, by which function, the metric, its labels."""
    for path in sorted((ROOT / "deployments").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                name = node.args[0]
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno}"
                yield f"{path.name}:{node.lineno}", node.func.id, str(name.value), {str(k.arg) for k in node.keywords}


def test_each_recording_fits_its_row_and_each_row_is_recorded() -> None:
    rows = {metric.name: metric for metric in TABLE}
    recorded = set()
    for where, function, name, labels in recordings():
        assert (KINDS[function], labels) == (rows[name].kind, set(rows[name].labels)), where
        recorded.add(name)
    assert recorded == rows.keys()


def test_a_value_that_cannot_be_recorded_costs_its_request_nothing(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        metrics.count("rag_abstained_total", reason=None)  # type: ignore[arg-type]
        metrics.count("rag_abstained_total", -1, reason="no_evidence")
        metrics.set_gauge("rag_stage_up", 1)
    finally:
        logger.removeHandler(caplog.handler)
    # A set: where the logger propagates, each record is seen twice.
    assert {record.getMessage().partition(" was")[0] for record in caplog.records} == {
        "the metric rag_abstained_total",
        "the metric rag_stage_up",
    }
    assert len({record.getMessage() for record in caplog.records}) == 3


def test_the_metrics_have_a_port_of_their_own_that_follows_the_service_s() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert choose_metrics_port(ServeSettings(port=port - 1000)) == port
    assert choose_metrics_port(ServeSettings(port=8000, metrics_port=port)) == port
    assert choose_metrics_port(ServeSettings(port=65000)) == 0
    with socket.create_server(("", port)):
        assert choose_metrics_port(ServeSettings(port=port - 1000)) == 0
        with pytest.raises(SettingsError, match=rf"port {port} is taken; choose another with RAG_SERVE__METRICS_PORT"):
            choose_metrics_port(ServeSettings(port=8000, metrics_port=port))
