"""Reranking with real models: the embedder's token vectors, and a cross-encoder built on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from rag.config import load_settings
from rag.embed import SentenceEmbedder
from rag.models import load_token_offsets, locate_model
from rag.rerank import CrossEncoderScorer, MaxSimReranker, ScoreRequest
from rag.sentences import split_sentences
from rag.step_settings import RerankerSettings
from rag.types import TextKind

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpus"
QUERIES = [
    "Which environment variable sets the data directory?",
    "What do I do when the port is already taken?",
    "How are citations verified?",
]
ODD = ["", " ", "A [SEP] in a text, and a \U0001f600.", "한글과 English", "word " * 400]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    whole = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.md")) if "-ko" not in path.name
    )
    return [whole[start : start + 500] for start in range(0, 30_000, 500)]


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    settings = load_settings(profile="embedded")
    return SentenceEmbedder(settings.embedder, locate_model(settings.embedder.model, settings.cache_dir))


@pytest.fixture(scope="module")
def reranker(embedder: SentenceEmbedder) -> MaxSimReranker:
    settings = load_settings(profile="embedded")

    async def embed_tokens(texts: list[str], kind: TextKind) -> list[np.ndarray]:
        return embedder.encode_tokens(texts, kind)

    offsets = load_token_offsets(settings.embedder, settings.cache_dir)
    return MaxSimReranker(embed_tokens, offsets, embedder.dimension, 0)


def test_one_pass_gives_what_the_library_and_each_method_give(embedder: SentenceEmbedder, texts: list[str]) -> None:
    some = [*texts[:7], *ODD]
    embeddings = embedder.embed_passages(some)
    vectors = np.stack([embedding.vector for embedding in embeddings])
    np.testing.assert_allclose(vectors, embedder.encode(some, "passage"), atol=1e-5)
    np.testing.assert_allclose(vectors, embedder._model.encode(some, show_progress_bar=False), atol=1e-5)
    tokens = embedder.encode_tokens(some, "passage")
    assert [len(one.token_vectors) for one in embeddings] == [96 * len(own) for own in tokens]
    assert all(np.linalg.norm(own, axis=1) == pytest.approx(1.0, abs=1e-5) for own in tokens if len(own))


@pytest.mark.parametrize("prefix", ["", "passage: "])
def test_the_offsets_are_those_of_the_token_vectors(embedder: SentenceEmbedder, texts: list[str], prefix: str) -> None:
    settings = load_settings(profile="embedded", embedder={"passage_prefix": prefix})
    own = SentenceEmbedder(settings.embedder, locate_model(settings.embedder.model, settings.cache_dir))
    some = [*texts[:5], *ODD]
    offsets = load_token_offsets(settings.embedder, settings.cache_dir)(some)
    assert [len(one) for one in offsets] == [len(one) for one in own.encode_tokens(some, "passage")]
    assert all(
        (one[:, 0] >= 0).all() and (one[:, 1] <= len(text)).all() for one, text in zip(offsets, some, strict=True)
    )
    first = offsets[0][0]
    assert texts[0][first[0] : first[1]].lower() in texts[0].lower().split()[0]


async def test_stored_token_vectors_rank_as_exact_ones_do(
    embedder: SentenceEmbedder, reranker: MaxSimReranker, texts: list[str]
) -> None:
    stored = [embedding.token_vectors for embedding in embedder.embed_passages(texts)]
    scores = await reranker.score(QUERIES, texts, [[(0, len(text))] for text in texts], stored)
    coded = np.stack(scores)[:, :, 0]
    queries, passages = embedder.encode_tokens(QUERIES, "query"), embedder.encode_tokens(texts, "passage")
    exact = np.array([[(query @ passage.T).max(axis=1).mean() for query in queries] for passage in passages])
    assert np.abs(exact - coded).max() < 0.04
    for column in range(len(QUERIES)):
        assert spearmanr(exact[:, column], coded[:, column]).statistic > 0.97
        assert exact[coded[:, column].argmax(), column] > exact[:, column].max() - 0.03


async def test_a_sentence_scores_by_its_own_tokens_and_batching_changes_nothing(
    reranker: MaxSimReranker, texts: list[str]
) -> None:
    text = "The port is 8000. Cats sleep all day. Another port is chosen with --port."
    spans = split_sentences(text)
    assert len(spans) == 3
    (alone,) = await reranker.score(["Which port is it?"], [text], [spans], [b""])
    assert alone[0].argmin() == 1
    assert ((alone >= 0) & (alone <= 1)).all()
    whole = [[(0, len(one))] for one in texts]
    together = await reranker.score(["Which port is it?"], [*texts, text], [*whole, spans], [b""] * (len(texts) + 1))
    np.testing.assert_allclose(together[-1], alone, atol=0.01)  # what is near a level's edge may fall on either side


def tiny_cross_encoder(folder: Path) -> RerankerSettings:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    carried = locate_model(load_settings(profile="embedded").embedder.model, folder)
    tokenizer = AutoTokenizer.from_pretrained(carried)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return RerankerSettings(kind="cross-encoder", model=str(folder), dtype="float32")


def test_any_cross_encoder_with_one_output_is_a_reranker(tmp_path: Path) -> None:
    settings = tiny_cross_encoder(tmp_path)
    scorer = CrossEncoderScorer(settings, str(tmp_path))
    request = ScoreRequest(["a port", "a cat"], ["The port is 8000. A cat.", "Rain."], [[(0, 17), (18, 24)], [(0, 5)]])
    first, second = scorer.score([request])[0]
    assert first.shape == (2, 2)
    assert second.shape == (2, 1)
    assert ((first > 0) & (first < 1)).all()
    alone = scorer.score([ScoreRequest(["a cat"], ["The port is 8000. A cat."], [[(18, 24)]])])[0][0]
    np.testing.assert_allclose(first[1, 1], alone[0, 0], atol=1e-5)


def test_bfloat16_scores_as_float32_does(tmp_path: Path, texts: list[str]) -> None:
    settings = tiny_cross_encoder(tmp_path)
    request = ScoreRequest(QUERIES, texts, [[(0, len(text))] for text in texts])
    exact, coarse = (
        np.stack(CrossEncoderScorer(settings.model_copy(update={"dtype": dtype}), str(tmp_path)).score([request])[0])
        for dtype in ("float32", "bfloat16")
    )
    assert np.abs(exact - coarse).max() < 0.02


def test_a_query_that_was_embedded_is_not_encoded_again_for_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(profile="embedded")
    own = SentenceEmbedder(settings.embedder, locate_model(settings.embedder.model, settings.cache_dir))
    expected = own.encode_tokens([QUERIES[0]], "passage")  # no prefix tells the kinds apart here
    own.encode(QUERIES, "query")
    monkeypatch.setattr(own, "_pass", None)
    np.testing.assert_allclose(own.encode_tokens(QUERIES[:2], "query")[0], expected[0], atol=1e-5)
