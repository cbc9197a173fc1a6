"""The numbers that office programs put before paragraphs: formats, levels and counters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

BULLET = "•"
_ROMAN = (
    *((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl")),
    *((10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)
_PLACE = re.compile(r"%([1-9])")
_MAX_ROMAN = 3999


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """How one level of a list is numbered.

    Attributes:
        text: what stands before the paragraph, such as `%1.%2`: the counters of levels 1 and 2.
        number_format: `decimal`, `decimalZero`, `lowerLetter`, `upperLetter`, `lowerRoman`, `upperRoman`, `ordinal`,
            `bullet` or `none`. Any other is written as `decimal`.
        start: the first number.
        restarts_after: a paragraph of so many levels, or of fewer, lets this one begin anew; 0: nothing does.
        all_decimal: the counters of the levels above are written as decimals.
    """

    text: str
    number_format: str = "decimal"
    start: int = 1
    restarts_after: int | None = None
    all_decimal: bool = False


class Counters:
    """The counters of one list, while its paragraphs are read in order."""

    def __init__(self) -> None:
        self._at: dict[int, int] = {}

    def restart(self, depth: int) -> None:
        """Let the next paragraph of `depth` (from 0) begin anew."""
        self._at.pop(depth, None)

    def set(self, depth: int, value: int) -> None:
        """Let the next paragraph of `depth` (from 0) have the number `value`."""
        self._at[depth] = value - 1

    def next(self, levels: Mapping[int, Level], depth: int) -> str:
        """Count one paragraph, and return what stands before it; empty where nothing does.

        Args:
            levels: the levels of the list, from 0.
            depth: of the paragraph, from 0.
        """
        level = levels[depth]
        self._at[depth] = self._at[depth] + 1 if depth in self._at else level.start
        for deeper in [below for below in self._at if below > depth]:
            last = deeper if (limit := _restarts_after(levels, deeper)) is None else limit
            if depth < last:
                del self._at[deeper]
        if level.number_format == "bullet":
            return BULLET if level.text else ""
        return _PLACE.sub(lambda place: self._number(levels, int(place[1]) - 1, level), level.text)

    def _number(self, levels: Mapping[int, Level], depth: int, shown_in: Level) -> str:
        if depth not in levels:
            return ""
        # A level that no paragraph has had is shown with its first number, as Word does.
        value = self._at.setdefault(depth, levels[depth].start)
        return number(value, "decimal" if shown_in.all_decimal else levels[depth].number_format)


def _restarts_after(levels: Mapping[int, Level], depth: int) -> int | None:
    return levels[depth].restarts_after if depth in levels else None


def number(value: int, number_format: str) -> str:
    """Return a counter as an office program writes it, such as `iv` for 4 in `lowerRoman`."""
    match number_format:
        case "none" | "bullet":
            return ""
        case "decimalZero":
            return f"{value:02d}"
        case "ordinal":
            return f"{value}{_ordinal(value)}"
        case "lowerLetter" | "upperLetter" if value > 0:
            # After z comes aa, then bb: the letter is repeated.
            letters = chr(ord("a") + (value - 1) % 26) * min((value - 1) // 26 + 1, 100)
            return letters if number_format == "lowerLetter" else letters.upper()
        case "lowerRoman" | "upperRoman" if 0 < value <= _MAX_ROMAN:
            roman = ""
            for size, digits in _ROMAN:
                roman += digits * (value // size)
                value %= size
            return roman if number_format == "lowerRoman" else roman.upper()
    return str(value)


def _ordinal(value: int) -> str:
    if value % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
