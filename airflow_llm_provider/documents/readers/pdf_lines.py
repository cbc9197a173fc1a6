"""The lines of a PDF page, in the order in which a reader reads them."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from airflow_llm_provider.documents.readers.pdf_pieces import Piece, faces, wide_gaps

_PROSE = 20  # characters of a line in a column of prose, on average
_FILLED = 0.7  # of the width of a column of prose, by its lines; the cells of a table are shorter
_MANY = 8  # lines that are needed to call something a column of prose
_MOST = 0.8
_ALIKE = 3.0  # points between left edges that are one
_FIGURES = re.compile(r"[\d\s.,:/%€$£()+\-–x]*\d[\d\s.,:/%€$£()+\-–x]*")  # noqa: RUF001 - dashes there are

Line = list[Piece]


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A value that stands on the page and is not in its text, such as that of a form field.

    Attributes:
        text: what is shown there.
        left, bottom, right, top: its rectangle, in points.
    """

    text: str
    left: float
    bottom: float
    right: float
    top: float


def lines_of(pieces: Sequence[Piece]) -> list[Line]:
    """Return the pieces by lines: what follows on the same line, wherever there is room on it, belongs to it."""
    lines: list[Line] = []
    for piece in pieces:
        line = lines[-1] if lines and piece.is_on_line_of(lines[-1][-1]) else None
        slack = piece.height / 2
        if line is None:
            lines.append([piece])
        elif piece.start > line[-1].end - slack:
            line.append(piece)
        else:
            place = sum(other.start < piece.start for other in line)
            is_free = place == 0 or line[place - 1].end - slack < piece.start
            if is_free and piece.end < line[place].start + slack:
                line.insert(place, piece)
            else:
                lines.append([piece])
    return lines


def joined(line: Sequence[Piece]) -> str:
    """Return the text of a line, with a tab at each wide gap."""
    if len(line) == 1:
        return line[0].text
    return "\t".join(" ".join(piece.text for piece in cell) for cell in cells(line))


def place(values: Sequence[Value], lines: list[Line]) -> None:
    """Put each value on the line on which it stands, or on a line of its own below the one above it."""
    # A field says nothing of its direction: it is that of the text around it.
    (angle, _), *_ = Counter(line[0].angle for line in lines).most_common(1) or [(0.0, 0)]
    cos, sin = math.cos(angle), math.sin(angle)

    for value in values:
        corners = [(x, y) for x in (value.left, value.right) for y in (value.bottom, value.top)]
        along = [x * cos + y * sin for x, y in corners]
        low, *_, high = sorted(y * cos - x * sin for x, y in corners)
        piece = Piece(value.text, angle, min(along), max(along), low, min(high - low, 12.0))
        beside = [
            line for line in lines if faces(angle, line[0].angle) and low - 4 <= line[0].baseline < high
        ]
        if beside:
            # The topmost: of a field with several lines, its label stands beside the first.
            line = max(beside, key=lambda line: line[0].baseline)
            piece.baseline = line[0].baseline
            line.append(piece)
            line.sort(key=lambda piece: piece.start)
            continue
        above = [line for line in lines if faces(angle, line[0].angle) and line[0].baseline >= high]
        nearest = min(above, key=lambda line: line[0].baseline, default=None)
        lines.insert(lines.index(nearest) + 1 if nearest is not None else 0, [piece])


def cells(line: Sequence[Piece]) -> list[Line]:
    """Return the pieces of a line, divided where there is a wide gap."""
    if len(line) == 1:
        return [[line[0]]]
    found: list[Line] = [[line[0]]]
    gaps = [piece.start - before.end for before, piece in pairwise(line)]
    for piece, is_wide in zip(line[1:], wide_gaps(gaps, line[0].height), strict=True):
        if is_wide:
            found.append([piece])
        else:
            found[-1].append(piece)
    return found


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of a page in the order in which a reader reads them.

    The order in which the page was written is kept, but for three faults of programs that write PDF: a page written
    from the bottom to the top, two columns of prose written line by line across both, and a table with figures
    written column by column.
    """
    steps = [other[0].baseline - one[0].baseline for one, other in pairwise(lines)]
    is_upside_down = sum(step > 0 for step in steps) > _MOST * len(steps)
    return _with_rows(_with_columns_apart(list(reversed(lines) if is_upside_down else lines)))


def _with_columns_apart(lines: list[Line]) -> list[Line]:
    """Put the right column of prose behind the left one, where lines hold one line of each."""
    halves = [two for line in lines if len(line) > 1 and len(two := cells(line)) == 2]
    if len(halves) < max(_MANY, 0.5 * len(lines)):
        return lines
    (left, lefts), (right, rights) = (
        Counter(round(two[side][0].start / _ALIKE) for two in halves).most_common(1)[0] for side in (0, 1)
    )
    lengths = [statistics.mean(_length(two[side]) for two in halves) for side in (0, 1)]
    filled = statistics.median(two[0][-1].end - two[0][0].start for two in halves)
    is_prose = min(lengths) >= _PROSE and filled >= _FILLED * (right - left) * _ALIKE
    if not is_prose or min(lefts, rights) < _MOST * len(halves):
        return lines
    edge = right * _ALIKE - 2 * _ALIKE
    ordered: list[Line] = []
    columns: tuple[list[Line], list[Line]] = ([], [])
    for line in lines:
        parts = cells(line)
        if any(part[0].start < edge < part[-1].end for part in parts):  # it runs across both columns
            ordered += [*columns[0], *columns[1], line]
            columns = ([], [])
        else:
            for part in parts:
                columns[part[0].start >= edge].append(part)
    return [*ordered, *columns[0], *columns[1]]


@dataclass(kw_only=True, slots=True)
class _Run:
    """Lines with one cell each, one below the other."""

    lines: list[Line]

    @property
    def is_figures(self) -> bool:
        figures = sum(_is_figures(_text(line)) for line in self.lines)
        return figures >= _MOST * len(self.lines)

    def continues(self, line: Line) -> bool:
        """Tell whether a line stands right below the last one."""
        last, piece = self.lines[-1][0], line[0]
        step = last.baseline - piece.baseline
        return len(cells(line)) == 1 and piece.angle == last.angle and 0 < step < 4 * last.height

    def is_beside(self, other: _Run) -> bool:
        """Tell whether nearly all lines of the shorter of two runs stand on a line of the longer one."""
        short, long = sorted((self, other), key=lambda run: len(run.lines))
        levels = [line[0] for line in long.lines]
        beside = sum(any(line[0].is_on_line_of(level) for level in levels) for line in short.lines)
        return len(short.lines) > 1 and beside >= _MOST * len(short.lines)


def _with_rows(lines: list[Line]) -> list[Line]:
    """Put a table together that was written column by column; one of its columns has to hold figures only."""
    figures = [len(line) == 1 and _is_figures(line[0].text) for line in lines]
    if not any(one and other for one, other in pairwise(figures)):
        return lines
    ordered: list[Line] = []
    for group in _groups(_runs(lines)):
        pieces = [piece for run in group for line in run.lines for piece in line]
        if len(group) == 1 or not any(run.is_figures for run in group):
            ordered += [line for run in group for line in run.lines]
            continue
        rows: list[Line] = []
        for piece in sorted(pieces, key=lambda piece: -piece.baseline):
            if rows and piece.is_on_line_of(rows[-1][0]):
                rows[-1].append(piece)
            else:
                rows.append([piece])
        ordered += [sorted(row, key=lambda piece: piece.start) for row in rows]
    return ordered


def _runs(lines: Sequence[Line]) -> Iterator[_Run]:
    run: _Run | None = None
    for line in lines:
        if run is not None and len(cells(run.lines[-1])) == 1 and run.continues(line):
            run.lines.append(line)
            continue
        if run is not None:
            yield run
        run = _Run(lines=[line])
    if run is not None:
        yield run


def _groups(runs: Iterator[_Run]) -> Iterator[list[_Run]]:
    group: list[_Run] = []
    for run in runs:
        if group and not run.is_beside(group[0]):
            yield group
            group = []
        group.append(run)
    if group:
        yield group


def _is_figures(text: str) -> bool:
    return not text[0].isalpha() and _FIGURES.fullmatch(text) is not None


def _text(line: Line) -> str:
    return " ".join(piece.text for piece in line)


def _length(line: Line) -> int:
    return sum(len(piece.text) for piece in line)
