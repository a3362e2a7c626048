"""Children that read: what a file costs when its reader dies, hangs or asks for too much."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest import isolate
from ingest.isolate import read_isolated
from rag.errors import DocumentError
from rag.step_settings import MIB, IngestSettings

ROOT = Path(__file__).parents[2]
LIMITS = IngestSettings(parse_wall_s=30)

Lines = list[dict[str, Any]]
Program = Callable[[str], list[str]]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The child, with a reader `pdf` whose body is given; it may use `request` and yields lines."""

    def write(body: str) -> list[str]:
        indented = "".join(f"    {line}\n" for line in body.splitlines())
        source = (
            "import os, signal, subprocess, sys, time\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "from types import ModuleType\n"
            "from ingest import child, lines\n"
            f"def read(request):\n{indented}    yield from ()\n"
            "reader = sys.modules['ingest.read_pdf'] = ModuleType('ingest.read_pdf')\n"
            "reader.read, reader.DAMAGE = read, lines.DAMAGE\n"
            "child.main()\n"
        )
        path = tmp_path / "child.py"
        path.write_text(source)
        return [sys.executable, "-P", str(path)]

    return write


def refusal(command: list[str], limits: IngestSettings = LIMITS, **asked: Any) -> str:
    with pytest.raises(DocumentError) as caught:
        read_isolated("pdf", asked, limits, command)
    return str(caught.value)


def is_alive(process_id: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except FileNotFoundError:
        return False


def wait_for_end(process_id: int) -> bool:
    deadline = time.monotonic() + 10
    while is_alive(process_id) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(process_id)


def test_lines_come_in_order_and_the_next_file_is_read_by_the_same_child(program: Program) -> None:
    command = program("for n in range(request['count']): yield {'n': n, 'parent': os.getppid(), 'fork': os.getpid()}")
    first = read_isolated("pdf", {"count": 3}, LIMITS, command)
    second = read_isolated("pdf", {"count": 2}, LIMITS, command)
    assert [line["n"] for line in first] == [0, 1, 2]
    assert [line["n"] for line in second] == [0, 1]
    assert len({line["parent"] for line in first + second}) == 1
    assert len({line["fork"] for line in first + second}) == 2


def test_what_is_larger_than_a_pipe_goes_both_ways(program: Program) -> None:
    text = "가나다 text " * 300_000
    command = program("yield {'text': request['text']}\nyield {'text': request['text'][::-1]}")
    assert read_isolated("pdf", {"text": text}, LIMITS, command) == [{"text": text}, {"text": text[::-1]}]


def test_memory_limit_is_each_files_own(program: Program) -> None:
    command = program("kept = bytearray(request['bytes'])\nyield {'kept': len(kept)}")
    limits = IngestSettings(parse_memory_bytes=256 * MIB)
    for _ in range(3):
        assert read_isolated("pdf", {"bytes": 100 * MIB}, limits, command) == [{"kept": 100 * MIB}]
    reason = refusal(command, limits, bytes=256 * MIB)
    assert reason.startswith("reading it takes more memory than the 256 MiB allowed")
    assert "ingest.parse_memory_bytes" in reason
    assert read_isolated("pdf", {"bytes": 1}, limits, command) == [{"kept": 1}]


def test_cpu_limit_is_each_files_own(program: Program) -> None:
    command = program("until = request['cpu']\nwhile time.process_time() < until: pass\nyield {}")
    limits = IngestSettings(parse_cpu_s=1, parse_wall_s=60)
    for _ in range(3):
        assert read_isolated("pdf", {"cpu": 0.5}, limits, command) == [{}]
    assert refusal(command, limits, cpu=60).startswith("reading it took more than 1 s of CPU time")
    assert read_isolated("pdf", {"cpu": 0}, limits, command) == [{}]


def test_a_reader_that_hangs_is_killed_with_its_whole_group(program: Program, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    command = program(
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(ids)!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}} {{other.pid}}')\n"
        "time.sleep(60)\n"
    )
    assert refusal(command, IngestSettings(parse_wall_s=2)).startswith("reading it took longer than 2 s")
    assert all(wait_for_end(int(process_id)) for process_id in ids.read_text().split())


def test_with_ocr_the_wall_limit_is_each_pages(program: Program) -> None:
    command = program("for _ in range(4):\n    time.sleep(0.5)\n    yield {}\ntime.sleep(request['last'])")
    limits = IngestSettings(parse_wall_s=1.5, ocr=True)
    assert len(read_isolated("pdf", {"last": 0}, limits, command)) == 4
    assert refusal(command, limits, last=60).startswith("reading a page of it took longer than 1.5 s")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process that read it was ended by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the process that read it was ended by SIGKILL"),
        ("sys.exit('no parser here')", "the process that read it ended with status 1: no parser here"),
        ("raise SystemError('odd')", "the process that read it ended with status 1: SystemError: odd"),
        (
            'sys.stdout.write(\'{"text": "half a li\'); sys.stdout.flush(); os._exit(0)',
            "the process that read it ended",
        ),
        ("os.kill(os.getppid(), signal.SIGKILL); time.sleep(0.2); os._exit(0)", "the process that read it ended wit"),
        ("raise KeyError('missing')", "it is damaged or no PDF (KeyError: 'missing')"),
        ("raise lines.RefusedError('pages', '9000')", "it has 9,000 pages, more than the 5,000 allowed"),
        ("raise lines.RefusedError('library', 'No module named x')", "PDF cannot be read here (No module named x)"),
    ],
)
def test_a_reader_that_dies_costs_one_file(program: Program, body: str, reason: str) -> None:
    command = program(f"if request['bad']:\n    {body}\nyield {{'text': 'read'}}")
    assert refusal(command, bad=True).startswith(reason)
    assert read_isolated("pdf", {"bad": False}, LIMITS, command) == [{"text": "read"}]


def test_a_child_that_died_while_idle_is_replaced(program: Program) -> None:
    command = program("yield {'parent': os.getppid()}")
    first = read_isolated("pdf", {}, LIMITS, command)[0]["parent"]
    os.kill(first, signal.SIGKILL)
    assert wait_for_end(first)
    assert read_isolated("pdf", {}, LIMITS, command)[0]["parent"] != first


def test_threads_have_a_child_each(program: Program) -> None:
    command = program("time.sleep(0.3)\nyield {'mine': request['number'], 'parent': os.getppid()}")
    found: Lines = []

    def ask(number: int) -> None:
        (line,) = read_isolated("pdf", {"number": number}, LIMITS, command)
        assert line["mine"] == number
        found.append(line)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["mine"] for line in found) == [0, 1, 2]
    assert len({line["parent"] for line in found}) == 3


def test_a_process_whose_children_are_reaped_by_others_is_told_how_reading_ended(tmp_path: Path) -> None:
    """As in a worker of Ray: SIGCHLD is ignored, so the system keeps no exit status."""
    source = (
        "import os, signal\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from ingest.isolate import read_isolated, _idle\n"
        "from rag.config import IngestSettings\n"
        "from rag.errors import DocumentError\n"
        "print(read_isolated('html', {'text': '<html><body><p>Some text.</p></body></html>'}, IngestSettings())[1:])\n"
        "(child,), = _idle.values()\n"
        "child.kill()\n"
        "print(len(read_isolated('html', {'text': '<html><body><p>More.</p></body></html>'}, IngestSettings())))\n"
        "try:\n"
        "    read_isolated('pdf', {'path': '/dev/null', 'passwords': [], 'ocr': None}, IngestSettings())\n"
        "except DocumentError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    first, second, third = done.stdout.splitlines()
    assert first == "[{'text': 'Some text.', 'level': 0, 'verbatim': False}]"
    assert second == "2"
    assert third.startswith("it is damaged or no PDF")


def test_nothing_outlives_the_process_that_asked(program: Program, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    command = program(f"open({str(ids)!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}}')\ntime.sleep(60)\n")
    source = (
        "from ingest.isolate import read_isolated\nfrom rag.config import IngestSettings\n"
        f"read_isolated('pdf', {{}}, IngestSettings(), {command!r})\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT)
    deadline = time.monotonic() + 30
    while (not ids.exists() or len(ids.read_text().split()) < 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    asking.kill()
    asking.wait()
    assert all(wait_for_end(int(process_id)) for process_id in ids.read_text().split())


def test_a_copy_of_the_process_does_not_talk_to_its_children(program: Program) -> None:
    command = program("yield {'parent': os.getppid()}")
    read_isolated("pdf", {}, LIMITS, command)
    copy = os.fork()
    if copy == 0:
        os._exit(len(isolate._idle))
    assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 0
    assert len(isolate._idle) > 0


def test_descriptors_do_not_grow_with_files_and_failures(program: Program) -> None:
    command = program("if request['bad']: os.kill(os.getppid(), signal.SIGKILL)\nyield {}")

    def use() -> int:
        read_isolated("pdf", {"bad": False}, LIMITS, command)
        refusal_or_lines(command)
        read_isolated("pdf", {"bad": False}, LIMITS, command)
        return len(list(Path("/proc/self/fd").iterdir()))

    def refusal_or_lines(command: list[str]) -> None:
        read_isolated("pdf", {"bad": True}, LIMITS, command)  # its last line counts, not what became of its parent

    first = use()
    assert [use() for _ in range(3)] == [first] * 3
