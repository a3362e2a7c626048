"""DOCX, made by python-docx and by hand: order, headings, lists, tables, what Word keeps beside the text, bombs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import docx
import pytest
from docx.document import Document as WordDocument
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from ingest.load import DOCX, TEXT, load_document, tell_media_type
from ingest.parse import parse_document
from rag.errors import DocumentError
from rag.step_settings import MIB, IngestSettings
from rag.types import ParsedDocument

LIMITS = IngestSettings(parse_wall_s=30)


def make_docx(fill: Callable[[WordDocument], object]) -> bytes:
    document = docx.Document()
    fill(document)
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def parse(folder: Path, raw: bytes, limits: IngestSettings = LIMITS, name: str = "it's a 문서.docx") -> ParsedDocument:
    path = folder / name
    path.write_bytes(raw)
    return parse_document(load_document(path, max_file_bytes=limits.max_file_bytes), limits)


def refusal(folder: Path, raw: bytes, limits: IngestSettings = LIMITS) -> str:
    with pytest.raises(DocumentError) as caught:
        parse(folder, raw, limits)
    return str(caught.value)


def rewrite_part(raw: bytes, name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.namelist():
            new.writestr(part, content if part == name else old.read(part))
    return file.getvalue()


def guide(document: WordDocument) -> None:
    document.core_properties.title = "Properties' title"
    document.add_paragraph("Guide", style="Title")
    document.add_paragraph("Before\tthe first\nheading.")
    document.add_heading("설치 Install", level=1)
    document.add_paragraph("first", style="List Number")
    document.add_paragraph("second", style="List Number")
    document.add_paragraph("a point", style="List Bullet")
    document.add_paragraph("Between.")
    table = document.add_table(rows=3, cols=2)
    for row, texts in enumerate([("Name", "Default"), ("port", "8000\n(TCP)"), ("", "")]):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    document.add_heading("Ports", level=3)
    document.add_paragraph("한글은 NFC로".encode().decode())
    document.add_paragraph("")


def test_blocks_headings_lists_and_tables_in_document_order(tmp_path: Path) -> None:
    parsed = parse(tmp_path, make_docx(guide))
    assert parsed.text.split("\n\n") == [
        "Guide",
        "Before\tthe first\nheading.",
        "설치 Install",
        "1. first\n2. second\n- a point",
        "Between.",
        "Name | Default\nport | 8000 (TCP)",
        "Ports",
        "한글은 NFC로",
        "",
    ]
    assert [(h.level, h.text) for h in parsed.headings] == [(1, "Guide"), (1, "설치 Install"), (3, "Ports")]
    for heading in parsed.headings:
        assert parsed.text[heading.start_char : heading.end_char] == heading.text
    assert (parsed.title, parsed.paged) == ("Guide", False)


@pytest.mark.parametrize(("title", "expected"), [("Its title", "Its title"), ("", "it's a 문서")])
def test_title_without_headings(tmp_path: Path, title: str, expected: str) -> None:
    def fill(document: WordDocument) -> None:
        document.core_properties.title = title
        document.add_paragraph("Text.")

    assert parse(tmp_path, make_docx(fill)).title == expected


def test_text_is_in_nfc_and_storable(tmp_path: Path) -> None:
    parsed = parse(tmp_path, make_docx(lambda document: document.add_paragraph("\u1112\u1161\u11ab \ufb01nal")))
    assert parsed.text == "한 final\n\n"


def test_what_word_wraps_around_text_and_what_it_hides(tmp_path: Path) -> None:
    body = """
    <w:sdt><w:sdtContent><w:p><w:r><w:t>In a content control.</w:t></w:r></w:p></w:sdtContent></w:sdt>
    <w:p><w:ins w:id="1" w:author="a"><w:r><w:t>Inserted</w:t></w:r></w:ins><w:del w:id="2" w:author="a"><w:r>
      <w:delText>deleted</w:delText></w:r></w:del><w:r><w:t xml:space="preserve"> </w:t></w:r><w:hyperlink><w:r>
      <w:t>linked</w:t></w:r></w:hyperlink><w:r><w:instrText>PAGE</w:instrText></w:r></w:p>
    <w:p><w:pPr><w:outlineLvl w:val="1"/></w:pPr><w:r><w:t>By outline level</w:t></w:r></w:p>
    <w:p><w:r><w:t>Around a box</w:t></w:r><w:r><w:pict><w:txbxContent><w:p><w:r><w:t>In a box.</w:t></w:r></w:p>
      </w:txbxContent></w:pict></w:r></w:p>
    <w:tbl><w:tr><w:tc><w:p><w:r><w:t>outer</w:t></w:r></w:p></w:tc><w:tc><w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r>
      </w:p></w:tc><w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl><w:p/></w:tc></w:tr></w:tbl>
    """

    def fill(document: WordDocument) -> None:
        for element in parse_xml(f"<w:body {nsdecls('w')}>{body}</w:body>"):
            document.element.body.append(element)

    parsed = parse(tmp_path, make_docx(fill))
    assert parsed.text.split("\n\n")[:-1] == [
        "In a content control.",
        "Inserted linked",
        "By outline level",
        "Around a box",
        "In a box.",
        "outer | a | b",
    ]
    assert [(h.level, h.text) for h in parsed.headings] == [(2, "By outline level")]


def referring(text: str, kind: str, note: int) -> str:
    return f'<w:r><w:t>{text}</w:t></w:r><w:r><w:{kind}Reference w:id="{note}"/></w:r>'


def with_notes(document: WordDocument) -> None:
    main = document.part
    for kind, relationship, notes in (
        (
            "footnote",
            RELATIONSHIP_TYPE.FOOTNOTES,
            [run("It was 9 % in 2024."), run("Gone."), run("Of a cell."), run("각주")],
        ),
        ("endnote", RELATIONSHIP_TYPE.ENDNOTES, [referring("Names itself.", "endnote", 1)]),
    ):
        inside = "".join(
            f'<w:{kind} w:id="{number}"><w:p><w:r><w:{kind}Ref/></w:r>{runs}</w:p></w:{kind}>'
            for number, runs in enumerate(notes, 1)
        )
        separator = f'<w:{kind} w:type="separator" w:id="-1"><w:p><w:r><w:separator/></w:r></w:p></w:{kind}>'
        blob = f"<w:{kind}s {nsdecls('w')}>{separator}{inside}</w:{kind}s>".encode()
        content_type = f"application/vnd.openxmlformats-officedocument.wordprocessingml.{kind}s+xml"
        assert main.package is not None
        main.relate_to(Part(PackURI(f"/word/{kind}s.xml"), content_type, blob, main.package), relationship)
    body = f"""
    <w:p>{referring("The share fell.", "footnote", 1)}</w:p>
    <w:p><w:r><w:t>Kept.</w:t></w:r><w:del w:id="9" w:author="a">{referring("gone", "footnote", 2)}</w:del></w:p>
    <w:tbl><w:tr><w:tc><w:p>{referring("Cell.", "footnote", 3)}</w:p></w:tc></w:tr></w:tbl>
    <w:p><w:pPr><w:pStyle w:val="ListBullet"/></w:pPr>{referring("one", "footnote", 4)}</w:p>
    <w:p><w:pPr><w:pStyle w:val="ListBullet"/></w:pPr>{referring("two", "endnote", 1)}</w:p>
    <w:p>{referring("Again.", "footnote", 1)}</w:p>
    <w:p>{referring("To no note.", "footnote", 77)}</w:p>
    """
    for block in parse_xml(f"<w:body {nsdecls('w')}>{body}</w:body>"):
        document.element.body.insert(len(document.element.body) - 1, block)


def run(text: str) -> str:
    return f"<w:r><w:t>{text}</w:t></w:r>"


def test_a_note_follows_what_refers_to_it_once(tmp_path: Path) -> None:
    parsed = parse(tmp_path, make_docx(with_notes))
    assert parsed.text.split("\n\n") == [
        "The share fell.",
        "It was 9 % in 2024.",
        "Kept.",
        "Cell. Of a cell.",
        "- one\n각주\n- two\nNames itself.",
        "Again.",
        "To no note.",
        "",
    ]


def test_notes_that_are_no_xml_are_damage(tmp_path: Path) -> None:
    raw = rewrite_part(make_docx(with_notes), "word/footnotes.xml", b"<w:footnotes")
    assert "damaged" in refusal(tmp_path, raw)


def test_type_is_told_by_content(tmp_path: Path) -> None:
    raw = make_docx(guide)
    assert parse(tmp_path, raw, name="report.bin").document.media_type == DOCX
    assert parse(tmp_path, raw, name="notes.md").title == "Guide"
    assert tell_media_type(b"only text", "report.docx") == TEXT
    padded = rewrite_part(raw, "nothing", b"")
    assert tell_media_type(padded[:30], "x", padded[-2000:]) == DOCX
    with pytest.raises(DocumentError, match="neither PDF nor DOCX"):
        tell_media_type(b"PK\x03\x04\0\0word/other.xml", "x.zip", b"xl/workbook.xml")
    with pytest.raises(DocumentError, match=r"of the old kind \(.doc\) or one with a password"):
        tell_media_type(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "report.docx")


def test_empty_and_damaged(tmp_path: Path) -> None:
    raw = make_docx(guide)
    assert refusal(tmp_path, make_docx(lambda document: None)).startswith("it holds no text")
    for damaged in (
        raw[: len(raw) // 2],
        b"PK\x03\x04 word/document.xml and no more",
        rewrite_part(raw, "word/document.xml", b"<w:document"),
        rewrite_part(raw, "[Content_Types].xml", b"<Types/>"),
    ):
        assert refusal(tmp_path, damaged).startswith("it is damaged or no Word document (DOCX)")


def test_zip_and_entity_bombs_meet_the_limits(tmp_path: Path) -> None:
    raw = make_docx(guide)
    limits = IngestSettings(parse_memory_bytes=256 * MIB, parse_wall_s=60)
    bomb = rewrite_part(raw, "word/document.xml", b"<x>" + b" " * (600 * MIB) + b"</x>")
    assert len(bomb) < MIB
    assert refusal(tmp_path, bomb, limits).startswith("reading it takes more memory than the 256 MiB allowed")
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    lol = f'<!DOCTYPE x [<!ENTITY e0 "lol">{entities}]><x>&e9;</x>'.encode()
    assert refusal(tmp_path, rewrite_part(raw, "word/document.xml", lol), limits)
    assert parse(tmp_path, raw, limits).title == "Guide"


def test_too_many_characters(tmp_path: Path) -> None:
    raw = make_docx(lambda document: [document.add_paragraph("ten chars.") for _ in range(11)])
    assert "more than the 100 characters allowed" in refusal(tmp_path, raw, IngestSettings(max_chars=100))
