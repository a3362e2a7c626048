"""A collection is built anew while it is used, over real servers."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest.copy_chunks import Files, StoredTexts
from ingest.journal import open_journal
from ingest.pipeline import ingest_documents
from ingest.prepare import prepare_here
from ingest.reindex import ReindexReport, drop_old_versions, reindex_collection
from rag.errors import IndexMismatchError, RagError, StoreUnavailableError, UnknownCollectionError
from rag.filters import Equals
from rag.index_versions import REGISTRY, IndexVersion
from rag.milvus import MilvusConnection
from rag.store import MilvusStore
from rag.store_rows import BuiltIndex, build_schema
from rag.types import Chunk, Embedding, IndexFingerprint, StoredChunk
from tests.crash import raw_client
from tests.pipeline_fakes import make_settings
from tests.search_load import Asking, unit_vectors

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("milvus_lite") is None, reason="needs milvus-lite: the cpu extra"
)

ROOT = Path(__file__).parents[2]
OLD = IndexFingerprint("old", 4, True, "", "", splitter="s", analyzer="1")
NEW = replace(OLD, model="new", dimension=8)
TIMEOUT_S = 20.0
DRAIN_S = 0.2  # the writers here wait for nothing
TTL_S = 0.5
ROWS = 60


class CountingEmbedder:
    """Vectors of one direction; counts texts, and calls `meanwhile` before each batch."""

    def __init__(self, dimension: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.texts = 0
        self._dimension = dimension
        self._meanwhile = meanwhile

    def __call__(self, texts: list[str]) -> list[Embedding]:
        self._meanwhile()
        self.texts += len(texts)
        return [Embedding(vector) for vector in unit_vectors(len(texts), self._dimension)]


def row(number: int, dimension: int = 4, **changes: Any) -> StoredChunk:
    chunk = Chunk(f"c{number:03}", f"d{number}", "r1", 0, f"word{number} text", 0, 10)
    stored = StoredChunk(
        chunk, unit_vectors(1, dimension)[0], "old", "t", f"{number}.md", ("g",), {"n": 1}, 1, None, "1"
    )
    return replace(stored, **changes)


OpenStore = Callable[[IndexFingerprint | None], MilvusStore]


@pytest.fixture
def open_store(request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    uri: str = request.getfixturevalue(f"{getattr(request, 'param', 'lite')}_uri")
    opened: list[MilvusStore] = []

    def open_milvus(fingerprint: IndexFingerprint | None) -> MilvusStore:
        opened.append(MilvusStore(uri, timeout_s=TIMEOUT_S, fingerprint=fingerprint, versions_ttl_s=TTL_S))
        return opened[-1]

    yield open_milvus
    for store in opened:
        store.close()


@pytest.fixture
def old_store(open_store: OpenStore) -> Iterator[MilvusStore]:
    """A store of the old settings; its collection `docs` holds ROWS chunks."""
    store = open_store(OLD)
    store.ensure_collection("docs", OLD)
    store.upsert("docs", [row(number) for number in range(ROWS)])
    yield store
    store.drop_collection("docs")
    assert store.collections() == []


def reindex(store: MilvusStore, embed: CountingEmbedder, fingerprint: IndexFingerprint = NEW) -> ReindexReport:
    def no_files(_old: str, _new: str, _check: object) -> Any:
        raise AssertionError("the stored texts were to be used")

    stored = StoredTexts(store, embed, str.upper, lambda text: "word7 " in text, 10, lambda count: None)
    return reindex_collection(
        "docs", store=store, fingerprint=fingerprint, copy_stored=stored, copy_files=no_files, drain_s=DRAIN_S
    )


async def found(store: MilvusStore, dimension: int) -> tuple[str, int]:
    """The index version that answers, and how many chunks it finds."""
    result = await store.dense_search("docs", unit_vectors(1, dimension)[0], 100, groups=None)
    return result.index_version, len(result.hits)


@pytest.mark.parametrize("open_store", ["lite", "standalone"], indirect=True)
async def test_questions_go_on_and_each_answer_names_its_version(open_store: OpenStore, old_store: MilvusStore) -> None:
    other = replace(OLD, model="other")
    anyone, bound = Asking(open_store(None)), Asking(open_store(OLD))
    anyone.start()
    bound.start()
    new_store = open_store(other)
    with pytest.raises(IndexMismatchError, match=r"model is 'old', not 'other'.*rag collections reindex docs"):
        await found(new_store, 4)
    embed = CountingEmbedder(4)
    report = reindex(open_store(other), embed, other)
    deadline = asyncio.get_running_loop().time() + 60
    while len(anyone.versions) < 2:  # each process learns of the switch a little later
        assert asyncio.get_running_loop().time() < deadline, "the switch was not learnt of"
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    anyone.stop()
    bound.stop()
    assert (anyone.failures, bound.failures) == ([], [])
    assert anyone.versions == [OLD.index_version, other.index_version]
    assert bound.versions == [OLD.index_version]
    assert min(len(anyone.found), len(bound.found)) > 20
    assert {*anyone.found, *bound.found} == {ROWS}
    assert (report.old_version, report.index_version) == (OLD.index_version, other.index_version)
    assert (report.texts, report.copied.chunks, report.copied.cut, embed.texts) == ("stored", ROWS, 1, ROWS)
    assert await found(new_store, 4) == (other.index_version, ROWS)
    assert await found(open_store(OLD), 4) == (OLD.index_version, ROWS)
    assert old_store.collections() == ["docs"]
    assert new_store.fingerprint("docs") == other
    assert list(new_store.every_chunk("docs")) == list(old_store.every_chunk("docs"))
    again = reindex(new_store, embed, other)
    assert (again.texts, again.copied.chunks, embed.texts) == (None, 0, ROWS)


async def test_the_new_version_is_found_by_its_own_words(open_store: OpenStore, old_store: MilvusStore) -> None:
    new_store = open_store(NEW)
    reindex(new_store, CountingEmbedder(8))
    new, old = open_store(NEW), open_store(OLD)
    assert [hit.chunk.chunk_id for hit in (await new.lexical_search("docs", "WORD7", 5, groups=None)).hits] == ["c007"]
    assert (await new.lexical_search("docs", "old", 5, groups=None)).hits == ()
    assert (await old.lexical_search("docs", "WORD7", 5, groups=None)).hits == ()
    assert len((await old.lexical_search("docs", "old", 5, groups=None)).hits) == 5


async def test_after_the_switch_new_rows_go_to_the_new_version_and_deleted_ones_from_both(
    open_store: OpenStore, old_store: MilvusStore
) -> None:
    new_store = open_store(NEW)
    reindex(new_store, CountingEmbedder(8))
    late = open_store(OLD)
    with pytest.raises(IndexMismatchError, match="model is 'new', not 'old'"):
        late.upsert("docs", [row(100)])
    with pytest.raises(IndexMismatchError, match="model is 'new', not 'old'"):
        late.ensure_collection("docs", OLD)
    new_store = open_store(NEW)
    new_store.upsert("docs", [row(100, 8)])
    assert await found(new_store, 8) == (NEW.index_version, ROWS + 1)
    assert await found(late, 4) == (OLD.index_version, ROWS)
    new_store.delete("docs", Equals("document_id", "d4"), everywhere=False)
    assert await found(new_store, 8) == (NEW.index_version, ROWS)
    assert await found(late, 4) == (OLD.index_version, ROWS)
    late.delete("docs", Equals("document_id", "d3"))
    assert await found(new_store, 8) == (NEW.index_version, ROWS - 1)
    assert await found(late, 4) == (OLD.index_version, ROWS - 1)
    assert drop_old_versions("docs", new_store, DRAIN_S) == 1
    assert await found(open_store(NEW), 8) == (NEW.index_version, ROWS - 1)
    with pytest.raises(IndexMismatchError, match="model is 'new', not 'old'"):
        await found(open_store(OLD), 4)
    assert new_store.collections() == ["docs"]


async def test_what_changes_while_the_new_version_is_built_is_in_it(
    open_store: OpenStore, old_store: MilvusStore
) -> None:
    changes = iter(
        [
            lambda: old_store.upsert("docs", [row(200), row(1, acl=("other",), updated_at="2")]),
            lambda: old_store.delete("docs", Equals("document_id", "d2")),
            lambda: old_store.upsert("docs", [row(59, title="changed")]),
        ]
    )
    new_store = open_store(NEW)
    embed = CountingEmbedder(8, meanwhile=lambda: next(changes, lambda: None)())
    report = reindex(new_store, embed)
    assert next(changes, None) is None
    kept = {chunk.chunk_id: document for chunk, document in open_store(NEW).every_chunk("docs")}
    assert kept == {chunk.chunk_id: document for chunk, document in open_store(OLD).every_chunk("docs")}
    assert kept["c001"].acl == ("other",)
    assert "c002" not in kept
    assert kept["c059"].title == "changed"
    assert "c200" in kept
    assert report.copied.chunks == embed.texts <= ROWS + 3


@pytest.mark.parametrize("open_store", ["lite", "standalone"], indirect=True)
async def test_a_registry_that_is_being_made_stops_no_question(
    request: pytest.FixtureRequest, open_store: OpenStore, old_store: MilvusStore
) -> None:
    """Between its creation and its loading; a run that is killed there leaves it so."""
    old_store.registry.begin("docs")
    connection = MilvusConnection(
        request.getfixturevalue(f"{request.node.callspec.params['open_store']}_uri"), None, TIMEOUT_S
    )
    with connection.client() as client:
        client.release_collection(REGISTRY)
    connection.close()
    assert await found(open_store(OLD), 4) == (OLD.index_version, ROWS)


def test_while_the_versions_are_switched_changes_are_refused(open_store: OpenStore, old_store: MilvusStore) -> None:
    registry = old_store.registry
    registry.refuse_writes(registry.begin("docs"), DRAIN_S)
    late = open_store(OLD)
    for change in (lambda: late.upsert("docs", [row(300)]), lambda: late.delete("docs", Equals("ordinal", 0))):
        with pytest.raises(StoreUnavailableError, match=r"'docs' is switching.*rag collections reindex docs"):
            change()
    assert len(late.stored_documents("docs")) == ROWS
    reindex(open_store(NEW), CountingEmbedder(8))
    open_store(NEW).upsert("docs", [row(300, 8)])


def test_a_switch_that_was_stopped_is_undone_where_the_current_version_is_wanted(
    open_store: OpenStore, old_store: MilvusStore
) -> None:
    registry = old_store.registry
    stopped = registry.begin("docs")
    open_store(NEW).ensure_collection(stopped.physical, NEW)
    registry.refuse_writes(stopped, DRAIN_S)
    with pytest.raises(StoreUnavailableError, match="rag collections reindex docs"):
        old_store.upsert("docs", [row(300)])
    report = reindex(old_store, CountingEmbedder(4), OLD)
    assert (report.texts, report.copied.chunks) == (None, 0)
    old_store.upsert("docs", [row(300)])
    assert [version.number for version in registry.versions("docs")] == [0]
    assert registry.drop_physical([stopped]) == 0


KILLED = """
import sys, time
from tests.contract.test_reindex import NEW, TIMEOUT_S, TTL_S, CountingEmbedder, reindex
from rag.store import MilvusStore
from rag.store_rows import BuiltIndex, build_schema
def told():
    print("batch", flush=True)
    time.sleep(0.1)
store = MilvusStore(sys.argv[1], timeout_s=TIMEOUT_S, fingerprint=NEW, versions_ttl_s=TTL_S)
reindex(store, CountingEmbedder(8, meanwhile=told))
"""


def test_a_killed_run_is_resumed_where_it_stopped(lite_uri: str, open_store: OpenStore, old_store: MilvusStore) -> None:
    command = [sys.executable, "-c", KILLED, lite_uri]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline() == "batch\n"
        process.send_signal(signal.SIGKILL)
    assert old_store.fingerprint("docs") == OLD
    old_store.upsert("docs", [row(number) for number in range(ROWS)])  # nothing is blocked
    embed = CountingEmbedder(8)
    reindex(open_store(NEW), embed)
    assert 0 < embed.texts <= ROWS - 30
    store = open_store(NEW)
    assert list(store.every_chunk("docs")) == list(open_store(OLD).every_chunk("docs"))
    assert [version.number for version in store.registry.versions("docs")] == [1, 0]


def test_a_run_that_was_taken_over_stops(open_store: OpenStore, old_store: MilvusStore) -> None:
    taken: list[IndexVersion] = []

    def take_over() -> None:
        if not taken:
            taken.append(old_store.registry.begin("docs", 1))

    with pytest.raises(RagError, match="another reindex of 'docs' has taken over"):
        reindex(open_store(NEW), CountingEmbedder(8, meanwhile=take_over))
    assert open_store(None).fingerprint("docs") == OLD


def test_an_unfinished_version_for_another_embedder_gives_way(open_store: OpenStore, old_store: MilvusStore) -> None:
    abandoned = open_store(replace(OLD, model="third"))
    begun = abandoned.registry.begin("docs")
    abandoned.ensure_collection(begun.physical, replace(OLD, model="third"))
    reindex(open_store(NEW), CountingEmbedder(8))
    versions = open_store(NEW).registry.versions("docs")
    assert [(version.number, version.state) for version in versions] == [(1, "ready"), (0, "ready")]
    assert open_store(NEW).fingerprint("docs") == NEW


def test_a_new_version_never_takes_the_name_of_a_collection_that_is_there(
    lite_uri: str, open_store: OpenStore, old_store: MilvusStore
) -> None:
    client = raw_client(lite_uri)
    client.create_collection("docs__v1", dimension=2)  # another program's: ours make none of that name
    reindex(open_store(NEW), CountingEmbedder(8))
    assert [version.number for version in open_store(NEW).registry.versions("docs")] == [2, 0]
    assert client.has_collection("docs__v1")
    client.drop_collection("docs__v1")
    client.close()
    assert open_store(NEW).fingerprint("docs") == NEW


def test_a_collection_from_before_chunks_kept_their_leads_is_reindexed(lite_uri: str, open_store: OpenStore) -> None:
    client = raw_client(lite_uri)
    client.create_collection("docs", schema=build_schema(BuiltIndex(OLD, leads=False)))
    client.close()
    store = open_store(OLD)
    store.ensure_collection("docs", OLD)
    store.upsert("docs", [row(number) for number in range(3)])
    reindex(open_store(NEW), CountingEmbedder(8))
    store = open_store(NEW)
    assert [chunk for chunk, _ in store.every_chunk("docs")] == [row(number).chunk for number in range(3)]
    store.drop_collection("docs")


def test_an_unknown_collection_is_named(open_store: OpenStore) -> None:
    with pytest.raises(UnknownCollectionError, match="'docs'"):
        reindex(open_store(NEW), CountingEmbedder(8))
    with pytest.raises(UnknownCollectionError, match="'docs'"):
        drop_old_versions("docs", open_store(NEW), DRAIN_S)


def test_with_another_splitter_files_are_read_again_and_what_has_none_is_split_from_its_stored_text(
    open_store: OpenStore, tmp_path: Path
) -> None:
    settings = make_settings().model_copy(update={"data_dir": tmp_path / "data"})
    paths = [tmp_path / name for name in ("a.md", "b.md", "c.md")]
    for path in paths:
        path.write_text(f"# {path.stem}\n\nThe text of {path.name}.\n", encoding="utf-8")

    def ingest(store: MilvusStore, fingerprint: IndexFingerprint, path: Path, group: str) -> None:
        with open_journal(settings, "docs", print) as journal:
            ingest_documents(
                [path],
                store=store,
                journal=journal,
                embed=CountingEmbedder(fingerprint.dimension),
                analyze=str.upper,
                prepare=prepare_here(settings, lambda text: len(text.split())),
                fingerprint=fingerprint,
                settings=settings,
                collection="docs",
                acl=(group,),
                say=print,
            )

    for path in paths:
        ingest(open_store(OLD), OLD, path, path.stem)
    paths[2].unlink()
    changed = replace(NEW, splitter="other")

    def no_texts(_old: str, _new: str, _check: object) -> Any:
        raise AssertionError("the files were to be read")

    def reindex_files() -> ReindexReport:
        store = open_store(changed)
        files = Files(
            store,
            CountingEmbedder(8),
            str.upper,
            lambda text: len(text.split()),
            changed,
            settings,
            lambda count: None,
            print,
        )
        return reindex_collection(
            "docs", store=store, fingerprint=changed, copy_stored=no_texts, copy_files=files, drain_s=DRAIN_S
        )

    report = reindex_files()
    assert (report.texts, report.copied.failures, report.copied.rebuilt) == ("files", (), 1)
    assert "1 documents without such a file" in report.sentence()
    store = open_store(changed)
    documents = store.stored_documents("docs")
    assert [(Path(document.source).name, document.acl) for document in documents] == [
        ("a.md", ("a",)),
        ("b.md", ("b",)),
        ("c.md", ("c",)),
    ]
    texts = [[chunk.text for chunk in store.chunks("docs", document.document_id)] for document in documents]
    assert texts == [["The text of a.md."], ["The text of b.md."], ["The text of c.md."]]
    open_store(changed).drop_collection("docs")
