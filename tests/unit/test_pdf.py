from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject, NameObject
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from ingest import pdf_child
from ingest.load import load_document
from ingest.parse import parse_document
from ingest.parse_pdf import parse_pdf
from ingest.pdf_child import storable
from rag.config import MIB, IngestSettings
from rag.errors import DocumentError
from rag.types import ParsedDocument

LIMITS = IngestSettings(parse_wall_s=30)

PAGES = ["The first page.\nIt has two lines.", "The second page.", "The third page."]


def make_pdf(pages: list[str], title: str | None = None) -> bytes:
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=A4, pageCompression=0)
    if title is not None:
        canvas.setTitle(title)
    for page in pages:
        for row, line in enumerate(page.split("\n")):
            canvas.drawString(72, 700 - 20 * row, line)
        canvas.rect(72, 72, 100, 100)
        canvas.showPage()
    canvas.save()
    return file.getvalue()


def rewrite(raw: bytes, change: Callable[[PdfWriter], object]) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(raw)))
    change(writer)
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def parse(folder: Path, raw: bytes, limits: IngestSettings = LIMITS, child: Path | None = None) -> ParsedDocument:
    path = folder / "it's a 문서.pdf"
    path.write_bytes(raw)
    document = load_document(path, max_file_bytes=limits.max_file_bytes)
    return parse_pdf(path, document, limits, child) if child else parse_document(document, limits)


def refusal(folder: Path, raw: bytes, limits: IngestSettings = LIMITS, child: Path | None = None) -> str:
    with pytest.raises(DocumentError) as caught:
        parse(folder, raw, limits, child)
    return str(caught.value)


def write_child(folder: Path, program: str) -> Path:
    """A program to run in place of pdf_child.py, which it can load under its name."""
    path = folder / "child.py"
    load = f"import os, runpy, signal, subprocess, sys, time\npdf_child = runpy.run_path({pdf_child.__file__!r})\n"
    path.write_text(load + program)
    return path


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_pages_have_numbers_and_exact_offsets(tmp_path: Path) -> None:
    parsed = parse(tmp_path, make_pdf(PAGES, title="A  title"))
    assert [page.text for page in parsed.pages] == [page + "\n" for page in PAGES]
    assert [page.number for page in parsed.pages] == [1, 2, 3]
    for page in parsed.pages:
        assert parsed.text[page.start_char : page.start_char + len(page.text)] == page.text
    assert (parsed.title, parsed.paged, parsed.skipped_pages) == ("A title", True, 0)


@pytest.mark.parametrize("title", [None, "", "  ", "untitled"])
def test_without_a_title_the_file_name_is_it(tmp_path: Path, title: str | None) -> None:
    assert parse(tmp_path, make_pdf(PAGES, title)).title == "it's a 문서"


def test_a_page_without_text_keeps_its_number(tmp_path: Path) -> None:
    parsed = parse(tmp_path, make_pdf(["", PAGES[0], "", PAGES[1]]))
    assert [page.text.strip() for page in parsed.pages] == ["", PAGES[0], "", PAGES[1]]
    assert [page.number for page in parsed.pages] == [1, 2, 3, 4]


def test_a_damaged_page_is_skipped_and_counted(tmp_path: Path) -> None:
    def damage(writer: PdfWriter) -> None:
        stream = DecodedStreamObject()
        stream.set_data(b"BT [(broken) 0.0 Tc\n-250.0 (text)] TJ ET")
        writer.pages[1][NameObject("/Contents")] = writer._add_object(stream)

    parsed = parse(tmp_path, rewrite(make_pdf(PAGES), damage))
    assert [page.text for page in parsed.pages] == [PAGES[0] + "\n", "", PAGES[2] + "\n"]
    assert parsed.skipped_pages == 1
    assert parsed.pages[2].start_char == len(PAGES[0]) + 1
    assert "no page of it can be read (pages: 1" in refusal(tmp_path, rewrite(make_pdf(PAGES[:1]), damage_first))


def damage_first(writer: PdfWriter) -> None:
    stream = DecodedStreamObject()
    stream.set_data(b"BT [(broken) 0.0 Tc\n-250.0 (text)] TJ ET")
    writer.pages[0][NameObject("/Contents")] = writer._add_object(stream)


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_encrypted_with_a_password_is_refused_and_without_one_read(tmp_path: Path, algorithm: str) -> None:
    raw = make_pdf(PAGES)
    locked = rewrite(raw, lambda writer: writer.encrypt("secret", algorithm=algorithm))
    assert refusal(tmp_path, locked).startswith("it is encrypted; save a copy that needs no password")
    printable_only = rewrite(raw, lambda writer: writer.encrypt("", "owner", algorithm=algorithm))
    assert parse(tmp_path, printable_only).pages[0].text == PAGES[0] + "\n"


def test_no_text_layer(tmp_path: Path) -> None:
    reason = refusal(tmp_path, make_pdf(["", ""]))
    assert reason.startswith("it holds no text (pages: 2)")
    assert "ocrmypdf" in reason


@pytest.mark.parametrize(
    "raw",
    [b"%PDF-1.7\n", b"%PDF-1.7\n" + b"\0\xff" * 5000, b"<not a pdf>", make_pdf(PAGES)[:400]],
    ids=["header only", "noise", "other text", "truncated"],
)
def test_damaged(tmp_path: Path, raw: bytes) -> None:
    assert refusal(tmp_path, raw).startswith(("it is damaged or no PDF", "it has no pages"))


def test_limits_on_pages_and_characters(tmp_path: Path) -> None:
    raw = make_pdf(PAGES)
    assert "3 pages, more than the 2 allowed" in refusal(tmp_path, raw, IngestSettings(max_pages=2))
    assert "more than the 40 characters allowed" in refusal(tmp_path, raw, IngestSettings(max_chars=40))
    parse(tmp_path, raw, IngestSettings(max_pages=3, max_chars=100))


def test_memory_limit(tmp_path: Path) -> None:
    program = "pdf_child['limit_process'](int(sys.argv[2]), 60)\nbytearray(int(sys.argv[2]))\n"
    limits = IngestSettings(parse_memory_bytes=256 * MIB)
    reason = refusal(tmp_path, make_pdf(PAGES), limits, write_child(tmp_path, program))
    assert reason.startswith("reading it takes more memory than the 256 MiB allowed")
    assert "ingest.parse_memory_bytes" in reason
    assert len(parse(tmp_path, make_pdf(PAGES), limits).pages) == 3


def test_cpu_limit(tmp_path: Path) -> None:
    program = "pdf_child['limit_process'](int(sys.argv[2]), int(sys.argv[3]))\nwhile True: pass\n"
    limits = IngestSettings(parse_cpu_s=1, parse_wall_s=60)
    reason = refusal(tmp_path, make_pdf(PAGES), limits, write_child(tmp_path, program))
    assert reason.startswith("reading it took more than 1 s of CPU time")


def test_a_child_that_hangs_is_killed_with_its_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = (
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{other.pid}}')\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    reason = refusal(tmp_path, make_pdf(PAGES), IngestSettings(parse_wall_s=2), write_child(tmp_path, program))
    assert reason.startswith("reading it took longer than 2 s")
    assert time.monotonic() - started < 20
    for pid in map(int, pids.read_text().split()):
        deadline = time.monotonic() + 5
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(pid)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process that read it was ended by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the process that read it was ended by SIGKILL"),
        ("sys.exit('no parser here')", "the process that read it ended with status 1: no parser here"),
        (
            'sys.stdout.write(\'{"text": "half a li\')',
            "the process that read it ended with status 0",
        ),
    ],
)
def test_a_child_that_dies_costs_one_document(tmp_path: Path, program: str, reason: str) -> None:
    assert refusal(tmp_path, make_pdf(PAGES), child=write_child(tmp_path, program)).startswith(reason)


def test_no_process_and_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    children = Path("/proc/thread-self/children").read_text()
    parse(tmp_path, make_pdf(PAGES))
    refusal(tmp_path, b"%PDF-1.7\n")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert Path("/proc/thread-self/children").read_text() == children


@pytest.mark.parametrize(
    ("found", "stored"),
    [
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", "한글"),
        ("\ufb01nal di\ufb00erence", "final difference"),
        ("\ud83d\ude80 and \ud83d lone \ude80", "🚀 and  lone "),
        ("nul\0", "nul"),
        ("Ⅳ ½ ㎏", "Ⅳ ½ ㎏"),
    ],
)
def test_text_is_made_storable(found: str, stored: str) -> None:
    assert storable(found) == stored
