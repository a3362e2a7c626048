from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from pypdf import PdfReader, PdfWriter
from pypdf.annotations import FreeText
from pypdf.generic import DecodedStreamObject, NameObject
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from ingest.chunk import chunk_document
from ingest.lines import storable
from ingest.load import load_document
from ingest.outline import place_outline
from ingest.parse import parse_document
from rag.errors import DocumentError
from rag.step_settings import ChunkSettings, IngestSettings
from rag.types import Page, ParsedDocument

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


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_passwords_are_tried_in_order(tmp_path: Path, algorithm: str) -> None:
    locked = rewrite(make_pdf(PAGES), lambda writer: writer.encrypt("pässwört 암호", "owner", algorithm=algorithm))
    for right in ("pässwört 암호", "owner"):
        if algorithm != "AES-256" and right != "owner":
            continue  # older files hold Latin passwords only
        limits = LIMITS.model_copy(update={"pdf_passwords": (SecretStr("wrong"), SecretStr(right))})
        assert parse(tmp_path, locked, limits).pages[0].text == PAGES[0] + "\n"
    wrong = LIMITS.model_copy(update={"pdf_passwords": (SecretStr("wrong"), SecretStr("secret one"))})
    reason = refusal(tmp_path, locked, wrong)
    assert reason.startswith("it is encrypted and none of the 2 passwords given opens it")
    assert "secret one" not in reason


def outlined(writer: PdfWriter) -> None:
    first = writer.add_outline_item("The  FIRST page", 0)
    writer.add_outline_item("Two lines?", 0, parent=first)
    writer.add_outline_item("third page", 2, parent=writer.add_outline_item("Nowhere to be found", 1))


def test_outline_titles_are_headings_where_the_page_bears_them(tmp_path: Path) -> None:
    pages = ["The first page\nIt has two lines.\n1.2 Two\nlines", "The second page.", "A line.\nthird page\nText."]
    parsed = parse(tmp_path, rewrite(make_pdf(pages), outlined))
    spans = [(h.level, h.text, parsed.text[h.start_char : h.end_char]) for h in parsed.headings]
    assert spans == [
        (1, "The FIRST page", "The first page"),
        (2, "Two lines?", "1.2 Two\nlines"),
        (1, "Nowhere to be found", ""),
        (2, "third page", "third page"),
    ]
    assert parsed.headings[2].start_char == parsed.pages[1].start_char
    chunks = chunk_document(parsed, ChunkSettings(), len)
    assert [(chunk.heading, chunk.text) for chunk in chunks] == [
        ("The FIRST page", "It has two lines."),
        ("Nowhere to be found", "The second page.\nA line."),
        ("Nowhere to be found > third page", "Text."),
    ]
    assert [(chunk.first_page, chunk.last_page) for chunk in chunks] == [(1, 1), (2, 3), (3, 3)]


def test_titles_that_are_all_the_text_stay_text(tmp_path: Path) -> None:
    slides = rewrite(make_pdf(["The first page", ""]), lambda writer: writer.add_outline_item("The first page", 0))
    parsed = parse(tmp_path, slides)
    assert parsed.headings == ()
    assert [chunk.text for chunk in chunk_document(parsed, ChunkSettings(), len)] == ["The first page"]


titles = st.sampled_from(["Intro", "1 Intro", "Intro and more", "Two\nlines", "??", "설치", "제2장 설치", "text"])


@given(
    pages=st.lists(st.lists(titles, max_size=6).map(lambda lines: "\n".join(lines) + "\n"), min_size=1, max_size=4),
    outline=st.lists(st.tuples(st.integers(1, 3), titles, st.integers(-1, 6)), max_size=12),
)
def test_headings_of_an_outline_are_in_order_apart_and_on_their_page(
    pages: list[str], outline: list[tuple[int, str, int]]
) -> None:
    starts = [sum(map(len, pages[:number])) for number in range(len(pages) + 1)]
    placed = place_outline(outline, [Page(n, text, starts[n - 1]) for n, text in enumerate(pages, start=1)])
    if not placed:
        return
    assert len(placed) == sum(1 <= number <= len(pages) for _, _, number in outline)
    numbers = sorted(number for _, _, number in outline if 1 <= number <= len(pages))
    end = 0
    for heading, number in zip(placed, numbers, strict=True):
        assert end <= heading.start_char <= heading.end_char
        assert starts[number - 1] <= heading.start_char
        assert heading.end_char <= starts[number]
        end = heading.end_char


def test_a_page_is_called_by_its_label_too(tmp_path: Path) -> None:
    def label(writer: PdfWriter) -> None:
        writer.set_page_label(0, 1, style="/r")
        writer.set_page_label(2, 2, style="/D", start=3)

    parsed = parse(tmp_path, rewrite(make_pdf(PAGES), label))
    assert [(page.number, page.label) for page in parsed.pages] == [(1, "i"), (2, "ii"), (3, None)]
    assert [page.label for page in parse(tmp_path, make_pdf(PAGES)).pages] == [None] * 3


def test_filled_form_fields_and_notes_on_a_page_are_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=A4)
    canvas.drawString(72, 700, "Name:")
    canvas.acroForm.textfield(name="name", value="Kim", x=72, y=600)
    canvas.acroForm.textfield(name="secret", value="hunter2", x=72, y=500, fieldFlags="password")
    canvas.acroForm.checkbox(name="agree", x=72, y=400, checked=True)
    canvas.save()
    note = FreeText(text="한글 note", rect=(72, 300, 200, 320))
    raw = rewrite(file.getvalue(), lambda writer: writer.add_annotation(0, note))
    assert parse(tmp_path, raw).text == "Name:\nKim\n한글 note\n"


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_pages_are_read(tmp_path: Path, degrees: int) -> None:
    parsed = parse(tmp_path, rewrite(make_pdf(PAGES), lambda writer: [page.rotate(degrees) for page in writer.pages]))
    assert [page.text for page in parsed.pages] == [page + "\n" for page in PAGES]


def test_columns_are_read_one_after_the_other(tmp_path: Path) -> None:
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=A4)
    for left, name in ((72, "left"), (320, "right")):
        for row in range(3):
            canvas.drawString(left, 700 - 20 * row, f"{name} {row}")
    canvas.save()
    assert parse(tmp_path, file.getvalue()).text.split("\n") == [
        *(f"{name} {row}" for name in ("left", "right") for row in range(3)),
        "",
    ]


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
