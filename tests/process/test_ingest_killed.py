"""Runs that end in the middle, at every write to store or journal: what the next run makes of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.types import Embedding
from tests.fakes import HashEmbedder
from tests.ingest_fakes import (
    COLLECTION,
    DyingJournal,
    ForgetfulJournal,
    Store,
    counts,
    ingest,
    kill,
    lay_out,
    paragraphs,
    rows,
)

MOST_WRITES = 200


@dataclass(frozen=True)
class Step:
    """What a folder holds, and how it is ingested."""

    files: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


def play(folder: Path, steps: Sequence[Step], store: Store | None = None) -> Store:
    store = store or Store()
    for step in steps:
        lay_out(folder, step.files)
        ingest(store, folder, **step.options)
    return store


def killed_at_each_write(folder: Path, before: Sequence[Step], step: Step) -> list[Store]:
    """A store for each write of the step's run: that run was ended right before the write."""
    stores = []
    for writes in range(MOST_WRITES):
        store = play(folder, before)
        lay_out(folder, step.files)
        if not kill(store, writes, folder, **step.options):
            return stores
        stores.append(store)
    raise AssertionError(f"a run of more than {MOST_WRITES} writes")


A, B, C, D = paragraphs("apples", 5), paragraphs("pears", 2), paragraphs("plums", 1), paragraphs("figs", 5)
OLD = {"a.txt": A, "b.txt": B, "deep/c.txt": C}
NEW = {"a.txt": D, "b.txt": paragraphs("dates", 1), "deep/c.txt": C}
PRUNE = {"prune": True}
STAFF = {"acl": ["staff"]}

CASES = {
    "the first run": ([], Step(OLD), Step(OLD)),
    "changed files": ([Step(OLD)], Step(NEW), Step(NEW)),
    "changed, and changed back after the kill": ([Step(OLD)], Step(NEW), Step(OLD)),
    "changed, and changed again after the kill": ([Step(OLD)], Step(NEW), Step({**NEW, "a.txt": paragraphs("kiwis")})),
    "changed, and removed after the kill": ([Step(OLD)], Step(NEW, PRUNE), Step({"b.txt": B}, PRUNE)),
    "new, and removed after the kill": ([], Step(OLD), Step({}, PRUNE)),
    "removed": ([Step(OLD)], Step({"b.txt": B}, PRUNE), Step({"b.txt": B}, PRUNE)),
    "moved": ([Step(OLD)], Step({"x.txt": A, "b.txt": B, "y/c.txt": C}), Step({"x.txt": A, "b.txt": B, "y/c.txt": C})),
    "moved, and moved back after the kill": ([Step(OLD, STAFF)], Step({"x.txt": A}), Step({"a.txt": A})),
    "moved, and moved on after the kill": ([Step(OLD, STAFF)], Step({"x.txt": A}), Step({"y.txt": A})),
    "moved, and changed after the kill": ([Step(OLD)], Step({"x.txt": A}, PRUNE), Step({"x.txt": C}, PRUNE)),
    "changed, and moved after the kill": ([Step(OLD)], Step(NEW, PRUNE), Step({"b.txt": A, "x.txt": D}, PRUNE)),
    "two of the same moved": (
        [Step({"a.txt": A}, STAFF), Step({"a.txt": A, "b.txt": A})],
        Step({"x.txt": A, "y.txt": A, "z.txt": A}),
        Step({"x.txt": A, "y.txt": A, "z.txt": A}),
    ),
    "given to a group": ([Step(OLD)], Step(OLD, STAFF), Step(OLD, STAFF)),
    "taken from a group": ([Step(OLD, STAFF)], Step(OLD, {"acl": ["all"]}), Step(OLD, {"acl": ["all"]})),
    "other metadata": ([Step(OLD)], Step(NEW, {"metadata": {"x": "1"}}), Step(NEW, {"metadata": {"x": "1"}})),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_run_killed_at_any_write_is_made_good_by_the_next(
    tmp_path: Path, case: tuple[list[Step], Step, Step]
) -> None:
    before, step, after = case
    wanted = rows(play(tmp_path / "docs", [*before, step, after]))
    stores = killed_at_each_write(tmp_path / "docs", before, step)
    assert len(stores) > 3
    for writes, store in enumerate(stores):
        assert rows(play(tmp_path / "docs", [after], store)) == wanted, writes
        assert counts(ingest(store, tmp_path / "docs"))[:2] == (0, 0), writes


def test_without_the_journals_marker_a_killed_run_leaves_what_no_later_one_removes(tmp_path: Path) -> None:
    folder, back = tmp_path / "docs", Step(OLD)
    wanted = rows(play(folder, [Step(OLD), Step(NEW), back]))
    outcomes = []
    for marker in (True, False):
        differing = 0
        for writes in range(1, 6):
            store = play(folder, [Step(OLD)])
            lay_out(folder, NEW)
            assert kill(store, writes, folder, journal=DyingJournal if marker else ForgetfulJournal)
            differing += rows(play(folder, [back], store)) != wanted
        outcomes.append(differing)
    assert outcomes == [0, 4]


def test_a_group_given_in_a_killed_run_holds_for_all_of_a_document_or_for_none(tmp_path: Path) -> None:
    for writes, store in enumerate(killed_at_each_write(tmp_path / "docs", [Step(OLD)], Step(OLD, STAFF))):
        ingest(store, tmp_path / "docs")
        groups: dict[str, set[tuple[str, ...]]] = {}
        for row in store._rows[COLLECTION].values():
            groups.setdefault(row.source, set()).add(tuple(row.acl))
        assert [len(of_rows) for of_rows in groups.values()] == [1, 1, 1], writes


def test_what_was_written_before_the_kill_is_not_embedded_again(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    lay_out(folder, {"a.txt": paragraphs("apples", 20)})
    store = Store()
    whole = ingest(Store(), folder).chunks
    assert kill(store, 18, folder)
    there = len(store._rows[COLLECTION])
    embedded: list[str] = []

    def embed(texts: list[str]) -> list[Embedding]:
        embedded.extend(texts)
        return HashEmbedder().embed_passages(texts)

    report = ingest(store, folder, embed=embed)
    assert there >= 8
    assert len(embedded) == report.chunks
    assert whole - there <= len(embedded) <= whole - there + 4
    assert counts(report) == (1, 0, 0, 0, 0)


def test_rows_that_the_store_lost_are_embedded_again_whatever_the_journal_says(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    lay_out(folder, {"a.txt": paragraphs("apples", 20)})
    for gone in (1, 5):
        store = Store()
        assert kill(store, 18, folder)
        there = store._rows[COLLECTION]
        lost = next(name for name, row in there.items() if row.chunk.ordinal == gone)
        del there[lost]
        ingest(store, folder)
        assert rows(store) == rows(play(folder, [Step({"a.txt": paragraphs("apples", 20)})]))


def test_the_next_run_finishes_what_was_left_whatever_paths_it_is_given(tmp_path: Path) -> None:
    folder, other = tmp_path / "docs", tmp_path / "other.txt"
    other.write_text("Something else.")
    wanted = play(folder, [Step(NEW, STAFF)])
    ingest(wanted, other)
    stores = killed_at_each_write(folder, [], Step({"a.txt": NEW["a.txt"]}, STAFF))
    for writes, store in enumerate(stores[2:], start=2):  # the first two writes are the journal's: nothing was begun
        ingest(store, other)
        state = rows(store)
        expected = {
            name for name, row in wanted._rows[COLLECTION].items() if row.source.endswith(("other.txt", "a.txt"))
        }
        assert set(state) == expected, writes
        assert all(rows(wanted)[name] == row for name, row in state.items()), writes


def test_a_document_is_found_at_every_moment_while_it_is_replaced(tmp_path: Path) -> None:
    for writes, store in enumerate(killed_at_each_write(tmp_path / "docs", [Step(OLD)], Step(NEW))):
        complete = {document.source for document in store.stored_documents(COLLECTION)}
        assert len(complete) == 3, writes


# --- the journal against the store ---


def lose(store: Store) -> None:
    store.journal.unlink()


def damage(store: Store) -> None:
    store.journal.write_bytes(b"not a database" * 1000)


def cut_off(store: Store) -> None:
    store.journal.write_bytes(store.journal.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("the first run", lose),
        ("changed files", damage),
        ("changed, and changed back after the kill", lose),
        ("changed, and removed after the kill", cut_off),
        ("given to a group", lose),
    ],
)
def test_a_journal_lost_after_the_kill_is_rebuilt_from_the_store(
    tmp_path: Path, name: str, spoil: Callable[[Store], None]
) -> None:
    before, step, after = CASES[name]
    wanted = rows(play(tmp_path / "docs", [*before, step, after]))
    for writes, store in enumerate(killed_at_each_write(tmp_path / "docs", before, step)):
        spoil(store)
        assert rows(play(tmp_path / "docs", [after], store)) == wanted, writes


def test_a_run_killed_while_it_rebuilds_the_journal_is_made_good_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    wanted = rows(play(folder, [Step(NEW)]))
    lay_out(folder, OLD)
    for first in (3, 8):
        for second in range(7):
            store = play(folder, [Step(OLD)])
            lay_out(folder, NEW)
            assert kill(store, first, folder)
            lose(store)
            assert kill(store, second, folder)
            ingest(store, folder)
            assert rows(store) == wanted, (first, second)


def test_it_is_said_that_the_journal_was_rebuilt(tmp_path: Path) -> None:
    said: list[str] = []
    store = play(tmp_path, [Step(OLD, {"said": said})])
    assert said == []
    lose(store)
    ingest(store, tmp_path, said=said)
    assert said == ["the journal is new: rebuilt from the store, which holds 3 documents and 0 that were not finished"]
    damage(store)
    ingest(store, tmp_path, said=said)
    assert "is damaged" in said[-1]
    said.clear()
    assert counts(ingest(store, tmp_path, said=said)) == (0, 0, 3, 0, 0)
    assert said == []


def test_a_journal_older_than_the_store_follows_it(tmp_path: Path) -> None:
    store = play(tmp_path, [Step(OLD)])
    old = store.journal.read_bytes()
    play(tmp_path, [Step(NEW)], store)
    store.journal.write_bytes(old)
    for suffix in ("-wal", "-shm"):
        store.journal.with_name(store.journal.name + suffix).unlink(missing_ok=True)
    said: list[str] = []
    assert counts(ingest(store, tmp_path, said=said)) == (0, 0, 3, 0, 0)
    assert "does not know 2 documents of the store" in said[-1]


def test_a_collection_made_anew_is_filled_again(tmp_path: Path) -> None:
    store = play(tmp_path, [Step(OLD)])
    assert kill(store, 0, tmp_path, acl=["staff"])
    store.drop_collection(COLLECTION)
    said: list[str] = []
    assert counts(ingest(store, tmp_path, said=said)) == (3, 0, 0, 0, 0)
    assert "no longer holds 3 documents" in said[0]
    assert rows(store) == rows(play(tmp_path, [Step(OLD)]))


# --- moved files ---


def test_a_moved_file_follows_its_source_and_keeps_its_groups_without_pruning(tmp_path: Path) -> None:
    store = play(tmp_path, [Step(OLD, STAFF)])
    lay_out(tmp_path, {"elsewhere/new name.txt": A, "b.txt": B, "deep/c.txt": C})
    assert counts(ingest(store, tmp_path)) == (0, 1, 2, 0, 0)
    documents = {Path(document.source).name: document for document in store.stored_documents(COLLECTION)}
    assert set(documents) == {"new name.txt", "b.txt", "c.txt"}
    assert documents["new name.txt"].acl == ("staff",)


def test_a_copy_is_a_document_of_its_own(tmp_path: Path) -> None:
    store = play(tmp_path, [Step(OLD, STAFF)])
    lay_out(tmp_path, {**OLD, "copy.txt": A})
    assert counts(ingest(store, tmp_path)) == (1, 0, 3, 0, 0)
    assert len(store.stored_documents(COLLECTION)) == 4


# --- any order of things ---

names = st.sampled_from(["a.txt", "b.txt", "deep/c.txt", "d.txt"])
texts = st.sampled_from([A, B, paragraphs("figs", 3), "One line."])
corpora = st.dictionaries(names, texts)
chains = st.lists(st.tuples(corpora, st.none() | st.integers(0, 30)), min_size=1, max_size=5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chains, corpora)
def test_after_any_chain_of_killed_runs_the_collection_is_what_the_folder_is(
    tmp_path: Path, chain: list[tuple[dict[str, str], int | None]], last: dict[str, str]
) -> None:
    folder, store = tmp_path / "docs", Store()
    for files, writes in chain:
        lay_out(folder, files)
        if writes is None:
            ingest(store, folder, prune=True)
        else:
            kill(store, writes, folder, prune=True)
    lay_out(folder, last)
    ingest(store, folder, prune=True)
    wanted = Store()
    ingest(wanted, folder)
    assert rows(store) == rows(wanted)
