"""The orchestrator's own limits, over handles that are fakes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deployments import ingress, watch
from rag.errors import DeadlineError, StageError, StageTimeoutError
from rag.types import Question
from rag.wire import SearchRequest
from tests.orchestrator_fakes import FakeHandle, orchestrator_over, settings_in


@pytest.mark.parametrize(
    ("deadlines", "deadline_s", "told"),
    [
        pytest.param({}, 0.05, "0.05 s", id="the_question_s"),
        pytest.param({"total_s": 0.06}, None, "0.06 s", id="the_settings"),
        pytest.param({"total_s": 0.05, "max_s": 0.07}, 3600.0, "0.07 s", id="the_longest"),
    ],
)
async def test_a_question_that_waits_for_a_place_gets_its_deadline(
    tmp_path: Path, deadlines: dict[str, Any], deadline_s: float | None, told: str
) -> None:
    settings = settings_in(tmp_path, serve={"max_inflight": 1, "max_queued": 1}, deadlines=deadlines)
    with orchestrator_over(settings) as orchestrator:
        async with orchestrator._admission.permit(60.0):
            for _ in range(2):  # the second finds the place in the queue that the first one had
                async with asyncio.timeout(10):
                    with pytest.raises(DeadlineError, match=f"deadline of {told} passed before one of 1 places"):
                        await anext(orchestrator.chat.events(Question("Why?", deadline_s=deadline_s)))


async def test_a_search_that_waits_for_a_place_gets_the_settings_deadline(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, serve={"max_inflight": 1, "max_queued": 1}, deadlines={"total_s": 0.05})
    with orchestrator_over(settings) as orchestrator:
        async with orchestrator._admission.permit(60.0):
            for _ in range(2):
                async with asyncio.timeout(10):
                    with pytest.raises(DeadlineError, match=r"deadline of 0\.05 s passed before one of 1 places"):
                        await orchestrator.search(SearchRequest(query="Why?"))


async def test_without_a_retriever_what_tells_of_its_collections_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "TIMEOUT_S", 0.05)
    retriever = FakeHandle()
    del retriever.answers["ready"]  # no replica answers anything
    with orchestrator_over(settings_in(tmp_path), retriever=retriever) as orchestrator:
        for ask in (orchestrator.info, orchestrator.chat.collections):
            async with asyncio.timeout(10):
                with pytest.raises(StageError, match=r"the retriever (went|is) down"):
                    await ask()
    assert "index_versions" in retriever.cancelled


async def test_a_retriever_that_does_not_answer_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress, "INDEX_VERSIONS_S", 0.05)
    retriever = FakeHandle()
    with orchestrator_over(settings_in(tmp_path), retriever=retriever) as orchestrator:
        for ask in (orchestrator.info, orchestrator.chat.collections):
            async with asyncio.timeout(10):
                with pytest.raises(StageTimeoutError, match=r"no answer within 0\.05 s"):
                    await ask()
    assert retriever.cancelled == ["index_versions"] * 2


async def test_the_collections_are_told_with_their_versions(tmp_path: Path) -> None:
    retriever = FakeHandle(index_versions={"default": "v1"})
    with orchestrator_over(settings_in(tmp_path), retriever=retriever) as orchestrator:
        assert (await orchestrator.info())["index_versions"] == {"default": "v1"}
        assert list(await orchestrator.chat.collections()) == ["default"]
