"""Documents of several data sets pooled into one JSON-lines file, cut where the product's splitter has made so many
chunks."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eval.bench_service import BenchError
from ingest.chunk import chunk_document, embedding_text
from ingest.load import Failure, load_documents
from ingest.parse import parse_document
from rag.config import Settings
from rag.errors import DocumentError
from rag.types import CountTokens

_SHUFFLE_SEED = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """The pool's first `documents` rows; `texts` is what is embedded for their chunks, `split_s` how long the product's
    reading and splitting alone took for them."""

    documents: int
    texts: list[str]
    split_s: float


def read_set(path: Path) -> Iterator[tuple[str, str, str]]:
    """(id, title, text) of each document of a folder in BEIR layout, a JSON-lines file (or .gz), or one like SQuAD's.

    Where a row has no `text` its `positive` is taken, a passage of a table of pairs; a row without either is left out,
    and one without an id is called by its line. Raises BenchError for what is none of these.
    """
    file = path / "corpus.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise BenchError(f"{file} is not there; name a folder with corpus.jsonl, a .jsonl, .jsonl.gz or SQuAD file")
    try:
        yield from _read_squad(file) if file.suffix == ".json" else _read_lines(file)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BenchError(f"{file} is not laid out as expected ({type(error).__name__}: {error})") from error


def _read_lines(file: Path) -> Iterator[tuple[str, str, str]]:
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            row = json.loads(line)
            text = row.get("text") or row.get("positive")
            if text and text.strip():
                yield str(row.get("_id", row.get("id", number))), row.get("title") or "", text


def _read_squad(file: Path) -> Iterator[tuple[str, str, str]]:
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for number, paragraph in enumerate(article["paragraphs"]):
            yield f"{article['title']}#{number}", article["title"], paragraph["context"]


def pool_sets(paths: Sequence[Path], limit: int | None) -> list[dict[str, Any]]:
    """Rows as `rag ingest` takes them, at most `limit` of each set and each text once.

    Their order is mixed, in the same way every time: each beginning of it is a sample of the whole, so that sizes
    differ in number only.
    """
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    names: set[str] = set()
    for path in paths:
        name = path.resolve().name.partition(".")[0]
        if name in names:
            raise BenchError(f"two of the sets are called {name}; rename one")
        names.add(name)
        for number, (document, title, text) in enumerate(_first_times(read_set(path), seen)):
            if number == limit:
                break
            rows.append({"id": f"{name}/{document}", "title": title, "text": text, "metadata": {"tags": [name]}})
    random.Random(_SHUFFLE_SEED).shuffle(rows)
    return rows


def _first_times(documents: Iterable[tuple[str, str, str]], seen: set[str]) -> Iterator[tuple[str, str, str]]:
    for document in documents:
        if document[2] not in seen:
            seen.add(document[2])
            yield document


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def cut_pool(path: Path, settings: Settings, count_tokens: CountTokens, wanted: Sequence[int]) -> list[Cut]:
    """The shortest beginnings of a file of rows that give at least so many chunks each, fewest first.

    Read and split as `rag ingest` does it. A file that does not reach a number is the last cut as a whole. Raises
    BenchError for a row that ingestion would refuse.
    """
    texts: list[str] = []
    cuts: list[Cut] = []
    left = sorted(set(wanted))
    documents = 0
    began = time.perf_counter()
    for document in load_documents(path, max_file_bytes=settings.ingest.max_file_bytes):
        if isinstance(document, Failure):
            raise BenchError(f"{document.source}: {document.reason}")
        try:
            parsed = parse_document(document, settings.ingest, path)
        except DocumentError as error:
            raise BenchError(f"{document.source}: {error}") from error
        texts += [embedding_text(chunk) for chunk in chunk_document(parsed, settings.chunk, count_tokens)]
        documents += 1
        if len(texts) >= left[0]:
            cuts.append(Cut(documents, list(texts), time.perf_counter() - began))
            left = [number for number in left if number > len(texts)]
        if not left:
            return cuts
    if documents > (cuts[-1].documents if cuts else 0):
        cuts.append(Cut(documents, texts, time.perf_counter() - began))
    return cuts


def write_cut(cut: Cut, pool: Path, folder: Path) -> Path:
    """The cut's rows as a file of their own, called by its chunks, and its chunks' texts as {id, text} beside it."""
    path = folder / f"documents-{len(cut.texts)}.jsonl"
    with pool.open(encoding="utf-8") as source, path.open("w", encoding="utf-8") as target:
        target.writelines(islice(source, cut.documents))
    chunks = folder / f"chunks-{len(cut.texts)}.jsonl"
    write_rows(chunks, ({"id": str(number), "text": text} for number, text in enumerate(cut.texts)))
    return path
