"""Questions with their ids, and the answers' file: what a killed run leaves, and what the next one makes of it."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rag.batch_file import BatchRow, open_answers, read_questions
from rag.errors import InputError

ANSWER = {"status": "answered", "answer": "Port 8000. [1]"}
ERROR = {"error": {"detail": "the reranker is down"}}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> dict[str, Any]:
    """The answers by id; each there once."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def answer_all(path: Path, rows: Sequence[BatchRow], body: dict[str, Any] | None = None) -> list[str]:
    """A run over the rows; which it had to ask."""
    with open_answers(path, rows) as out:
        asked = list(out.waiting)
        out.append([(row_id, body or {**ANSWER, "run": "second"}) for row_id in asked])
    return asked


@pytest.fixture
def rows(tmp_path: Path) -> list[BatchRow]:
    return read_questions(write(tmp_path / "in.jsonl", *({"id": f"q{n}", "question": f"Why {n}?"} for n in range(5))))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


# --- questions ---


def test_a_row_has_the_id_that_it_gives_and_the_other_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {"id": "a", "question": "Why?"}, {"question": "When?", "id": 7, "top_k": 3})
    first, second = read_questions(path)
    assert (first.row_id, first.fields) == ("a", {"question": "Why?"})
    assert (second.row_id, second.fields) == ("7", {"question": "When?", "top_k": 3})
    assert first.request_hash != second.request_hash


def test_a_row_without_an_id_is_named_by_what_it_says_wherever_it_stands(tmp_path: Path) -> None:
    why, when = {"question": "Why?"}, {"question": "When?"}
    one = read_questions(write(tmp_path / "one.jsonl", why, when, why))
    other = read_questions(write(tmp_path / "other.jsonl", when, why, {"question": "Who?"}, why))
    named = {row.row_id: row.fields for row in one}
    assert len(named) == 3
    assert {row.row_id for row in other} > set(named)
    assert one[2].row_id == f"{one[0].row_id}-2"


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "Why?"}\r\n\r\n   \n{"question": "When?"}')
    assert [row.fields for row in read_questions(path)] == [{"question": "Why?"}, {"question": "When?"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "no JSON in UTF-8"),
        (b"\xff\xfe", "no JSON in UTF-8"),
        (b"[" * 100_000, "no JSON in UTF-8"),
        (b'"Why?"', "no JSON object"),
        (b'{"id": " ", "question": "Why?"}', "id is no string"),
        (b'{"id": true, "question": "Why?"}', "id is no string"),
        (b'{"id": ["a"], "question": "Why?"}', "id is no string"),
    ],
)
def test_a_line_that_is_no_row_is_one_with_its_error(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(line + b'\n{"question": "Why?"}\n')
    wrong, right = read_questions(path)
    assert isinstance(wrong.fields, InputError)
    assert reason in str(wrong.fields)
    assert wrong.row_id.startswith("row-")
    assert right.fields == {"question": "Why?"}


def test_ids_that_are_there_twice_are_refused_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {"id": 1, "question": "a"}, {"question": "b"}, {"id": "1", "question": "c"})
    with pytest.raises(InputError, match="lines 1 and 3 have the same id '1'"):
        read_questions(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read \(No such file"):
        read_questions(tmp_path / "none.jsonl")


# --- answers ---


def test_answers_are_on_the_disk_at_once_by_id(out: Path, rows: list[BatchRow]) -> None:
    with open_answers(out, rows) as answers:
        answers.append([("q3", ANSWER), ("q0", ANSWER)])
        assert list(read(out)) == ["q3", "q0"]
        assert list(answers.waiting) == ["q1", "q2", "q4"]
    assert read(out)["q3"] == {"id": "q3", "request_hash": rows[3].request_hash, **ANSWER}


def test_the_next_run_asks_only_what_has_no_answer(out: Path, rows: list[BatchRow]) -> None:
    with open_answers(out, rows) as answers:
        answers.append([("q3", ANSWER), ("q0", ANSWER)])
    assert answer_all(out, rows) == ["q1", "q2", "q4"]
    assert {row_id for row_id, row in read(out).items() if row.get("run")} == {"q1", "q2", "q4"}
    assert answer_all(out, rows) == []


def test_wherever_a_kill_cuts_the_file_off_the_next_run_completes_it(out: Path, rows: list[BatchRow]) -> None:
    answer_all(out, rows, ANSWER)
    whole = out.read_bytes()
    for size in range(len(whole)):
        out.write_bytes(whole[:size])
        asked = answer_all(out, rows)
        assert len(asked) == len(rows) - whole[:size].count(b"\n")
        assert set(read(out)) == {row.row_id for row in rows}


def test_a_row_with_an_error_is_asked_again_and_its_line_replaced(out: Path, rows: list[BatchRow]) -> None:
    with open_answers(out, rows) as answers:
        answers.append([("q0", ANSWER), ("q1", ERROR), ("q2", ANSWER)])
    assert answer_all(out, rows) == ["q1", "q3", "q4"]
    assert len(read(out)) == 5
    assert not any("error" in row for row in read(out).values())
    assert sorted(path.name for path in out.parent.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_failed_row_may_be_mended_under_its_id(tmp_path: Path, out: Path, rows: list[BatchRow]) -> None:
    answer_all(out, rows, ERROR)
    mended = read_questions(write(tmp_path / "in.jsonl", {"id": "q1", "question": "Why, then?"}))
    assert answer_all(out, mended) == ["q1"]
    assert list(read(out)) == ["q1"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "q1", "question": "Another?"}, "line 2 answers 'q1', whose question was another one"),
        ({"id": "other", "question": "Why 1?"}, "line 2 answers 'q1', which is not among the questions"),
    ],
)
def test_answers_to_other_questions_are_not_touched(
    tmp_path: Path, out: Path, rows: list[BatchRow], row: dict[str, str], reason: str
) -> None:
    answer_all(out, rows, ANSWER)
    before = out.read_bytes()
    changed = read_questions(write(tmp_path / "in.jsonl", {"id": "q0", "question": "Why 0?"}, row))
    with pytest.raises(InputError, match=f"{reason}; name another file"), open_answers(out, changed):
        pass
    assert out.read_bytes() == before


@pytest.mark.parametrize("line", ["a report of mine", "[1]", '{"id": "q0"}', '{"question": "Why 0?"}'])
def test_a_file_of_something_else_is_not_touched(out: Path, rows: list[BatchRow], line: str) -> None:
    out.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1 is no answer of a batch; name another file"), open_answers(out, rows):
        pass
    assert out.read_text(encoding="utf-8") == line + "\n"


def test_an_answer_that_is_there_twice_is_refused(out: Path, rows: list[BatchRow]) -> None:
    answer_all(out, rows, ANSWER)
    out.write_bytes(out.read_bytes() + out.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="line 6 answers 'q0' once more; delete"), open_answers(out, rows):
        pass


def test_a_row_is_never_written_twice(out: Path, rows: list[BatchRow]) -> None:
    with open_answers(out, rows) as answers:
        answers.append([("q0", ANSWER)])
        with pytest.raises(KeyError):
            answers.append([("q0", ANSWER)])


def test_a_second_run_is_refused_while_one_goes_on_also_after_it_replaced_the_file(
    out: Path, rows: list[BatchRow]
) -> None:
    answer_all(out, rows, ERROR)
    with open_answers(out, rows), pytest.raises(InputError, match="another run"), open_answers(out, rows):
        pass
    assert answer_all(out, rows) == [row.row_id for row in rows]


def test_half_a_surrogate_pair_is_written_as_jsons_escape(out: Path, rows: list[BatchRow]) -> None:
    answer_all(out, rows, {**ANSWER, "answer": "half \ud83d of 🙂"})
    assert read(out)["q0"]["answer"] == "half \ud83d of 🙂"


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Sets how large a file of this process may grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_is_named_and_what_was_written_stays(
    out: Path, rows: list[BatchRow], small_disk: Callable[[int], None]
) -> None:
    def answer_two() -> None:
        with open_answers(out, rows) as answers:
            answers.append([("q0", ANSWER)])
            small_disk(out.stat().st_size + 10)
            answers.append([("q1", ANSWER)])

    with pytest.raises(InputError, match=r"out\.jsonl cannot be written \(File too large"):
        answer_two()
    small_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert answer_all(out, rows) == ["q1", "q2", "q3", "q4"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, rows: list[BatchRow]) -> None:
    wanted = tmp_path / "no folder" / "out.jsonl"
    with pytest.raises(InputError, match=r"out\.jsonl cannot be written \(No such file"), open_answers(wanted, rows):
        pass
