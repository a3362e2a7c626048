from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.multipart import MAX_FIELD_BYTES, MAX_FIELDS, MAX_FIELDS_BYTES, FormReceiver
from rag.errors import InputError, MalformedError, RagError, TooLargeError

BOUNDARY = "----x1"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
CRLF = b"\r\n"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'Content-Disposition: form-data; name="{name}"{file}'.encode()
    return b"--" + BOUNDARY.encode() + CRLF + head + CRLF + CRLF + content + CRLF


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY.encode() + b"--" + CRLF


def receive(folder: Path, body: bytes, step: int = 1 << 20, **changes: Any) -> FormReceiver:
    receiver = FormReceiver(folder, **{"content_type": CONTENT_TYPE, "max_files": 3} | changes)
    try:
        for start in range(0, len(body), step):
            receiver.write(body[start : start + step])
        receiver.finish()
    finally:
        receiver.close()
    return receiver


LARGE_FIELDS = [part("acl", b"x" * MAX_FIELD_BYTES)] * (MAX_FIELDS_BYTES // MAX_FIELD_BYTES + 1)


def test_fields_up_to_the_limits_are_taken(tmp_path: Path) -> None:
    room = MAX_FIELDS_BYTES - MAX_FIELD_BYTES - len("metadata") - len("acl")
    receiver = receive(tmp_path, form(part("metadata", b"x" * MAX_FIELD_BYTES), part("acl", b"y" * room)))
    assert [len(values[0]) for values in receiver.fields.values()] == [MAX_FIELD_BYTES, room]


@pytest.mark.parametrize("step", [1, 2, 7, 1 << 20])
def test_files_and_fields_are_told_apart_however_the_body_comes(tmp_path: Path, step: int) -> None:
    body = form(
        part("collection", b"docs"),
        part("file", b"one\r\n--\r\n", "메모.md"),
        part("acl", b"a"),
        part("file", b"\0\xff", "../../etc/passwd"),
        part("acl", "나".encode()),
    )
    receiver = receive(tmp_path, body, step)
    assert receiver.names == ["메모.md", "../../etc/passwd"]
    assert receiver.fields == {"collection": ["docs"], "acl": ["a", "나"]}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"0": b"one\r\n--\r\n", "1": b"\0\xff"}


@given(contents=st.lists(st.binary(max_size=300), min_size=1, max_size=3), step=st.integers(1, 400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_every_byte_arrives(tmp_path: Path, contents: list[bytes], step: int) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    receive(folder, form(*(part("file", content, "a") for content in contents)), step)
    assert [(folder / str(number)).read_bytes() for number in range(len(contents))] == contents


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        pytest.param(part("file", b"x", "a"), MalformedError, "closing boundary", id="cut_after_a_part"),
        pytest.param(form(part("file", b"x", "a"))[:-20], MalformedError, "closing boundary", id="cut_within_a_part"),
        pytest.param(b"", MalformedError, "closing boundary", id="empty"),
        pytest.param(b"{}", MalformedError, "not multipart", id="json"),
        pytest.param(form(b"--" + BOUNDARY.encode() + CRLF + CRLF + b"x" + CRLF), MalformedError, "name", id="no_head"),
        pytest.param(form(part("files", b"x", "a")), InputError, "called `file`", id="another_field"),
        pytest.param(form(*[part("file", b"x", "a")] * 4), TooLargeError, "serve.max_upload_files", id="many_files"),
        pytest.param(form(*[part("acl", b"x")] * (MAX_FIELDS + 1)), TooLargeError, "fields", id="many_fields"),
        pytest.param(form(part("acl", b"x" * (MAX_FIELD_BYTES + 1))), TooLargeError, "'acl'", id="long_field"),
        pytest.param(form(*LARGE_FIELDS), TooLargeError, "all together", id="large_fields"),
        pytest.param(
            form(*(part(f"{number}{'x' * 3000}", b"") for number in range(300))),
            TooLargeError,
            "all together",
            id="names",
        ),
        pytest.param(form(part("x" * 20_000, b"x")), MalformedError, "not multipart", id="long_head"),
    ],
)
def test_a_bad_body_is_refused(tmp_path: Path, body: bytes, error: type[RagError], words: str) -> None:
    with pytest.raises(error, match=words):
        receive(tmp_path, body)


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", f"x; boundary={'b' * 999}"])
def test_a_content_type_without_a_usable_boundary_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(MalformedError, match="boundary"):
        receive(tmp_path, form(part("file", b"x", "a")), content_type=kind)


def test_a_file_is_written_while_it_arrives(tmp_path: Path) -> None:
    receiver = FormReceiver(tmp_path, CONTENT_TYPE, 3)
    receiver.write(part("file", b"x" * 1_000_000, "a")[:-2])
    assert (tmp_path / "0").stat().st_size > 900_000
    receiver.close()
