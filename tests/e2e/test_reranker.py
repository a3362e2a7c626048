"""The embedded reranker with its real model, and a cross-encoder built on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from rag.config import load_settings
from rag.models import locate_model
from rag.rerank import CrossEncoderScorer, MaxSimScorer, ScoreRequest, load_scorer
from rag.sentences import split_sentences
from rag.step_settings import RerankerSettings

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpus"
QUERIES = [
    "Which environment variable sets the data directory?",
    "What do I do when the port is already taken?",
    "How are citations verified?",
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    whole = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.md")) if "-ko" not in path.name
    )
    return [whole[start : start + 500] for start in range(0, 30_000, 500)]


def maxsim(dtype: str) -> MaxSimScorer:
    settings = load_settings(profile="embedded", reranker={"dtype": dtype})
    return MaxSimScorer(settings.reranker, locate_model(settings.reranker.model, settings.cache_dir))


def whole(texts: list[str]) -> ScoreRequest:
    return ScoreRequest(QUERIES, texts, [[(0, len(text))] for text in texts])


def test_bfloat16_ranks_as_float32_does(texts: list[str]) -> None:
    exact, coarse = (np.stack(maxsim(dtype).score([whole(texts)])[0])[:, :, 0] for dtype in ("float32", "bfloat16"))
    assert np.abs(exact - coarse).max() < 0.02
    for column in range(len(QUERIES)):
        assert spearmanr(exact[:, column], coarse[:, column]).statistic > 0.995
        assert exact[:, column].argmax() == coarse[:, column].argmax()


def test_a_sentence_scores_by_its_own_tokens_and_batching_changes_nothing(texts: list[str]) -> None:
    scorer = maxsim("float32")
    text = "The port is 8000. Cats sleep all day. Another port is chosen with --port."
    spans = split_sentences(text)
    assert len(spans) == 3
    (alone,) = scorer.score([ScoreRequest(["Which port is it?"], [text], [spans])])[0]
    assert alone[0].argmin() == 1
    assert ((alone >= 0) & (alone <= 1)).all()
    together = scorer.score([whole(texts), ScoreRequest(["Which port is it?"], [text], [spans])])[1][0]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_span_without_tokens_scores_zero() -> None:
    (scores,) = maxsim("float32").score([ScoreRequest(["port"], ["   The port."], [[(0, 2), (3, 12)]])])[0]
    assert scores[0, 0] == 0
    assert scores[0, 1] > 0


def test_any_cross_encoder_with_one_output_is_a_reranker(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    carried = locate_model(load_settings(profile="embedded").embedder.model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(carried)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=1,
    )  # fmt: skip
    folder = tmp_path / "tiny"
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert CrossEncoder(str(folder), device="cpu").num_labels == 1
    settings = RerankerSettings(kind="cross-encoder", model=str(folder), dtype="float32")
    scorer = load_scorer(settings, str(folder))
    assert isinstance(scorer, CrossEncoderScorer)
    request = ScoreRequest(["a port", "a cat"], ["The port is 8000. A cat.", "Rain."], [[(0, 17), (18, 24)], [(0, 5)]])
    first, second = scorer.score([request])[0]
    assert first.shape == (2, 2)
    assert second.shape == (2, 1)
    assert ((first > 0) & (first < 1)).all()
    alone = scorer.score([ScoreRequest(["a cat"], ["The port is 8000. A cat."], [[(18, 24)]])])[0][0]
    np.testing.assert_allclose(first[1, 1], alone[0, 0], atol=1e-5)
