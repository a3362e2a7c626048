"""Every failure that a person or a client may meet.

RagError
├── SettingsError            a setting is wrong; the message names it, its value and the valid choices
├── InputError               what the caller sent cannot be used
│   ├── DocumentError        one document cannot be read; its message is the reason a report gives
│   ├── FilterError          a filter expression cannot be used; `column` says where
│   ├── UnknownCollectionError
│   ├── UnknownDocumentError
│   ├── UnknownJobError
│   ├── UnknownModelError
│   ├── MalformedError       a body is not what its content type says
│   ├── MediaTypeError       a body of another content type than those taken
│   └── TooLargeError        more bytes or files than are taken
├── IndexMismatchError       the collection was built with another embedder or splitter
├── StoreUnavailableError    Milvus does not answer
├── ModelError               weights are missing, damaged or unfit for this machine
├── StageError               a stage failed; `stage` names it
│   └── StageTimeoutError    a stage used up its share of the deadline
├── OverloadedError          the queue is full; try again after `retry_after_s`
│   └── QuotaError           what is stored for later fills its share of the disk
└── DeadlineError            the request's deadline passed
"""

from __future__ import annotations


class RagError(Exception):
    """Root of the errors that carry a sentence for a person."""


class SettingsError(RagError):
    """A setting is wrong."""


class InputError(RagError):
    """What the caller sent cannot be used."""


class DocumentError(InputError):
    """One document cannot be read; the others go on."""


class FilterError(InputError):
    """A filter expression cannot be used; `column` counts its characters from 1."""

    def __init__(self, column: int, reason: str) -> None:
        super().__init__(f"the filter, at column {column}: {reason}")
        self.column = column
        self.reason = reason

    def __reduce__(self) -> tuple[type[FilterError], tuple[int, str]]:
        return type(self), (self.column, self.reason)


class UnknownCollectionError(InputError):
    """No collection has this name."""

    def __init__(self, collection: str) -> None:
        super().__init__(
            f"there is no collection {collection!r}; make it by ingesting into it: "
            f"rag ingest PATH --collection {collection}"
        )
        self.collection = collection

    def __reduce__(self) -> tuple[type[UnknownCollectionError], tuple[str]]:
        return type(self), (self.collection,)


class UnknownModelError(InputError):
    """No served LLM has this name."""


class UnknownDocumentError(InputError):
    """The collection has no such document, or none that the caller may see."""


class UnknownJobError(InputError):
    """No job has this id."""


class MalformedError(InputError):
    """A body is not what its content type says."""


class MediaTypeError(InputError):
    """A body of another content type than those taken."""


class TooLargeError(InputError):
    """More bytes or files than are taken."""


class IndexMismatchError(RagError):
    """The collection was built with another embedder, dimension, prefix or splitter."""


class StoreUnavailableError(RagError):
    """Milvus does not answer in time."""


class ModelError(RagError):
    """A model's weights are missing, damaged or unfit for this machine."""


class StageError(RagError):
    """A stage of the question flow failed."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason

    def __reduce__(self) -> tuple[type[StageError], tuple[str, str]]:
        return type(self), (self.stage, self.reason)


class StageTimeoutError(StageError):
    """A stage used up its share of the deadline."""


class OverloadedError(RagError):
    """The queue is full."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[OverloadedError], tuple[str, int]]:
        return type(self), (str(self), self.retry_after_s)


class QuotaError(OverloadedError):
    """What is stored for later fills its share of the disk."""


class DeadlineError(RagError):
    """The request's deadline passed before an answer was ready."""
