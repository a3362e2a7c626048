"""Ordinary documents in which rag.instructions sees orders to whoever answers: `python -m eval.false_alarms PATH...`.

PATH is a folder with Markdown or text files, at any depth, or a labelled data set as `rag eval retrieval` takes it,
whose documents are read. What is seen is printed, since a person has to say whether it is one. The last line is JSON:
paragraphs read and seen for each PATH.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.dataset import read_dataset
from rag.errors import RagError
from rag.instructions import gives_orders, paragraphs

_TEXTS = {".md", ".txt"}
_SHOWN_CHARS = 300


def read_texts(reference: str) -> Iterator[str]:
    """The texts of a folder's files, or of a data set's documents. Raises InputError for what is neither."""
    path = Path(reference)
    files = sorted(file for file in path.rglob("*") if file.suffix in _TEXTS) if path.is_dir() else []
    if files and not (path / "corpus.jsonl").is_file():
        yield from (file.read_text(encoding="utf-8") for file in files)
    else:
        yield from (document.text for document in read_dataset(reference).documents)


def main(arguments: Sequence[str]) -> int:
    """Prints what is seen in each of the paths."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    counted = {}
    try:
        for reference in arguments:
            read = seen = 0
            for text in read_texts(reference):
                for start, end in paragraphs(text):
                    read += 1
                    if gives_orders(text[start:end]):
                        seen += 1
                        print(f"{reference}: {' '.join(text[start:end].split())[:_SHOWN_CHARS]}")
            counted[reference] = {"paragraphs": read, "seen": seen}
    except (RagError, OSError, UnicodeDecodeError) as error:
        print(f"eval.false_alarms: {error}", file=sys.stderr)
        return 2
    print(json.dumps(counted, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
