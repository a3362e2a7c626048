"""One error of each class of rag.errors."""

from __future__ import annotations

from rag.errors import (
    DeadlineError,
    DocumentError,
    FilterError,
    IndexMismatchError,
    InputError,
    MalformedError,
    MediaTypeError,
    ModelError,
    OverloadedError,
    QuotaError,
    RagError,
    SettingsError,
    StageError,
    StageTimeoutError,
    StoreUnavailableError,
    TooLargeError,
    UnknownCollectionError,
    UnknownDocumentError,
    UnknownJobError,
    UnknownModelError,
)

# With the HTTP status that the contract gives it.
ERRORS: list[tuple[RagError, int]] = [
    (RagError("odd"), 500),
    (SettingsError("wrong"), 500),
    (InputError("cannot be used"), 422),
    (DocumentError("damaged"), 422),
    (FilterError(6, "write =="), 422),
    (UnknownCollectionError("nope"), 404),
    (UnknownDocumentError("no such document"), 404),
    (UnknownJobError("no such job"), 404),
    (UnknownModelError("no such LLM"), 404),
    (MalformedError("not JSON"), 400),
    (MediaTypeError("no such type"), 415),
    (TooLargeError("too much"), 413),
    (IndexMismatchError("another embedder"), 409),
    (StoreUnavailableError("Milvus is down"), 503),
    (ModelError("no weights"), 503),
    (StageError("dense", "gone"), 503),
    (StageTimeoutError("dense", "no result within 2 s"), 503),
    (OverloadedError("full", retry_after_s=7), 503),
    (QuotaError("no room", retry_after_s=30), 429),
    (DeadlineError("too late"), 504),
]
