"""The evaluation of the example questions, `make eval`: `python -m eval.examples`.

Starts the service, ingests examples/corpus, asks examples/questions.txt, and counts the answers whose quotes hold the
expected phrase, the citations that stand in their files, and the abstentions where nothing is to be found. Last line of
stdout: one JSON document; the answers go to build/eval-answers.json. Exit status 1 when a citation does not hold.
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from eval.bench_service import BenchError, ingest, started_service
from eval.citations import faults
from eval.hardware import describe_machine
from rag.client import Client
from rag.errors import RagError

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 8


def verdict(expected: dict[str, Any], answer: dict[str, Any]) -> str:
    """`right`, `wrong` or `abstained` for a question with an answer; `right` or `answered` for one without."""
    if not expected.get("answerable", True):
        return "right" if answer["status"] == "abstained" else "answered"
    if answer["status"] == "abstained":
        return "abstained"
    quotes = " ".join(" ".join(citation["quote"].split()) for citation in answer["citations"])
    return "right" if expected["phrase"] in quotes else "wrong"


def main() -> int:
    """Runs the evaluation and prints it."""
    expected = json.loads((ROOT / "examples" / "expected.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        variables = {"RAG_DATA_DIR": name}
        try:
            with started_service(variables, ROOT / "build" / "eval-service.log") as service:
                ingest(variables, ROOT / "examples" / "corpus")
                with Client(service.url) as client, ThreadPoolExecutor(AT_ONCE) as pool:
                    answers = list(pool.map(lambda one: client.ask(one["question"]).as_sent(), expected))
        except (BenchError, RagError) as error:
            print(f"eval: {error}", file=sys.stderr)
            return 3
    with (ROOT / "build" / "eval-answers.json").open("w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")
    verdicts = [verdict(one, answer) for one, answer in zip(expected, answers, strict=True)]
    wrong = [fault for answer in answers for fault in faults(answer)]
    for one, answer, found in zip(expected, answers, verdicts, strict=True):
        print(f"{found:10} {answer['answer_source'] or '-':10} {one['question']}")
    report = {
        "questions": len(expected),
        "right": verdicts.count("right"),
        "citations": sum(len(answer["citations"]) for answer in answers),
        "citation_faults": wrong,
        "hardware": describe_machine(),
    }
    print(json.dumps(report, ensure_ascii=False))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
