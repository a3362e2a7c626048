"""Ray's vLLM engine processor (`ray.data.llm`), whose engine answers: the flow goes on while the LLM writes.

A flow ends its generation as the service's does, at the sentences that it needs, and the engine goes on with the next
question: no answer waits for a longer one, and none is written further than it is read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStageUDF
from ray.llm._internal.common.errors import VLLM_FATAL_ERRORS
from vllm.exceptions import VLLMError

from deployments.batch_stages import PASSES, error_body, finish_packed, load_steps, patient
from deployments.generator import replica_environment
from rag.config import Settings
from rag.engine import engine_kwargs
from rag.errors import StageError
from rag.local_llm import EngineWriter
from rag.models import choose_dtype, load_chat_template, locate_model

if TYPE_CHECKING:
    from ray.data import Dataset

logger = logging.getLogger(__name__)
_BATCHES = 8  # in the engine's actor at once
_STAGE = "vLLMEngineStage"


class AnsweringEngine(vLLMEngineStageUDF):  # type: ignore[misc]  # ray ships no types for it
    """Flows that wait for the LLM -> bodies."""

    def __init__(self, *arguments: Any, settings: Settings, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.expected_input_keys: set[str] = set()  # Ray's own would be prompts
        self._settings = patient(settings)
        located = locate_model(settings.generator.model, settings.cache_dir)
        writer = EngineWriter(self.llm.engine, load_chat_template(located))
        judged = settings.evidence.model_copy(update={"answerability": None})  # by Prepare, before
        self._steps = replace(load_steps(settings.model_copy(update={"evidence": judged})), generate=writer)

    async def _generate_with_error_handling(self, row: dict[str, Any], batch_uuid: Any) -> dict[str, Any]:  # noqa: ARG002
        """What Ray's own calls for each row of a batch, all at once."""
        try:
            async with self.llm.semaphore:
                body = await finish_packed(row["pending"], self._steps, self._settings)
        except VLLM_FATAL_ERRORS:
            logger.exception("the engine is dead; its actor ends, and Ray starts another")
            os._exit(1)  # as Ray's own does: the batch is then tried again
        except VLLMError as error:
            body = error_body(row["row_id"], StageError("generate", f"{type(error).__name__}: {error}"))
        except Exception as error:  # noqa: BLE001  # the edge of a row: the others go on
            body = error_body(row["row_id"], error)
        return {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN], "body": body, "pending": b"", PASSES: ""}


def answering_engine(settings: Settings, rows: int) -> Callable[[Dataset], Dataset]:
    """What makes of Prepare's rows the answers, in batches of `rows`."""
    generator, serving = settings.generator, settings.serve.generator
    worker = {"CPU": 1.0, "GPU": 0.0 if generator.accelerator == "cpu" else serving.num_gpus}
    config = vLLMEngineProcessorConfig(
        model_source=locate_model(generator.model, settings.cache_dir),
        engine_kwargs=engine_kwargs(generator, choose_dtype(settings)),
        accelerator_type=generator.accelerator_type,
        placement_group_config={"bundles": [worker] * generator.tensor_parallel},
        runtime_env={"env_vars": replica_environment(generator, serving)},
        batch_size=rows,
        concurrency=serving.replicas,
        max_concurrent_batches=_BATCHES,
        # Twice what it works on: while an answer is grounded another is to be written.
        max_pending_requests=2 * generator.max_num_seqs,
        should_continue_on_error=True,
        log_engine_metrics=False,
        # Each would be one more process that imports transformers.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    processor = build_processor(config)
    stage = processor.stages[_STAGE]
    # A copy, since an assignment would have the stage work out its resources anew, of what it no longer has.
    own = {"fn": AnsweringEngine, "fn_constructor_kwargs": {**stage.fn_constructor_kwargs, "settings": settings}}
    processor.stages[_STAGE] = stage.model_copy(update=own)
    made: Callable[[Dataset], Dataset] = processor
    return made
