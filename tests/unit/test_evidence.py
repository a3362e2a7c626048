"""The evidence gate: which scale judges, what it reads of question and passages, what happens at the threshold."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.config import load_settings
from rag.errors import SettingsError
from rag.evidence import (
    FEATURES,
    BestSentence,
    Verdict,
    best_sentence,
    check_fitted,
    judge_evidence,
    read_features,
    scale_of,
)
from rag.profiles import MINILM
from rag.step_settings import EvidenceCalibration, EvidenceFeature, EvidenceScale, EvidenceSettings
from rag.types import Chunk, Hit, Scores, Span

STOP_WORDS = {"is", "not", "a", "the"}


def terms(text: str) -> list[str]:
    return [word for word in (each.strip("?.,").lower() for each in text.split()) if word not in STOP_WORDS]


def split(text: str) -> list[Span]:
    """Sentences by their full stops."""
    ends = [index + 1 for index, char in enumerate(text) if char == "."]
    return list(zip([0, *ends], ends, strict=False))


def hit(
    rerank: float | None = None,
    dense: float | None = None,
    fused: float | None = None,
    text: str = "text",
    title: str = "Title",
) -> Hit:
    return Hit(Chunk("c", "d", "r", 0, text, 0, len(text)), title, "s.md", 0.0, Scores(dense, None, fused, rerank))


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({}, False),
        ({"embedder": {"model": "./other"}}, True),
        ({"embedder": {"model": "./other"}, "evidence": {"min_confidence": 0.0}}, False),
        (
            {
                "embedder": {"model": "./other"},
                "evidence": {"fitted_for": {"embedder": "./other", "reranker": "./other"}},
            },
            False,
        ),
        ({"reranker": {"kind": "cross-encoder", "model": "./cross"}}, True),
        ({"profile": "gpu", "embedder": {"model": "./other"}}, False),
        ({"evidence": {"answerability": "./other"}}, True),
        ({"evidence": {"answerability": None}}, False),
    ],
)
def test_a_gate_of_other_models_is_refused(change: dict[str, Any], refused: bool) -> None:
    settings = load_settings(**change)
    if not refused:
        check_fitted(settings)
        return
    with pytest.raises(SettingsError, match=r"embedder package:\S+ .*and reranker package:\S+, not to those of .*\./"):
        check_fitted(settings)


def test_a_gate_that_was_fitted_without_the_adapter_says_how_to_go_without() -> None:
    fitted = {"embedder": MINILM, "reranker": MINILM, "answerability": None}
    with pytest.raises(SettingsError, match="set RAG_EVIDENCE__ANSWERABILITY=null, and the gate goes without"):
        check_fitted(load_settings(evidence={"fitted_for": fitted}))
    check_fitted(load_settings(evidence={"fitted_for": fitted, "answerability": None}))


def calibration(feature: EvidenceFeature, intercept: float = 0.0, weight: float = 1.0) -> EvidenceCalibration:
    return EvidenceCalibration(intercept=intercept, weights={feature: weight})


# With weight 1 on the log odds a confidence is the rerank score itself; dense: log odds 10 * (cosine - 0.3).
RERANK: dict[EvidenceScale, EvidenceCalibration] = {"rerank": calibration("rerank")}
DENSE: dict[EvidenceScale, EvidenceCalibration] = {"dense": calibration("dense", -3.0, 10.0)}
BOTH = EvidenceSettings(min_confidence=0.5, scales=RERANK | DENSE)
RERANK_ONLY = EvidenceSettings(min_confidence=0.5, scales=RERANK)
NONE = EvidenceSettings(min_confidence=0.5)
NO_THRESHOLD = EvidenceSettings(scales=RERANK)


def answer(confidence: float | None) -> Verdict:
    return Verdict("answer", None, confidence)


def abstain(confidence: float | None) -> Verdict:
    return Verdict("abstain", "no_evidence", confidence)


CASES = {
    "above": ([hit(rerank=0.7)], BOTH, answer(0.7)),
    "equal_is_enough": ([hit(rerank=0.5)], BOTH, answer(0.5)),
    "below": ([hit(rerank=0.4999)], BOTH, abstain(0.4999)),
    "best_of_all_counts": ([hit(rerank=0.1), hit(rerank=0.8), hit()], BOTH, answer(0.8)),
    "rerank_judges_alone_when_it_ran": ([hit(rerank=0.4, dense=0.9)], BOTH, abstain(0.4)),
    "dense_judges_when_rerank_was_left_out": ([hit(dense=0.3)], BOTH, answer(0.5)),
    "rerank_calibration_never_judges_dense": ([hit(dense=0.1)], RERANK_ONLY, answer(None)),
    "dense_below": ([hit(dense=0.2, fused=0.9)], BOTH, abstain(1 / (1 + math.e))),
    "dense_calibration_never_judges_rerank": (
        [hit(rerank=0.1, dense=0.1)],
        EvidenceSettings(min_confidence=0.5, scales=DENSE),
        answer(None),
    ),
    "lexical_hits_only_cannot_be_judged_by_others": ([hit(fused=0.1)], BOTH, answer(None)),
    "no_calibration": ([hit(rerank=0.01, dense=0.01)], NONE, answer(None)),
    "no_threshold_answers_with_its_confidence": ([hit(rerank=0.25)], NO_THRESHOLD, answer(0.25)),
    "no_hits": ([], BOTH, Verdict("abstain", "no_documents", None)),
    "no_hits_and_no_calibration": ([], NONE, Verdict("abstain", "no_documents", None)),
}


def judge(
    hits: list[Hit],
    settings: EvidenceSettings,
    *,
    understood: bool = True,
    sentence: float | None = 0.25,
    answerability: float | None = None,
) -> Verdict:
    return judge_evidence(
        "Which port?",
        hits,
        settings,
        understood=understood,
        sentence=sentence,
        answerability=answerability,
        split=split,
        terms=terms,
    )


@pytest.mark.parametrize(("hits", "settings", "expected"), CASES.values(), ids=CASES.keys())
def test_verdict(hits: list[Hit], settings: EvidenceSettings, expected: Verdict) -> None:
    given = judge(hits, settings)
    assert (given.decision, given.reason) == (expected.decision, expected.reason)
    assert given.confidence == pytest.approx(expected.confidence)


def test_what_the_reranker_cannot_read_is_judged_by_its_words() -> None:
    assert judge([hit(dense=0.1)], BOTH, understood=False) == answer(None)
    words = EvidenceSettings(min_confidence=0.5, scales=RERANK | {"words": calibration("coverage", -2.0, 4.0)})
    assert judge([hit(text="which port")], words, understood=False).confidence == pytest.approx(
        1 / (1 + math.exp(-2.0))
    )


def test_where_the_sentences_could_not_be_scored_the_embedder_judges() -> None:
    found = [hit(rerank=0.9, dense=0.3)]
    assert judge(found, BOTH).confidence == pytest.approx(0.9)
    assert judge(found, BOTH, sentence=None).confidence == pytest.approx(0.5)


def test_where_the_answerability_model_read_the_passage_it_judges() -> None:
    scales = BOTH.scales | {"answerability": calibration("answerability", 1.0, 2.0)}
    settings = EvidenceSettings(min_confidence=0.5, scales=scales)
    found = [hit(rerank=0.9, dense=0.3)]
    assert judge(found, settings, answerability=-1.0) == abstain(pytest.approx(1 / (1 + math.e)))
    assert judge(found, settings, answerability=0.0).confidence == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert judge(found, settings).confidence == pytest.approx(0.9)
    assert judge(found, BOTH, answerability=-1.0).confidence == pytest.approx(0.9)  # a gate that was fitted without it


SENTENCES = [(0, 4), (5, 8), (9, 14), (15, 19)]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.2, 0.9, 0.3], BestSentence(0.9, "two three four")),
        ([0.9, 0.2, 0.9, 0.3], BestSentence(0.9, "one. two")),
        ([0.1, 0.2, 0.3, 0.4], BestSentence(0.4, "three four")),
    ],
)
def test_the_best_sentence_is_read_between_its_neighbours(scores: list[float], expected: BestSentence) -> None:
    assert best_sentence("one. two three four", SENTENCES, scores) == expected


def test_one_sentence_has_no_neighbours_and_none_is_none() -> None:
    assert best_sentence("one. two", [(0, 4)], [0.0]) == BestSentence(0.0, "one.")
    assert best_sentence("", [], []) is None


@pytest.mark.parametrize(
    ("hits", "understood", "scored", "scale"),
    [
        ([hit(rerank=0.5, dense=0.5), hit(dense=0.4)], True, True, "rerank"),
        ([hit(rerank=0.5, dense=0.5), hit(dense=0.4)], True, False, "dense"),
        ([hit(rerank=0.5)], True, False, "lexical"),
        ([hit(fused=0.5)], False, False, "words"),
        ([hit(dense=0.5)], False, False, "words"),
        ([hit(fused=0.1), hit(dense=0.5)], True, True, "dense"),
        ([hit(fused=0.1)], True, True, "lexical"),
    ],
)
def test_the_scale_is_of_the_best_stage_that_gave_scores(
    hits: list[Hit], understood: bool, scored: bool, scale: str
) -> None:
    assert scale_of(hits, understood=understood, scored=scored, judged=False) == scale
    better = "answerability" if scale == "rerank" else scale
    assert scale_of(hits, understood=understood, scored=scored, judged=True) == better


PASSAGE = "The service listens on port 8000. Berlin is not served."


@pytest.mark.parametrize(
    ("question", "feature", "value"),
    [
        pytest.param("Which port has Berlin?", "names", 0.0, id="name_in_the_passage"),
        pytest.param("Which port has the Title?", "names", 0.0, id="name_in_the_title"),
        pytest.param("Which port has Paris or Rome?", "names", 2.0, id="two_names_nowhere"),
        pytest.param("Is 8000 a port?", "numbers", 0.0, id="number_in_the_passage"),
        pytest.param("Is 9000 a port?", "numbers", 1.0, id="number_nowhere"),
        pytest.param("Which port?", "sentence", 0.25, id="best_sentence"),
        pytest.param("Which port is not open?", "negation", 1.0, id="nearest_sentence_affirms"),
        pytest.param("Which city is not served?", "negation", 0.0, id="nearest_sentence_negates"),
        pytest.param("Which city is served?", "negation", 0.0, id="the_question_affirms"),
        pytest.param("port 8000 zebra quagga", "coverage", 0.5, id="half_of_the_terms"),
        pytest.param("", "coverage", 0.0, id="no_terms"),
        pytest.param("Which port?", "rerank", math.log(3), id="log_odds_of_three_quarters"),
        pytest.param("Which port?", "dense", 0.6, id="best_cosine"),
        pytest.param("Which port?", "answerability", -1.5, id="answerability"),
    ],
)
def test_feature(question: str, feature: EvidenceFeature, value: float) -> None:
    hits = [hit(0.75, 0.2, text=PASSAGE), hit(0.25, 0.6, text="Nothing. At all.")]
    found = read_features(question, hits, 0.25, -1.5, split=split, terms=terms)
    assert found[feature] == pytest.approx(value)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_better_score_never_lowers_the_confidence(first: float, second: float) -> None:
    low, high = sorted((first, second))
    settings = EvidenceSettings(min_confidence=0.5, scales=RERANK)
    below, above = (judge([hit(rerank=score)], settings).confidence for score in (low, high))
    assert below is not None
    assert above is not None
    assert 0 <= below <= above <= 1


def test_no_scale_uses_a_score_that_its_hits_need_not_have() -> None:
    assert "dense" not in {*FEATURES["rerank"], *FEATURES["answerability"]}
    assert "answerability" not in {name for scale, own in FEATURES.items() if scale != "answerability" for name in own}
    of_the_reranker = {"rerank", "sentence"}
    assert not {*of_the_reranker, "dense"} & {*FEATURES["words"], *FEATURES["lexical"]}
    assert not of_the_reranker & {*FEATURES["dense"]}
