"""Charts and diagrams in office files, as the text and the values that a reader sees in them."""

from __future__ import annotations

from typing import Any

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_C = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
_DGM = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}"


def chart_lines(root: Any) -> list[str]:
    """Return the title of a chart, its categories in one line, and each series in a line, separated by tabs."""
    lines = []
    title = root.find(f"{_C}chart/{_C}title")
    if title is not None and (words := "".join(text.text or "" for text in title.iter(f"{_A}t"))):
        lines.append(words)
    known: list[str] | None = None
    for series in root.iter(f"{_C}ser"):
        name = " ".join(value.text or "" for value in series.iterfind(f"{_C}tx//{_C}v"))
        categories = _points(series, "cat") or _points(series, "xVal")
        if categories and categories != known:
            lines.append("\t".join(["", *categories]))
            known = categories
        lines.append("\t".join([name, *(_points(series, "val") or _points(series, "yVal"))]))
    return lines


def _points(series: Any, tag: str) -> list[str]:
    return [value.text or "" for value in series.iterfind(f"{_C}{tag}//{_C}pt/{_C}v")]


def diagram_lines(root: Any) -> list[str]:
    """Return the texts of a diagram (SmartArt), one per line."""
    found = []
    for point in root.iter(f"{_DGM}pt"):
        # Other points hold presentation alone; a placeholder's text is not printed.
        if point.get("type", "node") in ("node", "asst", "doc"):
            found += [
                "".join(text.text or "" for text in each.iter(f"{_A}t")) for each in point.iter(f"{_A}p")
            ]
    return [line for line in found if line.strip()]
