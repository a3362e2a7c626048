from __future__ import annotations

from typing import Any

import pytest

from rag.errors import InputError
from rag.filters import FieldKind
from rag.metadata import check_metadata, read_metadata

FIELDS: dict[str, FieldKind] = {
    "lang": "text",
    "year": "integer",
    "score": "number",
    "draft": "boolean",
    "tags": "list",
}


def test_a_command_line_s_texts_become_what_the_fields_hold() -> None:
    pairs = [("lang", "2024"), ("year", "-2024"), ("tags", "a,b"), ("score", "2.5"), ("draft", "true"), ("tags", "c")]
    assert read_metadata([*pairs, ("other", "1")], FIELDS) == {
        "lang": "2024",
        "year": -2024,
        "score": 2.5,
        "draft": True,
        "tags": ["a,b", "c"],
        "other": "1",
    }


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("year", "last", "a whole number"),
        ("year", "2024.5", "a whole number"),
        ("score", "high", "a number"),
        ("score", "nan", "a number"),
        ("score", "1e999", "a number"),
        ("draft", "yes", "true or false"),
    ],
)
def test_a_text_that_a_field_cannot_hold_is_refused(name: str, text: str, told: str) -> None:
    with pytest.raises(InputError, match=f"metadata {name} is '{text}'; it must be {told}"):
        read_metadata([(name, text)], FIELDS)


@pytest.mark.parametrize("pair", [("other", "caf\udce9"), ("tags", "\udce9"), ("caf\udce9", "x")])
def test_bytes_of_the_command_line_that_are_no_text_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="is no UTF-8"):
        read_metadata([pair], FIELDS)


@pytest.mark.parametrize("name", ["year", "other"])
def test_one_value_is_not_given_twice(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is given twice"):
        read_metadata([(name, "1"), (name, "2")], FIELDS)


GOOD: dict[str, list[Any]] = {
    "lang": ["", "ko"],
    "year": [0, 2024],
    "score": [1, 2.5],
    "draft": [True, False],
    "tags": [[], ["a"], ("a",)],
    "other": [None, {"a": [1]}],
}
BAD: dict[str, list[Any]] = {
    "lang": [1, None, ["ko"]],
    "year": ["2024", 2024.0, True, None],
    "score": ["1", True],
    "draft": [1, "true"],
    "tags": ["a", [1], {"a": 1}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_metadata_of_the_declared_types_passes(name: str, value: Any) -> None:
    check_metadata({name: value}, FIELDS)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_metadata_of_another_type_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"metadata {name} is .*; it must be"):
        check_metadata({name: value}, FIELDS)
