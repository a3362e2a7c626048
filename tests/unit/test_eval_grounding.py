"""What grounding is measured by: pairs of a right and a made-up answer, and what is counted of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.answer_measures import GoldQuestion
from eval.claim_pairs import ClaimPair, holds_pairs, read_pairs, swap_phrase
from eval.grounding import Judged, JudgedPair, judge_pair, measure_grounding
from rag.errors import InputError
from tests.pipeline_fakes import WordScorer, make_hit, make_settings

ROW = {
    "knowledge": "The Oberoi Group has its head office in Delhi. It runs hotels.",
    "question": "In which city is the head office of the Oberoi Group?",
    "right_answer": "Delhi",
    "hallucinated_answer": "It is in Mumbai. It is a large city.",
}
GOLD = GoldQuestion(ROW["question"], ("Delhi", "New Delhi"))
HIT = make_hit("oberoi", ROW["knowledge"])
YES, NO = Judged(0.9, supported=True, chars=5), Judged(0.2, supported=False, chars=50)


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_pairs_of_a_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "qa.json", ROW, ROW)
    assert holds_pairs(path)
    first, second = read_pairs(path)
    assert (first.question, first.right, first.made_up) == (ROW["question"], "Delhi", ROW["hallucinated_answer"])
    assert [hit.chunk.text for hit in first.hits] == [ROW["knowledge"]]
    assert first.hits[0].chunk.chunk_id != second.hits[0].chunk.chunk_id


def test_other_files_hold_no_pairs(tmp_path: Path) -> None:
    assert not holds_pairs(write_rows(tmp_path / "squad.json", {"data": []}))
    assert not holds_pairs(tmp_path)
    assert not holds_pairs(tmp_path / "missing.json")
    (tmp_path / "latin1.json").write_bytes(b"\xe9\xff")
    with pytest.raises(InputError, match="UTF-8"):
        holds_pairs(tmp_path / "latin1.json")
    with pytest.raises(InputError, match="KeyError: 'question'"):
        read_pairs(write_rows(tmp_path / "short.json", {"knowledge": "x"}))


def test_the_phrase_of_another_question_takes_a_gold_phrases_place() -> None:
    # In the passage, longer, a number, in lower case, and one that fits.
    phrases = ["Delhi", "Oberoi", "New York", "1912", "hotels", "paris", "Paris"]
    pair = swap_phrase(GOLD, [make_hit("other", "Nothing of it."), HIT], phrases, seed=0)
    assert pair is not None
    assert pair.right == "The Oberoi Group has its head office in Delhi."
    assert pair.made_up == "The Oberoi Group has its head office in Paris."
    assert [hit.chunk.chunk_id for hit in pair.hits] == ["other", "oberoi"]


def test_no_pair_without_a_gold_phrase_or_another_that_fits() -> None:
    assert swap_phrase(GOLD, [make_hit("other", "Nothing of it.")], ["Paris"], seed=0) is None
    assert swap_phrase(GOLD, [HIT], ["New York", "1912"], seed=0) is None


async def test_sentences_are_judged_in_the_pairs_passages() -> None:
    pair = ClaimPair(ROW["question"], (HIT,), "The head office is in Delhi.", ROW["hallucinated_answer"])
    judged = await judge_pair(pair, WordScorer(), make_settings())
    (right,) = judged.right
    mumbai, large = judged.made_up
    assert right.supported
    assert mumbai == Judged(0.0, supported=False, chars=16)  # a name that no passage holds
    assert right.support > 0.7 > large.support


async def test_a_missing_answer_has_no_sentence(tmp_path: Path) -> None:
    half = {name: value for name, value in ROW.items() if name != "hallucinated_answer"}
    (pair,) = read_pairs(write_rows(tmp_path / "half.json", half))
    judged = await judge_pair(pair, WordScorer(), make_settings())
    assert (len(judged.right), judged.made_up) == (1, ())


async def test_korean_is_judged_by_its_words() -> None:
    knowledge = make_hit("ko", "서비스는 8000번 포트에서 시작합니다.")
    pair = ClaimPair("서비스의 포트는?", (knowledge,), "서비스의 포트는 8000번입니다.", "서비스의 포트는 9000번입니다.")
    scorer = WordScorer()
    settings = make_settings()
    latin = settings.model_copy(update={"reranker": settings.reranker.model_copy(update={"languages": ("latin",)})})
    judged = await judge_pair(pair, scorer, latin)
    assert ([one.supported for one in judged.right], [one.supported for one in judged.made_up]) == ([True], [False])
    assert scorer.calls == []


def test_what_is_counted_of_sentences() -> None:
    judged = [JudgedPair((YES,), (NO, YES)), JudgedPair((YES, NO), (NO,))]
    found = measure_grounding(judged)
    assert (found["right_sentences"], found["made_up_sentences"]) == (3, 3)
    # of nine comparisons: right .9, .9, .2 and made up .2, .9, .2
    assert found["unsupported_auroc"]["mean"] == pytest.approx((2 * 2.5 + 1.0) / 9)
    assert found["length_auroc"] == found["unsupported_auroc"]["mean"]  # the supported ones are short, the others long
    assert found["right_supported"] == pytest.approx(2 / 3)
    assert found["made_up_supported"] == pytest.approx(1 / 3)
    interval = found["unsupported_auroc"]
    assert interval["low"] <= interval["mean"] <= interval["high"]


def test_support_that_is_always_right_is_1_and_a_constant_one_a_half() -> None:
    assert measure_grounding([JudgedPair((YES,), (NO,))] * 4)["unsupported_auroc"]["mean"] == 1.0
    assert measure_grounding([JudgedPair((YES,), (YES,))] * 4)["unsupported_auroc"]["mean"] == 0.5
