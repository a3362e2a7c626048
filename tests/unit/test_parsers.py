"""`python -m eval.parsers` for a folder that is not the benchmark's."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.parsers import main


def test_a_folder_without_the_marked_texts_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path / 'ground-truth.json'} is not there; name the folder that holds ground-truth.json and html/\n"
    )
