"""Answers over labelled questions by the whole question flow, in this process: `rag eval answers`.

Three ways of answering, over the same index and retrieval:

    served      as the service answers: the LLM's sentence where it is supported, else the evidence's own, else none
    extracted   the same without the LLM: the evidence's own best sentence
    llm         the LLM alone, whatever it writes, over the first passages: no gate, no check, no citation

Questions are those of a set that says what their answers are: `answers.jsonl` in a BEIR folder ({_id, answers,
unanswerable}), or a SQuAD file. Sets without such answers lend their documents to `--pool`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from eval.answer_measures import GoldQuestion, Written, measure_answers
from eval.bench_tables import format_table
from eval.dataset import Dataset, pool_datasets, read_dataset, read_rows
from eval.hardware import describe_machine, git_commit
from eval.local_llm import open_llm
from eval.retrieval import PATIENT_S, Say, evaluation_settings, index_dataset, open_steps
from rag.clock import RequestClock
from rag.config import Settings
from rag.errors import InputError, StageError
from rag.language import understands
from rag.local_steps import Models
from rag.models import load_token_counter, locate_model
from rag.pipeline import Steps, answer
from rag.prompt import build_prompt
from rag.retrieve import retrieve
from rag.types import Question

WAYS = ("served", "extracted", "llm")
AT_ONCE = 8  # questions; the LLM writes several times as many tokens a second as for one
REPORT, TABLES = "report.json", "report.txt"
SEED = 0

Way = Callable[[GoldQuestion], Awaitable[Written]]


def read_gold(reference: str) -> list[GoldQuestion]:
    """The questions of a set with their gold phrases, in its order; empty for a set that does not name them.

    Raises InputError for answers that do not fit their questions.
    """
    path = Path(reference)
    try:
        if path.is_file():
            articles = json.loads(path.read_text(encoding="utf-8"))["data"]
            asked = [one for article in articles for paragraph in article["paragraphs"] for one in paragraph["qas"]]
            return [
                GoldQuestion(one["question"], tuple(dict.fromkeys(gold["text"] for gold in one["answers"])))
                for one in asked
            ]
        answers = path / "answers.jsonl"
        if not answers.is_file():
            return []
        texts = {row["_id"]: row["text"] for _, row in read_rows(path / "queries.jsonl")}
        return [
            GoldQuestion(texts[row["_id"]], () if row.get("unanswerable") else tuple(row["answers"]))
            for _, row in read_rows(answers)
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{reference}: its answers are not laid out as expected ({type(error).__name__}: {error})"
        ) from error


def sample_gold(questions: Sequence[GoldQuestion], count: int) -> list[GoldQuestion]:
    """At most `count` questions with an answer and half as many without one, the same every time."""
    chosen: list[GoldQuestion] = []
    for answerable, most in ((True, count), (False, count // 2)):
        kind = [one for one in questions if one.answerable == answerable]
        chosen += random.Random(SEED).sample(kind, min(most, len(kind)))
    return chosen


def evaluate_answers(
    references: Sequence[str], settings: Settings, out: Path, say: Say, *, pool: bool, questions: int, llm: bool
) -> dict[str, Any]:
    """Measures each set that names its answers, and writes the report to `out`; the report.

    `pool`: the documents of all sets are one corpus. `llm`: False leaves out the ways that need the LLM. Raises
    InputError where no set names answers, and what the stages raise.
    """
    sets = [read_dataset(reference) for reference in references]
    gold = {
        one.name: sample_gold(read_gold(reference), questions) for one, reference in zip(sets, references, strict=True)
    }
    gold = {name: asked for name, asked in gold.items() if asked}
    if not gold:
        raise InputError(
            "none of the sets says what its answers are; name a folder with answers.jsonl, or a file like SQuAD's"
        )
    corpora = dict.fromkeys(gold, pool_datasets(sets)) if pool else {one.name: one for one in sets if one.name in gold}
    own = evaluation_settings(settings)
    measured = asyncio.run(_measure(gold, corpora, own, say, llm=llm))
    report = {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "settings": settings.model_dump(mode="json"),
        "plan": {"pool": pool, "questions_at_most": questions, "at_once": AT_ONCE},
        "sets": measured,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    (out / TABLES).write_text(format_answers(report), encoding="utf-8")
    return report


async def _measure(
    gold: dict[str, list[GoldQuestion]], corpora: dict[str, Dataset], settings: Settings, say: Say, *, llm: bool
) -> list[dict[str, Any]]:
    models = Models(settings)
    collections = {name: await asyncio.to_thread(index_dataset, one, settings, say) for name, one in corpora.items()}
    found: list[dict[str, Any]] = []

    async def measure(steps: Steps, names: Sequence[str]) -> None:
        for name, asked in gold.items():
            written_by_llm = understands(settings.generator.languages, asked[0].text)
            for way in names:
                if way == "llm" and not written_by_llm:
                    continue  # the service never asks it in that language
                say(f"{name}: {len(asked)} questions, {way}")
                written = await ask_all(asked, ways(steps, settings, collections[name])[way])
                found.append(
                    {"set": name, "documents": len(corpora[name].documents), "way": way}
                    | measure_answers(asked, written)
                )

    count_tokens = load_token_counter(locate_model(settings.generator.model, settings.cache_dir))
    async with open_steps(settings, models) as search:
        await measure(Steps(search, _no_llm, count_tokens), ["extracted"])
        if llm:
            async with open_llm(settings) as generate:
                await measure(Steps(search, generate, count_tokens), ["served", "llm"])
    return sorted(found, key=lambda one: (list(gold).index(one["set"]), WAYS.index(one["way"])))


def _no_llm(*_: object, **__: object) -> Any:
    """See rag.types.Generate."""
    raise StageError("generate", "no LLM runs here")


async def ask_all(questions: Sequence[GoldQuestion], way: Way) -> list[Written]:
    """What a way writes for each question, AT_ONCE at a time. Raises what the way does."""
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(question: GoldQuestion) -> Written:
        async with places:
            return await way(question)

    return list(await asyncio.gather(*map(ask, questions)))


def ways(steps: Steps, settings: Settings, collection: str) -> dict[str, Way]:
    """The ways of answering by these steps over a collection. Raise StageError for a stage that was left out."""
    without = settings.model_copy(update={"generator": settings.generator.model_copy(update={"languages": ()})})

    async def flow(question: GoldQuestion, settings: Settings) -> Written:
        given = await answer(Question(question.text, collection, groups=None), steps, settings)
        if given.degraded:
            raise StageError(given.degraded[0], f"left out of the answer to {question.text!r}")
        quotes = tuple(citation.quote for citation in given.citations)
        return Written(given.answer if given.status == "answered" else None, quotes)

    async def alone(question: GoldQuestion) -> Written:
        clock = RequestClock(PATIENT_S)
        found = await retrieve(question.text, collection, steps.search, settings, clock, groups=None)
        prompt = build_prompt(
            question.text,
            found.hits[: settings.reranker.top_k],
            (),
            count_tokens=steps.count_tokens,
            settings=settings.prompt,
        )
        generator = settings.generator
        pieces = steps.generate(
            prompt.messages,
            model=generator.model_id,
            max_tokens=generator.max_tokens,
            temperature=generator.temperature,
        )
        return Written("".join([piece.text async for piece in pieces]))

    return {
        "served": lambda question: flow(question, settings),
        "extracted": lambda question: flow(question, without),
        "llm": alone,
    }


def format_answers(report: dict[str, Any]) -> str:
    """A line for each set and way."""
    machine = report["hardware"]
    header = (
        "set", "documents", "way", "with / without answer", "right (95 %)", "abstained", "wrong of answered", "refused",
        "citation precision", "recall", "quote chars",
    )  # fmt: skip
    rows = []
    for one in report["sets"]:
        right = one["right"]
        rows.append(
            (
                one["set"],
                one["documents"],
                one["way"],
                f"{one['answerable']} / {one['unanswerable']}",
                right and f"{right['mean']:.3f} ({right['low']:.3f}-{right['high']:.3f})",
                *(one[name] for name in ("abstained", "wrong_of_answered", "refused")),
                *(one[name] for name in ("citation_precision", "citation_recall", "quote_chars")),
            )
        )
    first = f"commit {report['commit']}; {machine['cpu_model']}, {machine['cpu_count_usable']} cores"
    return f"{first}\n\n{format_table(header, rows)}\n"
