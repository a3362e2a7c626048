"""`make demo`: starts the service, ingests examples/corpus, asks examples/questions.txt, prints the answers, stops.

Exit status 0 when every question got an answer or an abstention, else that of the step that failed.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rag.client import Client
from rag.errors import RagError
from rag.wire import AnswerBody

EXAMPLES = Path(__file__).resolve().parent
RAG = [str(Path(sys.executable).with_name("rag"))]
AT_ONCE = 14  # the LLM batches them


def show(question: str, response: AnswerBody) -> None:
    """One question, its answer and the quotes that prove it."""
    print(f"\nQ  {question}\nA  {response.answer}")
    for citation in response.citations:
        page = f", page {citation.page}" if citation.page is not None else ""
        quote = " ".join(citation.quote.split())
        print(f"   [{citation.marker}] {Path(citation.source).name}{page}: “{quote}”")


def main() -> int:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="8000")
    chosen = parser.parse_args()
    lines = (EXAMPLES / "questions.txt").read_text(encoding="utf-8").splitlines()
    questions = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    began = time.perf_counter()
    service = subprocess.Popen(
        [*RAG, "serve", "--host", chosen.host, "--port", chosen.port], stderr=subprocess.PIPE, text=True
    )
    # Works whether or not the service runs yet, so it need not wait for it.
    ingest = subprocess.Popen([*RAG, "ingest", str(EXAMPLES / "corpus")])
    try:
        assert service.stderr is not None
        for line in service.stderr:
            print(line.rstrip(), file=sys.stderr)
            if line.startswith("ready:"):
                break
        else:
            return service.wait()
        ready = time.perf_counter()
        if ingest.wait():
            print(
                "demo: to begin anew, delete its data directory (.rag/demo, unless DEMO_DATA names another)",
                file=sys.stderr,
            )
            return ingest.returncode
        asked = time.perf_counter()
        url = f"http://{chosen.host}:{chosen.port}"
        with Client(url) as client, ThreadPoolExecutor(AT_ONCE) as pool:
            answers = pool.map(client.ask, questions)
            for question, response in zip(questions, answers, strict=True):
                show(question, response)
        done = time.perf_counter()
    except RagError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        service.send_signal(signal.SIGINT)
        service.wait()
        ingest.wait()
    print(
        f"\n{len(questions)} questions. Seconds: start {ready - began:.0f}, waiting for ingest {asked - ready:.0f}, "
        f"questions {done - asked:.0f}, stop {time.perf_counter() - done:.0f}"
    )
    return service.returncode


if __name__ == "__main__":
    sys.exit(main())
