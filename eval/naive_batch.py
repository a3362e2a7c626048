"""The naive way to ask many questions, for eval.bench_batch: `python -m eval.naive_batch TASK.json RESULT.json`.

A loop over batches of 32 in one process: each question searched for, one after the other; one synchronous
`LLM.generate` for all prompts of the batch, which waits for the longest answer; each answer grounded, one after the
other. The flow, its prompts and the engine's settings are the product's, so that the answers can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.raw import set_engine_environment
from eval.retrieval import PATIENT_S, open_steps
from rag.config import Settings, load_settings
from rag.engine import engine_kwargs
from rag.events import Done
from rag.local_steps import Models
from rag.models import choose_dtype, load_chat_template, load_token_counter, locate_model
from rag.pipeline import Flow, Steps, begin
from rag.step_settings import DeadlineSettings
from rag.types import Generate, GeneratedText, Question, Usage

BATCH = 32


async def ask_naively(questions: list[str], collection: str, settings: Settings) -> dict[str, Any]:
    """Answers in order, and the seconds of each part of the loop; starting the models is not in `seconds`."""
    set_engine_environment(settings)
    began = time.perf_counter()
    models = Models(settings)
    located = locate_model(settings.generator.model, settings.cache_dir)
    tokenize, llm = load_chat_template(located), _start_llm(settings, located)
    start_s = time.perf_counter() - began
    parts_s = {"prepare": 0.0, "generate": 0.0, "finish": 0.0}
    answers: list[dict[str, Any]] = []
    generated: list[int] = []
    async with open_steps(settings, models) as search:
        steps = Steps(search, _replay("", 0), load_token_counter(located))
        for at in range(0, len(questions), BATCH):
            marks = [time.perf_counter()]
            flows = [await _prepare(text, collection, steps, settings) for text in questions[at : at + BATCH]]
            marks.append(time.perf_counter())
            asked = [flow for flow in flows if flow.writers]
            for flow, (text, tokens) in zip(asked, _generate(llm, asked, tokenize), strict=True):
                flow.steps = replace(steps, generate=_replay(text, tokens))
                generated.append(tokens)
            marks.append(time.perf_counter())
            answers += [await _finish(flow) for flow in flows]
            marks.append(time.perf_counter())
            for name, first, last in zip(parts_s, marks, marks[1:], strict=False):
                parts_s[name] += last - first
    return {
        "questions": len(questions),
        "start_s": round(start_s, 1),
        "seconds": round(sum(parts_s.values()), 1),
        **{f"{name}_s": round(seconds, 1) for name, seconds in parts_s.items()},
        "generated_tokens": generated,
        "answers": answers,
    }


def _start_llm(settings: Settings, located: str) -> Any:
    from vllm import LLM

    engine = engine_kwargs(settings.generator, choose_dtype(settings))
    return LLM(model=located, **engine | {"max_num_seqs": BATCH})


async def _prepare(text: str, collection: str, steps: Steps, settings: Settings) -> Flow:
    flow = await begin(Question(text, collection), steps, settings)
    await flow.rerank()
    await flow.judge()
    return flow


def _generate(llm: Any, flows: list[Flow], tokenize: Any) -> list[tuple[str, int]]:
    """The text for each, and how many tokens it has."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": tokenize(flow.prompt.messages)} for flow in flows if flow.prompt]
    outputs = llm.generate(prompts, [SamplingParams(**flow.sampling(flow.llm)) for flow in flows], use_tqdm=False)
    return [(output.outputs[0].text, len(output.outputs[0].token_ids)) for output in outputs]


async def _finish(flow: Flow) -> dict[str, Any]:
    async for event in flow.finish():
        if isinstance(event, Done):
            quotes = [citation.quote for citation in event.answer.citations]
            return {"status": event.answer.status, "answer": event.answer.answer, "quotes": quotes}
    raise AssertionError("the flow ended without Done")


def _replay(text: str, tokens: int) -> Generate:
    """See rag.types.Generate."""

    async def generate(*_: object, max_tokens: int, **__: object) -> AsyncGenerator[GeneratedText, None]:
        yield GeneratedText(text, "length" if tokens >= max_tokens else "stop", Usage(0, tokens))

    return generate


def main() -> None:
    """Runs the task that a file describes and writes its result to another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("result", type=Path)
    chosen = parser.parse_args()
    task = json.loads(chosen.task.read_text(encoding="utf-8"))
    settings = load_settings()
    patient = DeadlineSettings(**dict.fromkeys(DeadlineSettings.model_fields, PATIENT_S))
    settings = settings.model_copy(update={"deadlines": patient})
    result = asyncio.run(ask_naively(task["questions"], task["collection"], settings))
    chosen.result.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
