"""Answerability: made questions, sequences, low-rank changes, checkpoints, and the scorer, on a tiny random LLM."""

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
    QUESTIONS,
    WAYS,
    Group,
    Row,
    cut_group,
    cut_window,
    find_answer,
    hold_back,
    holds_answer,
    make_groups,
    nearest_sentence,
    read_squad_set,
    remove_answer,
    spoil,
    swap_detail,
    turn_around,
)
from eval.answerability_sequences import UNKNOWN, Tokens, make_sequence, plan_batches, read_states
from eval.train_answerability import CHECKPOINT, Recipe, Training, plan, train
from rag.answerability import PASSAGE_TOKENS, AnswerabilityScorer, PromptTokens, answer_log_odds, merge_low_rank
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
WITHOUT = Row("bridges", "Tower Bridge", "Who opens it?", None, (), (PASSAGE,))
RECIPE = Recipe(rank=4, passes=2, others=2, batch_tokens=150, learning_rate=1e-2)
ROWS = {"squad2-a": [ROW, WITHOUT], "xquad-en": [ROW], "qed_dev": [ROW, ROW]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a Llama of two small layers and a tokenizer of the texts' words."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    pattern = Regex(r"\s?\w+|\s?[^\w\s]|\n")
    split = pre_tokenizers.Split(pattern, "isolated")
    text = f"Passage: {PASSAGE}\nQuestion: {ROW.question} Elsewhere. Who opens it?\nAnswer from the passage, or none:"
    words = sorted({word for word, _ in split.pre_tokenize_str(text)} | {" none", "<|im_end|>", " <", "|", " end"})
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[EOS]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = split
    folder = tmp_path_factory.mktemp("base")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        eos_token="[EOS]",
        additional_special_tokens=["<|im_end|>"],
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
        initializer_range=0.3,  # so that a token's state depends on those before it
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def batches_of(training: Training) -> list[list[Tokens]]:
    return plan(ROWS, training.prompt, RECIPE)[:4]


def steps(training: Training, out: Path) -> Iterator[dict[str, object]]:
    yield from train(training, batches_of(training), out, checkpoint_every=1)


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


@pytest.mark.parametrize("way", WAYS)
def test_a_spoiled_question_has_no_answer_in_its_passage(way: str) -> None:
    made = spoil(ROW, PASSAGE, "Were any there in 1950?", [way], random.Random(0))
    assert made is not None
    assert (made[0] != ROW.question) == (way in ("swap", "turn"))
    assert (made[1] != PASSAGE) == (way in ("look-alike", "remove"))
    if way in ("look-alike", "remove"):
        assert not holds_answer(made[1], ROW.answers)
    bare = Row("bridges", "", "who came", "Horace Jones did.", ("Horace Jones",), ())
    assert spoil(bare, "Horace Jones did.", "", [way], random.Random(0)) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_window_s_questions_have_the_answers_that_stand_in_it(seed: int) -> None:
    asked = [(ROW.question, ["Horace Jones"]), ("How high are they?", ["65 metres"]), ("Who opens it?", [])]
    group = cut_group(PASSAGE, asked, 120, random.Random(seed))
    assert group.passage in PASSAGE
    assert len(group.passage) < len(PASSAGE)
    assert dict(group.asked) == {
        question: answers[0] if answers and answers[0] in group.passage else None for question, answers in asked
    }
    assert any(answer for _, answer in group.asked)


def test_a_question_whose_answer_s_words_stand_in_the_window_by_accident_is_left_out() -> None:
    text = "Two towers stand there. The bridge was opened by two queens, of whom one had waited long for it. Two left."
    chance = random.Random(0)
    groups = [cut_group(text, [("How many queens opened the bridge?", ["two"])], 60, chance) for _ in range(20)]
    assert {group.asked for group in groups} == {(("How many queens opened the bridge?", "two"),)}
    assert cut_group(text, [("Who left the queens and the bridge?", ["Two"]), ("Who?", ["queens"])], 60, chance).asked


def test_a_pass_reads_every_question_of_the_sets_and_some_of_the_tables() -> None:
    def made(seed: int, windows: float = 0.0) -> list[Group]:
        return make_groups(ROWS, others=1, windows=windows, max_chars=120, chance=random.Random(seed))

    groups = made(0)
    whole = next(group for group in groups if group.passage == PASSAGE)
    assert {(WITHOUT.question, None), (ROW.question, "Horace Jones")} <= set(whole.asked)
    assert sum(answer == "Horace Jones" for group in groups for _, answer in group.asked) == 3
    assert all(len(group.asked) <= QUESTIONS for group in groups)
    assert made(0) == groups
    assert any(made(seed) != groups for seed in range(1, 9))
    assert all(len(group.passage) <= 120 for group in made(0, windows=1.0))


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


def test_each_question_sees_the_passage_and_itself_alone(base: str) -> None:
    import torch

    training = Training(base, RECIPE, 1)
    asked = (("Who opens it?", None), (ROW.question, "Horace Jones"))
    together = make_sequence(training.prompt, Group(PASSAGE, asked), 12)
    apart = [make_sequence(training.prompt, Group(PASSAGE, (one,)), 12) for one in asked]
    assert len(together.tokens) == len(together.targets) == len(together.branches) == len(together.positions)
    answers = [[target for target in one.targets if target != UNKNOWN] for one in (together, *apart)]
    assert answers[0] == answers[1] + answers[2]
    assert answers[1] == training.prompt.answer(None, 12)
    with torch.inference_mode():
        both = read_states(training.model, [together])[0, list(together.decided)]
        alone = torch.stack([read_states(training.model, [one])[0, one.decided[0]] for one in apart])
        padded = read_states(training.model, [apart[0], together])[0, apart[0].decided[0]]
    # The training computes in bfloat16 where the processor does, and its values have eight bits.
    assert torch.allclose(both.float(), alone.float(), atol=0.05)
    assert torch.allclose(padded.float(), alone[0].float(), atol=0.05)
    assert not torch.allclose(alone[0].float(), alone[1].float(), atol=0.2)


def test_the_answer_begins_where_the_question_ends(base: str) -> None:
    training = Training(base, RECIPE, 1)
    one = make_sequence(training.prompt, Group(PASSAGE, ((ROW.question, "Horace Jones"),)), 12)
    bare = make_sequence(training.prompt, Group(PASSAGE, ((ROW.question, None),)), 0)
    assert bare.decided == one.decided == (len(bare.tokens) - 1,)
    assert one.targets[one.decided[0]] == training.prompt.answer("Horace Jones", 1)[0]
    assert set(bare.targets) == {UNKNOWN}


def test_batches_hold_each_sequence_once(base: str) -> None:
    prompt = Training(base, RECIPE, 1).prompt
    sequences = [make_sequence(prompt, Group(PASSAGE[:length], (("Who?", None),)), 12) for length in range(5, 170, 3)]
    batches = plan_batches(sequences, 150, random.Random(0))
    held = sorted(len(one.tokens) for batch in batches for one in batch)
    assert held == sorted(len(one.tokens) for one in sequences)
    assert all(len(batch) * max(len(one.tokens) for one in batch) <= 150 for batch in batches if len(batch) > 1)


def test_the_merged_llm_is_the_one_with_low_rank_changes(base: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    training = Training(base, RECIPE, 4)
    list(steps(training, tmp_path))
    changes = {name: value.detach() for name, value in training.trained.items()}
    assert any(value.abs().max() > 0 for name, value in changes.items() if name.endswith("lora_b"))
    assert len(changes) == 2 * 2 * 7  # two tensors for each of two layers' seven linear weights
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    batch = [make_sequence(training.prompt, Group(PASSAGE, ((ROW.question, None),)), 0)]
    with torch.inference_mode():
        before = read_states(model, batch)
        merge_low_rank(model, changes, RECIPE.scale)
        after = read_states(model, batch)
        own = read_states(training.model, batch).float()
    # Where the processor has it the training computes in bfloat16, whose values have eight bits.
    assert (after - own).abs().mean() < 0.02 < 0.2 * (before - own).abs().mean()


def test_a_killed_run_ends_where_an_unbroken_one_does(base: str, tmp_path: Path) -> None:
    whole, broken = Training(base, RECIPE, 4), Training(base, RECIPE, 4)
    lines = list(steps(whole, tmp_path))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    killed = steps(broken, tmp_path)
    next(killed), next(killed)
    resumed = Training(base, RECIPE, 4)
    resumed.load_checkpoint(tmp_path / CHECKPOINT)
    assert resumed.step == 2
    list(steps(resumed, tmp_path))
    for name, value in whole.trained.items():
        np.testing.assert_allclose(resumed.trained[name].detach(), value.detach(), atol=1e-6)


def test_training_tells_the_questions_apart(base: str, tmp_path: Path) -> None:
    training = Training(base, RECIPE, 60)
    pairs = [(ROW.question, PASSAGE), (WITHOUT.question, PASSAGE)]
    group = Group(PASSAGE, ((ROW.question, "Horace Jones"), (WITHOUT.question, None)))
    batch = [make_sequence(training.prompt, group, 12)]
    before = training.log_odds(pairs)
    list(train(training, [batch] * 60, tmp_path, checkpoint_every=60))
    after = training.log_odds(pairs)
    assert after[0] - after[1] > 2 > abs(before[0] - before[1])


def scorer_of(base: str, folder: Path, **settings: Any) -> AnswerabilityScorer:
    return AnswerabilityScorer(EmbedderSettings(model="an embedder", **settings), base, folder / ADAPTER)


def test_the_scorer_reads_the_saved_adapter(base: str, tmp_path: Path) -> None:
    training = Training(base, RECIPE, 4)
    list(steps(training, tmp_path))
    training.save_adapter(tmp_path / ADAPTER, base)
    scorer = scorer_of(base, tmp_path, batch_tokens=64)
    pairs = [(ROW.question, PASSAGE), ("Who opens it?", "Elsewhere."), (ROW.question, "")]
    scores = scorer.score(scorer.encode(pairs))
    np.testing.assert_allclose(scores, training.log_odds(pairs), atol=0.1)
    np.testing.assert_allclose(scorer.score(scorer.encode(pairs[::-1])), scores[::-1], atol=0.05)
    assert scorer.score([]).shape == (0,)


def test_a_text_longer_than_the_limit_is_cut_and_the_prompt_s_end_stays(base: str, tmp_path: Path) -> None:
    Training(base, RECIPE, 4).save_adapter(tmp_path / ADAPTER, base)
    scorer = scorer_of(base, tmp_path)
    long, usual = scorer.encode([(f"{ROW.question} " * 50, PASSAGE * 20), (ROW.question, PASSAGE)])
    assert PASSAGE_TOKENS < len(long) < 512
    assert long[-6:] == usual[-6:]
    assert np.isfinite(scorer.score([long, usual])).all()


def test_control_tokens_that_a_document_spells_out_are_words(base: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    (control,) = tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    prompt = PromptTokens(tokenizer)
    assert control not in prompt.passage("The end <|im_end|> of it.") + prompt.question("Who <|im_end|>?")


def test_log_odds_are_of_any_other_token() -> None:
    import torch

    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    odds = answer_log_odds(logits, 1)
    np.testing.assert_allclose(odds.numpy(), np.log([0.75 / 0.25, 0.2 / 0.8]), atol=1e-5)


def test_an_adapter_of_another_base_is_refused(base: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"model.layers.9.mlp.up_proj.weight.lora_a": torch.zeros(1, 1)}, tmp_path / ADAPTER, {"scale": "1"})
    with pytest.raises(ModelError, match="does not fit"):
        scorer_of(base, tmp_path)


def test_the_settings_adapter_names_its_llm(base: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    Training(base, RECIPE, 4).save_adapter(tmp_path / ADAPTER, base)
    found = locate_answerability(load_settings(profile="embedded", evidence={"answerability": str(tmp_path)}))
    assert found is not None
    assert (found.path, found.base) == (tmp_path / ADAPTER, base)
    assert locate_answerability(load_settings(profile="embedded", evidence={"answerability": None})) is None
    for metadata in ({"scale": "1"}, None):
        save_file({"a": np.zeros(1)}, tmp_path / ADAPTER, metadata)
        with pytest.raises(ModelError, match=r"adapter.safetensors cannot be read .* evidence.answerability to null"):
            locate_answerability(load_settings(profile="embedded", evidence={"answerability": str(tmp_path)}))
    gone = load_settings(profile="embedded", evidence={"answerability": str(tmp_path / "none")})
    with pytest.raises(ModelError, match=r"none.adapter.safetensors cannot be read .* evidence.answerability to null"):
        locate_answerability(gone)
    save_file({"a": np.zeros(1)}, tmp_path / ADAPTER, {"base": "package:no_such_package"})
    with pytest.raises(ModelError, match="no_such_package"):
        locate_answerability(load_settings(profile="embedded", evidence={"answerability": str(tmp_path)}))


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
