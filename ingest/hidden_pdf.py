"""Text that a person would not see on a PDF page, taken out while pypdf reads it: it must not be found. In the child.

Seen as hidden: letters in the invisible mode, white ones where nothing else was painted, transparent ones, such as are
smaller than a point, and text that starts outside of the page. The invisible mode over an image, or before one that the
page still has to draw, is how a scan carries the text that a program read in it: that stays. White text stays on
whatever was filled, drawn or shaded beneath it, each shape taken for its bounding box. Not seen: text that something
painted later covers, and layers that are switched off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pypdf import PageObject
from pypdf.generic import ArrayObject, DictionaryObject, TextStringObject

from ingest.lines import DAMAGE

Matrix = tuple[float, float, float, float, float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

_EVERYWHERE: Box = (-math.inf, -math.inf, math.inf, math.inf)
_SHOWS = {b"Tj", b"TJ", b"'", b'"'}
_FILLS = {b"f", b"F", b"f*", b"B", b"B*", b"b", b"b*"}
_ENDS_PATH = {b"S", b"s", b"n"}
_IDENTITY: Matrix = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
_INVISIBLE = 3  # a text rendering mode
_LEAST_PT = 1.0
_WHITE = 0.97  # of 1
_MARGIN_EM = 2.0  # a line may begin a little outside
_THIN_PT = 1.0  # a stroked path that is no higher, or no wider, is a line
# A map has 100,000 shapes; behind more than these, white and invisible text stays.
_MOST_SHAPES = 2000
_WHITES = {1: (1.0,), 3: (1.0, 1.0, 1.0), 4: (0.0, 0.0, 0.0, 0.0)}
_DEVICES = {"/DeviceGray": 1, "/G": 1, "/CalGray": 1, "/DeviceRGB": 3, "/RGB": 3, "/CalRGB": 3, "/DeviceCMYK": 4}


@dataclass(frozen=True, slots=True)
class _State:
    """What `q` keeps and `Q` brings back, as far as it decides what is seen."""

    white: bool = False
    components: int = 1  # of a fill colour's space; 0: of one in which white is not known
    alpha: float = 1.0
    invisible: bool = False
    size: float = 0.0
    type3: bool = False  # its sizes say nothing
    line_width: float = 1.0


@dataclass(slots=True)
class HiddenText:
    """Visitors for PageObject.extract_text; `before` empties the operands of what shows hidden text."""

    page: PageObject
    state: _State = field(default_factory=_State)
    _saved: list[_State] = field(default_factory=list)
    _forms: list[tuple[_State, list[_State], Matrix, DictionaryObject]] = field(default_factory=list)
    _base: Matrix = _IDENTITY  # of the form that is read, to the page
    _resources: DictionaryObject = field(default_factory=DictionaryObject)
    _painted: list[Box] = field(default_factory=list)
    _images: list[Box] = field(default_factory=list)
    _waiting: set[str] = field(default_factory=set)  # the page's images that are not drawn yet
    _path: Box | None = None  # around what will be painted
    _seen: Box = _EVERYWHERE

    def __post_init__(self) -> None:
        self._seen = _visible_part(self.page)
        self._resources = _dictionary(self.page.get("/Resources"))
        objects = _dictionary(self._resources.get("/XObject"))
        self._waiting = {name for name in objects if _dictionary(objects[name]).get("/Subtype") == "/Image"}

    def before(self, operator: bytes, operands: list[Any], cm: Sequence[float], tm: Sequence[float]) -> None:
        """See PageObject.extract_text, visitor_operand_before."""
        matrix = _multiply(cm, self._base)
        if operator in _SHOWS:
            if operands and self._hides(_multiply(tm, matrix)):
                operands[-1] = ArrayObject() if operator == b"TJ" else TextStringObject("")
        elif operator == b"q":
            self._saved.append(self.state)
        elif operator == b"Q":
            self.state = self._saved.pop() if self._saved else self.state
        elif operator in {b"m", b"l", b"c", b"v", b"y", b"re"}:
            self._add_points(operator, _numbers(operands), matrix)
        elif operator in _FILLS or operator in _ENDS_PATH:
            self._paint(operator)
        elif operator == b"sh":
            self._painted.append(_EVERYWHERE)
        elif operator == b"INLINE IMAGE":
            self._draw_image(matrix)
        elif operator == b"Do":
            self._enter(operands, matrix)
        else:
            self._set(operator, operands)

    def after(self, operator: bytes, operands: list[Any], cm: Sequence[float], tm: Sequence[float]) -> None:  # noqa: ARG002
        """See PageObject.extract_text, visitor_operand_after."""
        if operator == b"Do":
            self.state, self._saved, self._base, self._resources = self._forms.pop()

    def _hides(self, matrix: Matrix) -> bool:
        height = self.state.size * math.hypot(matrix[2], matrix[3])
        x, y = matrix[4], matrix[5]
        if self.state.alpha == 0 or (abs(height) < _LEAST_PT and not self.state.type3):
            return True
        if not _holds(self._seen, x, y, margin=_MARGIN_EM * abs(height)):
            return True
        many = max(len(self._painted), len(self._images)) > _MOST_SHAPES
        if self.state.invisible:
            return not self._waiting and not many and not any(_holds(image, x, y) for image in self._images)
        if not self.state.white or many:
            return False
        return not any(_holds(shape, x, y) for shape in (*self._painted, *self._images))

    def _set(self, operator: bytes, operands: list[Any]) -> None:
        numbers = _numbers(operands)
        match operator:
            case b"g" | b"rg" | b"k":
                self.state = replace(self.state, components=len(numbers), white=_is_white(numbers, len(numbers)))
            case b"cs":
                self.state = replace(self.state, components=self._components(_name(operands)), white=False)
            case b"sc" | b"scn":
                self.state = replace(self.state, white=_is_white(numbers, self.state.components))
            case b"Tr" if numbers:
                self.state = replace(self.state, invisible=numbers[0] == _INVISIBLE)
            case b"Tf" if numbers:
                font = self._resource("/Font", operands)
                self.state = replace(self.state, size=numbers[-1], type3=font.get("/Subtype") == "/Type3")
            case b"w" if numbers:
                self.state = replace(self.state, line_width=numbers[0])
            case b"gs":
                alpha = self._resource("/ExtGState", operands).get("/ca")
                if isinstance(alpha, (int, float)):
                    self.state = replace(self.state, alpha=float(alpha))

    def _resource(self, kind: str, operands: Sequence[Any]) -> DictionaryObject:
        return _dictionary(_dictionary(self._resources.get(kind)).get(_name(operands)))

    def _components(self, name: str) -> int:
        space = _dictionary(self._resources.get("/ColorSpace")).get(name, name)
        space = space.get_object() if hasattr(space, "get_object") else space
        if isinstance(space, ArrayObject) and len(space) > 1 and space[0] == "/ICCBased":
            return int(_dictionary(space[1]).get("/N", 0))
        return _DEVICES.get(str(space[0] if isinstance(space, ArrayObject) and space else space), 0)

    def _add_points(self, operator: bytes, numbers: list[float], matrix: Matrix) -> None:
        if operator == b"re" and len(numbers) == 4:
            x, y, width, height = numbers
            self._path = _around(self._path, matrix, ((x, y), (x + width, y), (x, y + height), (x + width, y + height)))
        elif operator != b"re":
            self._path = _around(self._path, matrix, zip(numbers[::2], numbers[1::2], strict=False))

    def _paint(self, operator: bytes) -> None:
        path, self._path = self._path, None
        if path is None or len(self._painted) > _MOST_SHAPES:
            return
        left, bottom, right, top = path
        if operator in _FILLS and not self.state.white and self.state.alpha > 0:
            self._painted.append(path)
        elif operator in {b"S", b"s"} and min(right - left, top - bottom) <= _THIN_PT:
            half = self.state.line_width / 2
            self._painted.append((left - half, bottom - half, right + half, top + half))

    def _draw_image(self, matrix: Matrix) -> None:
        box = _around(None, matrix, ((0, 0), (1, 0), (0, 1), (1, 1)))
        if box is not None and len(self._images) <= _MOST_SHAPES:
            self._images.append(box)

    def _enter(self, operands: list[Any], matrix: Matrix) -> None:
        """An image is drawn, or a form is about to be read, which has a space and resources of its own."""
        self._forms.append((self.state, self._saved, self._base, self._resources))
        drawn = self._resource("/XObject", operands)
        if drawn.get("/Subtype") == "/Image":
            self._draw_image(matrix)
            self._waiting.discard(_name(operands))
            return
        own = _numbers(drawn["/Matrix"]) if isinstance(drawn.get("/Matrix"), ArrayObject) else []
        self._base = _multiply(own if len(own) == 6 else _IDENTITY, matrix)
        self._resources = _dictionary(drawn.get("/Resources")) or self._resources
        self._saved = []


def _visible_part(page: PageObject) -> Box:
    """The page as it is cropped; without bounds where the file says nothing that makes sense."""
    try:
        (left, bottom), (right, top) = page.mediabox.lower_left, page.mediabox.upper_right
        crop = page.cropbox
        left, bottom = max(left, crop.left), max(bottom, crop.bottom)
        right, top = min(right, crop.right), min(top, crop.top)
    except DAMAGE:
        return _EVERYWHERE
    return (left, bottom, right, top) if left < right and bottom < top else _EVERYWHERE


def _name(operands: Sequence[Any]) -> str:
    return operands[0] if operands and isinstance(operands[0], str) else ""


def _dictionary(value: Any) -> DictionaryObject:
    found = value.get_object() if hasattr(value, "get_object") else value
    return found if isinstance(found, DictionaryObject) else DictionaryObject()


def _numbers(operands: Any) -> list[float]:
    return [float(operand) for operand in operands if isinstance(operand, (int, float))]


def _is_white(numbers: Sequence[float], components: int) -> bool:
    white = _WHITES.get(components)
    if white is None or len(numbers) != components:
        return False
    return all(abs(number - full) <= 1 - _WHITE for number, full in zip(numbers, white, strict=True))


def _multiply(first: Sequence[float], then: Sequence[float]) -> Matrix:
    a, b, c, d, e, f = first
    g, h, i, j, k, m = then
    return (a * g + b * i, a * h + b * j, c * g + d * i, c * h + d * j, e * g + f * i + k, e * h + f * j + m)


def _around(box: Box | None, matrix: Matrix, points: Iterable[tuple[float, float]]) -> Box | None:
    """The smallest box around another one and the points, which the matrix moves to the page."""
    for x, y in points:
        left = x * matrix[0] + y * matrix[2] + matrix[4]
        bottom = x * matrix[1] + y * matrix[3] + matrix[5]
        right, top = left, bottom
        if box is not None:
            left, bottom = min(left, box[0]), min(bottom, box[1])
            right, top = max(right, box[2]), max(top, box[3])
        box = (left, bottom, right, top)
    return box


def _holds(box: Box, x: float, y: float, margin: float = 0.0) -> bool:
    return box[0] - margin <= x <= box[2] + margin and box[1] - margin <= y <= box[3] + margin
