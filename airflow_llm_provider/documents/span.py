"""A figure that is not known yet: the least it may be, what it probably is, the most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """`low` <= `likely` <= `high`."""

    low: float = 0.0
    likely: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, figure: float) -> Self:
        """Return what is known exactly."""
        return cls(low=figure, likely=figure, high=figure)

    def __add__(self, other: Span) -> Self:
        return type(self)(
            low=self.low + other.low, likely=self.likely + other.likely, high=self.high + other.high
        )

    def within(self, least: float, most: float) -> Self:
        """Return the part of it that lies between two bounds."""
        return type(self)(
            low=min(max(self.low, least), most),
            likely=min(max(self.likely, least), most),
            high=min(max(self.high, least), most),
        )
