"""Late interaction over stored and made token vectors, with a model of words for tokens."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rag.rerank import MaxSimReranker
from rag.token_vectors import encode_tokens
from rag.types import Span, TextKind

DIMENSION = 256
PORTS = "The port is 8000. Cats sleep all day."
SENTENCES = [(0, 17), (18, 37)]


class WordModel:
    """A random unit vector for each word, whatever stands around it; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], TextKind]] = []

    async def embed_tokens(self, texts: list[str], kind: TextKind) -> list[np.ndarray]:
        self.asked.append((texts, kind))
        return [word_vectors(text) for text in texts]


def words(text: str) -> list[re.Match[str]]:
    return list(re.finditer(r"\w+", text.lower()))


def word_vectors(text: str) -> np.ndarray:
    found = [np.random.default_rng(list(word[0].encode())).standard_normal(DIMENSION) for word in words(text)]
    return np.array([one / np.linalg.norm(one) for one in found], dtype=np.float32).reshape(-1, DIMENSION)


def offsets(texts: list[str]) -> list[np.ndarray]:
    return [np.array([word.span() for word in words(text)], dtype=np.int64).reshape(-1, 2) for text in texts]


def reranker(model: WordModel, kept: int = 0) -> MaxSimReranker:
    return MaxSimReranker(model.embed_tokens, offsets, DIMENSION, kept)


def whole(*texts: str) -> list[list[Span]]:
    return [[(0, len(text))] for text in texts]


async def test_texts_that_come_with_their_token_vectors_are_not_encoded() -> None:
    model = WordModel()
    texts = [PORTS, "Rain falls."]
    stored = [encode_tokens(word_vectors(text)) for text in texts]
    scores = await reranker(model).score(["which port"], texts, whole(*texts), stored)
    assert model.asked == [(["which port"], "query")]
    assert scores[0][0, 0] == pytest.approx(0.5, abs=0.15)  # one of two words
    assert scores[1][0, 0] < 0.25


async def test_a_score_is_the_same_whether_its_token_vectors_were_stored_or_made() -> None:
    model = WordModel()
    texts = ["Rain falls.", PORTS, "A port."]
    stored = [b"", encode_tokens(word_vectors(PORTS)), b""]
    mixed = await reranker(model).score(["the port", "cats"], texts, whole(*texts), stored)
    made = await reranker(model).score(["the port", "cats"], texts, whole(*texts), [b"", b"", b""])
    for one, other in zip(mixed, made, strict=True):
        assert one.shape == (2, 1)
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert [asked for asked in model.asked if asked[1] == "passage"] == [
        (["A port.", "Rain falls."], "passage"),
        (sorted(texts), "passage"),
    ]


async def test_a_sentence_scores_by_its_own_tokens() -> None:
    stored = [encode_tokens(word_vectors(PORTS))]
    (scores,) = await reranker(WordModel()).score(["the port", "cats sleep"], [PORTS], [SENTENCES], stored)
    assert scores.shape == (2, 2)
    assert scores.argmax(axis=1).tolist() == [0, 1]
    assert scores.max(axis=1) == pytest.approx([1.0, 1.0], abs=0.1)


async def test_a_span_or_a_query_without_tokens_scores_zero() -> None:
    scores = await reranker(WordModel()).score(
        ["port", "?!"], ["  The port.", ""], [[(0, 1), (2, 11)], [(0, 0)]], [b""] * 2
    )
    assert scores[0][:, 0].tolist() == [0, 0]
    assert scores[0][0, 1] > 0.9
    assert scores[0][1, 1] == 0
    assert scores[1].tolist() == [[0], [0]]


async def test_stored_vectors_of_another_number_of_tokens_are_made_anew() -> None:
    model = WordModel()
    stored = [encode_tokens(word_vectors("Something else."))]
    (scores,) = await reranker(model).score(["cats"], [PORTS], [SENTENCES], stored)
    assert ([PORTS], "passage") in model.asked
    assert scores[0].argmax() == 1


async def test_what_was_made_lately_is_not_made_again() -> None:
    model = WordModel()
    scorer = reranker(model, kept=2)
    for text in ("one", "two", "one", "three", "two"):
        await scorer.score(["a"], [text], whole(text), [b""])
    assert [texts for texts, kind in model.asked if kind == "passage" and texts] == [
        ["one"],
        ["two"],
        ["three"],
        ["two"],
    ]
    assert [texts for texts, kind in model.asked if kind == "query" and texts] == [["a"]]
