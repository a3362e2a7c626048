"""The store that the settings name, opened: the embedded Milvus started when needed, or any other by its URI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rag.config import Settings
from rag.embedded_store import EmbeddedServer, ensure_server
from rag.store import MilvusStore
from rag.types import IndexFingerprint


def connect_store(settings: Settings, fingerprint: IndexFingerprint) -> tuple[MilvusStore, EmbeddedServer | None]:
    """The store, and the embedded server to hold while it is used. Raises StoreUnavailableError."""
    server = None
    uri = settings.store.uri
    if uri is None:
        server = ensure_embedded(settings)
        uri = server.uri
    token = settings.store.token.get_secret_value() if settings.store.token else None
    return MilvusStore(uri, token=token, timeout_s=settings.store.timeout_s, fingerprint=fingerprint), server


def ensure_embedded(settings: Settings) -> EmbeddedServer:
    """The embedded Milvus of the data directory, running. Raises StoreUnavailableError."""
    return ensure_server(settings.data_dir, start_timeout_s=settings.store.start_timeout_s)


@contextmanager
def open_store(settings: Settings, fingerprint: IndexFingerprint) -> Iterator[MilvusStore]:
    """`connect_store` for the length of a block."""
    store, server = connect_store(settings, fingerprint)
    try:
        yield store
    finally:
        store.close()
        if server is not None:
            server.release()
