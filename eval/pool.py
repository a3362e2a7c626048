"""Documents of several data sets pooled into one JSON-lines file, cut where the product's splitter has made so many
chunks."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eval.bench_service import BenchError
from eval.dataset import check_names, first_of_each_text, read_documents, set_name
from ingest.chunk import chunk_document, embedding_text
from ingest.load import Failure, load_documents
from ingest.parse import parse_document
from ingest.prepare import choose_counter
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


def pool_sets(paths: Sequence[Path], limit: int | None) -> list[dict[str, Any]]:
    """Rows as `rag ingest` takes them, at most `limit` of each set and each text once.

    Their order is mixed, in the same way every time: each beginning of it is a sample of the whole, so that sizes
    differ in number only. Raises InputError for what is no set, and for two of one name.
    """
    check_names(map(set_name, paths))
    rows: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for path in paths:
        name = set_name(path)
        documents = first_of_each_text(read_documents(path), seen, f"{name}/")
        for document in islice(documents, limit):
            row = {"id": f"{name}/{document.document_id}", "title": document.title, "text": document.text}
            rows.append({**row, "metadata": {"tags": [name]}})
    random.Random(_SHUFFLE_SEED).shuffle(rows)
    return rows


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
        count = choose_counter(parsed.text, settings.embedder.languages, count_tokens)
        texts += [embedding_text(chunk) for chunk in chunk_document(parsed, settings.chunk, count)]
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
