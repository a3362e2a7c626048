from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.assemble import assemble_markdown
from ingest.load import load_document
from ingest.parse import decode_text, parse_document
from ingest.read_markdown import read
from rag.errors import DocumentError
from rag.step_settings import IngestSettings
from rag.types import Document, ParsedDocument

LIMITS = IngestSettings()

KOREAN = "서버는 8000번 포트에서 시작합니다. 설정을 바꾸려면 환경 변수를 지정하세요. 쀍 같은 글자도 됩니다.\r\n끝.\n"


def parse(folder: Path, name: str, raw: bytes | str, limits: IngestSettings = LIMITS) -> ParsedDocument:
    path = folder / name
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return parse_document(load_document(path, max_file_bytes=limits.max_file_bytes), limits)


def headings_of(parsed: ParsedDocument) -> list[tuple[int, str]]:
    return [(heading.level, heading.text) for heading in parsed.headings]


class TestPlainText:
    def test_text_is_the_files_own(self, tmp_path: Path) -> None:
        text = "One line.\r\nAnother\tone.\n\n\x0cLast, without an end"
        parsed = parse(tmp_path, "notes on it.txt", text)
        assert parsed.text == text
        assert (parsed.title, parsed.paged, parsed.headings) == ("notes on it", False, ())
        assert [(page.number, page.start_char) for page in parsed.pages] == [(1, 0)]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
    def test_korean_in_its_encodings(self, tmp_path: Path, encoding: str) -> None:
        assert parse(tmp_path, "a.txt", KOREAN.encode(encoding)).text == KOREAN

    def test_euc_kr(self, tmp_path: Path) -> None:
        text = KOREAN.replace("쀍", "똠방각하")
        assert parse(tmp_path, "a.txt", text.replace("똠", "동").encode("euc-kr")).text == text.replace("똠", "동")

    def test_western_legacy(self) -> None:
        text = "Café déjà vu – naïve façade: “größer”."
        assert decode_text(text.encode("cp1252")) == text

    def test_few_damaged_bytes_do_not_turn_utf8_into_something_else(self) -> None:
        raw = bytearray(("한국어 문서입니다. " * 50).encode())
        raw[300:301] = b"\xff"
        decoded = decode_text(bytes(raw))
        assert decoded.startswith("한국어 문서입니다. ")
        assert 1 <= decoded.count("\ufffd") <= 3

    def test_binary_after_the_beginning_is_found(self, tmp_path: Path) -> None:
        with pytest.raises(DocumentError, match="binary data"):
            parse(tmp_path, "a.txt", b"text " * 20_000 + b"\0\0")

    def test_too_many_characters(self, tmp_path: Path) -> None:
        with pytest.raises(DocumentError, match=r"11 characters, more than the 10 allowed.*ingest.max_chars"):
            parse(tmp_path, "a.txt", "가" * 11, IngestSettings(max_chars=10))

    def test_more_bytes_than_the_characters_allowed_can_have_are_not_decoded(self, tmp_path: Path) -> None:
        raw = "😀".encode() * 10
        assert parse(tmp_path, "a.txt", raw, IngestSettings(max_chars=10)).text == "😀" * 10
        with pytest.raises(DocumentError, match=r"41 bytes, more than 10 characters can have.*ingest.max_chars"):
            parse(tmp_path, "b.txt", raw + b"\xff", IngestSettings(max_chars=10))

    @pytest.mark.parametrize("sentence", [KOREAN, "Café déjà vu – naïve façade: “größer”.\n" * 2])
    def test_a_legacy_text_takes_a_few_times_its_size_to_decode(self, sentence: str) -> None:
        encoding = "cp949" if sentence is KOREAN else "cp1252"
        raw = (sentence * 4000).encode(encoding)
        decode_text((sentence * 4).encode(encoding))  # what is loaded once is not counted
        tracemalloc.start()
        text = decode_text(raw)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert text == sentence * 4000
        assert peak < 20 * len(raw)

    def test_file_that_changed_since_it_was_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("before")
        document = load_document(path, max_file_bytes=100)
        path.write_text("after")
        with pytest.raises(DocumentError, match="it changed"):
            parse_document(document, LIMITS)
        path.unlink()
        with pytest.raises(DocumentError, match="it is gone"):
            parse_document(document, LIMITS)

    @given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc"])))
    def test_utf8_comes_back(self, text: str) -> None:
        assert decode_text(text.encode()) == text.removeprefix("\ufeff")


class TestMarkdown:
    TEXT = (
        "\n# The *Guide* to `rag` & more { #guide }\r\n\r\nText.\r\n\r\nSetext\r\nheading\r\n---\r\n\r\n"
        "```sh\n# a comment, not a heading\n```\n\n    # code\n\n> # in a quote\n\n- # in a list\n\n"
        "### [Linked](http://x) ![pic](y.png) &amp; <b>bold</b> ###\n\n## 설치 {: .c }\n#no heading\n"
    )

    def test_text_is_unchanged_and_headings_are_found(self, tmp_path: Path) -> None:
        parsed = parse(tmp_path, "a.md", self.TEXT)
        assert parsed.text == self.TEXT
        assert parsed.title == "The Guide to rag & more"
        assert headings_of(parsed) == [
            (1, "The Guide to rag & more"),
            (2, "Setext heading"),
            (3, "Linked pic & bold"),
            (2, "설치"),
        ]
        lines = [parsed.text[heading.start_char : heading.end_char] for heading in parsed.headings]
        assert lines[0] == "# The *Guide* to `rag` & more { #guide }\r\n"
        assert lines[1] == "Setext\r\nheading\r\n---\r\n"
        assert lines[3] == "## 설치 {: .c }\n"

    def test_code_blocks_are_marked_as_whole_lines(self, tmp_path: Path) -> None:
        parsed = parse(tmp_path, "a.md", self.TEXT)
        assert [parsed.text[start:end] for start, end in parsed.verbatim] == [
            "```sh\n# a comment, not a heading\n```\n",
            "    # code\n",
        ]

    @pytest.mark.parametrize(
        ("text", "title"),
        [
            ('---\nlang: ko\ntitle: "Front: matter"\n---\n# H1\n', "Front: matter"),
            ("---\nlang: ko\n---\n\n# H1\n", "H1"),
            ("## H2\n\n# H1\n", "H1"),
            ("## H2\n", "the file"),
            ("---\n\ntext\n", "the file"),
        ],
    )
    def test_title(self, tmp_path: Path, text: str, title: str) -> None:
        assert parse(tmp_path, "the file.md", text).title == title

    def test_front_matter_is_no_heading_and_moves_no_offset(self, tmp_path: Path) -> None:
        parsed = parse(tmp_path, "a.md", "---\r\ntitle: x\r\n---\r\n# H1\r\ntext\r\n")
        assert headings_of(parsed) == [(1, "H1")]
        assert parsed.text[parsed.headings[0].start_char : parsed.headings[0].end_char] == "# H1\r\n"

    def test_only_a_byte_order_mark_is_taken_off(self, tmp_path: Path) -> None:
        assert parse(tmp_path, "a.md", b"\xef\xbb\xbf# T\n").text == "# T\n"

    @given(text=st.text(alphabet="# \r\n-=`>*ab\u2028\x0b", max_size=80))
    def test_heading_spans_are_whole_lines_in_order(self, text: str) -> None:
        parsed = assemble_markdown(list(read({"text": text})), Document("id", "/x.md", "r", "text/markdown"), text)
        assert parsed.text == text
        end = 0
        for heading in parsed.headings:
            assert end <= heading.start_char < heading.end_char <= len(text)
            assert heading.start_char == 0 or text[heading.start_char - 1] in "\r\n"
            assert heading.end_char == len(text) or text[heading.end_char - 1] in "\r\n"
            end = heading.end_char


class TestHtml:
    PAGE = """<!DOCTYPE html><html><head><title>Site | Page</title><style>p {color: red}</style>
    <script>var secret = 1</script></head><body><nav><a href="/">Home</a><a href="/a">About us</a></nav>
    <main><h1>Running   it</h1><p>Start the <b>server</b> with <code>rag serve</code>.<br>It prints its URL.</p>
    <h2>Ports &amp; hosts</h2><ul><li>one port<ul><li>nested</li></ul></li><li>another</li></ul><ol><li>first</li></ol>
    <pre><code>def f():
        return 1

    f()</code></pre>
    <table><tr><th>Name</th><th>Default</th></tr><tr><td>port</td><td>8000</td></tr></table>
    <blockquote><p>Said <i>someone</i>.</p></blockquote><p>한국어 문단입니다.</p></main>
    <footer>All rights reserved</footer></body></html>"""

    BLOCKS = (
        "Running it",
        "Start the server with rag serve.\nIt prints its URL.",
        "Ports & hosts",
        "- one port\n  - nested\n- another",
        "1. first",
        "def f():\n        return 1\n\n    f()",
        "Name | Default\nport | 8000",
        "Said someone.",
        "한국어 문단입니다.",
    )

    def test_blocks_and_headings(self, tmp_path: Path) -> None:
        parsed = parse(tmp_path, "a.html", self.PAGE)
        assert parsed.text == "".join(block + "\n\n" for block in self.BLOCKS)
        assert parsed.title == "Running it"
        assert headings_of(parsed) == [(1, "Running it"), (2, "Ports & hosts")]
        for heading in parsed.headings:
            assert parsed.text[heading.start_char : heading.end_char] == heading.text

    def test_code_is_marked_as_it_stands(self, tmp_path: Path) -> None:
        parsed = parse(tmp_path, "a.html", self.PAGE)
        assert [parsed.text[start:end] for start, end in parsed.verbatim] == [self.BLOCKS[5] + "\n"]

    @pytest.mark.parametrize("header", ["<h1>Plums</h1>", "<header><h1>Plums<br></h1></header>"])
    def test_headline_outside_of_the_main_content_is_kept(self, tmp_path: Path, header: str) -> None:
        body = "".join(f"<p>Paragraph {number} about the fruit has some ten words in it.</p>" for number in range(6))
        parsed = parse(tmp_path, "a.html", f"<html><body>{header}{body}</body></html>")
        assert parsed.title == "Plums"
        assert headings_of(parsed) == [(1, "Plums")]
        assert parsed.text.startswith("Plums\n\nParagraph 0 about")

    def test_page_without_main_content_gives_its_body(self, tmp_path: Path) -> None:
        page = "<html><head><title>T</title></head><body><script>x()</script><style>y</style><p>Hi.</p></body></html>"
        parsed = parse(tmp_path, "a.html", page)
        assert parsed.text.split() == ["Hi."]
        assert parsed.title == "T"

    @pytest.mark.parametrize("declared", ["euc-kr", "ks_c_5601-1987", "no-such-encoding"])
    def test_declared_encoding(self, tmp_path: Path, declared: str) -> None:
        page = f'<html><head><meta charset="{declared}"></head><body><p>{KOREAN * 3}</p></body></html>'
        assert "서버는 8000번 포트에서 시작합니다." in parse(tmp_path, "a.html", page.encode("cp949")).text

    @pytest.mark.parametrize(
        "declared",
        [
            "undefined",
            "unicode_escape",
            "Raw-Unicode-Escape",
            "punycode",
            "idna",
            "utf--7",
            "u16",
            "hex",
            "base64",
            "a\u202e",
        ],
    )
    def test_a_declared_encoding_that_is_none_of_a_text_is_left_aside(self, tmp_path: Path, declared: str) -> None:
        page = f'<html><head><meta charset="{declared}"></head><body><p>{KOREAN * 3}\\u0041</p></body></html>'
        text = parse(tmp_path, "a.html", page.encode("cp949", "ignore")).text
        assert "서버는 8000번 포트에서 시작합니다." in text
        assert "\\u0041" in text

    def test_xml_declaration(self, tmp_path: Path) -> None:
        page = '<?xml version="1.0" encoding="UTF-8"?><html><body><p>본문입니다.</p></body></html>'
        assert parse(tmp_path, "a.html", page).text.strip() == "본문입니다."

    @pytest.mark.parametrize(
        "page",
        ["<html></html>", "<html><body><script>render()</script><!-- x --></body></html>", "<html>" + "<div>" * 5000],
        ids=["bare", "script-only", "deep"],
    )
    def test_page_without_text(self, tmp_path: Path, page: str) -> None:
        with pytest.raises(DocumentError, match="no text, only markup"):
            parse(tmp_path, "a.html", page)
