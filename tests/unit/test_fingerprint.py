"""What makes an index another one."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.fingerprint import index_fingerprint
from rag.config import load_settings


@pytest.mark.parametrize(
    "changed",
    [
        {"embedder": {"languages": ["latin", "ko"]}},
        {"embedder": {"languages": None}},
        {"embedder": {"passage_prefix": "passage: "}},
        {"chunk": {"overlap_tokens": 0}},
    ],
    ids=["languages", "all_languages", "prefix", "overlap"],
)
def test_what_changes_chunks_or_vectors_changes_the_index_version(changed: dict[str, Any]) -> None:
    own = index_fingerprint(load_settings(profile="embedded"))
    assert index_fingerprint(load_settings(profile="embedded", **changed)).index_version != own.index_version


def test_settings_that_leave_them_alone_keep_it() -> None:
    changed = load_settings(profile="embedded", embedder={"batch_tokens": 512}, reranker={"languages": None})
    assert index_fingerprint(changed) == index_fingerprint(load_settings(profile="embedded"))
