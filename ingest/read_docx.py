"""DOCX -> blocks in document order: paragraphs, headings, lists, table rows, notes. Runs in the child.

python-docx opens the package; the walk is our own, since its paragraphs leave out content controls and tracked
insertions. A footnote or endnote follows the paragraph that refers to it, or stands in its cell. Headers, footers and
comments are left out, and so is what was deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from zipfile import BadZipFile

import docx
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.opc.exceptions import OpcError
from docx.opc.part import Part
from docx.oxml import parse_xml
from docx.oxml.ns import qn
from lxml import etree

from ingest import lines
from ingest.lines import Line, RefusedError, Request, storable

DAMAGE: tuple[type[Exception], ...] = (*lines.DAMAGE, BadZipFile, OpcError, etree.LxmlError)

_MAX_LEVEL = 9
_PARAGRAPH, _TABLE, _ROW, _CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
_TEXTBOX = qn("w:txbxContent")
# What stands for characters, and what holds no text of the document as it reads now.
_CHARACTERS = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}
_TEXTS = {qn("w:t"), qn("m:t")}
_SILENT = {qn("w:pPr"), qn("w:rPr"), qn("w:del"), qn("w:moveFrom"), _TEXTBOX} | {
    "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
}
_BULLETS = {"bullet", "none"}
_NoteKey = tuple[str, str | None]  # the reference's tag, and the note's id
# What refers to a note: the relationship of the part that holds it, and its element there.
_NOTES = {
    qn("w:footnoteReference"): (RELATIONSHIP_TYPE.FOOTNOTES, qn("w:footnote")),
    qn("w:endnoteReference"): (RELATIONSHIP_TYPE.ENDNOTES, qn("w:endnote")),
}


def read(request: Request) -> Iterator[Line]:
    """{"title": str | null}, the file's own, then for each block {"text", "level"}, level 0 for what is no heading."""
    document = docx.Document(request["path"])
    parts = {one.reltype: one.target_part for one in document.part.rels.values() if not one.is_external}
    reader = _Reader(_read_styles(document.styles.element), notes=_read_notes(parts))
    if RELATIONSHIP_TYPE.NUMBERING in parts:
        reader.formats = _read_formats(parts[RELATIONSHIP_TYPE.NUMBERING].element)
    yield {"title": storable(document.core_properties.title or "").strip() or None}
    chars = 0
    for line in _join_entries(reader.blocks(document.element.body)):
        chars += len(line["text"])
        if chars > request["max_chars"]:
            raise RefusedError("chars", str(chars))
        yield line


@dataclass(frozen=True, slots=True)
class _Style:
    level: int  # of a heading; 0: no heading
    list_id: str | None
    parent: str | None


@dataclass(slots=True)
class _Reader:
    styles: dict[str, _Style]
    formats: dict[tuple[str, int], str] = field(default_factory=dict)  # (list, its level from 0) -> kind of number
    counted: Counter[tuple[str, int]] = field(default_factory=Counter)
    notes: dict[_NoteKey, etree._Element] = field(default_factory=dict)  # those that were not read yet

    def blocks(self, parent: etree._Element) -> Iterator[Line]:
        """The blocks of a body, cell or text box; an entry of a list has `entry`."""
        for child in parent:
            if child.tag == _PARAGRAPH:
                own = list(self._paragraph(child))
                yield from own
                kept = {"entry": True} if any("entry" in line for line in own) else {}  # a list stays one block
                yield from (line | kept for line in self._notes_of(child))
                for box in _descendants(child, {_TEXTBOX}):
                    yield from self.blocks(box)
            elif child.tag == _TABLE:
                rows = "\n".join(self._rows(child))
                if rows:
                    yield {"text": rows, "level": 0}
            elif child.tag not in _SILENT:  # content controls, insertions, custom XML
                yield from self.blocks(child)

    def _paragraph(self, paragraph: etree._Element) -> Iterator[Line]:
        text = storable("".join(_texts(paragraph))).strip()
        if not text:
            return
        properties = paragraph.find(qn("w:pPr"))
        style = self._style_of(_value(properties, "w:pStyle"))
        own_level = _value(properties, "w:outlineLvl")
        level = _level(own_level) if own_level is not None else style.level
        list_id = _value(properties, "w:numPr", "w:numId") or style.list_id
        if level or list_id in (None, "0"):  # 0: taken out of its list
            yield {"text": text, "level": level}
            return
        depth = int(_value(properties, "w:numPr", "w:ilvl") or 0)
        lines_of_entry = text.split("\n")
        mark = self._mark(str(list_id), depth)
        indent = "  " * depth
        rest = (f"\n{indent}{' ' * len(mark)}{line}" for line in lines_of_entry[1:])
        yield {"text": f"{indent}{mark}{lines_of_entry[0]}{''.join(rest)}", "level": 0, "entry": True}

    def _notes_of(self, paragraph: etree._Element) -> Iterator[Line]:
        for reference in _descendants(paragraph, _NOTES):
            note = self.notes.pop((reference.tag, reference.get(qn("w:id"))), None)  # only once: it may name itself
            if note is not None:
                yield from self.blocks(note)

    def _mark(self, list_id: str, depth: int) -> str:
        if self.formats.get((list_id, depth), "bullet") in _BULLETS:
            return "- "
        for key in [key for key in self.counted if key[0] == list_id and key[1] > depth]:
            del self.counted[key]
        self.counted[list_id, depth] += 1
        return f"{self.counted[list_id, depth]}. "

    def _rows(self, table: etree._Element) -> Iterator[str]:
        for row in _children(table, _ROW):
            cells = (" ".join(line["text"] for line in self.blocks(cell)) for cell in _children(row, _CELL))
            text = " | ".join(" ".join(cell.split()) for cell in cells)
            if text.strip(" |"):
                yield text

    def _style_of(self, name: str | None) -> _Style:
        """The style with what it takes over from those that it is based on."""
        level, list_id = 0, None
        seen: set[str | None] = set()
        while name in self.styles and name not in seen:
            seen.add(name)
            style = self.styles[str(name)]
            level, list_id, name = level or style.level, list_id or style.list_id, style.parent
        return _Style(level, list_id, None)


def _join_entries(blocks: Iterator[Line]) -> Iterator[Line]:
    """Neighbouring entries of a list as one block, a line each."""
    entries: list[str] = []
    for block in blocks:
        if "entry" in block:
            entries.append(block["text"])
            continue
        if entries:
            yield {"text": "\n".join(entries), "level": 0}
            entries = []
        yield block
    if entries:
        yield {"text": "\n".join(entries), "level": 0}


def _texts(element: etree._Element) -> Iterator[str]:
    for child in element:
        if child.tag in _TEXTS:
            yield child.text or ""
        elif child.tag in _CHARACTERS:
            yield _CHARACTERS[child.tag]
        elif child.tag not in _SILENT:
            yield from _texts(child)


def _descendants(element: etree._Element, tags: Container[str]) -> Iterator[etree._Element]:
    for child in element:
        if child.tag in tags:
            yield child
        elif child.tag not in _SILENT:
            yield from _descendants(child, tags)


def _children(element: etree._Element, tag: str) -> Iterator[etree._Element]:
    """The rows of a table or the cells of a row, those in content controls and insertions too."""
    for child in element:
        if child.tag == tag:
            yield child
        elif child.tag not in _SILENT:
            yield from _children(child, tag)


def _read_notes(parts: Mapping[str, Part]) -> dict[_NoteKey, etree._Element]:
    return {
        (reference, note.get(qn("w:id"))): note
        for reference, (relationship, tag) in _NOTES.items()
        if relationship in parts
        for note in parse_xml(parts[relationship].blob).iterfind(tag)
    }


def _read_styles(styles: etree._Element) -> dict[str, _Style]:
    found = {}
    for style in styles.iterfind(qn("w:style")):
        properties = style.find(qn("w:pPr"))
        name = (_value(style, "w:name") or "").lower()
        outline = _value(properties, "w:outlineLvl")
        level = 1 if name == "title" else _level(outline)
        if name.startswith("heading ") and name[8:].isdigit():
            level = int(name[8:])
        list_id = _value(properties, "w:numPr", "w:numId")
        found[style.get(qn("w:styleId"), "")] = _Style(level, list_id, _value(style, "w:basedOn"))
    return found


def _read_formats(numbering: etree._Element) -> dict[tuple[str, int], str]:
    levels = {
        abstract.get(qn("w:abstractNumId")): {
            int(level.get(qn("w:ilvl"), 0)): _value(level, "w:numFmt") or "decimal"
            for level in abstract.iterfind(qn("w:lvl"))
        }
        for abstract in numbering.iterfind(qn("w:abstractNum"))
    }
    return {
        (number.get(qn("w:numId"), ""), depth): kind
        for number in numbering.iterfind(qn("w:num"))
        for depth, kind in levels.get(_value(number, "w:abstractNumId"), {}).items()
    }


def _level(outline: str | None) -> int:
    """A heading's level, from 1, of Word's outline level, from 0; 0 for body text, which Word calls 9."""
    return int(outline) + 1 if outline is not None and int(outline) < _MAX_LEVEL else 0


def _value(element: etree._Element | None, *path: str) -> str | None:
    """The `w:val` of the element at a path below; None where there is none."""
    for name in path:
        element = element.find(qn(name)) if element is not None else None
    return element.get(qn("w:val")) if element is not None else None
