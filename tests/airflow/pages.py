"""The code blocks of the README and of the pages in docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[Any]:
    """Return the blocks of a language, each as a parameter of a test named by its page and number."""
    return [
        pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, code in enumerate(
            code for found, code in _BLOCK.findall(page.read_text()) if found == language
        )
    ]


def languages() -> set[str]:
    """Return all languages there are."""
    return {language for page in PAGES for language, _ in _BLOCK.findall(page.read_text())}


def section(page: str, title: str) -> str:
    """Return what stands under a heading of a page, up to the next of its level."""
    text = (ROOT / "docs" / page).read_text()
    _, found, rest = text.partition(f"\n## {title}\n")
    assert found, f"{page} has no section {title!r}"
    return rest.partition("\n## ")[0]


def named(text: str) -> set[str]:
    """Return the names in the first column of the tables of a text."""
    firsts = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for first in firsts for name in re.findall(r"`([^`]+)`", first)}
