"""Proof of citations: `python -m eval.citations ANSWERS...` reads answers and the documents that they cite.

An answers file holds what `rag ask --json` prints, any number of times, or one object a line. For each citation the
cited file is read and parsed anew, without the store, and its text at `char_start:char_end` must be the quote, letter
by letter.
Exit status 0 when each citation holds, 1 when one does not, 2 when a file cannot be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ingest.load import load_document
from ingest.parse import parse_document
from rag.config import load_settings
from rag.errors import DocumentError


def read_answers(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one after the other with white space between. Raises ValueError for anything else."""
    text = path.read_text(encoding="utf-8")
    decoder = json.JSONDecoder()
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        answer, at = decoder.raw_decode(text, at)
        if not isinstance(answer, dict) or "citations" not in answer:
            raise ValueError(f"{path}: an object without citations; give what `rag ask --json` prints")
        yield answer


@cache
def document_text(source: str) -> str:
    """The document's text as ingest reads it. Raises DocumentError."""
    limits = load_settings().ingest
    path = Path(source)
    document = load_document(path, max_file_bytes=limits.max_file_bytes)
    return parse_document(document, limits, path).text


def faults(answer: dict[str, Any]) -> list[str]:
    """What is wrong with the answer's citations, a sentence each; empty for a good one."""
    found = []
    for number, citation in enumerate(answer["citations"], start=1):
        start, end = citation["char_start"], citation["char_end"]
        try:
            stands_there = document_text(citation["source"])[start:end]
        except DocumentError as error:
            found.append(f"citation {number}: {citation['source']}: {error}")
            continue
        if stands_there != citation["quote"]:
            found.append(
                f"citation {number}: {citation['source']} has {stands_there!r} at {start}:{end}, not the quote"
            )
        if not 0 <= citation["answer_start"] < citation["answer_end"] <= len(answer["answer"]):
            found.append(f"citation {number}: its span is outside the answer")
    if answer["status"] == "answered" and not answer["citations"] and not answer["unsupported"]:
        found.append("an answer without citation and without a sentence marked unsupported")
    return found


def main(paths: list[str]) -> int:
    """Checks the files and prints a line for each fault and a total."""
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    answers = citations = wrong = 0
    for path in paths:
        try:
            for answer in read_answers(Path(path)):
                answers += 1
                citations += len(answer["citations"])
                for fault in faults(answer):
                    wrong += 1
                    print(f"{path}: answer {answers} ({answer['id']}): {fault}")
        except (OSError, ValueError) as error:
            print(f"citations: {path}: {error}", file=sys.stderr)
            return 2
    print(f"{answers} answers, {citations} citations, {wrong} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
