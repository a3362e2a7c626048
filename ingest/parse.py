"""Document -> pages with exact offsets, headings and a title; the one place that knows which parser takes what."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import charset_normalizer

from ingest.assemble import assemble_blocks, assemble_markdown, assemble_pages
from ingest.isolate import read_isolated
from ingest.load import DOCX, HTML, JSONL, MARKDOWN, PDF, hash_file, is_binary, revision_of, unreadable
from ingest.rows import read_part
from rag.errors import DocumentError
from rag.step_settings import IngestSettings
from rag.types import Document, Page, ParsedDocument

_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
# Encodings to tell apart by statistics. A longer list makes short Western texts come out as Baltic or Cyrillic.
_LEGACY = ["cp949", "gb18030", "big5", "shift_jis", "euc_jp", "cp1252", "cp1251"]
_DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_\-]{2,40})", re.IGNORECASE)
# Python's own notations, and encodings in which the declaration itself would not be ASCII: no page is in them.
_NO_PAGE = ("undefined", "unicode", "raw-unicode", "punycode", "idna", "utf-7", "utf-16", "utf-32")
_HANGUL = re.compile(r"[가-힣]+")
_MOST_BYTES_PER_CHAR = 4
_MOST_DAMAGED_FRACTION = 0.02
_READ_BY_PATH = {PDF, DOCX}
_SPLIT = "split it, or raise the setting ingest.max_chars (RAG_INGEST__MAX_CHARS)"


def parse_document(document: Document, limits: IngestSettings, path: Path | None = None) -> ParsedDocument:
    """The text of the file at `path` (default: the document's source), which must still have the document's revision.

    The text of Markdown and plain text is the file's own, less a byte order mark: offsets hold in the file; that of a
    row of JSON lines is its `text`. That of HTML, PDF and DOCX is what their parsers find, always the same for the same
    bytes. PDF, DOCX, HTML and Markdown are read in a child process. Raises DocumentError naming what is wrong with the
    file and what to do.
    """
    path = path or Path(document.source)
    try:
        if document.media_type == JSONL:
            return _parse_row(document, limits, path)
        if document.media_type in _READ_BY_PATH:
            return _parse_file(document, limits, path)
        raw = path.read_bytes()
    except OSError as error:
        raise DocumentError(unreadable(error)) from error
    _refuse_change(document, revision_of(raw))
    if len(raw) > _MOST_BYTES_PER_CHAR * limits.max_chars:
        raise DocumentError(f"it has {len(raw):,} bytes, more than {limits.max_chars:,} characters can have; {_SPLIT}")
    text = decode_html(raw) if document.media_type == HTML else decode_text(raw)
    _refuse_length(text, limits)
    if document.media_type == HTML:
        return assemble_blocks(read_isolated("html", {"text": text}, limits), document)
    if document.media_type == MARKDOWN:
        return assemble_markdown(read_isolated("markdown", {"text": text}, limits), document, text)
    return ParsedDocument(document, title=Path(document.source).stem, pages=(Page(1, text, 0),))


def _parse_row(document: Document, limits: IngestSettings, path: Path) -> ParsedDocument:
    assert document.part is not None
    row = read_part(path, document.part)
    _refuse_change(document, row.revision)
    _refuse_length(row.text, limits)
    return ParsedDocument(document, row.title or row.source, pages=(Page(1, row.text, 0),))


def _parse_file(document: Document, limits: IngestSettings, path: Path) -> ParsedDocument:
    if document.media_type == DOCX:
        parsed = assemble_blocks(read_isolated("docx", {"path": str(path)}, limits), document)
    else:
        asked = {
            "path": str(path),
            "passwords": [password.get_secret_value() for password in limits.pdf_passwords],
            "ocr": limits.ocr_languages if limits.ocr else None,
        }
        parsed = assemble_pages(read_isolated("pdf", asked, limits), document)
    _refuse_change(document, hash_file(path, limits.max_file_bytes))
    return parsed


def _refuse_change(document: Document, revision: str) -> None:
    if revision != document.revision:
        raise DocumentError("it changed while it was being read; ingest it again")


def _refuse_length(text: str, limits: IngestSettings) -> None:
    if len(text) > limits.max_chars:
        raise DocumentError(f"it has {len(text):,} characters, more than the {limits.max_chars:,} allowed; {_SPLIT}")


def decode_html(raw: bytes) -> str:
    """As `decode_text`, with the encoding that the page declares."""
    return decode_text(raw, declared=_declared_encoding(raw))


def decode_text(raw: bytes, declared: str | None = None) -> str:
    """Bytes -> text, line ends kept. Tried in order: byte order mark, UTF-8, `declared`, statistics.

    UTF-8 with a few damaged bytes stays UTF-8, each damaged one as U+FFFD. Raises DocumentError where nothing fits.
    """
    if is_binary(raw):
        raise DocumentError("it holds binary data, not text; save it as UTF-8 text, or leave it out")
    for bom, encoding in _BOMS.items():
        if raw.startswith(bom):
            return raw.decode(encoding, "replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        legacy = _decode_legacy(raw, declared)
    if legacy is None:
        raise DocumentError("its text encoding is not recognised; save it as UTF-8")
    return legacy


def _decode_legacy(raw: bytes, declared: str | None) -> str | None:
    lenient = raw.decode("utf-8", "replace")
    if lenient.count("\ufffd") <= _MOST_DAMAGED_FRACTION * _count_non_ascii(lenient):
        return lenient
    if declared is not None and (text := _decode_strictly(raw, declared)) is not None:
        return text
    if (best := charset_normalizer.from_bytes(raw, cp_isolation=_LEGACY).best()) is not None:
        return _decode_strictly(raw, best.encoding)
    korean = _decode_strictly(raw, "cp949")
    if korean is not None and 2 * _count_hangul(korean) > _count_non_ascii(korean):
        return korean
    return None


def _count_non_ascii(text: str) -> int:
    return len(text) - len(text.encode("ascii", "ignore"))


def _count_hangul(text: str) -> int:
    return sum(run.end() - run.start() for run in _HANGUL.finditer(text))


def _decode_strictly(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except (UnicodeError, LookupError):  # LookupError: no such encoding
        return None


def _declared_encoding(raw: bytes) -> str | None:
    found = _DECLARED.search(raw[:4096])
    if found is None:
        return None
    name = found[1].decode("ascii").lower()
    if name in {"euc-kr", "ks_c_5601-1987"}:
        return "cp949"  # as browsers do: its superset
    try:
        known = codecs.lookup(name).name
    except LookupError:
        return None
    return None if known.startswith(_NO_PAGE) else known
