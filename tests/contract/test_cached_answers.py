"""An answer from the cache is never older than the documents: a service reads, and another process writes.

Each side has a store of its own over the same Milvus Lite, as the service and `rag ingest` have.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.copy_chunks import StoredTexts
from ingest.journal import open_journal
from ingest.pipeline import ingest_documents
from ingest.prepare import prepare_here
from ingest.reindex import reindex_collection
from ingest.remove import remove_document
from rag.analyze import analyze
from rag.answer_cache import AnswerCache
from rag.config import Settings
from rag.pipeline import Steps, answer
from rag.store import MilvusStore
from rag.types import Answer, IndexFingerprint, Question
from tests.cache_fakes import told
from tests.fakes import HashEmbedder
from tests.ingest_fakes import count_words
from tests.pipeline_fakes import FINGERPRINT, ReadingLLM, make_settings, search_over

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("milvus_lite") is None, reason="needs milvus-lite: the cpu extra"
)

NAME = "cached"
TIMEOUT_S, TTL_S, DRAIN_S = 20.0, 0.2, 0.1
FILES = {
    "ports.md": "# Ports\n\nThe service listens on port 8000.\n",
    "limits.md": "# Limits\n\nA question may have 4,000 characters.\n",
}
PORT = Question("Which port does the service listen on?", NAME, groups=frozenset({"staff"}))
ALIKE = replace(PORT, text="On what port does the service listen?")


class Writer:
    """`rag ingest`, `rag documents delete` and `rag collections reindex`, over a folder."""

    def __init__(self, store: MilvusStore, folder: Path) -> None:
        self.store = store
        self.folder = folder / "documents"
        self.folder.mkdir()
        self.settings = make_settings().model_copy(update={"data_dir": folder / "data"})

    def ingest(self, name: str, text: str, acl: tuple[str, ...] = ()) -> None:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        with open_journal(self.settings, NAME, print) as journal:
            report = ingest_documents(
                [path],
                store=self.store,
                journal=journal,
                embed=HashEmbedder().embed_passages,
                analyze=analyze,
                prepare=prepare_here(self.settings, count_words),
                fingerprint=FINGERPRINT,
                settings=self.settings,
                collection=NAME,
                acl=acl,
                say=print,
            )
        assert report.failed == 0

    def delete(self, name: str) -> None:
        documents = self.store.stored_documents(NAME)
        (found,) = [document for document in documents if Path(document.source).name == name]
        remove_document(self.store, self.settings, NAME, found.document_id, None)

    def reindex(self, fingerprint: IndexFingerprint, store: MilvusStore) -> None:
        def no_files(_old: str, _new: str, _check: object) -> object:
            raise AssertionError("the stored texts were to be used")

        embed = HashEmbedder().embed_passages
        stored = StoredTexts(store, embed, analyze, lambda text: False, 10, lambda count: None)
        report = reindex_collection(
            NAME, store=store, fingerprint=fingerprint, copy_stored=stored, copy_files=no_files, drain_s=DRAIN_S
        )
        assert report.copied.chunks > 0


class Reader:
    """The service: it may be started anew with another store and keep its cache, which no service does."""

    def __init__(self, store: MilvusStore) -> None:
        self.llm = ReadingLLM()
        self.settings: Settings = make_settings(cache={"min_similarity": 0.6})
        self.cache = AnswerCache(100)
        self.start(store)

    def start(self, store: MilvusStore) -> None:
        self.steps = Steps(search_over(store), self.llm, count_words, answers=self.cache)

    async def ask(self, question: Question = PORT) -> Answer:
        """The answer, which is checked to be the one that is made now."""
        given = await answer(question, self.steps, self.settings)
        assert given.degraded == ()
        if given.cached != "semantic":
            assert told(given) == told(await answer(question, replace(self.steps, answers=None), self.settings))
        return given


@pytest.fixture
def writer(lite_uri: str, tmp_path: Path) -> Iterator[Writer]:
    store = MilvusStore(lite_uri, timeout_s=TIMEOUT_S, fingerprint=FINGERPRINT, versions_ttl_s=TTL_S)
    writer = Writer(store, tmp_path)
    for name, text in FILES.items():
        writer.ingest(name, text)
    yield writer
    store.drop_collection(NAME)
    store.close()


@pytest.fixture
def reader(lite_uri: str, writer: Writer) -> Iterator[Reader]:
    store = MilvusStore(lite_uri, timeout_s=TIMEOUT_S, fingerprint=FINGERPRINT, versions_ttl_s=TTL_S)
    yield Reader(store)
    store.close()


CHANGES = {
    "replaced": lambda writer: writer.ingest("ports.md", "# Ports\n\nThe service listens on port 8001.\n"),
    "deleted": lambda writer: writer.delete("ports.md"),
    "added": lambda writer: writer.ingest("new.md", "# Ports\n\nThe service listens on port 9000.\n"),
    "closed": lambda writer: writer.ingest("ports.md", FILES["ports.md"], acl=("board",)),
    "opened_to_staff": lambda writer: writer.ingest("ports.md", FILES["ports.md"], acl=("staff",)),
    "titled": lambda writer: writer.ingest("ports.md", FILES["ports.md"].replace("# Ports", "# The ports")),
}
# A document that is opened to those who saw it already is the same to them.
SAME_TO_THEM = {"opened_to_staff"}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_question_after_an_ingest_gets_no_older_answer(writer: Writer, reader: Reader, change: str) -> None:
    assert (await reader.ask()).cached is None
    assert (await reader.ask()).cached == "exact"
    CHANGES[change](writer)
    after = await reader.ask()
    assert after.cached == ("exact" if change in SAME_TO_THEM else None)
    assert (await reader.ask()).cached == "exact"


@pytest.mark.parametrize("change", [change for change in CHANGES if change not in SAME_TO_THEM])
async def test_nor_does_a_similar_one(writer: Writer, reader: Reader, change: str) -> None:
    await reader.ask()
    assert (await reader.ask(ALIKE)).cached == "semantic"
    CHANGES[change](writer)
    assert (await reader.ask(ALIKE)).cached is None


async def test_what_a_group_may_see_no_more_is_not_in_its_answers(writer: Writer, reader: Reader) -> None:
    assert "8000" in (await reader.ask()).answer
    CHANGES["closed"](writer)
    assert "8000" not in (await reader.ask()).answer
    board = replace(PORT, groups=frozenset({"board"}))
    assert "8000" in (await reader.ask(board)).answer
    assert "8000" not in (await reader.ask()).answer


@pytest.mark.parametrize("change", CHANGES)
async def test_an_answer_made_during_an_ingest_is_not_given_after_it(
    writer: Writer, reader: Reader, change: str
) -> None:
    reader.llm.meanwhile = lambda: CHANGES[change](writer)
    during = await answer(PORT, reader.steps, reader.settings)
    reader.llm.meanwhile = lambda: None
    after = await reader.ask()
    assert (during.cached, after.cached) == (None, "exact" if change in SAME_TO_THEM else None)


async def test_a_new_index_version_shares_no_answer_with_the_old_one(
    lite_uri: str, writer: Writer, reader: Reader
) -> None:
    other = replace(FINGERPRINT, query_prefix="query: ")
    await reader.ask()
    builder = MilvusStore(lite_uri, timeout_s=TIMEOUT_S, fingerprint=other, versions_ttl_s=TTL_S)
    writer.reindex(other, builder)
    builder.close()
    assert (await reader.ask()).cached == "exact"  # the old version is kept for services of the old settings
    new = MilvusStore(lite_uri, timeout_s=TIMEOUT_S, fingerprint=other, versions_ttl_s=TTL_S)
    reader.start(new)
    switched = await reader.ask()
    assert (switched.cached, switched.index_version) == (None, other.index_version)
    assert (await reader.ask()).cached == "exact"
    await new.aclose()


async def test_a_document_deleted_after_a_reindex_is_gone_from_the_old_version_s_answers_too(
    lite_uri: str, writer: Writer, reader: Reader
) -> None:
    other = replace(FINGERPRINT, query_prefix="query: ")
    assert "8000" in (await reader.ask()).answer
    builder = MilvusStore(lite_uri, timeout_s=TIMEOUT_S, fingerprint=other, versions_ttl_s=TTL_S)
    writer.reindex(other, builder)
    builder.close()
    writer.delete("ports.md")
    after = await reader.ask()
    assert (after.cached, after.index_version) == (None, FINGERPRINT.index_version)
    assert "8000" not in after.answer


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_written_each_answer_is_that_of_the_documents_as_they_are(
    writer: Writer, reader: Reader, seed: int
) -> None:
    """`ask` compares each."""
    draw = random.Random(seed)
    seen = []
    for _ in range(12):
        if draw.random() < 0.5:
            name = draw.choice(["ports.md", "new.md"])
            writer.ingest(name, f"# Ports\n\nThe service listens on port {draw.randrange(8000, 8004)}.\n")
        seen.append((await reader.ask()).cached)
    assert {None, "exact"} == set(seen)
