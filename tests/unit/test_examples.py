"""The example documents are what they say they are: complete, rebuilt from their sources, true to the settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader

from rag.config import Settings, load_settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CORPUS = EXAMPLES / "corpus"
DOCUMENTS = sorted(CORPUS.iterdir())
PDFS = [path.name for path in DOCUMENTS if path.suffix == ".pdf"]
EXPECTED: list[dict[str, Any]] = json.loads((EXAMPLES / "expected.json").read_text(encoding="utf-8"))
ANSWERABLE = [entry for entry in EXPECTED if entry.get("answerable", True)]
UNANSWERABLE = [entry for entry in EXPECTED if not entry.get("answerable", True)]
SETTING_ROW = re.compile(r"^\| `(RAG_\w+)` \| (.+?) \| (.+?) \|", re.MULTILINE)
HANGUL = re.compile(r"[가-힣]")


class _Text(HTMLParser):
    """Collects the text between tags, scripts and styles left out."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.pieces.append(data)


def collapse(text: str) -> str:
    return " ".join(text.split())


@cache
def page_texts(name: str) -> tuple[str, ...]:
    """The document's pages with white space collapsed; a single one for formats without pages."""
    path = CORPUS / name
    if path.suffix == ".pdf":
        return tuple(collapse(page.extract_text()) for page in PdfReader(path).pages)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        parser = _Text()
        parser.feed(text)
        text = "".join(parser.pieces)
    return (collapse(text),)


def sentences_of_source(name: str) -> list[str]:
    """The sentences of a PDF's source, marks of headings and lists left out."""
    lines = (EXAMPLES / "pdf-sources" / name).with_suffix(".md").read_text(encoding="utf-8").splitlines()
    bodies = [re.sub(r"^(?:#+|-) ", "", line.strip()) for line in lines if line.strip()]
    return [sentence for body in bodies for sentence in re.split(r"(?<=[.:]) (?=[A-Z])", body)]


def test_corpus_is_large_and_varied_enough() -> None:
    suffixes = [path.suffix for path in DOCUMENTS]
    assert 8 <= len(DOCUMENTS) <= 15
    assert set(suffixes) == {".md", ".html", ".pdf"}
    assert suffixes.count(".pdf") >= 2
    assert all(len(page_texts(name)) >= 3 for name in PDFS)


def test_two_documents_are_korean() -> None:
    def is_korean(name: str) -> bool:
        text = "".join(page_texts(name))
        return len(HANGUL.findall(text)) > len(re.findall(r"[A-Za-z]", text))

    assert [path.name for path in DOCUMENTS if is_korean(path.name)] == ["faq-ko.html", "operations-ko.md"]


def test_questions_and_expected_agree() -> None:
    lines = (EXAMPLES / "questions.txt").read_text(encoding="utf-8").splitlines()
    questions = [line for line in lines if line.strip() and not line.startswith("#")]
    assert questions == [entry["question"] for entry in EXPECTED]
    after_mark = lines[lines.index("# not in the documents") + 1 :]
    assert after_mark == [entry["question"] for entry in UNANSWERABLE]
    assert len(UNANSWERABLE) == 2
    assert len({entry["source"] for entry in ANSWERABLE}) >= 8
    assert sum(HANGUL.search(entry["question"]) is not None for entry in ANSWERABLE) >= 4


@pytest.mark.parametrize("entry", ANSWERABLE, ids=lambda entry: entry["question"])
def test_phrase_is_in_its_document(entry: dict[str, Any]) -> None:
    pages = page_texts(entry["source"])
    assert ("page" in entry) == entry["source"].endswith(".pdf")
    assert entry["phrase"] in pages[entry.get("page", 1) - 1]


@pytest.mark.parametrize("entry", UNANSWERABLE, ids=lambda entry: entry["question"])
def test_unanswerable_subject_is_in_no_document(entry: dict[str, Any]) -> None:
    subjects = {"football", "support contract"}
    named = [subject for subject in subjects if subject in entry["question"]]
    assert len(named) == 1
    assert not any(named[0] in text.lower() for path in DOCUMENTS for text in page_texts(path.name))


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pdfs")
    command = [sys.executable, str(EXAMPLES / "build_pdfs.py"), "--out", str(folder)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    return folder


def test_pdfs_are_what_the_script_builds(rebuilt: Path) -> None:
    assert sorted(path.name for path in rebuilt.iterdir()) == PDFS
    for name in PDFS:
        rebuilt_pages = tuple(collapse(page.extract_text()) for page in PdfReader(rebuilt / name).pages)
        assert rebuilt_pages == page_texts(name), f"{name} is stale: run examples/build_pdfs.py"


@pytest.mark.parametrize("name", PDFS)
def test_every_sentence_of_a_source_is_whole_on_one_page_and_in_order(name: str) -> None:
    pages = page_texts(name)
    page, position = 0, 0
    for sentence in sentences_of_source(name):
        while (found := pages[page].find(sentence, position)) < 0 and page + 1 < len(pages):
            page, position = page + 1, 0
        assert found >= 0, f"broken, glued or out of order: {sentence}"
        position = found + len(sentence)


def test_settings_reference_states_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)
    rows = SETTING_ROW.findall((CORPUS / "settings-reference.md").read_text(encoding="utf-8"))
    embedded, gpu = load_settings(profile="embedded"), load_settings(profile="gpu")
    stated = {name: (first, second) for name, first, second in rows}
    assert stated == {name: (shown(embedded, name), shown(gpu, name)) for name in stated}
    assert len(stated) > 30


def test_every_variable_that_a_document_names_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)
    settings = load_settings(profile="embedded")
    text = " ".join(page for path in DOCUMENTS for page in page_texts(path.name))
    names = set(re.findall(r"\bRAG_[A-Z0-9_]*[A-Z0-9]", text))
    assert len(names) > 30
    assert {name for name in names if not is_setting(settings, name)} == set()


def clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer has set must not change what is a default."""
    for name in [name for name in os.environ if name.startswith("RAG_")]:
        monkeypatch.delenv(name)


def path_of(variable: str) -> list[str]:
    return variable.removeprefix("RAG_").lower().split("__")


def is_setting(settings: Settings, variable: str) -> bool:
    value: Any = settings
    for part in path_of(variable):
        if part not in type(value).model_fields:
            return False
        value = getattr(value, part)
    return True


def shown(settings: Settings, variable: str) -> str:
    """A setting's value as the reference writes it: whole numbers without a decimal point, None as `none`."""
    value: Any = settings
    for part in path_of(variable):
        value = getattr(value, part)
    if value is None:
        return "none"
    return f"{value:.15g}" if isinstance(value, float) else str(value)
