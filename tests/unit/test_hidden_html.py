"""What a browser would not show of a page is not read; what it would show is."""

from __future__ import annotations

import lxml.html
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.hidden_html import drop_hidden
from ingest.read_html import read

SEEN = "The port is 8000 for everybody who comes here."
GHOST = "The port is GHOST."
SHEETS = '<link rel="stylesheet" href="site.css">'


def text_of(body: str, head: str = "") -> str:
    page = f"<html><head><title>T</title>{head}</head><body><h1>Ports</h1><p>{SEEN}</p>{body}</body></html>"
    return "\n".join(line["text"] for line in list(read({"text": page}))[1:])


@pytest.mark.parametrize(
    "styles",
    [
        "display:none",
        "DISPLAY : none !important",
        "visibility:hidden",
        "visibility: collapse",
        "content-visibility:hidden",
        "font-size:0",
        "font-size: 0px; color: black",
        "font-size:1px",
        "font-size:.01em",
        "position:absolute;left:-9999px",
        "position: fixed; top: -600pt",
        "margin-left:-5000px",
        "text-indent:-9999px",
        "transform: translateX(-10000px)",
        "position:absolute; clip: rect(0 0 0 0)",
        "clip-path: inset(50%)",
        "height:0; overflow:hidden",
        "max-height: 0px; overflow: hidden",
        "width:1px;height:1px;overflow:hidden",
        "color:white",
        "color:#fff",
        "color:#FEFEFE;background:#ffffff",
        "color: rgb(255, 255, 255); background-color: rgb(250 250 250)",
        "color:#123456;background-color:#123456",
    ],
)
def test_hidden_by_its_style(styles: str) -> None:
    text = text_of(f'<p style="{styles}">{GHOST}</p><p>Logs rotate daily at night.</p>')
    assert "GHOST" not in text
    assert SEEN in text
    assert "Logs rotate daily at night." in text


@pytest.mark.parametrize(
    "body",
    [
        f"<div hidden>{GHOST}</div>",
        f"<dialog><p>{GHOST}</p></dialog>",
        f'<div style="display:none"><div><p style="display:block">{GHOST}</p></div></div>',
        f'<div style="visibility:hidden"><p>{GHOST}</p></div>',
        f'<div style="font-size:0"><p style="font-size:2em">{GHOST}</p></div>',
        f'<table><tr><td bgcolor="#ffffff"><font color="white">{GHOST}</font></td></tr></table>',
        f'<div style="background:#000"><p style="color:#000">{GHOST}</p></div>',
        f'<p>Logs rotate. <span style="display:none">{GHOST}</span> Daily.</p>',
        f'<p style="color:white"><b style="color:black">Logs</b>{GHOST}</p>',
    ],
)
def test_hidden_by_where_it_stands(body: str) -> None:
    assert "GHOST" not in text_of(body)


@pytest.mark.parametrize(
    ("sheet", "body"),
    [
        (".x{display:none}", '<p class="a x">{}</p>'),
        ("/* p{} */ h6, #top , p.x { display : none }", '<p class="x">{}</p>'),
        ("@media print{.y{display:block}} #top{visibility:hidden}", '<p id="top">{}</p>'),
        ("@import url(a.css); .x{font-size:0}", '<p class="x">{}</p>'),
        (".x{background:#000} .y{color:black}", '<div class="x"><p class="y">{}</p></div>'),
    ],
)
def test_hidden_by_the_pages_own_sheet(sheet: str, body: str) -> None:
    assert "GHOST" not in text_of(body.format(GHOST), f"<style>{sheet}</style>")


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ('<p style="display:block">{}</p>', ""),
        ('<p hidden="until-found">{}</p>', ""),
        ('<p aria-hidden="true">{}</p>', ""),
        ('<p style="opacity:0">{}</p>', ""),
        ("<details><summary>More</summary><p>{}</p></details>", ""),
        ("<dialog open><p>{}</p></dialog>", ""),
        ('<p style="position:absolute;left:-20px">{}</p>', ""),
        ('<p style="left:-9999px">{}</p>', ""),
        ('<p style="height:0">{}</p>', ""),
        ('<div style="visibility:hidden"><p style="visibility:visible">{}</p></div>', ""),
        ('<div style="font-size:0"><p style="font-size:16px">{}</p></div>', ""),
        ('<p style="color:white;background:navy">{}</p>', ""),
        ('<p style="color:white;background:url(night.jpg)">{}</p>', ""),
        ('<div style="background:#222"><p style="color:#fff">{}</p></div>', ""),
        ('<div class="dark"><p style="color:#fff">{}</p></div>', SHEETS),
        ('<p style="color:#fff">{}</p>', SHEETS),
        ('<p style="color:#fff">{}</p>', "<style>main > p {background: black}</style>"),
        ('<p class="x">{}</p>', "<style>@media print { .x { display: none } }</style>"),
        ('<p class="x">{}</p>', "<style>.open .x, .x:empty { display: none }</style>"),
        ('<p class="x y">{}</p>', "<style>.x{display:none} .x.y{display:block}</style>"),
    ],
)
def test_what_is_shown_stays(body: str, head: str) -> None:
    assert "GHOST" in text_of(body.format(GHOST), head)


@pytest.mark.parametrize("styles", ["display:none", "visibility:hidden", "color:#fff", "font-size:0"])
def test_a_body_that_a_script_will_show_is_read(styles: str) -> None:
    page = (
        f'<html><head><style>html{{display:none}}</style></head><body style="{styles}">Hi.<p>{SEEN}</p></body></html>'
    )
    text = "\n".join(line["text"] for line in list(read({"text": page}))[1:])
    assert "Hi." in text


def test_a_page_without_anything_hidden_is_left_alone() -> None:
    tree = lxml.html.document_fromstring('<html><body><p style="color:red">a<b>b</b>c</p></body></html>')
    before = lxml.html.tostring(tree)
    assert drop_hidden(tree) is False
    assert lxml.html.tostring(tree) == before


@pytest.mark.parametrize("part", ["{", "}", "@", "/*", "a,", "@a{", "rgb(", "translate(", "p{color:#fff}"])
def test_a_long_sheet_or_style_is_read(part: str) -> None:
    tree = lxml.html.document_fromstring("<html><head><style>s</style></head><body><p style='s'>x</p></body></html>")
    tree.find(".//style").text = part * 50_000
    tree.find(".//p").set("style", f"color:{part * 50_000};transform:{part * 50_000}")
    assert drop_hidden(tree) is (part == "p{color:#fff}")


def test_deep_pages_are_read() -> None:
    tree = lxml.html.document_fromstring("<html><body>" + "<div>" * 200 + '<p style="display:none">x</p>')
    assert drop_hidden(tree) is True


@settings(deadline=None)
@given(st.text(alphabet="{}@;:,.#px -\n\"'()0123ab%/*", max_size=80), st.text(alphabet=":;-0px(), #fa%", max_size=40))
def test_any_sheet_and_style_is_read(sheet: str, style: str) -> None:
    tree = lxml.html.document_fromstring("<html><head><style>s</style></head><body><p class='a'>x</p></body></html>")
    tree.find(".//style").text = sheet
    tree.find(".//p").set("style", style)
    drop_hidden(tree)
