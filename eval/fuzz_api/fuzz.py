"""Random requests by schemathesis against a running service and its own OpenAPI description.

    rag serve --port 8001                                  in the product's environment, with a RAG_DATA_DIR of its own
    python eval/fuzz_api/fuzz.py http://127.0.0.1:8001     in the one of requirements.txt

Each operation is asked within its schema and outside it, until `--requests` are sent. Each response must have a status,
a content type, headers and a shape that the description declares, and none may be a 5xx. A 504 is let pass where the
request itself named a deadline: it is the answer that such a request has.

What would be written or deleted is turned to a few collections called `fuzz_...`, which are deleted in the end; a
service of one's own is meant all the same. A third of the questions are turned to a document that the run uploads, so
that answers are written, too. Last line of stdout: one JSON document. Exit status 1 when a check failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.request
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.engine import Status, events, from_schema

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)
EXAMPLES = 300  # of an operation in each round
PREFIX, COLLECTIONS = "fuzz_", 8
KNOWN = f"{PREFIX}known"  # holds DOCUMENT, which has an answer to QUESTION
DOCUMENT = {"text": "The brass bell rings at noon.", "title": "Bell", "source": "bell", "collection": KNOWN}
QUESTION = "When does the brass bell ring?"
DEADLINE_PASSED = 504

answered: dict[str, Counter[int]] = defaultdict(Counter)


def digest(value: object) -> int:
    """A number of any value, the same in each run."""
    return zlib.crc32(repr(value).encode("utf-8", "backslashreplace"))


def own_collection(name: object) -> str:
    """One of the few collections that are the run's own."""
    return f"{PREFIX}{digest(name) % COLLECTIONS}"


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG001  # the hook's own names
    """Turns what writes and deletes to the run's own collections, and some questions to what they hold."""
    label = case.operation.label
    if label == "DELETE /collections/{name}":
        case.path_parameters["name"] = own_collection(case.path_parameters.get("name"))
    elif label == "DELETE /documents/{document_id}":
        case.query["collection"] = own_collection(case.query.get("collection"))
    elif label in ("POST /collections", "POST /documents") and isinstance(case.body, dict):
        field = "name" if label == "POST /collections" else "collection"
        if isinstance(case.body.get(field, ""), str):
            case.body[field] = own_collection(case.body.get(field))
    elif label.startswith("POST /") and isinstance(case.body, dict) and digest(case.body) % 3 == 0:
        for field, known in (("question", QUESTION), ("query", QUESTION), ("model", f"rag/{KNOWN}")):
            if isinstance(case.body.get(field), str):
                case.body[field] = known
        if label != "POST /v1/chat/completions":
            case.body |= {"collection": KNOWN, "model": None} if label == "POST /ask" else {"collection": KNOWN}
        elif case.body.get("messages") and isinstance(case.body["messages"], list):
            case.body["messages"][-1] = {"role": "user", "content": QUESTION}


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:  # noqa: ARG001
    """Counts the responses."""
    answered[case.operation.label][response.status_code] += 1


@schemathesis.hook
def filter_failure(context: Any, failure: Failure, case: Any, response: Any) -> bool:  # noqa: ARG001
    """False for a passed deadline that the request named."""
    named = isinstance(case.body, dict) and case.body.get("deadline_s") is not None
    return not (named and response.status_code == DEADLINE_PASSED and type(failure).__name__ == "ServerError")


def one_round(url: str, seed: int) -> Iterator[dict[str, str]]:
    """Asks each operation EXAMPLES times and more; yields what failed."""
    checks: dict[str, Any] = {"enabled": False, **{name: {"enabled": True} for name in CHECKS}}
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "checks": checks,
            "generation": {"max-examples": EXAMPLES, "no-shrink": True},
            "continue-on-failure": True,
            "request-timeout": 120.0,
        }
    )
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    # By themselves too: in a whole run schemathesis soon stops to delete.
    for event in chain(from_schema(schema).execute(), from_schema(schema.include(method="DELETE")).execute()):
        if isinstance(event, events.NonFatalError):
            yield {"operation": event.label, "failure": f"{type(event.value).__name__}: {event.value}", "request": ""}
        if isinstance(event, events.FatalError):
            raise event.exception
        if not isinstance(event, events.ScenarioFinished) or event.status is Status.SUCCESS:
            continue
        for case_id, checked in event.recorder.checks.items():
            for check in checked:
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    yield {
                        "operation": event.recorder.cases[case_id].value.operation.label,
                        "failure": f"{check.name}: {failure.title}: {failure.message}"[:1000],
                        "request": check.failure_info.code_sample[:1000],
                    }


def send(url: str, method: str = "GET", body: object = None) -> Any:
    """The JSON of a response; None where it has none. Raises HTTPError."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as response:
        given = response.read()
    return json.loads(given) if given else None


def upload_known(url: str) -> None:
    """Uploads DOCUMENT and waits until it is found."""
    job = send(f"{url}/documents", "POST", DOCUMENT)
    while job["finished_at"] is None:
        time.sleep(0.2)
        job = send(f"{url}/jobs/{job['id']}")


def delete_own(url: str) -> None:
    """Deletes the run's own collections. A job that still waits makes its own again: hence a service of one's own."""
    for name in [one["name"] for one in send(f"{url}/collections")["collections"]]:
        if name.startswith(PREFIX):
            send(f"{url}/collections/{name}", "DELETE")


def main() -> int:
    """Runs it and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=10_000, help="at least so many")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next has the next")
    chosen = parser.parse_args()
    url, began = chosen.url.rstrip("/"), time.perf_counter()
    failures: list[dict[str, str]] = []
    rounds = 0
    upload_known(url)
    while not rounds or sum(map(Counter.total, answered.values())) < chosen.requests:
        for failure in one_round(url, chosen.seed + rounds):
            if failure not in failures:
                failures.append(failure)
                print(f"{failure['operation']}: {failure['failure']}\n    {failure['request']}", file=sys.stderr)
        rounds += 1
        print(f"round {rounds}: {sum(map(Counter.total, answered.values()))} requests", file=sys.stderr)
    delete_own(url)
    print(f"{'operation':40} {'requests':>8}  statuses")
    for label, counted in sorted(answered.items()):
        print(f"{label:40} {counted.total():8}  {', '.join(f'{one}: {n}' for one, n in sorted(counted.items()))}")
    report = {
        "requests": sum(map(Counter.total, answered.values())),
        "failures": failures,
        "operations": {label: dict(sorted(counted.items())) for label, counted in sorted(answered.items())},
        "checks": CHECKS,
        "rounds": rounds,
        "seed": chosen.seed,
        "schemathesis": version("schemathesis"),
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(report))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
