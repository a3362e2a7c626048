"""Labelled data sets: documents, queries, and which documents answer a query (qrels).

A set is a folder in BEIR layout (corpus.jsonl, queries.jsonl, qrels/*.tsv with a header), a file like SQuAD's, whose
paragraphs are the documents, or `BeIR/NAME` on the Hugging Face hub. Of the queries only those with a relevant document
are kept: one without says nothing about a ranking.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rag.errors import InputError

Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade, relevant from 1 on

_SAMPLE_SEED = 0
_HUB_NAME = re.compile(r"BeIR/[\w.-]+")
_SUFFIX = re.compile(r"\.(?:json|jsonl|jsonl\.gz)$")
_LAYOUTS = "name a folder with corpus.jsonl, queries.jsonl and qrels/, a SQuAD .json file, or BeIR/NAME on the hub"


class SetDocument(NamedTuple):
    """A document as its set has it."""

    document_id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """`queries` maps ids to texts, and has the keys of `qrels` in their order."""

    name: str
    documents: tuple[SetDocument, ...]
    queries: dict[str, str]
    qrels: Qrels


def set_name(path: Path) -> str:
    """What a folder or file of a set is called, without its format's suffix."""
    return _SUFFIX.sub("", path.resolve().name)


def read_dataset(reference: str) -> Dataset:
    """The data set of a folder or file, or of the hub where there is neither. Raises InputError."""
    path = Path(reference)
    if path.is_dir():
        qrels = _qrels_file(path / "qrels")
        return _join(set_name(path), read_documents(path), path / "queries.jsonl", qrels)
    if path.is_file() and path.suffix == ".json":
        return _read_squad_dataset(path)
    if not path.exists() and _HUB_NAME.fullmatch(reference):
        corpus, queries, judged = _fetch(reference)
        return _join(reference.removeprefix("BeIR/"), read_documents(corpus), queries, judged)
    raise InputError(f"{reference} is no data set here; {_LAYOUTS}")


def read_documents(path: Path) -> Iterator[SetDocument]:
    """The documents of a folder in BEIR layout, a JSON-lines file (or .gz), or one like SQuAD's.

    Where a row has no `text` its `positive` is taken, a passage of a table of pairs; a row without either is left out,
    and one without an id is called by its line. Raises InputError for what is none of these.
    """
    file = path / "corpus.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file} is not there; name a folder with corpus.jsonl, a .jsonl, .jsonl.gz or SQuAD file")
    try:
        yield from _squad_documents(file) if file.suffix == ".json" else _line_documents(file)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _misfit(file, error) from error


def first_of_each_text(documents: Iterable[SetDocument], seen: dict[str, str], prefix: str) -> Iterator[SetDocument]:
    """The documents whose text is not in `seen`, which then maps it to the document's id behind `prefix`."""
    for document in documents:
        if document.text not in seen:
            seen[document.text] = prefix + document.document_id
            yield document


def pool_datasets(sets: Sequence[Dataset], name: str = "pool") -> Dataset:
    """All sets over one corpus; ids of documents and queries are prefixed by their set, as in `cranfield/12`.

    A text that several sets hold is there once, and relevant wherever one of its copies was: which copy is found
    must not count. Raises InputError for two sets of one name.
    """
    check_names([one.name for one in sets])
    documents: list[SetDocument] = []
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    seen: dict[str, str] = {}
    for one in sets:
        prefix = f"{one.name}/"
        for document in first_of_each_text(one.documents, seen, prefix):
            documents.append(document._replace(document_id=prefix + document.document_id))
        kept = {document.document_id: seen[document.text] for document in one.documents}
        for query, grades in one.qrels.items():
            queries[prefix + query] = one.queries[query]
            pooled: dict[str, int] = {}
            for document_id, grade in grades.items():
                target = kept.get(document_id, prefix + document_id)
                pooled[target] = max(grade, pooled.get(target, grade))
            qrels[prefix + query] = pooled
    return Dataset(name, tuple(documents), queries, qrels)


def check_names(names: Iterable[str]) -> None:
    """Raises InputError when two sets would share their ids."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"two of the sets are called {name}; rename one")
        seen.add(name)


def sample_queries(dataset: Dataset, count: int) -> Dataset:
    """The set with `count` of its queries, the same ones every time; all of them where it has no more."""
    if count >= len(dataset.queries):
        return dataset
    chosen = set(random.Random(_SAMPLE_SEED).sample(sorted(dataset.queries), count))
    return replace(
        dataset,
        queries={query: text for query, text in dataset.queries.items() if query in chosen},
        qrels={query: grades for query, grades in dataset.qrels.items() if query in chosen},
    )


def _join(name: str, documents: Iterable[SetDocument], queries_file: Path, qrels_file: Path) -> Dataset:
    texts = _read_queries(queries_file)
    qrels = _read_qrels(qrels_file)
    unknown = next((query for query in qrels if query not in texts), None)
    if unknown is not None:
        raise InputError(f"{qrels_file} judges query {unknown!r}, which {queries_file} does not have; mend one of them")
    return _dataset(name, documents, {query: texts[query] for query in qrels}, qrels)


def _dataset(name: str, documents: Iterable[SetDocument], queries: dict[str, str], qrels: Qrels) -> Dataset:
    listed = tuple(documents)
    ids = [document.document_id for document in listed]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise InputError(f"data set {name}: two documents are called {twice!r}; rename one")
    judged = {query: grades for query, grades in qrels.items() if max(grades.values()) > 0}
    if not listed or not judged:
        raise InputError(f"data set {name} has no {'queries with a relevant document' if listed else 'documents'}")
    return Dataset(name, listed, {query: queries[query] for query in judged}, judged)


def _qrels_file(folder: Path) -> Path:
    """test.tsv, or the only file there is."""
    files = sorted(folder.glob("*.tsv"))
    if folder / "test.tsv" in files:
        return folder / "test.tsv"
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{folder} should hold test.tsv or a single .tsv file; there is: {found}")
    return files[0]


def _read_queries(file: Path) -> dict[str, str]:
    if not file.is_file():
        raise InputError(f"{file} is not there; {_LAYOUTS}")
    try:
        return {str(row["_id"]): str(row["text"]) for _, row in read_rows(file)}
    except (ValueError, LookupError, TypeError) as error:
        raise _misfit(file, error) from error


def _read_qrels(file: Path) -> Qrels:
    qrels: Qrels = {}
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows, None)  # the header
        for row in filter(None, rows):
            try:
                query, document, grade = row
                qrels.setdefault(query, {})[document] = int(grade)
            except ValueError as error:
                raise InputError(f"{file}:{rows.line_num} should be query-id, corpus-id and score, by tabs") from error
    return qrels


def _read_squad_dataset(file: Path) -> Dataset:
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    try:
        for document, paragraph in _squad_paragraphs(file):
            for question in paragraph["qas"]:
                if not question.get("is_impossible"):
                    queries[question["id"]] = question["question"]
                    qrels[question["id"]] = {document.document_id: 1}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _misfit(file, error) from error
    return _dataset(set_name(file), read_documents(file), queries, qrels)


def _line_documents(file: Path) -> Iterator[SetDocument]:
    for number, row in read_rows(file):
        text = row.get("text") or row.get("positive")
        if text and text.strip():
            yield SetDocument(str(row.get("_id", row.get("id", number))), row.get("title") or "", text)


def _squad_documents(file: Path) -> Iterator[SetDocument]:
    return (document for document, _ in _squad_paragraphs(file))


def _squad_paragraphs(file: Path) -> Iterator[tuple[SetDocument, dict[str, Any]]]:
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for number, paragraph in enumerate(article["paragraphs"]):
            yield SetDocument(f"{article['title']}#{number}", article["title"], paragraph["context"]), paragraph


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number from 1 and object of each line."""
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            yield number, json.loads(line)


def _fetch(name: str) -> tuple[Path, Path, Path]:
    """Corpus, queries and judgements of a BEIR set, from the hub or its local cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    files = ((name, "corpus.jsonl.gz"), (name, "queries.jsonl.gz"), (f"{name}-qrels", "test.tsv"))
    try:
        corpus, queries, qrels = (Path(hf_hub_download(one, file, repo_type="dataset")) for one, file in files)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"the data set {name} cannot be fetched from the hub ({error}); check the name and the network, "
            "or name a folder in BEIR layout"
        ) from error
    return corpus, queries, qrels


def _misfit(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} is not laid out as expected ({type(error).__name__}: {error})")
