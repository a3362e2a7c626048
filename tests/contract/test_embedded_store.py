from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rag.embedded_store import EmbeddedServer, ensure_server, is_alive
from rag.errors import StoreUnavailableError
from tests.crash import raw_client

pytestmark = pytest.mark.skipif(importlib.util.find_spec("milvus_lite") is None, reason="milvus-lite: the cpu extra")

IDLE_S = 0.4
START_S = 20.0
USER = """
import sys, time
from pathlib import Path
from rag.embedded_store import ensure_server
server = ensure_server(Path(sys.argv[1]), start_timeout_s=20, idle_s=0.4)
print(server.uri, flush=True)
time.sleep(60)
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    wait_until(lambda: not is_alive(tmp_path), "the server to stop by itself")


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.01)


def start(data_dir: Path) -> EmbeddedServer:
    return ensure_server(data_dir, start_timeout_s=START_S, idle_s=IDLE_S)


def start_user(data_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", USER, data_dir], stdout=subprocess.PIPE, text=True)


def said_uri(user: subprocess.Popen[str]) -> str:
    assert user.stdout is not None
    return user.stdout.readline().strip()


def end(user: subprocess.Popen[str]) -> None:
    user.kill()
    user.communicate()


def record(data_dir: Path) -> dict[str, int]:
    read: dict[str, int] = json.loads((data_dir / "milvus" / "server.json").read_text())
    return read


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def servers_of(data_dir: Path) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, cwd = (folder / "cmdline").read_bytes(), str((folder / "cwd").readlink())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if command.split(b"\0")[0].endswith(b"/milvus") and cwd == str(data_dir / "milvus"):
            found.append(int(folder.name))
    return found


def write_row(uri: str) -> None:
    client = raw_client(uri)
    client.create_collection("kept", dimension=2, timeout=10)
    client.insert("kept", [{"id": 7, "vector": [0.0, 1.0], "text": "남는다"}], timeout=10)
    client.close()


def read_rows(uri: str) -> list[str]:
    client = raw_client(uri)
    rows = client.query("kept", filter="id >= 0", output_fields=["text"], timeout=10)
    client.close()
    return [row["text"] for row in rows]


def test_a_server_starts_serves_and_stops_by_itself_with_its_data_kept(data_dir: Path) -> None:
    assert not is_alive(data_dir)
    with start(data_dir) as server:
        assert is_alive(data_dir)
        write_row(server.uri)
        time.sleep(4 * IDLE_S)
        assert is_alive(data_dir), "it has a user"
        pids = record(data_dir)
    wait_until(lambda: not is_running(pids["pid"]) and not is_running(pids["keeper_pid"]), "both processes to end")
    assert not is_alive(data_dir)
    assert "nobody has used it for 0.4 s; exit status 0" in (data_dir / "logs" / "milvus.log").read_text()
    with start(data_dir) as server:
        assert read_rows(server.uri) == ["남는다"]
        assert record(data_dir)["port"] == pids["port"]


def test_release_twice_is_harmless(data_dir: Path) -> None:
    server = start(data_dir)
    server.release()
    server.release()
    wait_until(lambda: not is_alive(data_dir), "the server to stop")


def test_several_starters_at_once_yield_one_server(data_dir: Path) -> None:
    users = [start_user(data_dir) for _ in range(4)]
    try:
        uris = {said_uri(user) for user in users}
        assert len(uris) == 1
        assert uris.pop().startswith("http://127.0.0.1:")
        assert servers_of(data_dir) == [record(data_dir)["pid"]]
    finally:
        for user in users:
            end(user)


def test_one_user_ending_leaves_the_server_to_the_other(data_dir: Path) -> None:
    with start(data_dir) as server:
        user = start_user(data_dir)
        try:
            assert said_uri(user) == server.uri
        finally:
            end(user)
        time.sleep(4 * IDLE_S)
        assert is_alive(data_dir)


def test_a_user_killed_with_sigkill_frees_the_server(data_dir: Path) -> None:
    user = start_user(data_dir)
    assert said_uri(user)
    assert is_alive(data_dir)
    end(user)
    wait_until(lambda: not is_alive(data_dir), "the server to stop")


@pytest.mark.parametrize("victim", ["pid", "keeper_pid"], ids=["binary", "keeper"])
def test_after_sigkill_the_next_user_finds_the_data_at_the_same_port(data_dir: Path, victim: str) -> None:
    with start(data_dir) as first:
        write_row(first.uri)
        pids = record(data_dir)
        os.kill(pids[victim], signal.SIGKILL)
        wait_until(lambda: not is_running(pids["pid"]) and not is_running(pids["keeper_pid"]), "no orphan", 5)
        assert not is_alive(data_dir)
        with start(data_dir) as second:
            assert second.uri == first.uri
            assert read_rows(second.uri) == ["남는다"]
            assert len(servers_of(data_dir)) == 1


def test_a_starter_killed_while_starting_leaves_a_store_that_others_can_use(data_dir: Path) -> None:
    for delay_s in (0.0, 0.1, 0.2, 0.3):
        starter = start_user(data_dir)
        time.sleep(delay_s)
        end(starter)
        with start(data_dir) as server:
            assert raw_client(server.uri).list_collections(timeout=10) == []
            assert len(servers_of(data_dir)) == 1
        wait_until(lambda: not is_alive(data_dir), "the server to stop")


def test_sigterm_to_the_keeper_stops_the_server_cleanly(data_dir: Path) -> None:
    with start(data_dir):
        pids = record(data_dir)
        os.kill(pids["keeper_pid"], signal.SIGTERM)
        wait_until(lambda: not is_running(pids["pid"]) and not is_running(pids["keeper_pid"]), "both processes to end")
    assert "SIGTERM came; exit status 0" in (data_dir / "logs" / "milvus.log").read_text()


def test_restarts_in_quick_succession_never_make_two_servers(data_dir: Path) -> None:
    for _ in range(5):
        with start(data_dir):
            os.kill(record(data_dir)["keeper_pid"], signal.SIGKILL)
        with start(data_dir):
            assert len(servers_of(data_dir)) <= 1


def test_another_port_is_taken_when_the_remembered_one_is_not_free(data_dir: Path) -> None:
    with start(data_dir):
        port = record(data_dir)["port"]
    wait_until(lambda: not is_alive(data_dir), "the server to stop")
    wait_until(lambda: not is_running(record(data_dir)["keeper_pid"]), "the keeper to end")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert not is_alive(data_dir), "the port answers, but the process is gone"
        with start(data_dir) as server:
            assert server.uri != f"http://127.0.0.1:{port}"
            write_row(server.uri)


@pytest.mark.parametrize("record_text", ["", "{", "[]", '{"pid": 1, "start_ticks": 0, "port": 1}', '{"pid": null}'])
def test_a_stale_or_damaged_record_is_no_server(data_dir: Path, record_text: str) -> None:
    (data_dir / "milvus").mkdir()
    (data_dir / "milvus" / "server.json").write_text(record_text)
    assert not is_alive(data_dir)
    with start(data_dir):
        assert is_alive(data_dir)


@pytest.mark.parametrize("name", ["with space", "한글 폴더", 'it\'s "quoted"', "-dash; $HOME & `x`", "긴" * 60])
def test_any_folder_name_works(tmp_path: Path, name: str) -> None:
    data_dir = tmp_path / name
    with start(data_dir) as server:
        write_row(server.uri)
        assert read_rows(server.uri) == ["남는다"]
    wait_until(lambda: not is_alive(data_dir), "the server to stop")
    assert (data_dir / "milvus" / "milvus.db").stat().st_size > 0


def test_a_relative_data_directory_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with start(Path("here")):
        assert is_alive(tmp_path / "here")
    wait_until(lambda: not is_alive(tmp_path / "here"), "the server to stop")


def test_two_data_directories_have_a_server_each(tmp_path: Path) -> None:
    with start(tmp_path / "one") as one, start(tmp_path / "two") as two:
        assert one.uri != two.uri
        write_row(one.uri)
        assert raw_client(two.uri).list_collections(timeout=10) == []
    for name in ("one", "two"):
        wait_until(lambda name=name: not is_alive(tmp_path / name), "the servers to stop")  # type: ignore[misc]


def test_a_file_that_pymilvus_has_open_is_refused(tmp_path: Path) -> None:
    (tmp_path / "milvus").mkdir()
    direct = (
        "import sys, time; from milvus_lite.server import Server; s = Server(sys.argv[1]); "
        "assert s.start(); print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", direct, tmp_path / "milvus" / "milvus.db"],
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert said_uri(other) == "open"
        try:
            with pytest.raises(StoreUnavailableError, match=r"another program has .*milvus\.db open.*milvus\.log"):
                start(tmp_path)
        finally:
            end(other)
    with start(tmp_path):
        assert is_alive(tmp_path)


def test_a_file_that_is_no_database_is_named_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "milvus" / "milvus.db").mkdir(parents=True)
    with pytest.raises(StoreUnavailableError, match=r"unable to open database file.*milvus\.log"):
        start(tmp_path)
    assert not is_alive(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreUnavailableError, match="Not a directory"):
        start(tmp_path / "file")


def test_without_milvus_lite_the_message_names_the_extra(tmp_path: Path) -> None:
    asked = "import sys; sys.path.insert(0, sys.argv[1]); " + USER.replace("sys.argv[1]", "sys.argv[2]")
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", asked.replace("; \n", "\n"), Path(__file__).parents[2], tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "StoreUnavailableError" in ended.stderr
    assert "the cpu extra brings it" in ended.stderr


def test_a_start_lock_held_for_too_long_is_named(tmp_path: Path) -> None:
    (tmp_path / "milvus").mkdir()
    hold = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path / "milvus" / "start.lock"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert said_uri(held) == "held"
        with pytest.raises(StoreUnavailableError, match=r"start\.lock"):
            ensure_server(tmp_path, start_timeout_s=0.3, idle_s=IDLE_S)
    finally:
        end(held)
    with start(tmp_path):
        assert is_alive(tmp_path)


def test_the_keeper_is_light(data_dir: Path) -> None:
    with start(data_dir):
        status = Path(f"/proc/{record(data_dir)['keeper_pid']}/status").read_text()
        resident_kib = int(status.split("VmRSS:")[1].split()[0])
        assert resident_kib < 25 * 1024
