"""`rag split` as far as it goes without a Ray; tests/serve/test_several_llms.py has the rest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from rag.cli import main
from tests.http_fake import INFO, Reply, serving

MODELS = {**INFO["models"], "generators": ["small", "large"]}
TWO = Reply(json.dumps({**INFO, "models": MODELS}).encode())


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.upper().startswith("RAG_") or name == "RAY_ADDRESS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAG_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("weights", "status", "told"),
    [
        pytest.param([], 2, "Missing argument 'LLM=WEIGHT...'", id="none"),
        pytest.param(["small"], 2, "'small' is not of the form k=v", id="no_weight"),
        pytest.param(["small=much"], 2, "could not convert string to float: 'much'", id="no_number"),
        pytest.param(["small=0"], 2, "split.small is 0.0: a weight must be above 0", id="zero"),
        pytest.param(["small=nan"], 2, "split.small is nan", id="nan"),
        pytest.param(["small=1", "huge=1"], 2, "split names 'huge'; the LLMs are: small, large", id="unknown"),
        pytest.param(["small=1"], 3, "no service has been started in", id="service_of_another_data_dir"),
    ],
)
def test_a_split_that_cannot_be_changed_is_told_why(weights: list[str], status: int, told: str) -> None:
    with serving(info=TWO) as service:
        done = CliRunner().invoke(main, ["split", *weights, "--url", service.url])
    assert done.exit_code == status, done.output
    assert told in done.stderr
    assert done.stdout == ""
