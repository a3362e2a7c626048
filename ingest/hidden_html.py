"""What a browser would not show of a page, taken out of its tree: text that a person cannot see must not be found.

Seen as hidden: the attribute `hidden`, `display: none`, `visibility: hidden`, a closed dialog, letters smaller than a
pixel, letters in the colour behind them, and boxes that are empty or far outside of the page. Styles are read from the
elements and from the page's own style sheets, as far as these have plain selectors (`p`, `.note`, `#top`, `p.note`)
outside of at-rules. What external sheets and scripts do is not known; where they might paint a background, white text
stays. Not seen as hidden: `aria-hidden`, which a person sees, `opacity: 0` and scaling, with which many pages start
what they then move in, and what `html` and `body` say, since scripts show a page that loads. Runs in the child.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from operator import itemgetter

import lxml.html

Styles = dict[str, str]
Colour = tuple[int, int, int]
# By a class, id or tag that its selector names: rules as (place among all, tag or *, classes and ids, styles).
Sheet = dict[str, list[tuple[int, str, frozenset[str], Styles]]]

_PLAIN_SELECTOR = re.compile(r"([a-z][a-z0-9]*|\*)?((?:[.#][\w-]+)*)", re.IGNORECASE)
_NAME = re.compile(r"[.#][\w-]+")
_LENGTH = re.compile(r"\s*(-?\d*\.?\d+)\s*(px|pt|em|rem|%)?", re.IGNORECASE)
_RGB = re.compile(r"rgba?\(\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)\s*[,/]?\s*([\d.]+%?)?\s*\)")
_HEX = re.compile(r"#([0-9a-f]{6}|[0-9a-f]{3})(?![0-9a-f])")
_FAR_TRANSLATED = re.compile(r"translate(?:x|y|3d)?\([^)]{0,80}-\d{4,}px")
_CLIPPED = re.compile(r"rect\((?:\s*[01](?:px)?\s*,?){4}\)")
_CLIP_PATH = re.compile(r"inset\(\s*(?:50|100)%|circle\(\s*0")
_NAMES = {"white": (255, 255, 255), "black": (0, 0, 0), "snow": (255, 250, 250), "ivory": (255, 255, 240)}
_WHITE: Colour = (255, 255, 255)
_NEAR = 12  # of 255 in each channel: not to be told apart
_FAR_PX = 500.0
_PX = {"px": 1.0, "pt": 4 / 3, "em": 16.0, "rem": 16.0, "": 1.0}
_SIDES = ("left", "right", "top", "bottom", "margin-left", "margin-top")
_PROPERTIES = {
    *("display", "visibility", "content-visibility", "position", "text-indent", "transform", "clip", "clip-path"),
    *("overflow", "height", "max-height", "width", "max-width", "font-size", "color", *_SIDES),
    *("background", "background-color", "background-image"),
}
_MARKED = ".//*[@style or @hidden or @bgcolor or @color]|.//style|.//dialog"


@dataclass(frozen=True, slots=True)
class _Look:
    """How letters look in an element; a colour that is not known is None."""

    tiny: bool = False
    invisible: bool = False
    colour: Colour | None = None
    background: Colour | None = _WHITE

    @property
    def shown(self) -> bool:
        same = self.colour and self.background and _is_near(self.colour, self.background)
        return not (self.tiny or self.invisible or same)


def drop_hidden(tree: lxml.html.HtmlElement) -> bool:
    """Takes what is hidden out of the tree; whether there was any."""
    body = tree.find("body")
    if body is None or not tree.xpath(_MARKED):
        return False
    sheet, foreign = _read_sheets(tree)
    dropped = False
    looks = [(body, _look(_Look(background=None if foreign else _WHITE), body, _styles(body, sheet), foreign))]
    while looks:
        element, look = looks.pop()
        shown = look.shown or element is body
        if not shown and element.text and element.text.strip():
            element.text, dropped = " ", True
        for child in list(element):
            if not shown and child.tail and child.tail.strip():
                child.tail, dropped = " ", True
            if not isinstance(child.tag, str):
                continue
            styles = _styles(child, sheet)
            if _is_removed(child, styles):
                child.drop_tree()
                dropped = True
            else:
                looks.append((child, _look(look, child, styles, foreign)))
    return dropped


def _is_removed(element: lxml.html.HtmlElement, styles: Styles) -> bool:
    """Whether neither the element nor anything in it is shown."""
    if element.tag in {"script", "style"}:
        return False
    if element.get("hidden", "until-found") != "until-found" or (
        element.tag == "dialog" and "open" not in element.attrib
    ):
        return True
    if styles.get("display", "").startswith("none") or styles.get("content-visibility") == "hidden":
        return True
    placed = styles.get("position", "").startswith(("absolute", "fixed"))
    sides = [name for name in _SIDES if placed or name.startswith("margin")]
    if any(_px(styles.get(name, "")) <= -_FAR_PX for name in (*sides, "text-indent")):
        return True
    if _FAR_TRANSLATED.search(styles.get("transform", "")):
        return True
    if _CLIPPED.search(styles.get("clip", "")) or _CLIP_PATH.search(styles.get("clip-path", "")):
        return True
    cut = styles.get("overflow", "").startswith(("hidden", "clip"))
    return cut and any(
        name in styles and 0 <= _px(styles[name], unknown=_FAR_PX) <= 1
        for name in ("height", "max-height", "width", "max-width")
    )


def _look(inherited: _Look, element: lxml.html.HtmlElement, styles: Styles, foreign: bool) -> _Look:
    look = inherited
    if "visibility" in styles:
        look = replace(look, invisible=styles["visibility"].startswith(("hidden", "collapse")))
    size = _LENGTH.match(styles.get("font-size", ""))
    if size and (size[2] or "").lower() in {"em", "%"}:
        look = replace(look, tiny=look.tiny or float(size[1]) < (10 if size[2] == "%" else 0.1))
    elif size:
        look = replace(look, tiny=_px(styles["font-size"]) <= 1)
    elif "font-size" in styles:  # a keyword
        look = replace(look, tiny=False)
    colour = styles.get("color") or (element.get("color", "") if element.tag == "font" else "")
    if colour and not colour.startswith(("inherit", "currentcolor")):
        look = replace(look, colour=_read_colour(colour))
    background = styles.get("background-color") or styles.get("background") or element.get("bgcolor", "")
    if background and not background.startswith(("transparent", "none", "inherit")):
        look = replace(look, background=_read_colour(background))
    elif "background-image" in styles or (foreign and (element.get("class") or element.get("id"))):
        look = replace(look, background=None)
    return look


def _read_sheets(tree: lxml.html.HtmlElement) -> tuple[Sheet, bool]:
    """The plain rules of the page's sheets, and whether others might paint a background."""
    foreign = bool(tree.xpath("//link[contains(@rel, 'stylesheet')]"))
    sheet: Sheet = defaultdict(list)
    number = count()
    for style in tree.iter("style"):
        first, *rest = (style.text or "").split("/*")
        text = first + "".join(part.partition("*/")[2] for part in rest)
        plain = _without_at_rules(text)
        foreign = foreign or plain != text
        for rule in plain.split("}"):
            selectors, _, declarations = rule.partition("{")
            styles = {name: value for name, value in _declarations(declarations).items() if name in _PROPERTIES}
            for selector in selectors.split(",") if styles else ():
                found = _PLAIN_SELECTOR.fullmatch(selector.strip())
                if found:
                    tag, names = (found[1] or "*").lower(), frozenset(_NAME.findall(found[2]))
                    sheet[min(names, default=tag)].append((next(number), tag, names, styles))
                else:
                    foreign = foreign or any(name.startswith("background") for name in styles)
    return sheet, foreign


def _without_at_rules(sheet: str) -> str:
    """The sheet without @media and its like, whose rules hold only at times."""
    kept, depth, start = [], 0, 0
    at = False
    for place, char in enumerate(sheet):
        if char == "@" and not depth and not at:
            kept.append(sheet[start:place])
            at = True
        elif char == "{":
            depth += 1
        elif char in "};":
            depth -= char == "}"
            if at and depth <= 0:
                at, start = False, place + 1
        depth = max(depth, 0)
    return "".join([*kept, "" if at else sheet[start:]])


def _styles(element: lxml.html.HtmlElement, sheet: Sheet) -> Styles:
    """What the sheets say, later rules over earlier ones, and over these what the element says."""
    styles: Styles = {}
    if sheet:
        names = {f".{name}" for name in element.get("class", "").split()} | {f"#{element.get('id', '')}"}
        near = (rule for key in (*names, element.tag, "*") for rule in sheet.get(key, ()))
        for _, tag, wanted, declared in sorted(near, key=itemgetter(0)):
            if tag in ("*", element.tag) and wanted <= names:
                styles |= declared
    return styles | _declarations(element.get("style", ""))


def _declarations(text: str) -> Styles:
    return dict(_pairs(text))


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for declaration in text.split(";"):
        name, colon, value = declaration.partition(":")
        if colon:
            yield name.strip().lower(), value.strip().lower()


def _px(text: str, unknown: float = 0.0) -> float:
    """A length in pixels; `unknown` for none, and for a percentage."""
    found = _LENGTH.match(text)
    if found is None or found[2] == "%":
        return unknown
    return float(found[1]) * _PX[(found[2] or "").lower()]


def _read_colour(text: str) -> Colour | None:
    """The only colour that a value names; None where it may be another one, or an image."""
    if "(" in text and not text.startswith("rgb"):
        return None
    if (found := _RGB.search(text)) and found[4] in (None, "1", "1.0", "100%"):
        return (int(found[1]), int(found[2]), int(found[3]))
    if digits := _HEX.search(text):
        whole = digits[1] if len(digits[1]) == 6 else "".join(char * 2 for char in digits[1])
        return (int(whole[:2], 16), int(whole[2:4], 16), int(whole[4:], 16))
    return next((colour for name, colour in _NAMES.items() if name in text.split()), None)


def _is_near(one: Colour, other: Colour) -> bool:
    return all(abs(a - b) <= _NEAR for a, b in zip(one, other, strict=True))
