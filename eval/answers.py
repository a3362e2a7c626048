"""Answers over labelled questions by the whole question flow, in this process: `rag eval answers`.

Three ways of answering, over the same index and retrieval, and what grounding alone tells apart:

    served      as the service answers: the LLM's sentence where it is supported, else the evidence's own, else none
    extracted   the same without the LLM: the evidence's own best sentence
    llm         the LLM alone, whatever it writes, over the first passages: no gate, no check; the passages whose
                markers it writes are its citations
    grounding   right sentences beside made-up ones, see eval.claim_pairs

Questions are those of a set that says what their answers are: `answers.jsonl` in a BEIR folder ({_id, answers,
unanswerable}), or a SQuAD file. Sets without such answers lend their documents to `--pool`. A file like HaluEval's has
no documents and is measured by the last way only.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

from eval.answer_measures import GoldQuestion, Sentence, Written, measure_answers
from eval.bench_tables import format_table
from eval.claim_pairs import ClaimPair, holds_pairs, read_pairs, swap_phrase
from eval.dataset import Dataset, check_names, pool_datasets, read_dataset, read_documents, read_rows, set_name
from eval.gate_samples import trained_articles
from eval.grounding import judge_pair, measure_grounding
from eval.hardware import describe_machine, git_commit
from eval.local_llm import open_llm
from eval.retrieval import PATIENT_S, Say, evaluation_settings, index_dataset, open_steps
from rag.clock import RequestClock
from rag.config import Settings
from rag.errors import InputError, StageError
from rag.language import language_of, understands
from rag.local_steps import Models
from rag.models import load_token_counter, locate_model
from rag.pipeline import Steps, answer
from rag.prompt import build_prompt
from rag.quotes import markers_in
from rag.retrieve import SearchSteps, retrieve
from rag.sentences import split_sentences
from rag.types import Answer, Question, SearchResult

WAYS = ("served", "extracted", "llm", "grounding")
AT_ONCE = 8  # questions; the LLM writes several times as many tokens a second as for one
REPORT, TABLES = "report.json", "report.txt"
SEED = 0

T = TypeVar("T")
U = TypeVar("U")
Way = Callable[[GoldQuestion], Awaitable[Written]]


def read_gold(reference: str, trained: Set[str] = frozenset()) -> list[GoldQuestion]:
    """The questions of a set with their gold phrases, in its order; empty for a set that does not name them.

    None is about a `trained` article, which is the title of the paragraph that a question names. Raises InputError for
    answers that do not fit their questions.
    """
    path = Path(reference)
    try:
        if path.is_file():
            every = json.loads(path.read_text(encoding="utf-8"))["data"]
            articles = [article for article in every if article.get("title") not in trained]
            asked = [one for article in articles for paragraph in article["paragraphs"] for one in paragraph["qas"]]
            return [
                GoldQuestion(one["question"], tuple(dict.fromkeys(gold["text"] for gold in one["answers"])))
                for one in asked
            ]
        answers = path / "answers.jsonl"
        if not answers.is_file():
            return []
        texts = {row["_id"]: row["text"] for _, row in read_rows(path / "queries.jsonl")}
        known = {one.document_id for one in read_documents(path) if one.title in trained} if trained else set()
        return [
            GoldQuestion(texts[row["_id"]], () if row.get("unanswerable") else tuple(row["answers"]))
            for _, row in read_rows(answers)
            if str(row.get("paragraph")) not in known
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{reference}: its answers are not laid out as expected ({type(error).__name__}: {error})"
        ) from error


def sample(choices: Sequence[T], most: int) -> list[T]:
    """At most so many of them, the same every time."""
    return random.Random(SEED).sample(choices, min(most, len(choices)))


def sample_gold(questions: Sequence[GoldQuestion], count: int) -> list[GoldQuestion]:
    """At most `count` questions with an answer and half as many without one, the same every time."""
    with_answer, without = ([one for one in questions if one.answerable == kind] for kind in (True, False))
    return sample(with_answer, count) + sample(without, count // 2)


def evaluate_answers(
    references: Sequence[str], settings: Settings, out: Path, say: Say, *, pool: bool, questions: int, llm: bool
) -> dict[str, Any]:
    """Measures each set that names its answers, and writes the report to `out`; the report.

    `pool`: the documents of all sets are one corpus. `llm`: False leaves out the ways that need the LLM. No question is
    about an article that the settings' answerability adapter was trained on. Raises InputError where no set names
    answers to others, and what the stages raise.
    """
    check_names([set_name(Path(one)) for one in references])
    paired = [one for one in references if holds_pairs(Path(one))]
    pairs = {set_name(Path(one)): sample(read_pairs(Path(one)), questions) for one in paired}
    others = [one for one in references if one not in paired]
    sets = [read_dataset(reference) for reference in others]
    own = evaluation_settings(settings)
    trained = trained_articles(own)  # documents about them are searched as all others
    gold = {one.name: read_gold(reference, trained) for one, reference in zip(sets, others, strict=True)}
    left_out = {
        one.name: len(read_gold(reference)) - len(gold[one.name]) for one, reference in zip(sets, others, strict=True)
    }
    gold = {name: known for name, known in gold.items() if known}
    if not gold and not pairs:
        raise InputError(
            "none of the sets says what its answers are, other than to questions about articles that the answerability "
            "adapter was trained on; name a folder with answers.jsonl, a file like SQuAD's, or one like HaluEval's"
        )
    corpora = dict.fromkeys(gold, pool_datasets(sets)) if pool else {one.name: one for one in sets if one.name in gold}
    measured = asyncio.run(_measure(gold, corpora, pairs, own, say, questions=questions, llm=llm))
    report = {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "settings": settings.model_dump(mode="json"),
        "plan": {"pool": pool, "questions_at_most": questions, "at_once": AT_ONCE, "questions_left_out": left_out},
        "sets": measured,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    (out / TABLES).write_text(format_answers(report), encoding="utf-8")
    return report


async def _measure(
    gold: dict[str, list[GoldQuestion]],
    corpora: dict[str, Dataset],
    pairs: dict[str, list[ClaimPair]],
    settings: Settings,
    say: Say,
    *,
    questions: int,
    llm: bool,
) -> list[dict[str, Any]]:
    models = Models(settings)
    asked = {name: sample_gold(known, questions) for name, known in gold.items()}
    collections = {name: await asyncio.to_thread(index_dataset, one, settings, say) for name, one in corpora.items()}
    found: list[dict[str, Any]] = []

    def add(name: str, way: str, language: str, figures: dict[str, Any]) -> None:
        documents = len(corpora[name].documents) if name in corpora else None
        found.append({"set": name, "language": language, "documents": documents, "way": way} | figures)

    async def measure(steps: Steps, names: Sequence[str]) -> None:
        for name, own in asked.items():
            written_by_llm = understands(settings.generator.languages, own[0].text)
            for way in names:
                if way == "llm" and not written_by_llm:
                    continue  # the service never asks it in that language
                say(f"{name}: {len(own)} questions, {way}")
                written = await ask_all(own, ways(steps, settings, collections[name])[way])
                add(name, way, language_of(own[0].text), measure_answers(own, written))

    async def measure_pairs(name: str, own: Sequence[ClaimPair]) -> None:
        if len(own) < 2:
            say(f"{name}: {len(own)} pairs, too few to measure grounding")
            return
        say(f"{name}: {len(own)} pairs, grounding")
        judged = await ask_all(own, lambda pair: judge_pair(pair, models.score, settings))
        add(name, "grounding", language_of(own[0].question), measure_grounding(judged))

    for name, own in pairs.items():
        await measure_pairs(name, own)
    if gold:
        count_tokens = load_token_counter(locate_model(settings.generator.model, settings.cache_dir))
        async with open_steps(settings, models) as search:
            for name, known in gold.items():
                await measure_pairs(name, await make_pairs(asked[name], known, search, settings, collections[name]))
            await measure(Steps(search, _no_llm, count_tokens), ["extracted"])
            if llm:
                async with open_llm(settings) as generate:
                    await measure(Steps(search, generate, count_tokens), ["served", "llm"])
    order = [*gold, *pairs]
    return sorted(found, key=lambda one: (order.index(one["set"]), WAYS.index(one["way"])))


def _no_llm(*_: object, **__: object) -> Any:
    """See rag.types.Generate."""
    raise StageError("generate", "no LLM runs here")


async def ask_all(questions: Sequence[T], way: Callable[[T], Awaitable[U]]) -> list[U]:
    """What a way gives for each question, AT_ONCE at a time. Raises what the way does."""
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(question: T) -> U:
        async with places:
            return await way(question)

    return list(await asyncio.gather(*map(ask, questions)))


async def find(text: str, collection: str, steps: SearchSteps, settings: Settings) -> SearchResult:
    """What the service finds for a question. Raises StageError for a stage that was left out."""
    clock = RequestClock(PATIENT_S)
    found = await retrieve(text, collection, steps, settings, clock, groups=None)
    if clock.degraded:
        raise StageError(clock.degraded[0], f"left out of the search for {text!r}")
    return SearchResult(found.hits[: settings.reranker.top_k], found.index_version)


async def make_pairs(
    asked: Sequence[GoldQuestion],
    known: Sequence[GoldQuestion],
    steps: SearchSteps,
    settings: Settings,
    collection: str,
) -> list[ClaimPair]:
    """Of those asked that can be answered, and whose passages allow it, a right sentence of a passage and the same with
    a phrase of another of the set's `known` questions. Raises StageError for a stage that was left out."""
    phrases = sorted({phrase for one in known for phrase in one.phrases})

    async def make(question: GoldQuestion) -> ClaimPair | None:
        found = await find(question.text, collection, steps, settings)
        return swap_phrase(question, found.hits, phrases, SEED)

    made = await ask_all([one for one in asked if one.answerable], make)
    return [pair for pair in made if pair is not None]


def ways(steps: Steps, settings: Settings, collection: str) -> dict[str, Way]:
    """The ways of answering by these steps over a collection. Raise StageError for a stage that was left out."""
    without = settings.model_copy(update={"generator": settings.generator.model_copy(update={"languages": ()})})

    async def flow(question: GoldQuestion, settings: Settings) -> Written:
        given = await answer(Question(question.text, collection, groups=None), steps, settings)
        if given.degraded:
            raise StageError(given.degraded[0], f"left out of the answer to {question.text!r}")
        return _written(given, settings)

    async def alone(question: GoldQuestion) -> Written:
        found = await find(question.text, collection, steps.search, settings)
        prompt = build_prompt(
            question.text,
            found.hits,
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
        text = "".join([piece.text async for piece in pieces])
        shown = {passage.marker: passage.hit.chunk.text for passage in prompt.passages}
        sentences = [text[start:end] for start, end in split_sentences(text)]
        return Written(
            text,
            tuple(Sentence(one, tuple(shown[n] for n in sorted(markers_in(one) & shown.keys()))) for one in sentences),
            tuple(shown.values()),
        )

    return {
        "served": lambda question: flow(question, settings),
        "extracted": lambda question: flow(question, without),
        "llm": alone,
    }


def _written(given: Answer, settings: Settings) -> Written:
    """What the service answered; a sentence that it marks unsupported is one without a quote."""
    quotes = {(one.start, one.end): list[str]() for one in given.unsupported}
    for citation in given.citations:
        quotes.setdefault((citation.answer_start, citation.answer_end), []).append(citation.quote)
    return Written(
        given.answer if given.status == "answered" else None,
        tuple(Sentence(given.answer[start:end], tuple(own)) for (start, end), own in sorted(quotes.items())),
        tuple(hit.chunk.text for hit in given.hits[: settings.reranker.top_k]),
    )


def format_answers(report: dict[str, Any]) -> str:
    """A line for each set and way; a dash where a figure is not one of the way's."""
    machine, settings = report["hardware"], report["settings"]
    header = (
        "set", "language", "documents", "way", "with / without answer", "right (95 %)", "abstained",
        "wrong of answered", "with answer", "refused", "citation precision", "recall", "quote chars",
        "right / made up", "unsupported AUROC (95 %)", "by length", "supported: right", "made up",
    )  # fmt: skip
    rows = []
    for one in report["sets"]:
        asked = f"{one['answerable']} / {one['unanswerable']}" if "answerable" in one else None
        judged = f"{one['right_sentences']} / {one['made_up_sentences']}" if "right_sentences" in one else None
        rows.append(
            (
                *(one[name] for name in ("set", "language", "documents", "way")),
                asked,
                _interval(one.get("right")),
                *(one.get(name) for name in ("abstained", "wrong_of_answered", "wrong_of_answerable", "refused")),
                *(one.get(name) for name in ("citation_precision", "citation_recall", "quote_chars")),
                judged,
                _interval(one.get("unsupported_auroc")),
                *(one.get(name) for name in ("length_auroc", "right_supported", "made_up_supported")),
            )
        )
    first = (
        f"commit {report['commit']}; {machine['cpu_model']}, {machine['cpu_count_usable']} cores; answered from "
        f"confidence {settings['evidence']['min_confidence']} on, supported from {settings['grounding']['min_support']}"
    )
    return f"{first}\n\n{format_table(header, rows)}\n"


def _interval(estimate: dict[str, float] | None) -> str | None:
    return None if estimate is None else f"{estimate['mean']:.3f} ({estimate['low']:.3f}-{estimate['high']:.3f})"
