"""PDF -> pages by pypdf, less what nobody sees; pages without text by OCR where asked for. Runs in the child."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pypdf import PageObject, PdfReader
from pypdf.errors import PyPdfError
from pypdf.generic import Destination, TextStringObject

from ingest import lines
from ingest.hidden_pdf import HiddenText
from ingest.lines import Line, RefusedError, Request, describe, storable

DAMAGE: tuple[type[Exception], ...] = (*lines.DAMAGE, PyPdfError)

_MAX_OUTLINE_ENTRIES = 10_000
_MAX_OUTLINE_LEVEL = 6
_HIDDEN = 2  # a bit of an annotation's flags
_PASSWORD_FIELD = 1 << 13  # and of a form field's


def read(request: Request) -> Iterator[Line]:
    """A first line, then for each page {"text"}, in NFC, or {"damage": str}; filled form fields after the page's text.

    The first line: {"title": str | null, "labels": a string for each page | null, "outline": [[level, title, page]]}.
    Takes `path`, `passwords`, `max_pages`, `max_chars`, and `ocr`: null or tesseract's languages.
    """
    reader = PdfReader(request["path"])
    password = _open(reader, request["passwords"])
    count = len(reader.pages)
    if count > request["max_pages"]:
        raise RefusedError("pages", str(count))
    yield {"title": _read_title(reader), "labels": _read_labels(reader), "outline": _read_outline(reader)}
    chars = 0
    for number in range(count):
        try:
            page = reader.pages[number]
            text = storable("\n".join([_read_text(page).rstrip("\n"), *_read_annotations(page)]))
            if request["ocr"] and not text.strip():
                text = _read_image(request, number, password)
        except DAMAGE as error:
            yield {"damage": describe(error)}
            continue
        chars += len(text)
        if chars > request["max_chars"]:
            raise RefusedError("chars", str(chars))
        yield {"text": text}


def _open(reader: PdfReader, passwords: Sequence[str]) -> str:
    """Decrypts the file; the password that did, "" for a file that needs none. Raises RefusedError."""
    if not reader.is_encrypted:
        return ""
    for password in ("", *passwords):
        if reader.decrypt(password):
            return password
    raise RefusedError("password", str(len(passwords))) if passwords else RefusedError("encrypted")


def _read_text(page: PageObject) -> str:
    hidden = HiddenText(page)
    return page.extract_text(visitor_operand_before=hidden.before, visitor_operand_after=hidden.after)


def _written_on(page: PageObject) -> Iterator[str]:
    """The text in a page's form fields and in notes written on it, which is no part of the page's own."""
    for annotation in page.annotations or []:
        entries = annotation.get_object()
        field = entries.get("/Parent", entries).get_object() if "/T" not in entries else entries
        if entries.get("/F", 0) & _HIDDEN or field.get("/Ff", 0) & _PASSWORD_FIELD:
            continue
        kind = entries.get("/Subtype")
        value = entries.get("/Contents") if kind == "/FreeText" else field.get("/V") if kind == "/Widget" else None
        if isinstance(value, TextStringObject) and value.strip():
            yield value.replace("\r\n", "\n").replace("\r", "\n")


def _read_image(request: Request, number: int, password: str) -> str:
    from ingest.read_image import read_image  # for those who have the extra

    return storable(read_image(request["path"], number, password, request["ocr"], request["cpu_s"]))


# What these do not find costs no page: its own text, the file's name, numbers and no headings will do.


def _read_annotations(page: PageObject) -> list[str]:
    found: list[str] = []
    try:
        found.extend(_written_on(page))
    except DAMAGE:
        return found
    return found


def _read_title(reader: PdfReader) -> str | None:
    try:
        title = reader.metadata.title if reader.metadata else None
    except DAMAGE:
        return None
    return storable(title) if isinstance(title, str) else None


def _read_labels(reader: PdfReader) -> list[str] | None:
    try:
        labels = reader.page_labels if "/PageLabels" in reader.root_object else None
    except DAMAGE:
        return None
    return [storable(label) for label in labels] if labels and len(labels) == len(reader.pages) else None


def _read_outline(reader: PdfReader) -> list[tuple[int, str, int]]:
    entries: list[tuple[int, str, int]] = []
    try:
        _add_entries(reader, reader.outline, 1, entries)
    except DAMAGE:
        return entries
    return entries


def _add_entries(reader: PdfReader, outline: Sequence[object], level: int, entries: list[tuple[int, str, int]]) -> None:
    for entry in outline:
        if isinstance(entry, list):
            _add_entries(reader, entry, level + 1, entries)
        elif isinstance(entry, Destination) and len(entries) < _MAX_OUTLINE_ENTRIES:
            page = reader.get_destination_page_number(entry)
            title = " ".join(storable(str(entry.title or "")).split())
            if page is not None and page >= 0 and title:
                entries.append((min(level, _MAX_OUTLINE_LEVEL), title, page + 1))
