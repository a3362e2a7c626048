"""Main text of web pages, ours beside other libraries': `python -m eval.parsers DATA_DIR`.

DATA_DIR holds html/ID.html.gz and ground-truth.json, {ID: {"articleBody"}}: what a person marked as the text. The
figure is token F1, words counted as often as they occur, its mean over all pages; a page that a library does not read
counts 0. Libraries that are not installed are named and left out. The last line is the same as JSON.
"""

from __future__ import annotations

import gzip
import importlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingest.isolate import read_isolated
from ingest.parse import decode_html
from rag.errors import DocumentError
from rag.step_settings import IngestSettings

_TOKEN = re.compile(r"\w+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # written without spaces: a character is a token

Extract = Callable[[Any, str], str]  # the library and a page -> its main text


def _read_by_rag(_: Any, page: str) -> str:
    return "\n".join(line["text"] for line in read_isolated("html", {"text": page}, IngestSettings())[1:])


def _read_by_readability(library: Any, page: str) -> str:
    from lxml import html

    return " ".join(str(text) for text in html.fromstring(library.Document(page).summary()).itertext())


def _read_by_justext(library: Any, page: str) -> str:
    paragraphs = library.justext(page, library.get_stoplist("English"))
    return "\n".join(paragraph.text for paragraph in paragraphs if not paragraph.is_boilerplate)


# Name -> the module that has to be installed, and how its main text is had.
LIBRARIES: dict[str, tuple[str, Extract]] = {
    "rag": ("ingest.isolate", _read_by_rag),
    "trafilatura": ("trafilatura", lambda library, page: library.extract(page, include_comments=False) or ""),
    "resiliparse": ("resiliparse.extract.html2text", lambda lib, page: lib.extract_plain_text(page, main_content=True)),
    "readability-lxml": ("readability", _read_by_readability),
    "boilerpy3": ("boilerpy3.extractors", lambda library, page: library.ArticleExtractor().get_content(page)),
    "justext": ("justext", _read_by_justext),
}


def token_f1(found: str, expected: str) -> float:
    """F1 of two bags of tokens: 0 to 1, 1 where both are empty."""
    ours, theirs = (Counter(_TOKEN.findall(_CJK.sub(r" \g<0> ", text))) for text in (found, expected))
    if not ours and not theirs:
        return 1.0
    shared = sum((ours & theirs).values())
    return 2 * shared / (sum(ours.values()) + sum(theirs.values()))


def measure_library(name: str, pages: dict[str, tuple[str, str]]) -> dict[str, float] | None:
    """Mean F1, pages without any text and seconds of a library; None where it is not installed."""
    module, extract = LIBRARIES[name]
    try:
        library = importlib.import_module(module)
    except ImportError:
        return None
    scores, empty = [], 0
    started = time.monotonic()
    for page, expected in pages.values():
        try:
            text = extract(library, page)
        except (DocumentError, ValueError, AttributeError, LookupError) as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            text = ""
        empty += not text.strip()
        scores.append(token_f1(text, expected))
    return {"f1": sum(scores) / len(scores), "empty": empty, "seconds": time.monotonic() - started}


def read_pages(folder: Path) -> dict[str, tuple[str, str]]:
    """Each page's id -> its HTML and the text that a person marked."""
    truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    return {
        name: (decode_html(gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes())), marked["articleBody"])
        for name, marked in truth.items()
    }


def main(arguments: list[str]) -> int:
    """Prints the table for the folder named."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        pages = read_pages(Path(arguments[0]))
    except FileNotFoundError as error:
        print(f"{error.filename} is not there; name the folder that holds ground-truth.json and html/", file=sys.stderr)
        return 2
    print(f"{len(pages)} pages\n{'library':<20}{'token F1':>10}{'empty':>8}{'seconds':>10}")
    report = {}
    for name in LIBRARIES:
        measured = measure_library(name, pages)
        if measured is None:
            print(f"{name:<20}{'not installed, left out':>28}")
            continue
        report[name] = measured
        print(f"{name:<20}{measured['f1']:>10.4f}{measured['empty']:>8.0f}{measured['seconds']:>10.1f}")
    print(json.dumps({"pages": len(pages), "libraries": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
