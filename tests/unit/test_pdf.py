from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject, NameObject
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from ingest.lines import storable
from ingest.load import load_document
from ingest.parse import parse_document
from rag.config import IngestSettings
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


def parse(folder: Path, raw: bytes, limits: IngestSettings = LIMITS) -> ParsedDocument:
    path = folder / "it's a 문서.pdf"
    path.write_bytes(raw)
    return parse_document(load_document(path, max_file_bytes=limits.max_file_bytes), limits)


def refusal(folder: Path, raw: bytes, limits: IngestSettings = LIMITS) -> str:
    with pytest.raises(DocumentError) as caught:
        parse(folder, raw, limits)
    return str(caught.value)


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
    assert refusal(tmp_path, locked).startswith("it is encrypted; give its password")
    printable_only = rewrite(raw, lambda writer: writer.encrypt("", "owner", algorithm=algorithm))
    assert parse(tmp_path, printable_only).pages[0].text == PAGES[0] + "\n"


def test_no_text_layer(tmp_path: Path) -> None:
    reason = refusal(tmp_path, make_pdf(["", ""]))
    assert reason.startswith("no text layer (pages: 2)")
    assert "ingest.ocr" in reason


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
