"""Every notebook, executed top to bottom on a few documents with the real models."""

from __future__ import annotations

import base64
import importlib.util
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("nbclient") is None or importlib.util.find_spec("ipykernel") is None:
    pytest.skip("needs nbclient and ipykernel: the eval extra", allow_module_level=True)

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "eval" / "notebooks").glob("*.ipynb"))
DOCUMENTS = ("glossary.md", "faq.md", "operations-ko.md")
# Behind the cell that is tagged `parameters`, as papermill has it.
PARAMETERS: dict[str, dict[str, Any]] = {
    "1_retrieval": {"DEPTHS": (3, 8)},
    "2_tuning": {"CHUNK_TOKENS": (50, 200), "DEPTHS": (3, 8)},
    "3_errors": {"WORST": 5},
    "4_answers": {"HELD_OUT": 2},
}
PLOTS = {"1_retrieval": 3, "2_tuning": 3, "3_errors": 2, "4_answers": 2}
QUESTIONS = 12
PNG = b"\x89PNG\r\n\x1a\n"
MIN_PNG_BYTES = 5_000  # an empty pair of axes has less


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks") / "handbook"
    folder.mkdir()
    for name in DOCUMENTS:
        shutil.copy(ROOT / "examples" / "corpus" / name, folder)
    return folder


@pytest.fixture
def own_folders(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One store and one set for all notebooks, apart from the developer's."""
    monkeypatch.setenv("RAG_DATA_DIR", str(corpus.parent / "data"))
    monkeypatch.setenv("RAG_CACHE_DIR", str(corpus.parent / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("IPYTHONDIR", str(corpus.parent / "ipython"))


def test_every_notebook_is_executed_here() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(PARAMETERS) == sorted(PLOTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_without_output(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) >= 5
    assert [cell.outputs for cell in cells] == [[]] * len(cells)
    assert {cell.execution_count for cell in cells} == {None}


@pytest.mark.usefixtures("own_folders")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws(path: Path, corpus: Path, record_property: Any) -> None:
    notebook = nbformat.read(path, as_version=4)
    (place,) = [index for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    values = {"QUESTIONS": QUESTIONS, **PARAMETERS[path.stem]}
    lines = ["from pathlib import Path", f"CORPUS = Path({str(corpus)!r})"]
    lines += [f"{name} = {value!r}" for name, value in values.items()]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    began = time.monotonic()
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(corpus.parent))
    record_property("seconds", round(time.monotonic() - began, 1))
    nbformat.write(notebook, corpus.parent / path.name)
    plots = [
        base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(plots) == PLOTS[path.stem]
    assert all(plot.startswith(PNG) and len(plot) > MIN_PNG_BYTES for plot in plots)
