"""The form of a question: text and data as Markdown that stays in its frame, and the fields that can be edited."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

from airflow_llm_provider.engine.request import to_json
from airflow_llm_provider.errors import BadRequest, InvalidOutput

APPROVE, CHANGE, REJECT = "Approve", "Approve with changes", "Reject"  # the options' names
CONTENT, FEEDBACK = "content", "feedback"  # the fields' names

_PUNCTUATION, _ESCAPED = re.compile(r"([!-/:-@\[-`{-~])"), r"\\\1"
_LONGEST_CELL, _MOST_COLUMNS, _MOST_ROWS = 200, 8, 100
_MOST_KINDS = 20  # of characters that draw nothing, listed one by one
_WITHOUT_GLYPH = frozenset(
    chr(code)
    for code in (
        0x034F,  # combining grapheme joiner
        *(0x115F, 0x1160, 0x3164, 0xFFA0),  # Hangul fillers
        *(0x17B4, 0x17B5),  # Khmer inherent vowels
        *range(0x180B, 0x1810),  # Mongolian variation selectors and vowel separator
        0x2800,  # blank braille pattern
        *range(0xFE00, 0xFE10),  # variation selectors
        *(0x13441, 0x13442),  # Egyptian hieroglyph blanks
        0x16FE4,  # Khitan filler
        0x1D159,  # musical null notehead
        *range(0xE0100, 0xE01F0),  # more variation selectors
    )
)
_LARGEST_INTEGER = 2**53 - 1  # that a browser's numbers hold exactly


def show(content: Any) -> str:
    """Return text or JSON data as Markdown: as a table where that is legible, else in a frame.

    Nothing is cut, and no part of it is rendered as Markdown or HTML.
    """
    if isinstance(content, str):
        return frame(content)
    if isinstance(content, dict) and content:
        cells = {name: value for name, value in content.items() if _fits(name) and _fits(value)}
        rows = [[name, value] for name, value in cells.items()]
        parts = [_table(["field", "value"], rows)] if rows else []
        for name, value in content.items():
            if name not in cells:
                parts.append(f"{note_on(name)}{line(name)}:\n\n{frame(value)}")
        return "\n\n".join(parts)
    if _is_table(content):
        columns = list(dict.fromkeys(name for row in content for name in row))
        return _table(columns, [[row.get(name, "") for name in columns] for row in content])
    return frame(content)


def frame(value: Any) -> str:
    """Return text, or data as JSON, in a Markdown fence that is longer than any fence within the text."""
    kind, text = ("text", value) if isinstance(value, str) else ("json", _written(value))
    # Else each line of a Windows file would end in the code of a carriage return.
    text = text.replace("\r\n", "\n")
    note, text = note_on(text), visible(text)
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{note}{ticks}{kind}\n{text}\n{ticks}"


def titled(title: str, text: str) -> str:
    """Return text with a bold title: on the same line where the text is one line, else in a frame below it."""
    return f"**{title}:** {line(text)}" if _fits(text) else f"**{title}:**\n\n{frame(text)}"


def line(text: str) -> str:
    """Return text as one line of a paragraph, with Markdown's characters escaped."""
    return _PUNCTUATION.sub(_ESCAPED, visible(" ".join(text.split())))


def visible(text: str) -> str:
    """Return the text with each character that draws nothing written as its code."""
    return "".join(_code_of(character) if _is_unseen(character) else character for character in text)


def fields(content: Any, *, editable: bool) -> dict[str, dict[str, Any]]:
    """Return the form's fields: one for feedback and, where the content may be edited, one for the content.

    Airflow's page reads text that looks like a JSON object as an object, and a browser rounds large numbers. So text is
    sent as a list of its lines, and so is data with numbers that a browser would change.
    """
    form: dict[str, dict[str, Any]] = {}
    if editable:
        is_text = _travels_as_lines(content)
        written = content if isinstance(content, str) else _written(content)
        # The field holds the characters themselves, so that what nobody touched stays what it was.
        unseen = unseen_in(written.replace("\r\n", "\n"))
        form[CONTENT] = _field(
            written.split("\n") if is_text else content,
            "What goes on. Edit it here; data is checked when the task resumes."
            + (f" Above it is shown whole. {unseen}" if unseen else ""),
            {"type": ["array", "null"], "items": {"type": "string"}}
            if is_text
            else {"type": ["object", "null"]},
            title="Content",
        )
    form[FEEDBACK] = _field(
        "",
        "Why, for those who read the decision.",
        {"type": ["string", "null"], "format": "multiline"},
        title="Feedback",
    )
    return form


def edited(content: Any, given: Mapping[str, Any]) -> Any:
    """Return the content as it was edited; `content` itself where nothing was changed.

    What only the browser writes differently (1 for 1.0, fields in another order) is not a change.

    Args:
        content: what was shown.
        given: the form's fields, as Airflow returns them.

    Raises:
        InvalidOutput: the edit cannot be read.
    """
    # Airflow's API accepts an answer without the form's fields, and does not validate them.
    if CONTENT not in given:
        return content
    edit = given[CONTENT]
    if _travels_as_lines(content):
        is_lines = isinstance(edit, list) and all(isinstance(part, str) for part in edit)
        text = "\n".join(edit) if is_lines else edit or ""
        if not isinstance(text, str):
            raise InvalidOutput("The edited content is neither text nor a list of its lines.")
        edit = text if isinstance(content, str) else read_json(text)
    elif edit is None:
        raise InvalidOutput("The edited content is empty.")
    edit = _untouched(content, edit)
    is_same = _kept(edit) == to_json(content, sort_keys=True)
    return content if is_same else edit


def read_json(text: str) -> Any:
    """Parse edited JSON; raises InvalidOutput with the position of the error."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidOutput(f"The edited content is not JSON: {error}.", reply_text=text) from None


def _kept(edit: Any) -> bytes:
    """Return an edit as JSON with sorted fields; raises InvalidOutput when a number would change."""
    try:
        kept = to_json(edit, sort_keys=True)
    except BadRequest:
        kept = b"null"  # a number too long, or too many levels
    # What goes on is read back from these bytes, so they must hold the very number that a person approved.
    if json.loads(kept) != edit:
        raise InvalidOutput("The edited content has a number that can't be kept exactly.")
    return kept


def _field(value: Any, description: str, schema: dict[str, Any], *, title: str) -> dict[str, Any]:
    """Return a field as Airflow's Param writes itself."""
    return {
        "value": value,
        "description": description,
        "schema": {**schema, "title": title},
        "source": "task",
    }


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [[line(name) for name in columns], ["---"] * len(columns)]
    lines += [[line(value if isinstance(value, str) else _written(value)) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _is_table(content: Any) -> bool:
    if not isinstance(content, list) or not 0 < len(content) <= _MOST_ROWS:
        return False
    if not all(isinstance(row, dict) and row for row in content):
        return False
    names = {name for row in content for name in row}
    cells = (value for row in content for value in row.values())
    return len(names) <= _MOST_COLUMNS and all(map(_fits, names)) and all(map(_fits, cells))


def _fits(value: Any) -> bool:
    """Tell whether a cell shows a value as it is: one short line, no spaces that a page would drop."""
    if isinstance(value, (dict, list)):
        return False
    if not isinstance(value, str):
        return True
    is_plain = value == " ".join(value.split()) and not any(map(_is_unseen, value))
    return is_plain and len(value) <= _LONGEST_CELL


def _is_unseen(character: str) -> bool:
    """Tell a character that draws nothing, or that could make text look like another text.

    These are controls, marks of direction, joiners and tags by their category, and by their number the letters, marks
    and symbols that have no glyph.
    """
    if character in "\n\t":
        return False
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp") or character in _WITHOUT_GLYPH


def _code_of(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def note_on(text: str) -> str:
    """Return what `unseen_in` says as a paragraph of Markdown; nothing where every character draws something."""
    said = unseen_in(text)
    return f"*{_PUNCTUATION.sub(_ESCAPED, said)}*\n\n" if said else ""


def unseen_in(text: str) -> str:
    """Return as a sentence how many characters of which kind draw nothing; nothing where none does."""
    unseen = Counter(character for character in text if _is_unseen(character))
    if not unseen:
        return ""
    kinds = [
        f"{count:,} of U+{ord(character):04X} {unicodedata.name(character, '(no name)')}"
        for character, count in unseen.most_common(_MOST_KINDS)
    ]
    if more := len(unseen) - len(kinds):
        kinds.append(f"{more:,} other kinds")
    total = unseen.total()
    sentence = (
        "1 character draws nothing and is written as its code"
        if total == 1
        else f"{total:,} characters draw nothing and are written as their codes"
    )
    return f"{sentence}: {', '.join(kinds)}."


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _travels_as_lines(content: Any) -> bool:
    return not isinstance(content, (dict, list)) or not _browser_holds(content)


def _browser_holds(value: Any) -> bool:
    if isinstance(value, dict):
        # In JavaScript `__proto__` names the object's prototype, so a field of that name may not come back.
        return "__proto__" not in value and all(map(_browser_holds, value.values()))
    if isinstance(value, list):
        return all(map(_browser_holds, value))
    return not isinstance(value, int) or abs(value) <= _LARGEST_INTEGER


def _untouched(content: Any, edit: Any) -> Any:
    """Return the edit with every number spelt as it was where it has not changed."""
    if isinstance(content, dict) and isinstance(edit, dict):
        return {name: _untouched(content.get(name), value) for name, value in edit.items()}
    if isinstance(content, list) and isinstance(edit, list) and len(content) == len(edit):
        return [_untouched(was, now) for was, now in zip(content, edit, strict=True)]
    is_number = isinstance(edit, (int, float)) and not isinstance(edit, bool)
    # A browser writes 1.0 as 1. The hash is of the bytes, so the same number would look like an edit.
    return content if is_number and not isinstance(content, bool) and content == edit else edit
