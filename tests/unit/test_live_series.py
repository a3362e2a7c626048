"""What a Prometheus lacks of the alerts and dashboards, told from one that answers as Prometheus does."""

from __future__ import annotations

import httpx
import pytest

from eval.live_series import FOLDER, Watched, fault, rule_errors, watched
from tests.observability_files import expressions

KNOWN = {"count(a_total)", "count(b:rate5m)", "rate(a_total[5m])"}
RULES = [{"name": "b:rate5m", "lastError": ""}, {"name": "Broken", "lastError": "found duplicate series"}]


def prometheus(request: httpx.Request) -> httpx.Response:
    if request.url.path == "/api/v1/rules":
        return httpx.Response(200, json={"data": {"groups": [{"rules": RULES}]}})
    found = [{"value": [0, "1"]}] if request.url.params["query"] in KNOWN else []
    return httpx.Response(200, json={"data": {"result": found}})


@pytest.fixture
def client() -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(prometheus), base_url="http://prometheus")


@pytest.mark.parametrize(
    ("one", "found"),
    [
        (Watched("panel", "p", "rate(a_total[5m])"), ""),
        (Watched("panel", "p", "rate(a_total[1m])"), "no value"),
        (Watched("record", "r", "a_total / nothing_total"), "no series of nothing_total"),
        (Watched("alert", "A", "b:rate5m > 3"), ""),  # quiet, and it has what it looks at
        (Watched("alert", "A", "c:rate5m / z > 3"), "no series of c:rate5m, z"),
    ],
)
def test_what_has_no_series_is_named(client: httpx.Client, one: Watched, found: str) -> None:
    assert fault(client, one) == found


def test_the_rules_last_errors_are_read(client: httpx.Client) -> None:
    assert rule_errors(client) == {"b:rate5m": "", "Broken": "found duplicate series"}


def test_every_rule_and_panel_is_watched() -> None:
    assert sorted(one.expression for one in watched(FOLDER)) == sorted(expressions().values())
