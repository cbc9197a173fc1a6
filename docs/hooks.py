"""What the reference says of commands, connection fields, options and kinds of errors, read from the code itself.

A page holds a comment such as `<!-- generated: commands -->`, and MkDocs puts the text there when it builds.
All that has a docstring is left to mkdocstrings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def commands() -> str:
    """Return what typer itself writes about `airflow-llm` and its commands."""
    import typer.cli
    import typer.main

    from airflow_llm_provider.cli import app

    command = typer.main.get_command(app)
    pages = typer.cli.get_docs_for_click(
        obj=command, ctx=typer.Context(command), name="airflow-llm", indent=1
    )
    # Headings as the nav has them; a metavariable such as <str> would be read as HTML.
    return re.sub(r"^## (`[^`]+`)$", r"## \1", pages, flags=re.MULTILINE)


def connection() -> str:
    """Return the table of the connection's fields."""
    from airflow_llm_provider.provider_info import get_provider_info

    [kind] = get_provider_info()["connection-types"]
    behaviour = kind["ui-field-behaviour"]
    named = behaviour["relabeling"].items()
    rows = [
        (f"{label} (`{name}`)", "", behaviour["placeholders"][name]) for name, label in sorted(named)[::-1]
    ]
    for name, field in kind["conn-fields"].items():
        rows.append((f"`{name}`", _code(field["schema"].get("default")), field["description"]))
    return _table(("field", "default", ""), rows)


def configuration() -> str:
    """Return the table of the options in section [llm]."""
    from airflow_llm_provider.provider_info import get_provider_info

    options = get_provider_info()["config"]["llm"]["options"].items()
    rows = [
        (f"`{name}`", _code(each["default"]), _code(each["example"]), each["description"])
        for name, each in options
    ]
    return _table(("option", "default", "example", ""), rows)


def kinds() -> str:
    """Return the table of what `retry=` and `fall_back_on=` call each error."""
    from airflow_llm_provider.errors import BY_KIND

    return _table(
        ("class", "error"), [(f"`{kind}`", f"`{error.__name__}`") for kind, error in BY_KIND.items()]
    )


GENERATED = {each.__name__: each for each in (commands, connection, configuration, kinds)}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated texts where a page asks for them; MkDocs calls this for every page."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda found: GENERATED[found[1]](), markdown)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), ["---"] * len(list(header)), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _code(value: Any) -> str:
    return "" if value in (None, "") else f"`{value}`"
