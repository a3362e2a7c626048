"""When the clients ask again, and how long they wait; in a time of the tests' own."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import DeadlineError, RagError, StoreUnavailableError
from rag.problems import RefusedError, UnavailableError
from rag.retry import LATER_FRACTION, Attempts, Looks, retry_after_s
from tests.client_calls import BOTH, Ask, Time
from tests.http_fake import INFO, Reply, answered, problem, reply, serving, stream

NOW = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)
JOB = {"id": "job_1", "state": "queued", "documents": [], "started_at": None, "finished_at": None}
both_clients = pytest.mark.parametrize("call", BOTH)


def busy(status: int = 503, wait: str = "2") -> Reply:
    return problem(status, "Overloaded", "try again", retry_after=wait)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "Fri, 27 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 27 Nov 2026 11:59:00 GMT"}, 0.0),
        # The service's clock is an hour behind: what counts is by how much its date is later than its own time.
        ({"retry-after": "Fri, 27 Nov 2026 11:00:05 GMT", "date": "Fri, 27 Nov 2026 11:00:00 GMT"}, 5.0),
        ({"retry-after": "Friday, 27-Nov-26 12:00:09 GMT"}, 9.0),
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after": "soon"}, None),
    ],
    ids=str,
)
def test_retry_after_is_read_as_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


@given(text=st.text(max_size=40))
def test_no_retry_after_whatever_it_says_is_an_error(text: str) -> None:
    found = retry_after_s({"retry-after": text, "date": text}, NOW)
    assert found is None or found >= 0


def test_a_sleep_that_took_too_long_leaves_a_time_that_a_socket_takes() -> None:
    time = Time()
    attempts = Attempts(1, 5.0, time.now)
    time.sleep(9)
    assert 0 < attempts.left_s() < 0.1


@given(
    waits=st.lists(st.integers(0, 100), max_size=10),
    max_retries=st.integers(0, 5),
    timeout_s=st.floats(1, 300),
)
def test_attempts_are_few_wait_long_enough_and_end_in_time(
    waits: list[int], max_retries: int, timeout_s: float
) -> None:
    time = Time()
    began = time.now()
    attempts = Attempts(max_retries, timeout_s, time.now)
    taken = 0
    for wait in waits:
        pause_s = attempts.pause_after_response_s(503, {"retry-after": str(wait)})
        if pause_s is None:
            break
        taken += 1
        assert wait <= pause_s <= wait * (1 + LATER_FRACTION)
        time.sleep(pause_s)
    assert taken <= max_retries
    assert time.now() - began < timeout_s


@both_clients
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("method", ["ask", "stream"])
def test_a_busy_service_is_asked_again_once_it_may_be(call: Ask, status: int, method: str) -> None:
    time = Time()
    good = reply(answered()) if method == "ask" else stream(("done", answered()))
    with serving(ask=[busy(status, "2"), busy(status, "3"), good]) as service:
        got = call(service.url, method, "Why?", time=time)
    assert (got if method == "ask" else got[-1]).status == "answered"
    assert [path for path, _ in service.asked] == ["/ask"] * 3
    first, second = time.slept
    assert first >= 2
    assert second >= 3


@both_clients
def test_a_service_that_stays_busy_is_asked_no_more_often_than_was_said(call: Ask) -> None:
    for retries in (0, 1, 4):
        with serving(ask=[busy()] * 10) as service, pytest.raises(UnavailableError, match="Overloaded: try again"):
            call(service.url, "ask", "Why?", client={"max_retries": retries})
        assert len(service.asked) == retries + 1


@both_clients
def test_no_wait_reaches_beyond_the_time_that_there_is(call: Ask) -> None:
    time = Time()
    with serving(ask=[busy(wait="4")] * 10) as service, pytest.raises(UnavailableError):
        call(service.url, "ask", "Why?", time=time, timeout_s=10.0, client={"max_retries": 9})
    assert 1 <= len(time.slept) <= 2
    assert sum(time.slept) < 10
    with serving(ask=busy(wait="11")) as service, pytest.raises(UnavailableError):
        call(service.url, "ask", "Why?", time=time, client={"timeout_s": 10.0})
    assert len(service.asked) == 1


@both_clients
@pytest.mark.parametrize(
    "given_reply",
    [
        problem(503),
        problem(500, retry_after="1"),
        problem(422, retry_after="1"),
        problem(504, retry_after="1"),
        Reply(b"", 502, "text/html", headers={"retry-after": "1"}),
        stream(("token", {"text": "So "}), cut=True),
    ],
    ids=["503_without_retry_after", "500", "422", "504", "502", "cut"],
)
def test_nothing_else_is_asked_again(call: Ask, given_reply: Reply) -> None:
    time = Time()
    with serving(ask=given_reply) as service, pytest.raises(RagError):
        call(service.url, "stream", "Why?", time=time)
    assert (len(service.asked), time.slept) == (1, [])


class LateService(Time):
    """A service that starts while its client waits for the second time."""

    def __init__(self, **replies: Reply) -> None:
        super().__init__()
        self.replies = replies
        self.port = 0
        self.started: Any = None
        self.service: Any = None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if len(self.slept) == 2:
            self.started = serving(self.port, **self.replies)
            self.service = self.started.__enter__()


@both_clients
def test_a_connection_that_cannot_be_made_is_tried_again(call: Ask) -> None:
    late = LateService(info=reply(INFO))
    try:
        assert call(f"http://127.0.0.1:{late.port}", "info", time=late).version == "9.9"
    finally:
        late.started.__exit__(None, None, None)
    assert len(late.service.asked) == 1
    first, second = late.slept
    assert 0 < first < second


@both_clients
def test_a_port_where_nothing_listens_is_tried_no_more_often_than_was_said(call: Ask) -> None:
    time = Time()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(StoreUnavailableError, match="no service answers"):
        call(url, "info", time=time, client={"max_retries": 3})
    assert len(time.slept) == 3


@both_clients
def test_the_state_of_a_service_that_is_not_ready_is_an_answer_and_not_waited_for(call: Ask) -> None:
    time = Time()
    state = {"status": "not ready", "stages": {"embedder": "gone"}, "required": ["embedder"]}
    with serving(readyz=Reply(reply(state).body, 503, headers={"retry-after": "5"})) as service:
        assert call(service.url, "health", time=time).status == "not ready"
    assert time.slept == []


@both_clients
def test_a_refused_upload_is_sent_again_whole(call: Ask, tmp_path: Path) -> None:
    file = tmp_path / "메모.md"
    file.write_text("# One\n" * 1000, encoding="utf-8")
    with serving(documents=[busy(429), busy(503), reply(JOB, 202)]) as service:
        assert call(service.url, "upload_files", [file, ("b.txt", b"two")], metadata={"year": 2024}).id == "job_1"
    bodies = [body for _, body in service.asked]
    assert len(bodies) == 3
    for (_, head), body in zip(service.heads, bodies, strict=True):
        boundary = head["content-type"].partition("boundary=")[2].encode()
        assert body.count(b"--" + boundary) == 4  # two files, a field, the end
        assert body.count(b"# One\n") == 1000


@both_clients
def test_an_upload_whose_connection_breaks_is_not_sent_again(call: Ask) -> None:
    broken = Reply(reply(JOB, 202).body, 202, cut=True)
    with serving(documents=broken) as service, pytest.raises(StoreUnavailableError, match="broke"):
        call(service.url, "upload_text", "The lamp burns oil.", title="Lamp", source="lamp")
    assert len(service.asked) == 1


# --- deleting: an attempt that was answered 503 may have done it ---

DELETIONS = pytest.mark.parametrize(
    ("method", "arguments", "path"),
    [("delete_document", ["d1"], "documents/d1"), ("delete_collection", ["docs"], "collections/docs")],
    ids=["document", "collection"],
)
DONE, GONE = Reply(b"", 204), problem(404, "Unknown", "it is not there")


@both_clients
@DELETIONS
def test_what_an_attempt_that_was_refused_has_deleted_is_deleted(
    call: Ask, method: str, arguments: list[str], path: str
) -> None:
    for last in (DONE, GONE):
        with serving(**{path: [busy(503), busy(429), last]}) as service:
            assert call(service.url, method, *arguments) is None
        assert [head[0] for head in service.heads] == ["DELETE"] * 3


@both_clients
@DELETIONS
@pytest.mark.parametrize(
    ("replies", "error"),
    [
        pytest.param([GONE], RefusedError, id="at_once"),
        pytest.param([busy(), Reply(b"", 404, "text/html")], StoreUnavailableError, id="no_problem_of_the_service_s"),
        pytest.param([busy(), problem(422)], RefusedError, id="refused"),
        pytest.param([busy(), problem(500)], UnavailableError, id="failed"),
    ],
)
def test_every_other_end_of_a_deletion_is_an_error(
    call: Ask, method: str, arguments: list[str], path: str, replies: list[Reply], error: type[RagError]
) -> None:
    with serving(**{path: list(replies)}) as service, pytest.raises(error):
        call(service.url, method, *arguments)
    assert len(service.asked) == len(replies)


@both_clients
def test_what_is_not_there_is_said_after_a_connection_that_could_not_be_made(call: Ask) -> None:
    late = LateService(**{"documents/d1": GONE})
    try:
        with pytest.raises(RefusedError, match="it is not there"):
            call(f"http://127.0.0.1:{late.port}", "delete_document", "d1", time=late)
    finally:
        late.started.__exit__(None, None, None)
    assert len(late.service.asked) == 1


@both_clients
def test_what_is_not_there_is_said_of_everything_else_that_was_asked_again(call: Ask) -> None:
    with serving(**{"documents/d1": [busy(), GONE]}) as service, pytest.raises(RefusedError, match="it is not there"):
        call(service.url, "get_document", "d1")


# --- waiting for a job ------------------------------------------------------------------------------------------------


@both_clients
def test_a_job_is_looked_at_until_it_is_finished(call: Ask) -> None:
    time = Time()
    done = {**JOB, "state": "failed", "finished_at": "2026-01-01"}
    with serving(**{"jobs/job_1": [reply(JOB)] * 20 + [reply(done)]}) as service:
        job = call(service.url, "wait_for_job", "job_1", time=time)
    assert job.state == "failed"
    assert len(time.slept) == 20
    assert time.slept == sorted(time.slept)
    assert max(time.slept) <= 2


@both_clients
def test_a_job_that_takes_too_long_is_a_deadline(call: Ask) -> None:
    time = Time()
    with (
        serving(**{"jobs/job_1": reply(JOB)}) as service,
        pytest.raises(DeadlineError, match="job_1 is not done after 5 s"),
    ):
        call(service.url, "wait_for_job", "job_1", job_timeout_s=5.0, time=time)
    assert sum(time.slept) == pytest.approx(5)


def test_looks_end_with_their_time_and_not_before() -> None:
    time = Time()
    looks = Looks("it", 3.0, time.now)
    while sum(time.slept) < 3:
        time.sleep(looks.pause_s())
    assert sum(time.slept) == pytest.approx(3)
    with pytest.raises(DeadlineError):
        looks.pause_s()
