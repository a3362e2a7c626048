"""Index versions: which physical collections a collection has, which one is current, which is being built beside it.

Milvus Lite has no aliases and cannot alter a collection. A small collection in Milvus itself, the registry, therefore
has a row for each version of the collections that were ever reindexed; all processes read it, at most VERSIONS_TTL_S
late. A collection without rows is its own physical collection.

    building    rows are copied into it; the collection is used as before
    switching   writes to the collection are refused, while the last rows are copied
    ready       searched by whoever has its fingerprint; the newest one is current, and the only one that takes new rows
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from pymilvus import DataType, MilvusClient, MilvusException

from rag.errors import RagError, UnknownCollectionError
from rag.milvus import CONSISTENCY, MilvusConnection, is_not_found, is_not_loaded
from rag.store_rows import REGISTRY, VERSION_NAME, BuiltIndex, check_collection_name, is_ours, read_description

VERSIONS_TTL_S = 3.0

_MAX_ROWS = 16_384  # Milvus' limit on one answer
_COLUMNS = ["collection", "number", "state", "run"]
_MAX_NAME_CHARS = 512

State = Literal["building", "switching", "ready"]


@dataclass(frozen=True, slots=True)
class IndexVersion:
    """Version `number` of a collection's index; 0 is the physical collection of the same name. `run` is its builder."""

    collection: str
    number: int = 0
    state: State = "ready"
    run: str = ""

    @property
    def physical(self) -> str:
        return f"{self.collection}__v{self.number}" if self.number else self.collection


@dataclass(frozen=True, slots=True)
class ReadyIndex:
    """A physical collection that is searched."""

    physical: str
    built: BuiltIndex


@dataclass(frozen=True, slots=True)
class Indexes:
    """A collection's ready indexes, the newest, which is current, first; `switching`: it takes no writes now."""

    ready: tuple[ReadyIndex, ...]
    switching: bool


class IndexRegistry:
    """The versions of all collections. Every method may raise StoreUnavailableError."""

    def __init__(self, connection: MilvusConnection, ttl_s: float = VERSIONS_TTL_S) -> None:
        """`ttl_s`: how late a process may learn of a change; whoever changes something waits that long for the others,
        so all processes have to have the same."""
        self._connection = connection
        self._ttl_s = ttl_s
        self._known: dict[str, tuple[float, Indexes]] = {}

    def recall(self, collection: str) -> Indexes | None:
        """What was read in the last `ttl_s`; None when that is longer ago."""
        read_at, indexes = self._known.get(collection, (-self._ttl_s, None))
        return indexes if time.monotonic() - read_at < self._ttl_s else None

    def forget(self, collection: str) -> None:
        """Drops what was read about the collection."""
        self._known.pop(collection, None)

    def read(self, collection: str) -> Indexes:
        """Asks Milvus. Raises UnknownCollectionError, and IndexMismatchError when the program did not make it."""
        began = time.monotonic()
        versions = self.versions(collection)
        found = [self._describe(version) for version in versions if version.state == "ready"]
        ready = tuple(index for index in found if index is not None)
        if not ready:
            self.forget(collection)
            raise UnknownCollectionError(collection)
        indexes = Indexes(ready, any(version.state == "switching" for version in versions))
        self._known[collection] = (began, indexes)
        return indexes

    def versions(self, collection: str) -> list[IndexVersion]:
        """The collection's versions, the newest first; where nothing is registered, the collection itself."""
        return self._registered(collection) or [IndexVersion(collection)]

    def collections(self) -> list[str]:
        """The names of the collections that this program made, sorted."""
        registered = {version.physical: version for version in self._rows()}
        with self._connection.client() as client:
            physical = client.list_collections(timeout=self._connection.timeout_s)
        found = [registered.get(name) or IndexVersion(name) for name in physical]
        ready = (version for version in found if version.state == "ready")
        # One that was dropped meanwhile has no description.
        return sorted({version.collection for version in ready if is_ours(self._description(version) or "")})

    # --- building ---

    def begin(self, collection: str, number: int | None = None) -> IndexVersion:
        """Registers a new version, or version `number` that an earlier run left, as being built by this run.

        Raises InputError when the collection's name is too long to have versions, or is one's itself.
        """
        check_collection_name(collection)
        registered = self._registered(collection)
        if number is None:
            number = self._free_number(collection, registered)
        building = IndexVersion(collection, number, "building", uuid.uuid4().hex)
        check_collection_name(building.physical, of_version=True)
        # From now on the physical collection of the same name is one version of several.
        self._write([building] if registered else [IndexVersion(collection), building])
        return building

    def is_being_built(self, physical: str) -> bool:
        """Whether it is the name of a registered version that is not ready."""
        if not VERSION_NAME.fullmatch(physical):
            return False
        return any(version.physical == physical and version.state != "ready" for version in self._rows())

    def check_run(self, version: IndexVersion) -> None:
        """Raises RagError when another run has taken the version over, or it is gone."""
        runs = {found.number: found.run for found in self.versions(version.collection)}
        if runs.get(version.number) != version.run:
            raise RagError(f"another reindex of {version.collection!r} has taken over; let that one finish")

    def refuse_writes(self, version: IndexVersion, drain_s: float) -> IndexVersion:
        """The version as `switching`; returns when no write to its collection can be on its way any more.

        `drain_s` is what a single call of a writer may take.
        """
        switching = self._change(version, "switching")
        time.sleep(self._ttl_s + drain_s)
        return switching

    def allow_writes(self, version: IndexVersion) -> IndexVersion:
        """The version as `building` again."""
        return self._change(version, "building")

    def finish(self, version: IndexVersion) -> IndexVersion:
        """The version as `ready`: it is current."""
        return self._change(version, "ready")

    def drop(self, versions: Sequence[IndexVersion], drain_s: float) -> None:
        """Removes versions with their rows; those that are ready only when no search can be on its way any more."""
        self._remove_rows(versions)
        for version in versions:
            self.forget(version.collection)
        if any(version.state == "ready" for version in versions):
            time.sleep(self._ttl_s + drain_s)
        self.drop_physical(versions)

    def drop_physical(self, versions: Iterable[IndexVersion]) -> int:
        """Removes the physical collections that are there; how many."""
        dropped = 0
        with self._connection.client() as client:
            for version in versions:
                if client.has_collection(version.physical, timeout=self._connection.timeout_s):
                    client.drop_collection(version.physical, timeout=self._connection.timeout_s)
                    dropped += 1
        return dropped

    def clear(self, collection: str) -> None:
        """Removes what is registered of a collection that is gone."""
        self._remove_rows(self._registered(collection))

    def drop_collection(self, collection: str) -> None:
        """Removes the collection with all its versions.

        Raises UnknownCollectionError, also for another program's collection and for the version of another one.
        """
        registered = self._rows()
        if any(version.physical == collection != version.collection for version in registered):
            raise UnknownCollectionError(collection)
        first = IndexVersion(collection)  # also where it is registered no more: a killed run may have left it
        found = [version for version in registered if version.collection == collection and version.number]
        versions = [version for version in (*found, first) if is_ours(self._description(version) or "")]
        self.forget(collection)
        # The current version goes last, and the rows after it: a run that is killed here can be repeated.
        dropped = self.drop_physical(reversed(versions))
        self.clear(collection)
        if not dropped:
            raise UnknownCollectionError(collection)

    # --- calls ---

    def _change(self, version: IndexVersion, state: State) -> IndexVersion:
        self.check_run(version)
        changed = replace(version, state=state)
        self._write([changed])
        return changed

    def _rows(self) -> list[IndexVersion]:
        with self._connection.client() as client:
            try:
                rows = self._query(client)
            except MilvusException as error:
                if is_not_found(error):  # nothing was ever reindexed
                    return []
                if not is_not_loaded(error):
                    raise
                # Another process is making it, or was killed while it did.
                _make_registry(client, self._connection.timeout_s)
                rows = self._query(client)
        found = [
            IndexVersion(row["collection"], int(row["number"]), cast(State, row["state"]), row["run"]) for row in rows
        ]
        return sorted(found, key=lambda version: (version.collection, -version.number))

    def _query(self, client: MilvusClient) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = client.query(
            REGISTRY,
            filter="number >= 0",
            output_fields=_COLUMNS,
            limit=_MAX_ROWS,
            consistency_level=CONSISTENCY,
            timeout=self._connection.timeout_s,
        )
        return rows

    def _registered(self, collection: str) -> list[IndexVersion]:
        return [version for version in self._rows() if version.collection == collection]

    def _free_number(self, collection: str, registered: Sequence[IndexVersion]) -> int:
        number = 1 + max((version.number for version in registered), default=0)
        with self._connection.client() as client:
            names = set(client.list_collections(timeout=self._connection.timeout_s))
        while IndexVersion(collection, number).physical in names:
            number += 1
        return number

    def _describe(self, version: IndexVersion) -> ReadyIndex | None:
        description = self._description(version)
        if description is None:
            return None
        return ReadyIndex(version.physical, read_description(version.collection, description))

    def _description(self, version: IndexVersion) -> str | None:
        """What its physical collection remembers; None where there is none."""
        with self._connection.client() as client:
            try:
                described = client.describe_collection(version.physical, timeout=self._connection.timeout_s)
            except MilvusException as error:
                if is_not_found(error):
                    return None
                raise
        return str(described["description"])

    def _write(self, versions: Iterable[IndexVersion]) -> None:
        rows = [
            {
                "version": version.physical,
                "collection": version.collection,
                "number": version.number,
                "state": version.state,
                "run": version.run,
                "vector": [0.0, 1.0],
            }
            for version in versions
        ]
        with self._connection.client() as client:
            _make_registry(client, self._connection.timeout_s)
            client.upsert(REGISTRY, rows, timeout=self._connection.timeout_s)

    def _remove_rows(self, versions: Iterable[IndexVersion]) -> None:
        ids = [version.physical for version in versions]
        if ids:
            with self._connection.client() as client:
                client.delete(REGISTRY, ids=ids, timeout=self._connection.timeout_s)


def _make_registry(client: MilvusClient, timeout_s: float) -> None:
    """Makes the registry unless it exists; every call may be repeated."""
    indexes = MilvusClient.prepare_index_params()
    indexes.add_index("vector", index_type="FLAT", metric_type="L2")
    if not client.has_collection(REGISTRY, timeout=timeout_s):
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("version", DataType.VARCHAR, is_primary=True, max_length=_MAX_NAME_CHARS)
        schema.add_field("number", DataType.INT64)
        for name in ("collection", "state", "run"):
            schema.add_field(name, DataType.VARCHAR, max_length=_MAX_NAME_CHARS)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants one in every collection
        try:
            client.create_collection(REGISTRY, schema=schema, consistency_level=CONSISTENCY, timeout=timeout_s)
        except MilvusException:
            # Another process may have made it in the meantime.
            if not client.has_collection(REGISTRY, timeout=timeout_s):
                raise
    client.create_index(REGISTRY, indexes, timeout=timeout_s, sync=False)  # no row is in it yet
    client.load_collection(REGISTRY, timeout=timeout_s)
