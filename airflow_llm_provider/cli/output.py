"""What commands say, and how they end when something is wrong."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any, NoReturn

import typer

# A document's text must not steer the terminal it is shown in.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


# The ending RFC 4180 asks for. With any other, Python before 3.13 leaves a lone carriage return unquoted, and what
# comes after it would be the first cell of a row.
CSV_LINE_END = "\r\n"


def fail(message: object) -> NoReturn:
    """End the command with status 1 and one message on stderr."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)


def echo_json(value: Any) -> None:
    """Write `value` as indented JSON, in ASCII."""
    typer.echo(json.dumps(value, indent=2))


def cell(value: Any) -> Any:
    """Return what a CSV file may hold: a text that a spreadsheet would take for a formula gets a `'` in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def moment_ms(option: str, text: str | None) -> int | None:
    """Read an option's date or time, UTC unless it says otherwise, as milliseconds since 1970."""
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        fail(
            f"{option} is {text!r}, and should be a date or time such as 2026-11-01 or 2026-11-01T06:00+01:00."
        )
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return round(moment.timestamp() * 1000)


def shown(text: object, most: int | None = None) -> str:
    """Return a text safe to show: control characters spelled out; cut to `most` characters in one line."""
    safe = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", str(text))
    if most is None:
        return safe
    line = " ".join(safe.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
