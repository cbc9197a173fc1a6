"""The output of commands: JSON, CSV cells, text that is safe for a terminal, and the end with an error."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

# A document's text must not control the terminal it is shown in.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# As RFC 4180 says. With another line end, Python before 3.13 writes a lone carriage return without quotes, and the
# text after it would become the first cell of a new row.
CSV_LINE_END = "\r\n"


JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Write CSV.")]


class ShowsByItself(TyperGroup):
    """A group of commands that runs `show` or `list` when no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front of its options."""
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            # An option alone is one of the default command; only `--help` is for the group.
            args = [next(name for name in ("show", "list") if name in self.commands), *args]
        return super().parse_args(ctx, args)


def fail(message: object) -> NoReturn:
    """End the command with status 1 and one message on stderr."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)


def echo_json(value: Any) -> None:
    """Write `value` as indented JSON, in ASCII."""
    # ASCII: a document's text cannot control the terminal then, and any terminal's encoding can write it.
    typer.echo(json.dumps(value, indent=2))


def cell(value: Any) -> Any:
    """Return a CSV cell: a text that a spreadsheet would read as a formula gets a `'` in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def moment_ms(option: str, text: str | None) -> int | None:
    """Read an option's date or time, UTC by default, as milliseconds since 1970."""
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        fail(f"{option} is {text!r}; it must be a date or time such as 2026-11-01 or 2026-11-01T06:00+01:00.")
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return round(moment.timestamp() * 1000)


def shown(text: object, most: int | None = None) -> str:
    """Return a text that is safe to show: control characters escaped; with `most`, one line of so many characters."""
    safe = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", str(text))
    if most is None:
        return safe
    line = " ".join(safe.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
