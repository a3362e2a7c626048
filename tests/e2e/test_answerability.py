"""Answerability: made pairs, low-rank changes, checkpoints, and the scorer, on a tiny random encoder."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.answerability_data import (
    Example,
    Row,
    cut_window,
    find_answer,
    hold_back,
    holds_answer,
    make_examples,
    nearest_sentence,
    read_squad_set,
    remove_answer,
    swap_detail,
    turn_around,
)
from eval.train_answerability import CHECKPOINT, Recipe, Training, plan_batches, span_targets, train
from rag.answerability import AnswerabilityScorer, encode_pairs, judge_pairs, merge_low_rank, passage_tokens
from rag.config import load_settings
from rag.errors import ModelError
from rag.local_steps import Models
from rag.models import ADAPTER, locate_answerability
from rag.step_settings import EmbedderSettings

PASSAGE = (
    "The bridge was built in 1894. It was designed by Horace Jones, who never saw it finished. "
    "Its towers are 65 metres high. The roadway was opened to London traffic by Prince Edward."
)
ROW = Row(
    "bridges", "Tower Bridge", "Who designed the first bridge in 1894?", PASSAGE, ("Horace Jones",), ("Elsewhere.",)
)
RECIPE = Recipe(rank=4, first_layer=1, batch=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a BERT of two small layers and a tokenizer of the texts' words."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = sorted({word.strip(".,?").lower() for word in f"{PASSAGE} {ROW.question} elsewhere opens".split()})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("base")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


def examples() -> list[Example]:
    return make_examples([ROW, Row("bridges", "Tower Bridge", "Who opens it?", None, (), (PASSAGE,))] * 4, 0, 400)


def steps(training: Training, out: Path) -> Iterator[dict[str, object]]:
    made = examples()
    batches = plan_batches(made, [len(one.passage) for one in made], RECIPE.batch, 0)
    checks = [ROW, ROW, *(Row("", "", "Who opens it?", None, (), (PASSAGE,)),) * 2]
    yield from train(training, made, batches, checks, out, checkpoint_every=1, check_every=100)


def test_a_removed_answer_is_gone_and_the_other_sentences_stay() -> None:
    left = remove_answer(PASSAGE, ROW.answers)
    assert left == PASSAGE.replace("It was designed by Horace Jones, who never saw it finished. ", "")
    assert remove_answer("Horace Jones did.", ROW.answers) is None


def test_a_swapped_detail_is_another_of_its_kind() -> None:
    chance = random.Random(0)
    assert swap_detail("Who came in 1894?", "In 1894 and in 1901 somebody came, 65 in all.", "", chance) == (
        "Who came in 1901?"
    )
    assert swap_detail("Did the queen meet Horace Jones there?", "He met Prince Edward.", "", chance) == (
        "Did the queen meet Prince Edward there?"
    )
    assert swap_detail("Were 20 there?", "None was.", "Were 30 there?", chance) == "Were 30 there?"
    assert swap_detail("who came", PASSAGE, "", chance) is None


def test_a_question_is_turned_around_by_an_opposite_word() -> None:
    assert turn_around("Who designed the first bridge?", random.Random(0)) == "Who designed the last bridge?"
    negated = {turn_around("What is it?", random.Random(seed)) for seed in range(60)}
    assert negated == {None, "What is not it?"}


def test_an_answer_is_found_in_the_sentence_nearest_to_the_question() -> None:
    text = "Jones was late. The bridge was designed by Jones."
    assert find_answer("Who designed the bridge?", text, ["jones"]) == (43, 48)
    assert find_answer("Who?", text, ["Smith"]) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limit", [40, 80, 130])
def test_a_window_holds_its_centre_within_the_limit(seed: int, limit: int) -> None:
    centre = find_answer(ROW.question, PASSAGE, ["65 metres"])
    assert centre is not None
    start, end = cut_window(PASSAGE, centre, limit, random.Random(seed))
    assert start <= centre[0] < centre[1] <= end
    assert end - start <= limit


def test_the_nearest_sentence_shares_most_words() -> None:
    start, end = nearest_sentence("How high are the towers?", PASSAGE)
    assert PASSAGE[start:end] == "Its towers are 65 metres high."


def test_examples_are_balanced_and_their_spans_are_answers() -> None:
    made = examples()
    assert sum(one.answerable for one in made) == sum(not one.answerable for one in made) == 8
    for one in made:
        if one.answerable:
            assert one.span is not None
            assert one.passage[slice(*one.span)] == "Horace Jones"
        elif one.question == ROW.question:
            assert not holds_answer(one.passage, ROW.answers)
    assert made == examples()


def test_held_back_articles_are_the_same_each_time() -> None:
    assert hold_back({"a", "b", "c", "d"}, 2, 0) == hold_back(["d", "c", "b", "a"], 2, 0)
    assert len(hold_back({"a", "b", "c", "d"}, 2, 0)) == 2


def test_a_set_gives_rows_with_look_alike_paragraphs(tmp_path: Path) -> None:
    folder = tmp_path / "squad"
    folder.mkdir()
    for name, rows in {
        "corpus.jsonl": [
            {"_id": "1", "title": "Bridge", "text": PASSAGE},
            {"_id": "2", "title": "Bridge", "text": "Another bridge was designed by nobody."},
            {"_id": "3", "title": "Bridge", "text": "Horace Jones designed markets."},
        ],
        "queries.jsonl": [{"_id": "a", "text": ROW.question}, {"_id": "b", "text": "Who sold it?"}],
        "answers.jsonl": [
            {"_id": "a", "answers": ["Horace Jones"], "unanswerable": False, "paragraph": "1"},
            {"_id": "b", "answers": [], "unanswerable": True, "paragraph": "2"},
        ],
    }.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answerable, unanswerable = read_squad_set(folder)
    assert answerable.passage == PASSAGE
    assert answerable.negatives == ("Another bridge was designed by nobody.",)
    assert unanswerable.passage is None
    assert unanswerable.negatives == ("Another bridge was designed by nobody.",)


def test_batches_hold_each_example_at_most_once() -> None:
    batches = plan_batches(examples(), list(range(16)), 5, 0)
    assert all(len(batch) == 5 for batch in batches)
    assert len({index for batch in batches for index in batch}) == 15


def test_span_targets_are_the_answers_tokens(base: str, tmp_path: Path) -> None:
    training = Training(base, RECIPE, 1)
    span = find_answer(ROW.question, PASSAGE, ROW.answers)
    made = [
        Example("", ROW.question, PASSAGE, True, span),
        Example("", ROW.question, PASSAGE, True),
        Example("", ROW.question, "Elsewhere.", False),
    ]
    tokens = encode_pairs(training.tokenizer, [(one.question, one.passage) for one in made], 128)
    starts, ends = span_targets(made, tokens)
    ids = tokens["input_ids"][0, int(starts[0]) : int(ends[0]) + 1]
    assert training.tokenizer.decode(ids) == "horace jones"
    assert starts.tolist()[1:] == ends.tolist()[1:] == [-100, 0]
    text = training.tokenizer.decode(tokens["input_ids"][2][passage_tokens(tokens)[2]])
    assert text.split()[0] == "elsewhere"
    # Of "Horace Jones" only the first word and [SEP] have room.
    cut = encode_pairs(training.tokenizer, [(ROW.question, PASSAGE)], int(starts[0]) + 2)
    assert [found.tolist() for found in span_targets(made[:1], cut)] == [[-100], [-100]]


def test_the_merged_encoder_is_the_one_with_low_rank_changes(base: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    training = Training(base, RECIPE, 4)
    list(steps(training, tmp_path))
    pairs = [(ROW.question, PASSAGE), ("Who opens it?", "Elsewhere.")]
    tokens = encode_pairs(training.tokenizer, pairs, 128)
    changes = {name: value.detach() for name, value in training.trained.items() if not name.startswith("heads.")}
    assert any(value.abs().max() > 0 for name, value in changes.items() if name.endswith("lora_b"))
    assert all(name.startswith("encoder.layer.1.") for name in changes)
    merged = AutoModel.from_pretrained(base, add_pooling_layer=False).eval()
    with torch.inference_mode():
        before = judge_pairs(merged, training.heads, tokens)
        merge_low_rank(merged, changes, RECIPE.scale)
        after = judge_pairs(merged, training.heads, tokens)
        own = judge_pairs(training.encoder, training.heads, tokens)
    for one, other in zip(after, own, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(before.log_odds, own.log_odds, atol=1e-4)


def test_a_killed_run_ends_where_an_unbroken_one_does(base: str, tmp_path: Path) -> None:
    whole, broken = Training(base, RECIPE, 4), Training(base, RECIPE, 4)
    lines = list(steps(whole, tmp_path))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    killed = steps(broken, tmp_path)
    next(killed), next(killed)
    resumed = Training(base, RECIPE, 4)
    resumed.load_checkpoint(tmp_path / CHECKPOINT)
    assert resumed.step == 2
    list(steps(resumed, tmp_path))
    for name, value in whole.trained.items():
        np.testing.assert_allclose(resumed.trained[name].detach(), value.detach(), atol=1e-6)


def test_a_run_ends_with_its_time(base: str, tmp_path: Path) -> None:
    training = Training(base, RECIPE, 4, cpu_limit_s=1e-6)
    assert [line["step"] for line in steps(training, tmp_path)] == [1, 1]


def scorer_of(base: str, folder: Path, **settings: Any) -> AnswerabilityScorer:
    return AnswerabilityScorer(EmbedderSettings(model=base, **settings), base, folder / ADAPTER)


def test_the_scorer_reads_the_saved_adapter(base: str, tmp_path: Path) -> None:
    training = Training(base, RECIPE, 4)
    list(steps(training, tmp_path))
    training.save_adapter(tmp_path / ADAPTER, base)
    scorer = scorer_of(base, tmp_path, batch_tokens=64)
    pairs = [(ROW.question, PASSAGE), ("Who opens it?", "Elsewhere."), (ROW.question, "")]
    scores = scorer.score(pairs)
    np.testing.assert_allclose(scores, training.log_odds(pairs), atol=0.1)
    np.testing.assert_allclose(scorer.score(pairs[::-1]), scores[::-1], atol=0.02)
    assert scorer.score([]).shape == (0,)


def test_a_question_longer_than_the_limit_is_cut_too(base: str, tmp_path: Path) -> None:
    Training(base, RECIPE, 4).save_adapter(tmp_path / ADAPTER, base)
    scorer = scorer_of(base, tmp_path, max_tokens=16)
    scores = scorer.score([(f"{ROW.question} " * 9, PASSAGE), (ROW.question, PASSAGE)])
    assert np.isfinite(scores).all()
    assert scorer.count_tokens([(f"{ROW.question} " * 9, PASSAGE)]) == [16]


def test_an_adapter_of_another_base_is_refused(base: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"encoder.layer.9.output.dense.weight.lora_a": torch.zeros(1, 1)}, tmp_path / ADAPTER, {"scale": "1"})
    with pytest.raises(ModelError, match="does not fit"):
        scorer_of(base, tmp_path)


def test_the_settings_adapter_is_used_with_its_own_base_alone(base: str, tmp_path: Path) -> None:
    Training(base, RECIPE, 4).save_adapter(tmp_path / ADAPTER, base)
    evidence = {"answerability": str(tmp_path)}
    own = load_settings(profile="embedded", embedder={"model": base}, evidence=evidence)
    assert locate_answerability(own) == tmp_path / ADAPTER
    assert locate_answerability(load_settings(profile="embedded", evidence=evidence)) is None
    assert locate_answerability(load_settings(profile="embedded", evidence={"answerability": None})) is None
    missing = load_settings(profile="embedded", evidence={"answerability": str(tmp_path / "none")})
    with pytest.raises(ModelError, match=r"none.adapter.safetensors cannot be read .* evidence.answerability to null"):
        locate_answerability(missing)


PAIRS = [
    ("Who designed the bridge?", PASSAGE),
    ("How high are the towers?", PASSAGE),
    ("Who painted the bridge red?", PASSAGE),
    ("How high are the towers?", "The orchard holds eleven plum trees. They bloom in April."),
]


async def test_the_shipped_adapter_tells_answers_and_calls_at_once_share_a_pass(tmp_path: Path) -> None:
    judge = Models(load_settings(profile="embedded", data_dir=tmp_path)).answerability
    assert judge is not None
    together = await judge(PAIRS)
    assert together.dtype == np.float32
    assert min(together[:2]) > max(together[2:])
    apart = await asyncio.gather(*(judge([pair]) for pair in PAIRS))
    np.testing.assert_allclose(np.concatenate(apart), together, atol=0.1)
