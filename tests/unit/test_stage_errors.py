from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.errors import call_stage, iterate_stage, read_stage
from rag import errors
from rag.errors import (
    ModelError,
    OverloadedError,
    RagError,
    StageError,
    StageTimeoutError,
    UnknownCollectionError,
)
from tests.error_table import ERRORS


def test_the_table_of_errors_here_is_whole() -> None:
    def below(kind: type[RagError]) -> set[type[RagError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    declared = {kind for kind in below(RagError) if kind.__module__ == errors.__name__}
    assert {type(error) for error, _ in ERRORS} == declared


@pytest.mark.parametrize("error", [error for error, _ in ERRORS], ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: RagError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def task_error(cause: Exception) -> RayTaskError:
    """As Ray raises it for a replica's error."""
    return RayTaskError("Replica.method", "Traceback ...", cause).as_instanceof_cause()


TRANSLATED = [
    pytest.param(task_error(UnknownCollectionError("nope")), UnknownCollectionError, "nope", id="ours_in_a_replica"),
    pytest.param(task_error(StageTimeoutError("dense", "slow")), StageTimeoutError, "slow", id="ours_with_fields"),
    pytest.param(task_error(KeyError("bug")), StageError, "embed: KeyError", id="bug_in_a_replica"),
    pytest.param(
        BackPressureError(num_queued_requests=5, max_queued_requests=5), OverloadedError, "embed", id="queue_full"
    ),
    pytest.param(RayActorError(), StageError, "embed: its replica is gone", id="actor_gone"),
    pytest.param(ActorDiedError(), StageError, "embed: its replica is gone", id="actor_died"),
    pytest.param(RayServeException("no route"), StageError, "embed:", id="serve"),
    pytest.param(ModelError("ours, here"), ModelError, "ours, here", id="ours_in_this_process"),
]


@pytest.mark.parametrize(("error", "kind", "part"), TRANSLATED)
async def test_what_goes_wrong_on_the_way_to_a_stage_becomes_ours(
    error: Exception, kind: type[RagError], part: str
) -> None:
    async def call() -> None:
        raise error

    with pytest.raises(kind) as caught:
        await call_stage("embed", call)
    assert type(caught.value) is kind
    assert part in str(caught.value)


def cut_off() -> AioRpcError:
    """As gRPC raises it when the server at the other end stops."""
    return AioRpcError(StatusCode.CANCELLED, Metadata(), Metadata(), "the server stops")


@pytest.mark.parametrize(
    "error", [ActorUnavailableError("gone", None), ActorDiedError(), cut_off()], ids=lambda one: type(one).__name__
)
async def test_a_read_that_a_replica_s_end_cuts_off_is_made_once_more(error: Exception) -> None:
    made: list[int] = []

    async def call(failing: int) -> int:
        made.append(1)
        if len(made) <= failing:
            raise error
        return 5

    assert await read_stage("dense", lambda: call(1)) == 5
    assert len(made) == 2
    made.clear()
    with pytest.raises(StageError):
        await read_stage("dense", lambda: call(2))
    assert len(made) == 2


@pytest.mark.parametrize(
    "error",
    [
        task_error(KeyError("bug")),
        task_error(UnknownCollectionError("nope")),
        task_error(ActorDiedError()),  # of another stage, which the replica itself asked
        BackPressureError(num_queued_requests=5, max_queued_requests=5),
        RayServeException("no route"),
    ],
    ids=repr,
)
async def test_a_read_that_was_answered_with_an_error_is_not_made_again(error: Exception) -> None:
    made: list[int] = []

    async def call() -> None:
        made.append(1)
        raise error

    with pytest.raises(RagError):
        await read_stage("dense", call)
    assert made == [1]


async def test_what_a_stage_gives_is_passed_on() -> None:
    async def call() -> int:
        return 5

    assert await call_stage("embed", call) == 5


class Response:
    """A handle's stream: its values, then perhaps an error."""

    def __init__(self, *values: int, error: Exception | None = None) -> None:
        self._values = iter(values)
        self._error = error
        self.cancelled = False

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        for value in self._values:
            return value
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


async def test_a_stream_that_ends_is_not_cancelled() -> None:
    response = Response(1, 2, 3)
    assert [value async for value in iterate_stage("generate", lambda: response)] == [1, 2, 3]
    assert not response.cancelled


@pytest.mark.parametrize(("error", "kind", "part"), TRANSLATED)
async def test_a_stream_that_breaks_raises_ours(error: Exception, kind: type[RagError], part: str) -> None:
    stream = iterate_stage("embed", lambda: Response(1, error=error))
    assert await anext(stream) == 1
    with pytest.raises(kind) as caught:
        await anext(stream)
    assert part in str(caught.value)


@pytest.mark.parametrize(("error", "kind", "part"), TRANSLATED)
async def test_a_stream_whose_call_cannot_be_sent_raises_ours(
    error: Exception, kind: type[RagError], part: str
) -> None:
    def call() -> Response:
        raise error

    with pytest.raises(kind) as caught:
        await anext(iterate_stage("embed", call))
    assert part in str(caught.value)


async def test_a_stream_that_nobody_reads_is_never_called() -> None:
    called: list[int] = []

    def call() -> Response:
        called.append(1)
        return Response(1)

    await iterate_stage("generate", call).aclose()
    assert called == []


async def test_a_stream_that_is_closed_early_is_cancelled_in_the_replica() -> None:
    response = Response(1, 2, 3)
    stream = iterate_stage("generate", lambda: response)
    assert await anext(stream) == 1
    assert isinstance(stream, AsyncGenerator)
    await stream.aclose()
    assert response.cancelled
