"""A connection to one Milvus: clients for threads and for event loops, one timeout, failures as RagErrors."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import grpc
from pymilvus import AsyncMilvusClient, MilvusClient, MilvusException
from pymilvus.client import entity_helper
from pymilvus.exceptions import DataNotMatchException, DataTypeNotMatchException, ParamError

from rag.errors import InputError, RagError, StoreUnavailableError, UnknownCollectionError
from rag.store_rows import has_bm25

# pymilvus logs a traceback for each error that it also raises.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
# Of a row's string it checks that each of its characters is a string: 1.6 ms for a chunk's token vectors. protobuf
# refuses what is no string, and Milvus what is too long.
entity_helper.CHECK_STR_ARRAY = False
logger = logging.getLogger(__name__)

CONSISTENCY = "Strong"  # a search sees every write that returned before it
NEEDS_BM25 = "use Milvus 2.5 or later, then: rag collections reindex"

_NOT_FOUND, _NOT_LOADED, _BAD_PARAMETER = 100, 101, 1_100  # Milvus' error codes
_NOT_PARSED = "cannot parse expression"  # a filter that this server does not know; the code says nothing of it
_REFUSALS = (ParamError, DataNotMatchException, DataTypeNotMatchException)

# A channel of its own, and short pauses: by gRPC's defaults a server that came back is not tried for up to two minutes.
# No pings while nothing is asked: pymilvus sends one every ten seconds, for which Milvus Lite ends the connection.
CHANNEL_OPTIONS = {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.keepalive_permit_without_calls": 0,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 5_000,  # how long one attempt to connect may take, whatever its name says
    "grpc.max_reconnect_backoff_ms": 1_000,
}


class MilvusConnection:
    """One Milvus server, reached by `uri` and `token`; connects when it is first used, and again after it was closed.

    A server without BM25 is told in the log. Safe to share between threads and event loops.
    """

    def __init__(self, uri: str, token: str | None, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._uri = uri
        self._address = uri.rsplit("@", 1)[-1]  # without the user and password that a URI may carry
        self._token = token or ""
        self._server_version: str | None = None
        self._client: MilvusClient | None = None
        self._client_lock = threading.Lock()
        self._async_clients: dict[asyncio.AbstractEventLoop, tuple[AsyncMilvusClient, asyncio.Lock]] = {}

    @contextmanager
    def client(self, collection: str | None = None) -> Iterator[MilvusClient]:
        """The connected client; inside, failures of pymilvus leave as RagErrors.

        Raises StoreUnavailableError; UnknownCollectionError where Milvus does not find what the caller calls
        `collection`; InputError for what Milvus refuses.
        """
        try:
            yield self._connected()
        except (MilvusException, grpc.RpcError) as error:
            raise self._as_rag_error(error, collection) from error

    @asynccontextmanager
    async def async_client(self, collection: str | None = None) -> AsyncIterator[AsyncMilvusClient]:
        """As `client`, for at most `timeout_s`."""
        try:
            async with asyncio.timeout(self.timeout_s):
                yield await self._async_connected()
        except (MilvusException, grpc.RpcError, TimeoutError) as error:
            raise self._as_rag_error(error, collection) from error

    def lexical_problem(self) -> str | None:
        """Why the server cannot search by words, None when it can. Raises StoreUnavailableError."""
        with self.client():
            return self._find_lexical_problem()

    async def aclose(self) -> None:
        """Closes the running loop's connection and the threads'."""
        client, _ = self._async_clients.pop(asyncio.get_running_loop(), (None, None))
        if client is not None:
            await client.close()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Closes the threads' connection."""
        with self._client_lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> MilvusClient:
        with self._client_lock:
            if self._client is None:
                client = MilvusClient(
                    self._uri, token=self._token, timeout=self.timeout_s, dedicated=True, grpc_options=CHANNEL_OPTIONS
                )
                # In detail, since Milvus Lite answers no other question about its version.
                self._note_server(client.get_server_version(detail=True, timeout=self.timeout_s))
                self._client = client
            return self._client

    async def _async_connected(self) -> AsyncMilvusClient:
        """The running loop's client, connected: a gRPC channel belongs to one loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._async_clients:
            client = AsyncMilvusClient(
                self._uri, token=self._token, timeout=self.timeout_s, dedicated=True, grpc_options=CHANNEL_OPTIONS
            )
            # Replaced, not changed: loops in other threads read it at the same time.
            live = {known: pair for known, pair in self._async_clients.items() if not known.is_closed()}
            self._async_clients = {**live, loop: (client, asyncio.Lock())}
        client, connecting = self._async_clients[loop]
        async with connecting:
            await client._connect()
            self._note_server(await client.get_server_version(detail=True, timeout=self.timeout_s))  # asked once
        return client

    def _note_server(self, facts: Mapping[str, str]) -> None:
        """Remembers the server's version; what it cannot do is told once."""
        if facts["version"] != self._server_version:
            self._server_version = facts["version"]
            problem = self._find_lexical_problem()
            if problem:
                logger.warning("questions are answered without word search: %s", problem)

    def _find_lexical_problem(self) -> str | None:
        if has_bm25(self._server_version or ""):
            return None
        return f"the Milvus at {self._address} is {self._server_version}, which has no BM25; {NEEDS_BM25} NAME"

    def _as_rag_error(self, error: Exception, collection: str | None) -> RagError:
        if collection is not None and is_not_found(error):
            return UnknownCollectionError(collection)
        refused = isinstance(error, _REFUSALS) or getattr(error, "code", None) == _BAD_PARAMETER
        if isinstance(error, MilvusException) and (refused or _NOT_PARSED in error.message):
            return InputError(f"Milvus refuses the request: {error.message}")
        if isinstance(error, MilvusException):
            reason = error.message
        elif isinstance(error, grpc.RpcError):
            reason = f"{error.code().name.lower()}: {error.details()}"
        else:
            reason = f"no answer within {self.timeout_s:g} s"
        return StoreUnavailableError(
            f"the store at {self._address} does not answer: {reason}; "
            "check that Milvus runs there, or set store.uri (RAG_STORE__URI)"
        )


def is_not_loaded(error: Exception) -> bool:
    """Whether Milvus says that the collection is there, and cannot be read yet."""
    return isinstance(error, MilvusException) and error.code == _NOT_LOADED


def is_not_found(error: Exception) -> bool:
    """Whether Milvus says that there is no such collection."""
    return isinstance(error, MilvusException) and error.code == _NOT_FOUND
