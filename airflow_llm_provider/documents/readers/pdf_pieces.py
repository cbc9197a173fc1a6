"""The text of one PDF page in pieces that stand on one line each, by the positions of PDFium's characters."""

from __future__ import annotations

import bisect
import ctypes
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

HYPHEN = "\x02"
"""A hyphen at the end of a line, whose word goes on in the next one."""
_LINE = re.compile(r"[^\r\n]+")
_WORD = re.compile(r"\S+")
_LAST_DIGIT = re.compile(r"(?<=\S)\d(?=[.,;:)]?(?:\s|$))")
_RAISED, _LOWERED = (str.maketrans("0123456789", digits) for digits in ("⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉"))
_SAME_LINE = 0.4
"""Characters whose baselines differ by less, in parts of a line's height, stand on one line."""
_SMALLER = 0.9
"""The size of a raised digit is less than so much of the size of the text."""
_SHIFT = 0.1  # of the size of a raised digit
_LEVEL, _TURNED = 1e-4, 0.01  # radians
_DESCENT = 0.22  # of a line's height, below its baseline
_SAMPLES, _SAMPLE_LENGTH = 2, 30
_CELL, _UNLIKE, _FEW_GAPS = 1.5, 2.5, 3


@dataclass(slots=True)
class Piece:
    """A run of text on one line.

    Positions are in points, turned so that the text runs from left to right.

    Attributes:
        text: without white space at its ends.
        angle: the direction of the text, in radians, counterclockwise.
        start, end: where it begins and ends along its direction.
        baseline: its position across the direction; larger is higher.
        height: of the line.
    """

    text: str
    angle: float
    start: float
    end: float
    baseline: float
    height: float

    def is_on_line_of(self, other: Piece) -> bool:
        """Tell whether two pieces stand on one line."""
        if self.angle != other.angle and not faces(self.angle, other.angle):
            return False
        return abs(self.baseline - other.baseline) < _SAME_LINE * min(self.height, other.height)


def faces(angle: float, other: float) -> bool:
    """Tell whether two directions are the same."""
    return abs(math.remainder(angle - other, math.tau)) < _TURNED


def wide_gaps(gaps: Sequence[float], height: float) -> list[bool]:
    """Tell of each gap between the words of a line whether it separates cells of a row, or columns of text.

    A wide gap is one and a half heights of the line wide, and unlike the others: in a line that is stretched to both
    margins, all are wide.

    Args:
        gaps: their widths, in points.
        height: of the line.
    """
    least = _CELL * height
    if len(gaps) >= _FEW_GAPS:
        least = max(least, _UNLIKE * statistics.median(gaps))
    return [gap > least for gap in gaps]


class Characters:
    """The characters of a page, by their index."""

    def __init__(self, layer: Any) -> None:
        from pypdfium2 import raw  # type: ignore[import-untyped]

        self._raw = raw
        self._layer = layer.raw
        self.count = raw.FPDFText_CountChars(self._layer)
        units = (ctypes.c_ushort * (2 * self.count + 2))()
        written = raw.FPDFText_GetText(self._layer, 0, self.count, units) if self.count > 0 else 0
        data = bytes(memoryview(units).cast("B")[: 2 * max(written - 1, 0)])
        # PDFium has U+FFFE for such a hyphen, and NUL for what it cannot tell.
        self.text = data.decode("utf-16-le", "replace").replace("\ufffe", HYPHEN).replace("\0", "\ufffd")
        self._is_aligned = len(self.text) == self.count
        # The text is counted in 16-bit units, of which a rare character takes two.
        self._rare = (
            [] if self._is_aligned else [n for n, letter in enumerate(self.text) if letter > "\uffff"]
        )
        self._x, self._y, self._rectangle = ctypes.c_double(), ctypes.c_double(), raw.FS_RECTF()
        self._to_x, self._to_y = ctypes.byref(self._x), ctypes.byref(self._y)
        self._to_rectangle, self._to_box = ctypes.byref(self._rectangle), raw.FPDFText_GetLooseCharBox
        self._raise_digits()

    def pieces(self, *, by_word: bool) -> Iterator[Piece]:
        """Yield the text in pieces, each on one line of the page.

        Args:
            by_word: yield each word by itself, at more cost.
        """
        spans = [_trimmed(self.text, *found.span()) for found in _LINE.finditer(self.text)]
        by_word = by_word or self._has_gaps(spans)
        for first, last in spans:
            if first == last:
                continue
            piece, is_level = self._piece(first, last)
            # One that is not level: PDFium has taken several lines for one.
            if by_word or not is_level:
                yield from self._split(first, last, by_word=by_word)
            else:
                yield piece

    def _has_gaps(self, spans: list[tuple[int, int]]) -> bool:
        """Tell, by the longest lines, whether PDFium has glued what stands in columns."""
        longest = sorted(spans, key=lambda span: span[0] - span[1])[:_SAMPLES]
        glued = 0
        for first, last in longest:
            # What was written at once has no gaps, and PDFium counts quickly what was.
            if last - first >= _SAMPLE_LENGTH and self._runs(first, last) > 1:
                words = [found.span() for found in _WORD.finditer(self.text, first, last)]
                gaps = [self._gap(one[1] - 1, other[0]) for one, other in pairwise(words)]
                glued += any(wide_gaps(gaps, self._at(first, self._angle(first))[3]))
        return glued == _SAMPLES

    def _runs(self, first: int, last: int) -> int:
        index = self._index(first)
        return int(self._raw.FPDFText_CountRects(self._layer, index, self._index(last - 1) + 1 - index))

    def _gap(self, index: int, other: int) -> float:
        """Return how far two characters on a line are apart, in whatever direction."""
        a, b = self._box(index), self._box(other)
        return max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])

    def _box(self, index: int) -> tuple[float, float, float, float]:
        box = self._rectangle
        self._to_box(self._layer, index if self._is_aligned else self._index(index), self._to_rectangle)
        return box.left, box.bottom, box.right, box.top

    def _raise_digits(self) -> None:
        """Write the digits at the end of a word as raised ones, where they stand higher: a footnote, a square."""
        size_of, layer = self._raw.FPDFText_GetFontSize, self._layer
        pieces: list[str] = []
        done = 0
        for found in _LAST_DIGIT.finditer(self.text):
            last = found.start()
            first = max(self.text.rfind(blank, 0, last) for blank in " \n\r") + 1
            small = _SMALLER * size_of(layer, self._index(first))
            if size_of(layer, self._index(last)) >= small:
                continue
            begin = last
            while begin - 1 > first and self.text[begin - 1].isdigit():
                if size_of(layer, self._index(begin - 1)) >= small:
                    break
                begin -= 1
            angle = self._angle(first)
            rise = self._at(last, angle)[1] - self._at(first, angle)[1]
            if abs(rise) > _SHIFT * small:
                digits = self.text[begin : last + 1].translate(_RAISED if rise > 0 else _LOWERED)
                pieces += [self.text[done:begin], digits]
                done = last + 1
        if pieces:
            self.text = "".join([*pieces, self.text[done:]])

    def _split(self, first: int, last: int, *, by_word: bool) -> Iterator[Piece]:
        """Yield the words of a piece, or what stands of them on one line."""
        whole: Piece | None = None
        begin = first
        for start, end in self._words(first, last):
            word, _ = self._piece(start, end)
            is_next = whole is not None and not by_word and word.is_on_line_of(whole)
            if whole is not None and is_next and word.start >= whole.end - whole.height:
                whole.end, whole.text = word.end, self.text[begin:end]
                continue
            if whole is not None:
                yield whole
            whole, begin = word, start
        if whole is not None:
            yield whole

    def _words(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield the words, and the parts of what PDFium has glued over the end of a line."""
        for found in _WORD.finditer(self.text, first, last):
            begin, end = found.span()
            word, is_level = self._piece(begin, end)
            if not is_level:
                for index in range(begin + 1, end):
                    letter, _ = self._piece(index, index + 1)
                    if not letter.is_on_line_of(word):
                        yield begin, index
                        word, begin = letter, index
            yield begin, end

    def _piece(self, first: int, last: int) -> tuple[Piece, bool]:
        """Return what stands from `first` to before `last`, and whether its last character is level with its first."""
        text = self.text[first:last]
        left, bottom, _, top = self._box(first)
        height = (top - bottom) or 1.0
        if last - first > 1:
            left_of_last, bottom_of_last, right, _ = self._box(last - 1)
            # Most text runs to the right. Its angle need not be asked for.
            if left_of_last > left and abs(bottom_of_last - bottom) < _SAME_LINE * height:
                return Piece(text, 0.0, left, right, bottom + _DESCENT * height, height), True
        angle = self._angle(first)
        start, baseline, _, height = self._at(first, angle)
        begin_of_last, last_baseline, width, _ = self._at(last - 1, angle)
        is_level = abs(last_baseline - baseline) < _SAME_LINE * height and begin_of_last >= start
        return Piece(text, angle, start, begin_of_last + width, baseline, height), is_level

    def _angle(self, index: int) -> float:
        # PDFium's angles are clockwise.
        angle = -self._raw.FPDFText_GetCharAngle(self._layer, self._index(index))
        return angle if abs(angle) > _LEVEL else 0.0

    def _at(self, index: int, angle: float) -> tuple[float, float, float, float]:
        """Return where a character begins along and across a direction, and its width and height."""
        left, bottom, right, top = self._box(index)
        width, height = right - left, (top - bottom) or 1.0
        if angle == 0:
            return left, bottom + _DESCENT * height, width, height
        self._raw.FPDFText_GetCharOrigin(self._layer, self._index(index), self._to_x, self._to_y)
        x, y = self._x.value, self._y.value
        cos, sin = math.cos(angle), math.sin(angle)
        if abs(sin) > abs(cos):
            width, height = height, width
        return x * cos + y * sin, y * cos - x * sin, width, height or 1.0

    def _index(self, index: int) -> int:
        """Return PDFium's index of a character of the text: PDFium leaves some characters out of the text."""
        if self._is_aligned:
            return index
        units = index + bisect.bisect_left(self._rare, index)
        return int(self._raw.FPDFText_GetCharIndexFromTextIndex(self._layer, units))


def _trimmed(text: str, first: int, last: int) -> tuple[int, int]:
    while first < last and text[first].isspace():
        first += 1
    while last > first and text[last - 1].isspace():
        last -= 1
    return first, last
