"""Places in an answer: the values a path such as `items.*.amount` leads to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Return a validated value as plain JSON data, under the names of its schema."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, by_alias=True)


def values_at(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield place and value of all that `path` leads to, nulls left out; the empty path is the data itself."""
    found = [("", data)]
    for step in path.split(".") if path else ():
        found = [
            (f"{place}.{name}" if place else name, value)
            for place, whole in found
            for name, value in _children(whole, step)
        ]
    yield from ((place, value) for place, value in found if value is not None)


def texts_at(data: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield place and text of every string at `path`, and of every string within what is there."""
    for place, value in values_at(data, path):
        if isinstance(value, str):
            yield place, value
        else:
            for name, child in _children(value, "*"):
                inner = f"{place}.{name}" if place else name
                yield from (
                    (f"{inner}.{rest}" if rest else inner, text) for rest, text in texts_at(child, "")
                )


def _children(whole: Any, step: str) -> Iterator[tuple[str, Any]]:
    items = (
        {str(name): value for name, value in whole.items()}
        if isinstance(whole, Mapping)
        else {str(number): value for number, value in enumerate(whole)}
        if isinstance(whole, list)
        else {}
    )
    if step == "*":
        yield from items.items()
    elif step in items:
        yield step, items[step]
