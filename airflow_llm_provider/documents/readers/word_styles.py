"""What the styles and lists of a Word document say of a paragraph: whether it is hidden, and its number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from airflow_llm_provider.documents.readers.numbering import Counters, Level

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_OFF = frozenset({"0", "false", "off", "none"})
_MAX_CHAIN = 20  # styles based on each other in a circle


def value_of(parent: Any, tag: str) -> str | None:
    """Return the `w:val` of a child; None where there is no such child, or it has no value."""
    child = None if parent is None else parent.find(W + tag)
    return None if child is None else child.get(f"{W}val")


def is_on(parent: Any, tag: str) -> bool | None:
    """Return whether a property is switched on; None where nothing is said of it."""
    child = None if parent is None else parent.find(W + tag)
    return None if child is None else child.get(f"{W}val", "1").lower() not in _OFF


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.lstrip("-").isdigit() else default


@dataclass(frozen=True, kw_only=True, slots=True)
class _ListOf:
    """The list that a paragraph or a style belongs to; each field is None where nothing is said of it."""

    number: str | None
    depth: int | None

    @classmethod
    def of(cls, properties: Any) -> _ListOf:
        found = None if properties is None else properties.find(f"{W}numPr")
        depth = value_of(found, "ilvl")
        return cls(number=value_of(found, "numId"), depth=None if depth is None else _whole(depth, 0))


class Styles:
    """The styles of a document, by their ids."""

    def __init__(self, root: Any) -> None:
        self._by_id: dict[str, Any] = {}
        self._default: str | None = None
        for style in () if root is None else root.iterfind(f"{W}style"):
            name = style.get(f"{W}styleId") or ""
            self._by_id[name] = style
            if style.get(f"{W}type") == "paragraph" and style.get(f"{W}default", "0").lower() not in _OFF:
                self._default = name

    def _chain(self, name: str | None) -> Iterator[tuple[str, Any]]:
        """Yield a style and the styles that it is based on."""
        for _ in range(_MAX_CHAIN):
            style = None if name is None else self._by_id.get(name)
            if style is None:
                return
            yield name or "", style
            name = value_of(style, "basedOn")

    def hides(self, name: str | None) -> bool | None:
        """Return whether a style hides text; None where nothing is said of it."""
        for _, style in self._chain(name):
            hidden = is_on(style.find(f"{W}rPr"), "vanish")
            if hidden is not None:
                return hidden
        return None

    def of_paragraph(self, properties: Any) -> str | None:
        """Return the id of a paragraph's style."""
        return value_of(properties, "pStyle") or self._default

    def hides_run(self, properties: Any, paragraph_style: str | None) -> bool:
        """Tell whether a run is hidden, by its own properties, its style, or the paragraph's style."""
        hidden = is_on(properties, "vanish")
        if hidden is None:
            hidden = self.hides(value_of(properties, "rStyle"))
        if hidden is None:
            hidden = self.hides(paragraph_style)
        return bool(hidden)

    def list_of(self, properties: Any) -> tuple[str | None, int | None, str | None]:
        """Return the list's number, the depth, and the style that gave the list, where a style did."""
        own = _ListOf.of(properties)
        if own.number is not None:
            return own.number, own.depth or 0, None
        depth = own.depth
        for name, style in self._chain(self.of_paragraph(properties)):
            found = _ListOf.of(style.find(f"{W}pPr"))
            depth = found.depth if depth is None else depth
            if found.number is not None:
                return found.number, depth, name
        return None, None, None

    def list_style(self, name: str | None) -> str | None:
        """Return the number of the list that a list style stands for."""
        style = None if name is None else self._by_id.get(name)
        return None if style is None else _ListOf.of(style.find(f"{W}pPr")).number


class ListNumbers:
    """The numbers of a document's paragraphs, counted while they are read in order."""

    def __init__(self, root: Any, styles: Styles) -> None:
        self._styles = styles
        self._abstract = {} if root is None else _by_id(root, "abstractNum", "abstractNumId")
        self._lists = {} if root is None else _by_id(root, "num", "numId")
        self._levels: dict[str, tuple[str, dict[int, Level]]] = {}
        self._counters: dict[str, Counters] = {}
        self._started: set[tuple[str, int]] = set()

    def next(self, properties: Any) -> str:
        """Return what Word writes before a paragraph with these properties; empty where it writes nothing."""
        number, depth, style = self._styles.list_of(properties)
        if number is None or number not in self._lists:
            return ""
        if number not in self._levels:
            self._levels[number] = self._read(number)
        shared, levels = self._levels[number]
        if depth is None:
            depth = self._depth_of_style(shared, style)
        if depth not in levels:
            return ""
        # Lists with one definition share its counters, so that a numbering goes on after other text.
        counters = self._counters.setdefault(shared, Counters())
        if (number, depth) not in self._started:
            self._started.add((number, depth))
            if self._starts_anew(number, depth):
                counters.restart(depth)
        return counters.next(levels, depth)

    def _definition(self, number: str) -> tuple[str, Any]:
        """Return the id and the element of a list's definition, which a list style may give."""
        for _ in range(_MAX_CHAIN):
            shared = value_of(self._lists.get(number), "abstractNumId") or ""
            definition = self._abstract.get(shared)
            linked = self._styles.list_style(value_of(definition, "numStyleLink"))
            if linked is None or linked == number:
                return shared, definition
            number = linked
        return "", None

    def _read(self, number: str) -> tuple[str, dict[int, Level]]:
        shared, definition = self._definition(number)
        levels = {} if definition is None else _levels(definition)
        for override in self._lists[number].iterfind(f"{W}lvlOverride"):
            levels |= _levels(override)
            depth = _whole(override.get(f"{W}ilvl"), 0)
            start = value_of(override, "startOverride")
            if start is not None and depth in levels:
                levels[depth] = dataclasses.replace(levels[depth], start=_whole(start, 1))
        return shared, levels

    def _starts_anew(self, number: str, depth: int) -> bool:
        overrides = self._lists[number].iterfind(f"{W}lvlOverride")
        return any(
            _whole(override.get(f"{W}ilvl"), 0) == depth and value_of(override, "startOverride") is not None
            for override in overrides
        )

    def _depth_of_style(self, shared: str, style: str | None) -> int:
        definition = self._abstract.get(shared)
        for level in () if definition is None else definition.iterfind(f"{W}lvl"):
            if style is not None and value_of(level, "pStyle") == style:
                return _whole(level.get(f"{W}ilvl"), 0)
        return 0


def _by_id(root: Any, tag: str, name: str) -> dict[str, Any]:
    return {element.get(W + name) or "": element for element in root.iterfind(W + tag)}


def _levels(parent: Any) -> dict[int, Level]:
    return {_whole(level.get(f"{W}ilvl"), 0): _level(level) for level in parent.iterfind(f"{W}lvl")}


def _level(element: Any) -> Level:
    restart = value_of(element, "lvlRestart")
    return Level(
        text=value_of(element, "lvlText") or "",
        number_format=value_of(element, "numFmt") or "decimal",
        start=_whole(value_of(element, "start"), 0),
        restarts_after=None if restart is None else _whole(restart, 0),
        all_decimal=bool(is_on(element, "isLgl")),
    )
