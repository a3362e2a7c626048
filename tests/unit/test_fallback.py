"""The next LLM of a list in place of one that fails, over the real question flow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployments.schemas import degraded_header
from rag.config import Settings
from rag.errors import OverloadedError, StageError
from rag.serve_settings import OtherGenerator
from rag.types import GeneratedText, Message, Question
from tests.pipeline_checks import answer_of
from tests.pipeline_fakes import ScriptedLLM, make_settings, make_steps, says

ASKED = "Which port does the service listen on?"
RIGHT = "The service listens on port 8000."
ALSO_RIGHT = "Another port is chosen with the option --port."
FIRST, OTHERS = "smollm2-135m-instruct", ("second", "third")
DOWN = StageError("generate", "the engine is gone")


class SeveralLLMs:
    """Each name's own LLM."""

    def __init__(self, **llms: ScriptedLLM) -> None:
        self._llms = {name.replace("first", FIRST): llm for name, llm in llms.items()}

    def __call__(
        self, messages: list[Message], *, model: str, max_tokens: int, temperature: float
    ) -> AsyncIterator[GeneratedText]:
        return self._llms[model](messages, model=model, max_tokens=max_tokens, temperature=temperature)


def settings_of(*fallback: str, **first: Any) -> Settings:
    """Three LLMs; `fallback` is the first one's, and `first` what else differs from the embedded profile's."""
    settings = make_settings(deadlines={"generate_s": 0.5})
    others = [OtherGenerator(model="/models/any", model_id=name, max_tokens=7, temperature=0.25) for name in OTHERS]
    generator = settings.generator.model_copy(update={"fallback": fallback, **first})
    return settings.model_copy(update={"generator": generator, "generators": tuple(others)})


async def test_the_llm_that_is_asked_for_answers_under_its_own_limits() -> None:
    second = says(RIGHT)
    steps = make_steps(SeveralLLMs(first=ScriptedLLM([DOWN]), second=second))
    given = await answer_of(Question(ASKED, model="second"), steps, settings_of())
    assert (given.answer, given.model, given.degraded) == (f"{RIGHT} [1]", "second", ())
    (call,) = second.calls
    assert (call.model, call.max_tokens, call.temperature) == ("second", 7, 0.25)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([DOWN], id="down"),
        pytest.param([OverloadedError("its queue is full")], id="full"),
        pytest.param([5.0], id="late"),
        pytest.param(["Half a sent", DOWN], id="dies_within_a_sentence"),
        pytest.param(["Plums bloom in May. ", DOWN], id="dies_after_a_sentence_that_was_held_back"),
        pytest.param(["The passages do not say. ", DOWN], id="dies_after_a_refusal"),
    ],
)
async def test_where_one_fails_before_anything_was_sent_the_next_answers_and_its_name_is_told(script: Any) -> None:
    steps = make_steps(SeveralLLMs(first=ScriptedLLM(script), second=says(RIGHT)))
    given = await answer_of(Question(ASKED), steps, settings_of("second"))
    assert (given.answer, given.answer_source, given.model) == (f"{RIGHT} [1]", "generated", "second")
    assert given.degraded == (f"generate:{FIRST}",)
    assert degraded_header(given.degraded) == {"X-Degraded": f"generate:{FIRST}"}


async def test_the_list_is_gone_through_in_its_order() -> None:
    second, third = ScriptedLLM([DOWN]), says(RIGHT)
    steps = make_steps(SeveralLLMs(first=ScriptedLLM([DOWN]), second=second, third=third))
    given = await answer_of(Question(ASKED), steps, settings_of("third", "second"))
    assert (given.model, given.degraded, second.calls) == ("third", (f"generate:{FIRST}",), [])


async def test_where_all_fail_the_evidence_answers_and_the_stage_is_what_was_left_out() -> None:
    steps = make_steps(SeveralLLMs(first=ScriptedLLM([DOWN]), second=ScriptedLLM([DOWN]), third=ScriptedLLM([DOWN])))
    given = await answer_of(Question(ASKED), steps, settings_of("second", "third"))
    assert (given.answer_source, given.model, given.degraded) == ("extracted", FIRST, ("generate",))


async def test_what_was_sent_is_not_written_again_by_another() -> None:
    second = says(ALSO_RIGHT)
    steps = make_steps(SeveralLLMs(first=ScriptedLLM([f"{RIGHT} And then", DOWN]), second=second))
    given = await answer_of(Question(ASKED), steps, settings_of("second"))
    assert (given.answer, given.model, given.degraded) == (f"{RIGHT} [1]", FIRST, ("generate",))
    assert second.calls == []


async def test_one_without_a_list_has_no_next() -> None:
    second = says(RIGHT)
    steps = make_steps(SeveralLLMs(first=ScriptedLLM([DOWN]), second=second))
    given = await answer_of(Question(ASKED), steps, settings_of())
    assert (given.answer_source, given.degraded, second.calls) == ("extracted", ("generate",), [])


async def test_one_that_does_not_understand_the_question_is_not_asked_and_not_missed() -> None:
    first, second = says(RIGHT), says("다른 포트는 --port로 고릅니다.")
    steps = make_steps(SeveralLLMs(first=first, second=second))
    korean = Question("다른 포트는 어떻게 고릅니까?")
    given = await answer_of(korean, steps, settings_of("second", languages=("latin",)))
    assert (given.answer_source, given.model, given.degraded) == ("generated", "second", ())
    assert first.calls == []
