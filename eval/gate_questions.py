"""Labelled questions for the evidence gate: those that a set's documents answer, and those that they do not.

    answerable    a query with its relevant documents
    look-alike    one that the set marks as having no answer, although a document of the set is about its subject:
                  `unanswerable` in a BEIR folder's answers.jsonl, `is_impossible` in a SQuAD 2.0 file
    off-corpus    a query that is answerable, asked while every document of its article is hidden

An article is the documents of one title, or a document without one. What is fitted on some questions is measured on
those of other articles only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from eval.dataset import Dataset, read_dataset, read_rows
from rag.errors import InputError

Kind = Literal["answerable", "look-alike", "off-corpus"]
KINDS: tuple[Kind, ...] = ("answerable", "look-alike", "off-corpus")


@dataclass(frozen=True, slots=True)
class LabelledQuestion:
    """`relevant`: ids of the documents that answer it, empty when none does. `hidden`: ids of those that it is asked
    without."""

    text: str
    kind: Kind
    article: str
    relevant: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()


def read_questions(reference: str) -> tuple[Dataset, list[LabelledQuestion]]:
    """A set, and its answerable and look-alike questions in the set's order. Raises InputError."""
    dataset = read_dataset(reference)
    articles = {document.document_id: document.title or document.document_id for document in dataset.documents}
    questions = [
        LabelledQuestion(text, "answerable", articles[relevant[0]], frozenset(relevant))
        for query, text in dataset.queries.items()
        if (relevant := [one for one, grade in dataset.qrels[query].items() if grade > 0 and one in articles])
    ]
    try:
        look_alikes = list(_look_alikes(Path(reference)))
        questions += [LabelledQuestion(text, "look-alike", articles[document]) for text, document in look_alikes]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{reference}: its questions without an answer are not laid out as expected "
            f"({type(error).__name__}: {error})"
        ) from error
    return dataset, questions


def sample_articles(
    dataset: Dataset, questions: Sequence[LabelledQuestion], articles: int, seed: int, trained: Set[str] = frozenset()
) -> tuple[Dataset, list[LabelledQuestion]]:
    """The set cut to the documents of so many of its articles, to all where it has no more, and their questions.

    Of `trained` articles, which the answerability model knows, there are documents, after those of all others, and no
    questions.
    """
    names = {document.document_id: document.title or document.document_id for document in dataset.documents}
    every = sorted(set(names.values()))
    if articles < len(every):
        chance = random.Random(seed)
        every = sorted(chance.sample(every, len(every)), key=lambda name: name in trained)[:articles]
    chosen = set(every)
    documents = tuple(document for document in dataset.documents if names[document.document_id] in chosen)
    asked = [question for question in questions if question.article in chosen - trained]
    return replace(dataset, documents=documents), asked


def hide_articles(questions: Sequence[LabelledQuestion], dataset: Dataset) -> list[LabelledQuestion]:
    """Each answerable question again, off-corpus: nothing of its article is there. Others are left out.

    A question whose relevant documents are of several articles hides all of them.
    """
    articles: dict[str, set[str]] = {}
    names = {document.document_id: document.title or document.document_id for document in dataset.documents}
    for document, name in names.items():
        articles.setdefault(name, set()).add(document)
    return [
        replace(
            question,
            kind="off-corpus",
            relevant=frozenset(),
            hidden=frozenset().union(*(articles[names[document]] for document in question.relevant)),
        )
        for question in questions
        if question.kind == "answerable"
    ]


def _look_alikes(path: Path) -> Iterator[tuple[str, str]]:
    """Text, and the document that it looks answered by; none for a set that marks no such questions."""
    if path.is_file():
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
            for number, paragraph in enumerate(article["paragraphs"]):
                for question in paragraph["qas"]:
                    if question.get("is_impossible"):
                        yield question["question"], f"{article['title']}#{number}"
    elif (path / "answers.jsonl").is_file():
        texts = {str(row["_id"]): row["text"] for _, row in read_rows(path / "queries.jsonl")}
        for _, row in read_rows(path / "answers.jsonl"):
            if row.get("unanswerable"):
                yield texts[str(row["_id"])], str(row["paragraph"])
