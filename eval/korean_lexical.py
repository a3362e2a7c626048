"""Word search of Korean text by the project's analysis, beside two plain ones over the same chunks.

    python -m eval.korean_lexical [DATASET...] [--pages FOLDER]

Documents are read and split by ingestion's own code with the settings at hand, so that RAG_CHUNK__MAX_TOKENS=100, or
RAG_EMBEDDER__LANGUAGES=null (everything measured in the embedder's tokens), gives the same table for other chunks.
Nothing is embedded. BM25 is computed here, with Milvus' k1 and b; a document is ranked by its best chunk among the
settings' `retrieval.top_k`, as in `rag eval retrieval`. The analyses:

    rag.analyze   morphemes by Kiwi, stemmed words: what the service searches
    words         runs of letters and digits in lower case, as Milvus' standard analyzer has them
    bigrams       the same, but of a run of Hangul each pair of neighbours

`--pages` asks for known items of a folder's documents: questions by eval.questions' rules from its chunks, all of them,
each text once and a heading only where no other chunk has it, answered by the document that they are drawn from. They
use its own words, and others may answer them too: they tell analyses apart, and nothing else.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from eval.bench_tables import format_table
from eval.dataset import Dataset, SetDocument, read_dataset, set_name
from eval.metrics import MAIN_MEASURE, Estimate, compare_values, estimate, score_run
from eval.questions import draft_questions
from eval.retrieval import write_documents
from ingest.load import Failure, find_files, load_documents
from ingest.prepare import Prepared, prepare_document
from ingest.publish import searched_text
from rag.analyze import terms
from rag.config import Settings, load_settings
from rag.errors import InputError, RagError
from rag.models import load_token_counter, locate_model
from rag.types import CountTokens

K1, B = 1.2, 0.75
QUERIES_AT_ONCE = 256
RUN = re.compile("[가-힣]+|[^\\W가-힣]+")

Analysis = Callable[[str], Sequence[str]]


def words(text: str) -> list[str]:
    """Runs of letters and digits, lower case."""
    return re.findall(r"\w+", text.lower())


def bigrams(text: str) -> list[str]:
    """As `words`, but runs end where Hangul does, and those of two or more Hangul syllables are given in pairs."""
    found: list[str] = []
    for run in RUN.findall(text.lower()):
        pairs = len(run) > 2 and "가" <= run[0] <= "힣"
        found += [run[start : start + 2] for start in range(len(run) - 1)] if pairs else [run]
    return found


ANALYSES: dict[str, Analysis] = {"rag.analyze": terms, "words": words, "bigrams": bigrams}


class Bm25:
    """Okapi BM25 with Lucene's idf, log(1 + (n - df + 0.5) / (df + 0.5)); a term counts as often as a query has it."""

    def __init__(self, texts: Sequence[str], analysis: Analysis) -> None:
        self._counter = CountVectorizer(analyzer=analysis, dtype=np.float64)
        counts = self._counter.fit_transform(texts)  # (texts, terms), sparse
        lengths = counts.sum(axis=1).A1
        norm = K1 * (1 - B + B * lengths / lengths.mean())
        holding = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log1p((len(texts) - holding + 0.5) / (holding + 0.5))
        damped = counts.data + np.repeat(norm, np.diff(counts.indptr))
        counts.data *= idf[counts.indices] * (K1 + 1) / damped
        self._weights = counts.T.tocsr()

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """float64 (queries, texts), 0 where a text has no term of the query."""
        found: np.ndarray = (self._counter.transform(queries) @ self._weights).toarray()
        return found


def rank_by_words(
    queries: Sequence[str], chunks: Sequence[tuple[str, str]], analysis: Analysis, top_k: int
) -> list[list[str]]:
    """For each query the documents of its `top_k` best chunks (document, searched text), best first, ties in order."""
    index = Bm25([text for _, text in chunks], analysis)
    found = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        for scores in index.scores(queries[start : start + QUERIES_AT_ONCE]):
            best = np.argsort(-scores, kind="stable")[:top_k]
            found.append(list(dict.fromkeys(chunks[place][0] for place in best if scores[place] > 0)))
    return found


def split_files(files: Iterable[Path], settings: Settings, count_tokens: CountTokens) -> Iterator[Prepared]:
    """The files' documents as ingestion reads and splits them. Raises InputError, DocumentError for what it refuses."""
    for file in files:
        for document in load_documents(file, max_file_bytes=settings.ingest.max_file_bytes):
            if isinstance(document, Failure):
                raise InputError(f"{document.source}: {document.reason}")
            yield prepare_document(document, file, settings, count_tokens)


def ask_pages(folder: Path, pages: Sequence[Prepared]) -> Dataset:
    """The known-item questions of a folder's documents. Raises InputError where its text gives none."""
    headings = Counter(chunk.heading for page in pages for chunk in page.chunks)
    asked: dict[str, str] = {}
    for page in pages:
        for chunk in page.chunks:
            drafts = draft_questions(chunk, terms, own_heading=bool(chunk.heading) and headings[chunk.heading] == 1)
            asked |= {draft.text: page.document.source for draft in drafts if draft.text not in asked}
    if not asked:
        raise InputError(f"{folder} gives no questions: its documents have few whole sentences")
    documents = tuple(SetDocument(page.document.source, page.title, "") for page in pages)
    return Dataset(set_name(folder), documents, {text: text for text in asked}, {q: {d: 1} for q, d in asked.items()})


def compare_analyses(dataset: Dataset, documents: Sequence[Prepared], top_k: int) -> list[dict[str, Any]]:
    """A row for each analysis: nDCG@10 with its interval, and the change against the first, the project's own."""
    chunks = [(one.document.source, searched_text(one.title, chunk)) for one in documents for chunk in one.chunks]
    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for name, analysis in ANALYSES.items():
        ranked = rank_by_words(list(dataset.queries.values()), chunks, analysis, top_k)
        values = score_run(dataset.qrels, dict(zip(dataset.queries, ranked, strict=True)))[MAIN_MEASURE]
        first = values if first is None else first
        rows.append(
            {
                "set": dataset.name,
                "queries": len(dataset.queries),
                "chunks": len(chunks),
                "median chars": statistics.median(len(chunk.text) for one in documents for chunk in one.chunks),
                "analysis": name,
                MAIN_MEASURE: estimate(values),
                "change": compare_values(first, values),
            }
        )
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """A line a set and analysis; the change is against the project's."""
    told = ("set", "queries", "chunks", "median chars", "analysis")
    table = [
        (
            *(row[key] for key in told),
            _interval(row[MAIN_MEASURE], ""),
            _interval(row["change"].change, "+"),
            f"{row['change'].p_value:.4f}",
        )
        for row in rows
    ]
    return format_table((*told, MAIN_MEASURE, "change", "p"), table)


def _interval(value: Estimate, sign: str) -> str:
    return f"{value.mean:{sign}.3f} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"


def main() -> int:
    """`python -m eval.korean_lexical`: 0, or 2 for what cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", help="as `rag eval retrieval` takes them")
    parser.add_argument("--pages", type=Path, action="append", default=[], help="a folder to ask for known items")
    chosen = parser.parse_args()
    try:
        print(format_rows(measure(chosen.datasets, chosen.pages, load_settings())))
    except RagError as error:
        print(f"korean_lexical: {error}", file=sys.stderr)
        return 2
    return 0


def measure(references: Sequence[str], folders: Sequence[Path], settings: Settings) -> list[dict[str, Any]]:
    """The rows of every labelled set, then of every folder's known items. Raises RagError."""
    count_tokens = load_token_counter(locate_model(settings.embedder.model, settings.cache_dir))
    rows: list[dict[str, Any]] = []
    for reference in references:
        dataset = read_dataset(reference)
        with tempfile.TemporaryDirectory() as scratch:
            documents = list(split_files([write_documents(dataset, Path(scratch))], settings, count_tokens))
        rows += compare_analyses(dataset, documents, settings.retrieval.top_k)
    for folder in folders:
        pages = list(split_files(find_files([folder]).files, settings, count_tokens))
        rows += compare_analyses(ask_pages(folder, pages), pages, settings.retrieval.top_k)
    return rows


if __name__ == "__main__":
    sys.exit(main())
