"""Questions with passages that answer them and passages that only seem to, for training an answerability adapter.

Rows come from sets in BEIR layout with answers.jsonl, whose articles may be held back, and from tables of pairs (JSON
lines: question, positive, negatives, answers). What one pass of the training reads of them are groups, a passage and
the questions asked of it; some questions are made unanswerable in one of WAYS, so that a table's style tells nothing.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from eval.dataset import read_documents, read_rows
from rag.sentences import split_sentences
from rag.types import Span

LOOK_ALIKES = 3  # of each question, the paragraphs of its article that share most of its words


@dataclass(frozen=True, slots=True)
class Row:
    """`passage` is None where the question has no answer; `negatives` do not answer it."""

    table: str
    article: str
    question: str
    passage: str | None
    answers: tuple[str, ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A passage, and the questions asked of it, each with its answer, None where the passage holds none."""

    passage: str
    asked: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` to take at most; `held_back`: so many articles; `spoiled`: of its answerable questions, those that each
    pass makes an unanswerable one of besides."""

    licence: str
    rows: int
    held_back: int = 0
    spoiled: float = 1.0


# Only those whose licence lets weights trained on them ship, and whose answers stand in their passages. clapnq_dev and
# omos_qa measure, and are not here.
TABLES: Mapping[str, Table] = {
    "nq_open_oracle": Table("MIT", 2600),
    "qed_dev": Table("CC BY-SA 3.0", 400),
    "covidqa": Table("Apache-2.0", 1300),
    "policyqa_devtest": Table("MIT", 900),
    "fairytaleqa": Table("Apache-2.0", 2500),
    "tatqa_devtest": Table("CC BY 4.0", 2000),
    "friendsqa_devtest": Table("Apache-2.0", 1200),
}
# Their articles are held back in part; CC BY-SA asks that the model card says so. Half of squad2-a's questions are
# unanswerable by themselves.
SQUAD_SETS: Mapping[str, Table] = {
    "squad2-a": Table("CC BY-SA 4.0", 10_000, held_back=3, spoiled=0.25),
    "xquad-en": Table("CC BY-SA 4.0", 10_000, held_back=8),
}
# The first three leave a paragraph as it is, so that its questions still share one group.
PARAGRAPH_WAYS = ("swap", "turn", "look-alike")
WAYS = (*PARAGRAPH_WAYS, "remove")
QUESTIONS = 14  # of a passage in one group: more make a sequence long

_WORD = re.compile(r"[A-Za-z0-9]+")
_NUMBER = re.compile(r"\b\d[\d,.]*\d\b|\b\d\b")
_YEAR = re.compile(r"(?:1\d|20)\d\d")
# A capital that does not open a sentence, and those that follow it.
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w'-]+(?: (?:of |the )?[A-Z][\w'-]+)*")
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to for by with from and or is are was were be been do does did what which who whom whose "
        "when where why how that this it its as has have had can could would should will may many much",
    )
)
_OPPOSITES = (
    "first last|before after|largest smallest|most least|more less|more fewer|higher lower|highest lowest|"
    "oldest youngest|older newer|increase decrease|increased decreased|north south|east west|northern southern|"
    "eastern western|always never|maximum minimum|early late|earliest latest|won lost|win lose|begin end|began ended|"
    "start stop|started stopped|open close|opened closed|public private|allowed forbidden|allow forbid|inside outside|"
    "above below|male female|men women|man woman|rich poor|good bad|best worst|positive negative|same different|"
    "arrive leave|arrived left|born died|created destroyed|built demolished|buy sell|bought sold|with without|"
    "strong weak|easy difficult|internal external|domestic foreign|national international|major minor|long short|"
    "longest shortest|large small|common rare|support oppose|supported opposed|accept reject|accepted rejected"
)
_OPPOSITE = {
    one: other for pair in _OPPOSITES.split("|") for one, other in (tuple(pair.split()), tuple(reversed(pair.split())))
}
_AUXILIARY = re.compile(r"\b(is|are|was|were|did|does|do|can|could|would|should|has|have|had)\b(?! not\b)")


def words(text: str) -> frozenset[str]:
    """Lower-case words that are not in every question."""
    return frozenset(word for word in _WORD.findall(text.lower()) if word not in _STOP)


@lru_cache(maxsize=50_000)
def sentences(text: str) -> tuple[Span, ...]:
    """rag.sentences, remembered: most passages are asked about many times."""
    return tuple(split_sentences(text))


def read_table(path: Path) -> list[Row]:
    """The rows of a table of pairs, each its own article."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    table = path.name.removesuffix(".jsonl.gz")
    return [
        Row(
            table, f"{table}#{number}", row["question"], row["positive"], tuple(row["answers"]), tuple(row["negatives"])
        )
        for number, row in enumerate(rows)
    ]


def read_squad_set(folder: Path) -> list[Row]:
    """The rows of a set whose answers.jsonl names each query's paragraph; the article is the paragraph's title.

    An answerable question's negatives are paragraphs of its article that share most words with it and hold no answer.
    """
    documents = {document.document_id: document for document in read_documents(folder)}
    queries = {str(row["_id"]): row["text"] for _, row in read_rows(folder / "queries.jsonl")}
    articles: dict[str, list[str]] = {}
    for document in documents.values():
        articles.setdefault(document.title, []).append(document.text)
    rows = []
    for _, row in read_rows(folder / "answers.jsonl"):
        question, document = queries[str(row["_id"])], documents[str(row["paragraph"])]
        answers = tuple(row["answers"])
        if row.get("unanswerable"):
            rows.append(Row(folder.name, document.title, question, None, (), (document.text,)))
        else:
            others = look_alikes(
                question, answers, [text for text in articles[document.title] if text != document.text]
            )
            rows.append(Row(folder.name, document.title, question, document.text, answers, others))
    return rows


def look_alikes(question: str, answers: Sequence[str], paragraphs: Sequence[str]) -> tuple[str, ...]:
    """The paragraphs that share most words with the question, best first, those that hold an answer left out."""
    asked = words(question)
    without = [text for text in paragraphs if not holds_answer(text, answers)]
    return tuple(sorted(without, key=lambda text: -len(asked & words(text)))[:LOOK_ALIKES])


def hold_back(articles: Collection[str], count: int, seed: int) -> frozenset[str]:
    """So many of the articles, by chance."""
    return frozenset(random.Random(seed).sample(sorted(articles), count))


def holds_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether any answer stands in the text, in whatever case."""
    return any(answer.lower() in text.lower() for answer in answers if answer)


def find_answer(question: str, passage: str, answers: Sequence[str]) -> Span | None:
    """Where an answer stands: of all places the one whose sentence shares most words with the question."""
    asked, lowered = words(question), passage.lower()
    places = [
        (found.start(), found.end())
        for answer in answers
        if answer
        for found in re.finditer(re.escape(answer.lower()), lowered)
    ]
    if not places or len(lowered) != len(passage):
        return None
    return max(places, key=lambda place: len(asked & words(passage[slice(*_sentence_of(passage, place))])))


def _sentence_of(text: str, place: Span) -> Span:
    return next((one for one in sentences(text) if one[0] <= place[0] < one[1]), place)


def cut_window(passage: str, centre: Span, max_chars: int, chance: random.Random) -> Span:
    """Whole sentences around the one of `centre`, grown to either side by chance while they fit into `max_chars`."""
    spans = sentences(passage)
    if len(passage) <= max_chars or not spans:
        return 0, len(passage)
    first = last = max((i for i, span in enumerate(spans) if span[0] <= centre[0]), default=0)
    while True:
        sides = [
            side
            for side in ((first - 1, last), (first, last + 1))
            if side[0] >= 0 and side[1] < len(spans) and spans[side[1]][1] - spans[side[0]][0] <= max_chars
        ]
        if not sides:
            break
        first, last = chance.choice(sides)
    start, end = spans[first][0], max(spans[last][1], centre[1])
    return start, min(end, max(start + max_chars, centre[1]))


def nearest_sentence(question: str, passage: str) -> Span:
    """The sentence that shares most words with the question; of several the first."""
    asked = words(question)
    return max(sentences(passage), key=lambda one: len(asked & words(passage[slice(*one)])), default=(0, 0))


def remove_answer(passage: str, answers: Sequence[str]) -> str | None:
    """The passage without the sentences that hold an answer; None where nothing is left, or an answer still is."""
    left = [passage[start:end] for start, end in sentences(passage) if not holds_answer(passage[start:end], answers)]
    text = " ".join(left)
    return text if left and not holds_answer(text, answers) else None


def swap_detail(question: str, passage: str, other: str, chance: random.Random) -> str | None:
    """The question with one name, year or number replaced by another of its kind, None where it has none.

    The other comes from the passage, so that it seems to fit, or else from the `other` text.
    """
    years = [found for found in _NUMBER.finditer(question) if _YEAR.fullmatch(found.group())]
    numbers = [found for found in _NUMBER.finditer(question) if not _YEAR.fullmatch(found.group())]
    kinds: list[tuple[list[re.Match[str]], Callable[[str], list[str]]]] = [
        (years, lambda text: [one for one in _NUMBER.findall(text) if _YEAR.fullmatch(one)]),
        (numbers, lambda text: [one for one in _NUMBER.findall(text) if not _YEAR.fullmatch(one)]),
        (list(_NAME.finditer(question)), _NAME.findall),
    ]
    options = [(found, read) for places, read in kinds for found in places]
    chance.shuffle(options)
    for found, read in options:
        for text in (passage, other):
            if fitting := sorted({one for one in read(text) if one.lower() not in question.lower()}):
                return question[: found.start()] + chance.choice(fitting) + question[found.end() :]
    return None


def turn_around(question: str, chance: random.Random) -> str | None:
    """The question with a word replaced by its opposite, or else, by chance, negated; None where neither is done."""
    places = [found for found in _WORD.finditer(question) if found.group().lower() in _OPPOSITE]
    if places:
        found = chance.choice(places)
        return question[: found.start()] + _OPPOSITE[found.group().lower()] + question[found.end() :]
    found_auxiliary = _AUXILIARY.search(question)
    if found_auxiliary and chance.random() < 0.1:
        return f"{question[: found_auxiliary.end()]} not{question[found_auxiliary.end() :]}"
    return None


def spoil(row: Row, passage: str, other: str, ways: Sequence[str], chance: random.Random) -> tuple[str, str] | None:
    """Question and passage of a row with an answer made unanswerable, in the first of `ways`, in an order by chance,
    that does: a detail swapped (for one of the passage or of the `other` text), the question turned around, a
    look-alike for the passage, or the answer's sentences removed from it. None where none does."""
    for way in chance.sample(list(ways), len(ways)):
        if way == "swap":
            question = swap_detail(row.question, passage, other, chance)
        elif way == "turn":
            question = turn_around(row.question, chance)
        elif way == "look-alike":
            if row.negatives:
                return row.question, chance.choice(row.negatives[:LOOK_ALIKES])
            continue
        else:
            if (left := remove_answer(passage, row.answers)) is not None:
                return row.question, left
            continue
        if question is not None:
            return question, passage
    return None


def make_groups(
    rows: Mapping[str, Sequence[Row]], *, others: int, windows: float, max_chars: int, chance: random.Random
) -> list[Group]:
    """What one pass of the training reads, in an order by chance.

    Every row of SQUAD_SETS: the questions of a paragraph together, of which a share of `windows` is cut to whole
    sentences of up to `max_chars`. And `others` rows of TABLES, in windows of that size, each also made unanswerable.
    """
    paragraphs: dict[str, list[tuple[str, Sequence[str]]]] = {}
    for name in SQUAD_SETS:
        for row in rows[name]:
            passage = row.passage or row.negatives[0]
            paragraphs.setdefault(passage, []).append((row.question, row.answers))
            if row.passage is not None and chance.random() < SQUAD_SETS[name].spoiled:
                other = chance.choice(rows[name]).question
                if made := spoil(row, passage, other, PARAGRAPH_WAYS, chance):
                    paragraphs.setdefault(made[1], []).append((made[0], ()))
    groups: list[Group] = []
    for passage, asked in paragraphs.items():
        chance.shuffle(asked)
        cut = chance.random() < windows
        for start in range(0, len(asked), QUESTIONS):
            some = asked[start : start + QUESTIONS]
            groups.append(cut_group(passage, some, max_chars, chance) if cut else _whole_group(passage, some))
    pool = [row for name in rows if name in TABLES for row in rows[name] if row.passage]
    for row in chance.sample(pool, min(others, len(pool))):
        assert row.passage is not None
        own = cut_group(row.passage, [(row.question, row.answers)], max_chars, chance)
        groups.append(own)
        if made := spoil(row, own.passage, chance.choice(pool).question, WAYS, chance):
            groups.append(cut_group(made[1], [(made[0], ())], max_chars, chance))
    groups = [group for group in groups if group.asked]
    chance.shuffle(groups)
    return groups


def _whole_group(passage: str, asked: Sequence[tuple[str, Sequence[str]]]) -> Group:
    return Group(passage, tuple((question, answers[0] if answers else None) for question, answers in asked))


def cut_group(passage: str, asked: Sequence[tuple[str, Sequence[str]]], max_chars: int, chance: random.Random) -> Group:
    """A window of the passage, around an answer or, without any, the sentence nearest to a question; its length is by
    chance. A question whose answer stands outside has none; where its words stand inside too, it is left out."""
    places = [find_answer(question, passage, answers) for question, answers in asked]
    question = chance.choice(asked)[0]
    centre = chance.choice([place for place in places if place] or [nearest_sentence(question, passage)])
    start, end = cut_window(passage, centre, chance.randint(max_chars // 4, max_chars), chance)
    window = passage[start:end]
    kept: list[tuple[str, str | None]] = []
    for (question, answers), place in zip(asked, places, strict=True):
        if place and start <= place[0] and place[1] <= end:
            kept.append((question, passage[slice(*place)]))
        elif not holds_answer(window, answers):
            kept.append((question, None))
    return Group(window, tuple(kept))
