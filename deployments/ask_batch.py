"""`rag ask-batch`: many questions over Ray Data, the LLM by Ray's vLLM engine processor (`ray.data.llm`).

    rows -> Prepare (retrieve, rerank, gate, prompt) -> vLLM's engine (generate, ground, extract) -> OUT, as they come

What is answered is on the disk at once, and is not asked again by the next run.

Nothing here may import Ray before it is started: it reads its environment then.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployments.ray_data import ray_data
from deployments.ray_session import joined_address, ray_environment
from ingest.fingerprint import index_fingerprint
from rag.batch_file import AnswerFile, BatchRow, open_answers, read_questions
from rag.config import Settings
from rag.connect import open_store
from rag.errors import StageError
from rag.evidence import check_fitted
from rag.models import locate_answerability, locate_model

_NAME = "ask-batch"
_ROWS = 16  # of a batch on its way from stage to stage; their answers come together
# The stages' actors, the tasks that Ray's processor has around the engine, and one to spare: with fewer they wait.
_CPUS = 8
_SAY_EVERY_S = 5.0

Say = Callable[[str], None]


@dataclass(slots=True)
class BatchReport:
    """What became of the rows; `known` were answered by a run before. `failures` are of {id, reason}."""

    questions: int
    known: int
    answered: int = 0
    abstained: int = 0
    seconds: float = 0.0
    failures: list[dict[str, str]] = field(default_factory=list)

    def count(self, row_id: str, body: dict[str, Any]) -> None:
        """Takes in what became of a row."""
        if "error" in body:
            self.failures.append({"id": row_id, "reason": body["error"]["detail"]})
        elif body["status"] == "answered":
            self.answered += 1
        else:
            self.abstained += 1

    @property
    def done(self) -> int:
        return self.known + self.answered + self.abstained + len(self.failures)

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        asked = self.done - self.known
        return {
            "questions": self.questions,
            "answered": self.answered,
            "abstained": self.abstained,
            "failed": len(self.failures),
            "known": self.known,
            "seconds": round(self.seconds, 1),
            "questions_per_s": round(asked / self.seconds, 2) if asked else None,
            "failures": self.failures,
        }


def ask_batch(settings: Settings, source: Path, target: Path, say: Say) -> BatchReport:
    """Asks the rows of `source` that `target` does not answer yet. A row that fails is a row with its error.

    Raises InputError for files that cannot be used, SettingsError, ModelError, StoreUnavailableError, and StageError
    where Ray or a stage as a whole fails; what was answered until then stays.
    """
    began = time.perf_counter()
    check_fitted(settings)
    rows = read_questions(source)
    with open_answers(target, rows) as out:
        report = BatchReport(len(rows), len(rows) - len(out.waiting))
        if report.known:
            say(f"{report.known} of {len(rows)} questions are answered already")
        if out.waiting:
            _ask(settings, out, report, say)
    report.seconds = time.perf_counter() - began
    return report


def _ask(settings: Settings, out: AnswerFile, report: BatchReport, say: Say) -> None:
    for reference in settings.model_references:
        locate_model(reference, settings.cache_dir)
    locate_answerability(settings)
    with open_store(settings, index_fingerprint(settings)) as store:
        store.collections()  # a store that does not answer is known before Ray is started
        say(f"asking {len(out.waiting)} questions over Ray Data{_at()}")
        tell = _Teller(report, say)
        for name, value in ray_environment(settings).items():
            os.environ.setdefault(name, value)
        with ray_data(settings, _NAME, _CPUS) as context:
            context.execution_options.preserve_order = False
            for bodies in _over_ray(list(out.waiting.values()), settings):
                out.append(bodies)
                for row_id, body in bodies:
                    report.count(row_id, body)
                tell()
    if out.waiting:
        raise StageError(_NAME, f"{len(out.waiting)} rows came back from no stage; run the command again")


def _at() -> str:
    return f" at {joined_address()}" if joined_address() else ""


def _over_ray(rows: Sequence[BatchRow], settings: Settings) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What becomes of the rows, some at a time, in the order in which they are ready."""
    import pyarrow
    import ray
    from ray.data import ActorPoolStrategy, from_arrow_refs

    from deployments.batch_stages import Prepare

    packed = [pickle.dumps(row) for row in rows]
    blocks = [ray.put(pyarrow.table({"row": packed[at : at + _ROWS]})) for at in range(0, len(packed), _ROWS)]
    serving = settings.serve
    answers = from_arrow_refs(blocks).map_batches(
        Prepare,
        fn_constructor_kwargs={"settings": settings},
        batch_size=_ROWS,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=1),
        num_cpus=1,
        num_gpus=serving.embedder.num_gpus + serving.reranker.num_gpus,
    )
    if settings.generator.languages != ():
        from deployments.batch_engine import answering_engine

        answers = answering_engine(settings, _ROWS)(answers)
    for columns in answers.iter_batches(batch_size=None, batch_format="numpy"):
        yield [(row_id, json.loads(body)) for row_id, body in zip(columns["row_id"], columns["body"], strict=True)]


class _Teller:
    """Says now and then how far a run is."""

    def __init__(self, report: BatchReport, say: Say) -> None:
        self._report, self._say = report, say
        self._began = self._said_at = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._said_at < _SAY_EVERY_S:
            return
        self._said_at = now
        report = self._report
        per_s = (report.done - report.known) / (now - self._began)
        minutes, seconds = divmod(round((report.questions - report.done) / per_s), 60)
        self._say(
            f"{report.done} of {report.questions} questions, {len(report.failures)} failed; "
            f"{per_s:.1f} a second, about {minutes} min {seconds} s left"
        )
