"""`rag eval answers`: gold phrases, what is counted, and the three ways of answering over small steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.answer_measures import GoldQuestion, Sentence, Written, holds_phrase, measure_answers
from eval.answers import ask_all, evaluate_answers, format_answers, make_pairs, read_gold, sample_gold, ways
from rag.errors import InputError, StageError
from rag.types import GeneratedText
from tests.pipeline_fakes import ScriptedLLM, WordScorer, make_search, make_settings, make_steps, says

PORT = GoldQuestion("Which port does the service listen on?", ("8000",))
NOWHERE = GoldQuestion("Zebra quagga okapi?", ())
SAID = "The service listens on port 8000."


@pytest.mark.parametrize(
    ("text", "phrase", "held"),
    [
        pytest.param("It is port 8000. [1]", "8000", True, id="word"),
        pytest.param("It is port 80001.", "8000", False, id="part_of_a_word"),
        pytest.param("The Duke of  Normandy!", "duke of normandy", True, id="case_spaces_punctuation"),
        pytest.param("a tower", "the tower", True, id="articles"),
        pytest.param("It is [1] one.", "1", False, id="marker"),
        pytest.param("서울특별시는 크다.", "서울특별시", True, id="particle"),
        pytest.param("서울은 크다.", "부산", False, id="another"),
        pytest.param("중국의 BTV가 방송했다.", "BTV", True, id="particle_behind_latin"),
        pytest.param("답은 1/4입니다.", "1/4", True, id="particle_behind_digits"),
        pytest.param("BTVX가 방송했다.", "BTV", False, id="part_of_a_latin_word"),
        pytest.param("It has 1000 rows.", "1,000", True, id="thousands"),
        pytest.param("the US army", "U.S. army", True, id="full_stops"),
        pytest.param("his coworkers", "co-workers", True, id="hyphen"),
        pytest.param("the 20th century", "20th-century", True, id="hyphen_or_space"),
        pytest.param("anything", "!", False, id="nothing_left_of_the_phrase"),
        pytest.param("Cafe\u0301 Noir", "café noir", True, id="composed"),
    ],
)
def test_whether_a_text_holds_a_phrase(text: str, phrase: str, held: bool) -> None:
    assert holds_phrase(text, [phrase]) is held
    assert holds_phrase(text, ["zzz", phrase]) is held


def cites(text: str, *quotes: str, passages: tuple[str, ...] = ("Port 8000 is ours.",)) -> Written:
    """An answer of one sentence."""
    return Written(text, (Sentence(text, quotes),), passages)


def test_what_is_counted_of_five_answers() -> None:
    questions = [PORT, PORT, PORT, PORT, NOWHERE, NOWHERE]
    written = [
        cites("It is 8000. [1]", "port 8000"),  # right, backed
        cites("It is 8000. [1]", "another port"),  # right, its quote holds nothing
        cites("It is 9000. [1]", "port 8000", "x"),  # wrong, though it cites the right quote
        Written(None),
        cites("It is a zebra. [1]", "zebra"),
        Written(None),
    ]
    found = measure_answers(questions, written)
    assert (found["answerable"], found["unanswerable"]) == (4, 2)
    assert found["right"]["mean"] == 0.5
    assert (found["abstained"], found["refused"]) == (0.25, 0.5)
    assert found["wrong_of_answered"] == 0.5  # of four, 9000 and the zebra
    assert found["wrong_of_answerable"] == pytest.approx(1 / 3)
    assert found["citation_precision"] == 0.5  # of four quotes cited for questions with an answer
    assert found["citation_recall"] == 0.5
    assert found["quote_chars"] == 9
    assert found["right"]["low"] < 0.5 < found["right"]["high"]


def test_citation_recall_is_of_each_sentence_with_support() -> None:
    sentences = (
        Sentence("It is 8000.", ("port 8000",)),
        Sentence("So 8000 it is."),  # a passage holds it, and nothing is cited
        Sentence("A port is a number."),  # holds no gold phrase: nobody knows whether it has support
        Sentence("8000 it is.", ("another port",)),
    )
    answer = " ".join(one.text for one in sentences)
    found = measure_answers([PORT], [Written(answer, sentences, ("It listens on 8000.",))])
    assert found["citation_recall"] == pytest.approx(1 / 3)
    assert found["citation_precision"] == 0.5
    of_its_own = measure_answers([PORT], [Written(answer, sentences, ("Nothing of it.",))])
    assert of_its_own["citation_recall"] is None


def test_what_is_not_there_is_not_counted() -> None:
    found = measure_answers([NOWHERE], [Written(None)])
    assert [found[name] for name in ("right", "abstained", "wrong_of_answered", "citation_precision")] == [None] * 4
    assert found["refused"] == 1.0


def test_gold_of_a_folder_and_of_a_squad_file(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    assert read_gold(str(folder)) == []
    queries = [{"_id": "q0", "text": PORT.text}, {"_id": "q1", "text": NOWHERE.text}]
    answers = [{"_id": "q0", "answers": ["8000"]}, {"_id": "q1", "answers": [], "unanswerable": True}]
    for name, rows in (("queries", queries), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_gold(str(folder)) == [PORT, NOWHERE]
    asked = [
        {"id": "a", "question": PORT.text, "answers": [{"text": "8000"}, {"text": "8000"}]},
        {"id": "b", "question": NOWHERE.text, "answers": [], "is_impossible": True},
    ]
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "c", "qas": asked}]}]}))
    assert read_gold(str(file)) == [PORT, NOWHERE]
    assert read_gold(str(file), {"T"}) == []
    (folder / "answers.jsonl").write_text('{"_id": "q9", "answers": []}', encoding="utf-8")
    with pytest.raises(InputError, match="KeyError: 'q9'"):
        read_gold(str(folder))


def test_gold_is_about_no_article_that_was_trained_on(tmp_path: Path) -> None:
    documents = [{"_id": "p0", "title": "Ports", "text": "8000."}, {"_id": "p1", "title": "Trees", "text": "Plums."}]
    queries = [{"_id": "q0", "text": PORT.text}, {"_id": "q1", "text": NOWHERE.text}]
    answers = [{"_id": "q0", "answers": ["8000"], "paragraph": "p0"}, {"_id": "q1", "answers": [], "paragraph": "p1"}]
    for name, rows in (("corpus", documents), ("queries", queries), ("answers", answers)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_gold(str(tmp_path), {"Trees"}) == [PORT]
    assert read_gold(str(tmp_path), {"Ports", "Trees"}) == []
    assert read_gold(str(tmp_path), {"Elsewhere"}) == [PORT, NOWHERE]


def test_a_sample_has_half_as_many_without_an_answer() -> None:
    questions = [GoldQuestion(str(number), ("x",) if number % 2 else ()) for number in range(40)]
    chosen = sample_gold(questions, 6)
    assert [one.answerable for one in chosen] == [True] * 6 + [False] * 3
    assert chosen == sample_gold(questions, 6)
    assert len(sample_gold(questions, 100)) == 40


async def test_each_way_writes_what_it_is_named_for() -> None:
    llm = says(SAID)
    found = ways(make_steps(llm), make_settings(), "default")
    served, extracted, alone = [await ask_all([PORT, NOWHERE], found[way]) for way in ("served", "extracted", "llm")]
    assert [one.answer for one in served] == [f"{SAID} [1]", None]
    assert [one.sentences for one in served] == [(Sentence(SAID, (SAID,)),), ()]
    assert any(SAID in passage for passage in served[0].passages)
    assert extracted[0].sentences[0] == Sentence(SAID, (SAID,))
    assert extracted[1].answer is None
    assert [one.answer for one in alone] == [f"{SAID} "] * 2  # it never says that it does not know
    assert alone[0].sentences == (Sentence(SAID),)
    assert len(llm.calls) == 3


async def test_the_llm_alone_cites_the_passages_whose_markers_it_writes() -> None:
    found = ways(make_steps(says(f"{SAID} [1] It is red. [9]")), make_settings(), "default")
    (alone,) = await ask_all([PORT], found["llm"])
    assert [(one.text, len(one.quotes)) for one in alone.sentences] == [(f"{SAID} [1]", 1), ("It is red. [9]", 0)]
    assert alone.sentences[0].quotes[0] == alone.passages[0]


async def test_a_sentence_that_the_service_marks_unsupported_is_one_without_a_quote() -> None:
    settings = make_settings()
    strong = settings.grounding.model_copy(update={"reader": "strong", "max_sentences": None, "max_score_gap": None})
    found = ways(
        make_steps(says(SAID, "Bananas are yellow and sweet.")),
        settings.model_copy(update={"grounding": strong}),
        "default",
    )
    (served,) = await ask_all([PORT], found["served"])
    assert served.sentences == (Sentence(SAID, (SAID,)), Sentence("Bananas are yellow and sweet."))


async def test_pairs_are_made_of_the_passages_that_hold_a_gold_phrase() -> None:
    other = GoldQuestion("Which port does another service listen on?", ("4,000", "9000"))  # one stands in a passage
    pairs = await make_pairs([PORT, NOWHERE], [PORT, other], make_search(), make_settings(), "default")
    assert [(one.right, one.made_up) for one in pairs] == [(SAID, SAID.replace("8000", "9000"))]


async def test_a_stage_that_is_left_out_is_an_error_and_no_figure() -> None:
    broken = ways(make_steps(ScriptedLLM([StageError("generate", "gone")])), make_settings(), "default")
    with pytest.raises(StageError, match="left out"):
        await broken["served"](PORT)
    deaf = make_search(score=WordScorer(StageError("rerank", "gone")))
    with pytest.raises(StageError):
        await ways(make_steps(ScriptedLLM([GeneratedText("x")]), deaf), make_settings(), "default")["extracted"](PORT)


def test_the_table_has_a_line_for_each_set_and_way() -> None:
    written = [Written(SAID, (Sentence(SAID, (SAID,)),), (SAID,)), Written(None)]
    auroc = {"mean": 0.75, "low": 0.5, "high": 1.0}
    counts = {"right_sentences": 3, "made_up_sentences": 4}
    shares = {"length_auroc": 0.5, "right_supported": 1.0, "made_up_supported": 0.25}
    about = {"set": "ports", "language": "latin", "documents": 4}
    report = {
        "commit": "abc",
        "hardware": {"cpu_model": "C", "cpu_count_usable": 2},
        "settings": {"evidence": {"min_confidence": 0.6}, "grounding": {"min_support": 0.7}},
        "sets": [
            about | {"way": "served"} | measure_answers([PORT, NOWHERE], written),
            about | {"way": "grounding", "unsupported_auroc": auroc} | counts | shares,
        ],
    }
    *_, served, grounded = format_answers(report).splitlines()
    asked = ["ports", "latin", "4", "served", "1", "/", "1", "1.000", "(1.000-1.000)", "0"]
    cells = [*asked, "0", "0", "1", "1", "1", "33"]
    assert served.split() == [*cells, "-", "-", "-", "-", "-"]
    assert grounded.split()[4:] == ["-"] * 9 + ["3", "/", "4", "0.750", "(0.500-1.000)", "0.5", "1", "0.25"]


def test_a_set_without_answers_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d", "text": "t"}', encoding="utf-8")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "t"}', encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n", encoding="utf-8")
    ask = {"settings": make_settings(), "out": tmp_path, "say": print, "pool": False, "questions": 1, "llm": False}
    with pytest.raises(InputError, match="HaluEval"):
        evaluate_answers([str(folder)], **ask)
    with pytest.raises(InputError, match="called set"):
        evaluate_answers([str(folder), str(folder)], **ask)
