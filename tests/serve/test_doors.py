"""The HTTP doors on a real Serve graph: the real orchestrator, proxy and handles; the stages are fakes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient

from deployments.launch import SLOW_PROXY, running_service
from eval.ports import free_ports
from rag.config import Settings, load_settings
from tests.serve.fake_graph import DOCUMENTS, GENERATE_LIMIT_S, build_fake_app

PROBLEM = "application/problem+json"
ANEW = {"temperature": 0.5}  # an answer for which the LLM draws its words is never one from the cache


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    (port,) = free_ports(1)
    return load_settings(
        profile="embedded",
        data_dir=tmp_path_factory.mktemp("serve"),
        serve={"port": port, "max_inflight": 2, "max_queued": 1, "max_body_bytes": 50_000},
        deadlines={"generate_s": GENERATE_LIMIT_S},
    )


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the service says while it starts."""
    return []


@contextmanager
def _no_wait_for_the_proxy() -> Iterator[None]:
    """Serve has no setting for it, and a proxy that really takes more than a minute would cost each run of the tests
    that minute."""
    with pytest.MonkeyPatch.context() as limit:
        limit.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", 0.01)
        yield


@pytest.fixture(scope="module")
def client(settings: Settings, said: list[str]) -> Iterator[httpx.Client]:
    """The service starts as on a busy machine: with a proxy that Serve does not wait for long enough, and a warm-up
    question that takes the LLM longer than a question may."""
    with (
        _no_wait_for_the_proxy(),
        running_service(settings, said.append, build_fake_app) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def ask(client: httpx.Client, question: str, **more: Any) -> httpx.Response:
    return client.post("/ask", json={"question": question, **more})


def events_of(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return found


def wait_until(fulfilled: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fulfilled():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def log_lines(settings: Settings) -> list[str]:
    path = settings.data_dir / "generator.log"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def test_a_proxy_that_starts_slowly_is_waited_for_while_the_graph_starts(client: httpx.Client, said: list[str]) -> None:
    told = said.index(SLOW_PROXY)
    assert (said[told - 1], said[told + 1]) == ("starting the HTTP proxy", "building the graph")
    assert client.get("/readyz").status_code == 200


def test_an_answer_has_the_contract_s_shape_and_a_verbatim_quote(client: httpx.Client) -> None:
    response = ask(client, "Which port does the service listen on?", **ANEW)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["status"] == "answered"
    assert body["answer_source"] == "generated"
    assert body["answer"] == "The service listens on port 8000. [1]"
    citation = body["citations"][0]
    assert citation["source"] == "ports.md"
    assert DOCUMENTS["ports.md"][citation["char_start"] : citation["char_end"]] == citation["quote"]
    assert body["answer"][citation["answer_start"] : citation["answer_end"]] == "The service listens on port 8000."
    assert citation["verified"] is True
    assert citation["page"] is None
    assert body["degraded"] == []
    assert body["unsupported"] == []
    assert body["usage"]["completion_tokens"] > 0
    assert body["cached"] is None
    for stage in (
        "queue",
        "embed",
        "dense",
        "lexical",
        "fuse",
        "rerank",
        "prompt",
        "ttft",
        "generate",
        "ground",
        "total",
    ):
        assert body["timings_ms"][stage] >= 0, stage
    assert "passages" not in body


def test_explain_adds_every_candidate_with_its_scores(client: httpx.Client) -> None:
    body = ask(client, "Which port does the service listen on?", explain=True).json()
    assert {passage["source"] for passage in body["passages"]} == set(DOCUMENTS)
    best = body["passages"][0]
    assert best["source"] == "ports.md"
    assert set(best["scores"]) == {"dense", "lexical", "fused", "rerank"}
    assert len(body["prompt_hash"]) == 64


def test_a_stream_carries_the_same_answer_in_order(client: httpx.Client) -> None:
    response = ask(client, "How many characters may a question have?", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    names = [name for _, name, _ in events]
    assert [int(number) for number, _, _ in events] == list(range(1, len(events) + 1))
    assert names[0] == "retrieval"
    assert names[-1] == "done"
    done = events[-1][2]
    assert "".join(data["text"] for _, name, data in events if name == "token") == done["answer"]
    assert [data for _, name, data in events if name == "citation"] == done["citations"]
    assert names.index("token") < names.index("citation")


def test_the_same_question_at_any_door_is_answered_without_the_llm(client: httpx.Client, settings: Settings) -> None:
    question = "How many characters may a question have, please?"
    first = ask(client, question).json()
    known = len(log_lines(settings))
    again = ask(client, question, explain=True).json()
    stream = events_of(ask(client, question, stream=True).text)
    chat = {"model": "rag", "messages": [{"role": "user", "content": question}]}
    openai_s = client.post("/v1/chat/completions", json=chat).json()["rag"]
    assert len(log_lines(settings)) == known
    assert [body["cached"] for body in (first, again, stream[-1][2], openai_s)] == [None, "exact", "exact", "exact"]
    own = ("id", "request_id", "timings_ms", "usage", "cached")
    said = {name: value for name, value in first.items() if name not in own}
    for body in (again, stream[-1][2], openai_s):
        assert {name: body[name] for name in said} == said
        assert (body["usage"], "generate" in body["timings_ms"]) == (
            {"prompt_tokens": 0, "completion_tokens": 0},
            False,
        )
    assert len({body[name] for body in (first, again, openai_s) for name in ("id", "request_id")}) == 6
    assert {passage["source"] for passage in again["passages"]} == set(DOCUMENTS)
    assert [name for _, name, _ in stream] == ["retrieval", "token", "citation", "done"]


def test_the_accept_header_asks_for_a_stream_too(client: httpx.Client) -> None:
    response = client.post("/ask", json={"question": "Which port?"}, headers={"Accept": "text/event-stream"})
    assert events_of(response.text)[-1][1] == "done"


def test_what_is_not_in_the_documents_is_abstained_from(client: httpx.Client) -> None:
    body = ask(client, "Zebra quagga okapi?").json()
    assert (body["status"], body["reason"], body["citations"]) == ("abstained", "no_evidence", [])


def test_a_failing_llm_costs_the_generation_not_the_answer(client: httpx.Client) -> None:
    response = ask(client, "When was the broken engine repaired?")
    body = response.json()
    assert body["degraded"] == ["generate"]
    assert response.headers["x-degraded"] == "generate"
    assert body["answer_source"] == "extracted"
    assert "1931" in body["answer"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b'{"question": ', 400, id="not_json"),
        pytest.param(json.dumps({"question": ""}).encode(), 422, id="empty"),
        pytest.param(json.dumps({"question": " \n\t "}).encode(), 422, id="blank"),
        pytest.param(json.dumps({"question": "a" * 4001}).encode(), 422, id="too_long"),
        pytest.param(json.dumps({"question": "가" * 10_000}).encode(), 413, id="body_too_large"),
        pytest.param(json.dumps({"question": "a" * 100_000}).encode(), 413, id="hundred_thousand_characters"),
        pytest.param(json.dumps({"question": "Why?", "qestion": 1}).encode(), 422, id="unknown_field"),
        pytest.param(json.dumps({"question": 5}).encode(), 422, id="wrong_type"),
        pytest.param(json.dumps({"question": "Why?", "filter": "a == 1"}).encode(), 422, id="filter"),
        pytest.param(json.dumps({"question": "Why?", "collection": "nope"}).encode(), 404, id="unknown_collection"),
        pytest.param(json.dumps({"question": "Why?", "model": "gpt"}).encode(), 404, id="unknown_model"),
        pytest.param(json.dumps({"question": "Why?", "deadline_s": 1e-6}).encode(), 504, id="deadline"),
        pytest.param(json.dumps(["Why?"]).encode(), 422, id="array"),
    ],
)
def test_bad_input_gets_a_problem_that_says_what_is_wrong(client: httpx.Client, body: bytes, status: int) -> None:
    response = client.post("/ask", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["instance"] == "/ask"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text


def test_the_status_of_a_stream_is_decided_before_its_first_byte(client: httpx.Client) -> None:
    response = ask(client, "Why?", stream=True, collection="nope")
    assert response.status_code == 404
    assert "rag ingest" in response.json()["detail"]


def test_another_content_type_is_refused(client: httpx.Client) -> None:
    assert client.post("/ask", content=b"question=Why", headers={"content-type": "text/plain"}).status_code == 415


def test_an_unknown_path_and_method_are_problems_too(client: httpx.Client) -> None:
    assert client.get("/nothing").headers["content-type"] == PROBLEM
    assert client.get("/ask").status_code == 405


@pytest.mark.parametrize("given", ["abc-123", "x" * 128])
def test_a_request_id_comes_back_once(client: httpx.Client, given: str) -> None:
    response = client.get("/healthz", headers={"X-Request-ID": given})
    assert response.headers.get_list("x-request-id") == [given]


def test_a_request_without_id_gets_one(client: httpx.Client) -> None:
    first, second = (client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second


def test_search_gives_hits_best_first(client: httpx.Client) -> None:
    body = client.post("/search", json={"query": "slow lamp", "top_k": 2}).json()
    assert body["hits"][0]["source"] == "slow.md"
    assert len(body["hits"]) == 2
    scores = [hit["score"] for hit in body["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert body["index_version"]


def test_health_readiness_and_facts(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["stages"] == dict.fromkeys(("embedder", "retriever", "reranker", "generator", "indexer"), "ok")
    info = client.get("/info").json()
    assert info["limits"]["max_inflight"] == 2
    assert list(info["index_versions"]) == ["default"]


def test_a_filter_chooses_among_the_documents(client: httpx.Client) -> None:
    def sources(expression: str) -> set[str]:
        body = {"query": "Which port does the service listen on?", "filter": expression}
        return {hit["source"] for hit in client.post("/search", json=body).json()["hits"]}

    assert sources('lang == "en"') == set(DOCUMENTS)
    assert sources('tags has "limits" or source like "slow%"') == {"limits.md", "slow.md"}
    assert sources('lang != "en"') == set()
    assert ask(client, "Which port?", filter='tags has "limits"').json()["status"] == "abstained"
    assert ask(client, "Which port?", filter='tags has "ports"').json()["citations"][0]["source"] == "ports.md"


@pytest.mark.parametrize(
    "expression", ["", 'source == "secret.md"', 'not (lang == "none")', 'lang == "en" or year > 0']
)
def test_a_document_of_a_group_is_not_shown_to_a_caller_without_it(client: httpx.Client, expression: str) -> None:
    body = {"query": "Which port is for the staff alone?", "filter": expression or None}
    found = client.post("/search", json=body).json()["hits"]
    assert not any("secret" in hit["source"] or "9999" in hit["text"] for hit in found)
    answered = ask(client, "Which port is for the staff alone?", filter=expression or None, explain=True)
    assert answered.status_code == 200
    ids = ("id", "request_id")  # drawn at random: they may hold any number
    assert "9999" not in json.dumps({name: value for name, value in answered.json().items() if name not in ids})


@pytest.mark.parametrize("path", ["/ask", "/search"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_in_a_filter_is_a_problem_with_its_column(client: httpx.Client, path: str, stream: bool) -> None:
    body = {"question": "Which port?", "stream": stream} if path == "/ask" else {"query": "Which port?"}
    for expression, column, told in [
        ("lang = 'en'", 6, "write =="),
        ("acl has 'staff'", 1, "no field 'acl'; the names are: author, document_id, lang,"),
        ("lang == 'en' and year == 'x'", 26, "a whole number"),
    ]:
        response = client.post(path, json={**body, "filter": expression})
        assert response.status_code == 422
        assert response.headers["content-type"] == PROBLEM
        error = response.json()["errors"][0]
        assert (error["field"], error["column"]) == ("filter", column)
        assert told in error["message"]


def test_overload_is_refused_at_once_and_what_is_accepted_is_answered(client: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: ask(client, "How long does the slow lamp burn?", **ANEW), range(8)))
    statuses = sorted(response.status_code for response in responses)
    assert statuses == [200] * 3 + [503] * 5
    for response in responses:
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["retryable"] is True
        else:
            assert "eleven hours" in response.json()["answer"]


def test_openai_s_client_and_another_get_the_same_answer(client: httpx.Client) -> None:
    question = "How many characters may a question have?"
    messages: Any = [{"role": "user", "content": question}]
    url = str(client.base_url.join("/v1"))
    answer = ask(client, question).json()
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
        models = [model.id for model in sdk.models.list()]
        whole = sdk.chat.completions.create(model="rag", messages=messages)
        pieces = list(sdk.chat.completions.create(model="rag", messages=messages, stream=True))
        with pytest.raises(openai.NotFoundError) as refused:
            sdk.chat.completions.create(model="rag/nope", messages=messages)
    other = InferenceClient(base_url=url, api_key="none")
    again = other.chat.completions.create(model="rag", messages=messages)
    streamed = list(other.chat.completions.create(model="rag", messages=messages, stream=True))
    assert models[:1] == ["rag"]
    assert whole.model_extra is not None
    assert whole.model_extra["rag"]["citations"] == answer["citations"]
    assert "rag ingest" in refused.value.message
    texts = [whole.choices[0].message.content, again.choices[0].message.content]
    texts += ["".join(piece.choices[0].delta.content or "" for piece in found) for found in (pieces, streamed)]
    assert texts == [answer["answer"]] * 4


def test_openai_s_client_waits_for_a_place_as_long_as_it_is_told(client: httpx.Client) -> None:
    messages: Any = [{"role": "user", "content": "How long does the slow lamp burn?"}]
    with openai.OpenAI(base_url=str(client.base_url.join("/v1")), api_key="none", max_retries=8) as sdk:

        def complete(_: int) -> str | None:
            done = sdk.chat.completions.create(model="rag", messages=messages, **ANEW)
            return done.choices[0].message.content

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(complete, range(4)))  # one of them is over the queue at first
    assert all("eleven hours" in str(answer) for answer in answers)


@pytest.mark.parametrize("path", ["/ask", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("pause_s", [0, 0.05], ids=["one_packet", "body_apart"])
def test_a_client_that_goes_away_stops_the_generation(
    client: httpx.Client, settings: Settings, path: str, stream: bool, pause_s: float
) -> None:
    known = len(log_lines(settings))
    question = "How long does the slow lamp burn?"
    asked: dict[str, Any] = {"question": question, **ANEW}
    if path != "/ask":
        asked = {"model": "rag", "messages": [{"role": "user", "content": question}], **ANEW}
    body = json.dumps({**asked, "stream": stream}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", settings.serve.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Where the body comes in a packet of its own, HAProxy may splice it and then does not see the client leave.
        for part in [head.encode(), body] if pause_s else [head.encode() + body]:
            connection.sendall(part)
            time.sleep(pause_s)
        wait_until(lambda: log_lines(settings)[known:] == ["started"])
    wait_until(lambda: len(log_lines(settings)) > known + 1)
    assert log_lines(settings)[known:] == ["started", "cancelled"]
