"""The gate's labelled questions, its samples on degraded scales, and its fit."""

from __future__ import annotations

import json
import math
import shutil
from importlib.resources import files
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest

from eval.gate import apply_calibration, fit_gate, fit_scale, held_back_confidence, measure_gate
from eval.gate_questions import Kind, LabelledQuestion, hide_articles, read_questions, sample_articles
from eval.gate_samples import Sample, Samples, find_best_sentences, left_out, trained_articles
from rag.config import load_settings
from rag.errors import InputError
from rag.evidence import FEATURES, scale_of
from rag.models import locate_answerability
from rag.step_settings import EvidenceSettings, FittedModels
from rag.types import Chunk, Hit, Scores
from tests.pipeline_fakes import WordScorer, make_hit


def write_set(folder: Path) -> str:
    rows = {
        "corpus.jsonl": [
            {"_id": "p0", "title": "Ports", "text": "It listens on 8000."},
            {"_id": "p1", "title": "Ports", "text": "It may be changed."},
            {"_id": "t0", "title": "Trees", "text": "There are plums."},
        ],
        "queries.jsonl": [
            {"_id": "q0", "text": "Which port?"},
            {"_id": "q1", "text": "Which trees?"},
            {"_id": "q2", "text": "Which harbour?"},
        ],
        "answers.jsonl": [
            {"_id": "q0", "answers": ["8000"], "unanswerable": False, "paragraph": "p0"},
            {"_id": "q2", "answers": [], "unanswerable": True, "paragraph": "p1"},
        ],
    }
    (folder / "qrels").mkdir(parents=True)
    for name, lines in rows.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tp0\t1\nq1\tt0\t1\n", encoding="utf-8")
    return str(folder)


PORT = LabelledQuestion("Which port?", "answerable", "Ports", frozenset({"p0"}))
TREES = LabelledQuestion("Which trees?", "answerable", "Trees", frozenset({"t0"}))
HARBOUR = LabelledQuestion("Which harbour?", "look-alike", "Ports")


def test_questions_of_a_beir_folder(tmp_path: Path) -> None:
    dataset, questions = read_questions(write_set(tmp_path / "set"))
    assert questions == [PORT, TREES, HARBOUR]
    assert hide_articles(questions, dataset) == [
        LabelledQuestion("Which port?", "off-corpus", "Ports", hidden=frozenset({"p0", "p1"})),
        LabelledQuestion("Which trees?", "off-corpus", "Trees", hidden=frozenset({"t0"})),
    ]


def test_questions_of_a_squad_file(tmp_path: Path) -> None:
    asked = [
        {"id": "a", "question": "Which port?", "answers": [{"text": "8000"}]},
        {"id": "b", "question": "Which harbour?", "answers": [], "is_impossible": True},
    ]
    article = {"title": "Ports", "paragraphs": [{"context": "It listens on 8000.", "qas": asked}]}
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [article]}), encoding="utf-8")
    _, questions = read_questions(str(file))
    assert [(one.text, one.kind, one.article) for one in questions] == [
        ("Which port?", "answerable", "Ports"),
        ("Which harbour?", "look-alike", "Ports"),
    ]


def test_a_look_alike_of_an_unknown_document_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    row = {"_id": "q2", "unanswerable": True, "paragraph": "nowhere"}
    (tmp_path / "set" / "answers.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(InputError, match="KeyError: 'nowhere'"):
        read_questions(folder)


def test_a_sample_of_articles_has_their_documents_and_questions_only(tmp_path: Path) -> None:
    dataset, questions = read_questions(write_set(tmp_path / "set"))
    assert sample_articles(dataset, questions, 2, seed=0) == (dataset, questions)
    cut, kept = sample_articles(dataset, questions, 1, seed=0)
    (title,) = {document.title for document in cut.documents}
    assert kept == [question for question in questions if question.article == title]


@pytest.mark.parametrize("articles", [1, 2])
def test_articles_that_a_model_was_trained_on_are_there_and_not_asked_about(tmp_path: Path, articles: int) -> None:
    dataset, questions = read_questions(write_set(tmp_path / "set"))
    for seed in range(5):
        cut, kept = sample_articles(dataset, questions, articles, seed, frozenset({"Ports"}))
        assert {document.title for document in cut.documents} == ({"Ports", "Trees"} if articles == 2 else {"Trees"})
        assert {question.article for question in kept} == {"Trees"}


def test_the_adapter_s_card_says_on_what_it_was_trained(tmp_path: Path) -> None:
    shipped = load_settings(profile="embedded")
    assert "Harvard University" not in trained_articles(shipped)
    assert len(trained_articles(shipped)) > 20
    assert trained_articles(load_settings(evidence={"answerability": None})) == frozenset()
    adapter = locate_answerability(shipped)
    assert adapter is not None
    shutil.copy(adapter.path, tmp_path)
    copied = load_settings(evidence={"answerability": str(tmp_path)})
    with pytest.raises(InputError, match="on which articles"):
        trained_articles(copied)


def hit(name: str, dense: float | None, lexical: float | None, fused: float, rerank: float | None) -> Hit:
    return Hit(Chunk(name, "d", "r", 0, name, 0, 1), "T", name, 0.0, Scores(dense, lexical, fused, rerank))


def test_hits_of_a_degraded_scale_have_its_order_and_no_other_scores() -> None:
    hits = [hit("a", 0.5, 1.0, 0.02, 0.9), hit("b", 0.7, None, 0.03, 0.8), hit("c", None, 4.0, 0.01, None)]
    dense, lexical = left_out(hits, "dense"), left_out(hits, "lexical")
    assert [one.source for one in dense] == ["b", "a", "c"]
    assert [one.source for one in lexical] == ["c", "a"]
    scales = [scale_of(found, understood=True, scored=True, judged=True) for found in (dense, lexical)]
    assert scales == ["dense", "lexical"]
    assert left_out(hits, "rerank") == hits


async def test_the_best_sentences_are_of_the_first_passages() -> None:
    texts = (
        "The lamp is red. Plums are in the orchard. It is cold.",
        "Nobody knows. Who grows plums?",
        "Who grows plums?",
    )
    hits = [make_hit(str(place), text) for place, text in enumerate(texts)]
    first, second = await find_best_sentences("Who grows plums?", hits, WordScorer())
    assert first is not None
    assert second is not None
    # Of its terms "grow" and "plum" one; and both.
    assert [first.score, second.score] == pytest.approx([0.5, 1.0])
    assert (first.window, second.window) == texts[:2]
    assert await find_best_sentences("Who?", [make_hit("c", ""), hits[0]], WordScorer()) == [None, ANY]
    assert await find_best_sentences("Who?", [make_hit("c", "")], WordScorer()) == [None]
    assert await find_best_sentences("Who?", [], WordScorer()) == []


def samples_of(count: int, seed: int) -> Samples:
    """Answerable where the log odds 2 * rerank - 1 say so by chance, over ten articles."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, value in enumerate(rng.normal(0.5, 2.0, count)):
        holds = bool(rng.random() < 1 / (1 + math.exp(-(2 * value - 1))))
        kind: Kind = "answerable" if holds else "off-corpus"
        features = {"rerank": value, "sentence": 0.0, "names": 0.0, "numbers": 0.0, "negation": 0.0}
        rows.append(Sample("made", kind, f"article {index % 10}", "rerank", features, holds))  # type: ignore[arg-type]
    return Samples(tuple(rows))


def test_weights_follow_the_mix_whatever_the_numbers() -> None:
    rows = [Sample("s", kind, "a", "rerank", {}, kind == "answerable") for kind in ("answerable", *["off-corpus"] * 4)]
    # 0.7 and 0.2 of what is there: 7/9 and 2/9, over one and four samples, 1 on average.
    assert Samples(tuple(rows)).weights.tolist() == pytest.approx([35 / 9, *[10 / 36] * 4])


def test_the_fit_finds_the_coefficients_and_its_confidence_is_calibrated() -> None:
    samples = samples_of(20_000, seed=1)
    # The mix moves the intercept by the log of its odds over those of the sample, and no slope.
    shift = math.log(0.7 / 0.2) - math.log(samples.holds.mean() / (1 - samples.holds.mean()))
    fitted = fit_scale(samples, ["rerank"])
    assert fitted.weights["rerank"] == pytest.approx(2.0, abs=0.1)
    assert fitted.intercept == pytest.approx(-1.0 + shift, abs=0.1)
    confidence = apply_calibration(samples, fitted)
    assert np.average(confidence, weights=samples.weights) == pytest.approx(0.7 / 0.9, abs=0.01)


def test_an_article_held_back_is_judged_by_a_fit_without_it() -> None:
    samples = samples_of(400, seed=2)
    odd = {one.article for one in samples.rows[:1]}
    # One article's labels turned round would turn its own confidence, were it fitted on.
    turned = Samples(
        tuple(
            Sample(one.dataset, one.kind, one.article, one.scale, one.features, one.holds != (one.article in odd))
            for one in samples.rows
        )
    )
    confidence = held_back_confidence(turned, ["rerank"])
    inside = np.array([one.article in odd for one in turned.rows])
    assert np.corrcoef(confidence[inside], turned.holds[inside])[0, 1] < 0
    assert np.corrcoef(confidence[~inside], turned.holds[~inside])[0, 1] > 0


def test_the_fitted_gate_keeps_its_precision_and_is_measured_alike() -> None:
    samples = samples_of(2_000, seed=3).rows
    models = FittedModels(embedder="an embedder", reranker="a reranker", answerability="an adapter")
    settings, (described,) = fit_gate(samples, 0.9, models, ("latin",))
    assert (settings.fitted_for, settings.answerability) == (models, "an adapter")
    assert settings.answerability_languages == ("latin",)
    assert described["threshold"]["precision"] == pytest.approx(0.9, abs=0.01)
    assert described["auroc"]["off-corpus"]["mean"] > 0.9
    assert described["ece"] < 0.03
    (measured,) = measure_gate(samples, settings)
    assert measured["threshold"]["precision"] == pytest.approx(0.9, abs=0.02)


def test_what_cannot_be_fitted_or_measured_is_refused() -> None:
    samples = samples_of(50, seed=4)
    with pytest.raises(InputError, match="with an answer and without"):
        fit_scale(Samples(tuple(one for one in samples.rows if one.holds)), ["rerank"])
    with pytest.raises(InputError, match="not calibrated"):
        measure_gate(samples.rows, EvidenceSettings(min_confidence=0.5))


def test_the_embedded_profile_ships_a_gate_for_its_models_and_every_scale_with_its_plot() -> None:
    settings = load_settings(profile="embedded")
    evidence = settings.evidence
    assert evidence.answerability is not None
    assert evidence.fitted_for == FittedModels(
        embedder=settings.embedder.model, reranker=settings.reranker_model, answerability=evidence.answerability
    )
    assert evidence.min_confidence is not None
    assert {scale: set(one.weights) for scale, one in evidence.scales.items()} == {
        scale: set(features) for scale, features in FEATURES.items()
    }
    assert files("rag").joinpath("gate", "embedded.png").is_file()


def test_the_gpu_profiles_models_have_no_gate_yet() -> None:
    assert load_settings(profile="gpu").evidence == EvidenceSettings()
