"""How pymilvus packs the rows that it is given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pymilvus import DataType
from pymilvus.client.entity_helper import pack_field_value_to_field_data
from pymilvus.exceptions import DataNotMatchException
from pymilvus.grpc_gen.schema_pb2 import FieldData

import rag.milvus  # noqa: F401  # what is tested is what it sets

FIELD = {"name": "text", "params": {"max_length": 9}}


class Unread(str):
    """A string that must not be gone through."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("each character was looked at")


def test_a_string_is_packed_without_a_look_at_each_character() -> None:
    packed = FieldData(type=DataType.VARCHAR)
    pack_field_value_to_field_data(Unread("a note"), packed, FIELD, {})
    assert list(packed.scalars.string_data.data) == ["a note"]


def test_what_is_no_string_is_still_refused() -> None:
    with pytest.raises(DataNotMatchException, match="text"):
        pack_field_value_to_field_data(7, FieldData(type=DataType.VARCHAR), FIELD, {})
