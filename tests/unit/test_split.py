from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from rag.split import check_split, choose_llm

KEYS = [f"key {number}" for number in range(10_000)]


@pytest.mark.parametrize(
    "split", [{"a": 90, "b": 10}, {"a": 0.5, "b": 0.5}, {"a": 7, "b": 2, "c": 1}], ids=lambda split: str(split)
)
def test_each_llm_gets_its_share_of_the_keys(split: dict[str, float]) -> None:
    counts = Counter(choose_llm(key, split) for key in KEYS)
    for name, weight in split.items():
        share = weight / sum(split.values())
        # Five standard deviations of a binomial count: the hash is a fixed draw.
        assert abs(counts[name] - share * len(KEYS)) < 5 * math.sqrt(share * (1 - share) * len(KEYS))


def test_the_same_key_gets_the_same_llm_in_whatever_order_the_split_names_them() -> None:
    assert [choose_llm(key, {"a": 3, "b": 1}) for key in KEYS] == [choose_llm(key, {"b": 1, "a": 3}) for key in KEYS]


def test_only_the_keys_that_have_to_move_do() -> None:
    before = [choose_llm(key, {"a": 90, "b": 10}) for key in KEYS]
    after = [choose_llm(key, {"a": 50, "b": 50}) for key in KEYS]
    moved = Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)
    assert set(moved) == {("a", "b")}
    assert moved["a", "b"] == pytest.approx(0.4 * len(KEYS), rel=0.05)


def test_a_new_llm_takes_keys_from_all_and_moves_none_between_the_others() -> None:
    before = [choose_llm(key, {"a": 1, "b": 1}) for key in KEYS]
    after = [choose_llm(key, {"a": 1, "b": 1, "c": 1}) for key in KEYS]
    moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {("a", "c"), ("b", "c")}


def test_a_single_llm_gets_every_key_also_one_that_is_no_unicode() -> None:
    assert {choose_llm(key, {"a": 0.1}) for key in ("", "\ud800", "열쇠")} == {"a"}


@pytest.mark.parametrize(
    ("split", "told"),
    [
        pytest.param({"c": 1}, "names 'c'; the LLMs are: a, b", id="unknown"),
        pytest.param({"a": 0}, "split.a is 0: a weight must be above 0", id="zero"),
        pytest.param({"a": 1, "b": -2}, "split.b is -2", id="negative"),
        pytest.param({"a": math.nan}, "split.a is nan", id="nan"),
        pytest.param({"a": math.inf}, "split.a is inf", id="infinite"),
        pytest.param({"a": "1"}, "split.a is '1'", id="text"),
        pytest.param(5, "give a weight", id="no_mapping"),
        pytest.param({}, "give a weight to one or more of: a, b", id="empty"),
    ],
)
def test_a_split_that_cannot_be_is_refused(split: Any, told: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        check_split(split, ["a", "b"])
    assert told in str(refused.value)
