"""`airflow-llm dead-letters`: list, show and reopen the documents that got no answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_llm_provider.cli.connection import ConnectionOption, LedgerOption, find_ledger, read_airflow
from airflow_llm_provider.cli.output import JsonOption, echo_json, fail, shown

if TYPE_CHECKING:
    from upath import UPath

app = typer.Typer(help="List, show and reopen the documents that got no answer.", no_args_is_help=True)

Letter = dict[str, Any]
PathArgument = Annotated[
    str,
    typer.Argument(
        help="The dead-letter file, the output file beside it, or a folder of parts: a path, or a URL such as "
        "s3://conn@bucket/rows.jsonl."
    ),
]


@app.command("list")
def list_letters(
    path: PathArgument,
    as_json: JsonOption = False,
) -> None:
    """List dead letters: the document, the reason, and how many per reason."""
    letters = _read(path)
    reasons = Counter(letter["reason"] for letter in letters)
    if as_json:
        echo_json(
            {
                "path": path,
                "count": len(letters),
                "by_reason": dict(reasons.most_common()),
                "letters": letters,
            }
        )
        return
    if not letters:
        typer.echo(f"No dead letters at {path}.")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("document", "reason", "error", "message")
    for letter in letters:
        cells = (letter["document_id"], letter["reason"], letter.get("error", ""), letter.get("message", ""))
        # As Text: in a string rich would read `[…]` of a document as markup.
        table.add_row(*(Text(shown(cell, 200), overflow="fold") for cell in cells))
    console = Console()
    console.print(table)
    counted = ", ".join(f"{shown(reason)} {count}" for reason, count in reasons.most_common())
    console.print(f"{len(letters)} dead letters: {counted}", markup=False)


@app.command("show")
def show_letter(
    path: PathArgument,
    document_id: Annotated[str, typer.Argument(metavar="ID", help="The document's id.")],
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of one dead letter, with the reply that was not a valid answer."""
    letters = [letter for letter in _read(path) if letter["document_id"] == document_id]
    if not letters:
        fail(
            f"No dead letter of a document {document_id!r} at {path}; `airflow-llm dead-letters list` lists them."
        )
    if as_json:
        echo_json(letters)
        return
    for letter in letters:
        for name, value in letter.items():
            text = ", ".join(value) if isinstance(value, list) else value
            typer.echo(f"{name}: {shown(text)}")


@app.command("reopen")
def reopen_letters(
    path: PathArgument,
    document_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Only these documents.")
    ] = None,
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the next run ask again, and pay again, for documents whose paid answers were not valid.

    Default: all documents of the file. Documents that were never paid for (unreadable, too large, …) need no
    reopening: every run tries them again.
    """
    letters = _read(path)
    if document_ids:
        missing = sorted(set(document_ids) - {letter["document_id"] for letter in letters})
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            fail(
                f"No dead letters of {', '.join(map(repr, missing[:5]))}{more} at {path}; nothing was reopened."
            )
        letters = [letter for letter in letters if letter["document_id"] in document_ids]
    paid = [letter for letter in letters if letter.get("fingerprints")]
    unpaid = Counter(letter["reason"] for letter in letters if not letter.get("fingerprints"))
    calls: set[str] = set()
    if paid:
        wanted = {fingerprint for letter in paid for fingerprint in letter["fingerprints"]}
        calls = asyncio.run(_reopen(find_ledger(ledger_url, conn_id), wanted))
    reopened = sum(not calls.isdisjoint(letter["fingerprints"]) for letter in paid)
    if as_json:
        echo_json(
            {
                "reopened": reopened,
                "calls": len(calls),
                "not_reopened": len(paid) - reopened,
                "need_no_reopening": dict(unpaid.most_common()),
            }
        )
        return
    if paid:
        typer.echo(f"{reopened} reopened ({len(calls)} calls): the next run asks and pays for them again.")
    if reopened < len(paid):
        typer.echo(
            f"{len(paid) - reopened} not reopened: this ledger holds no answer to them. They were reopened before, "
            "or were asked with another ledger (--ledger-url, --conn-id)."
        )
    if unpaid:
        counted = ", ".join(f"{shown(reason)} {count}" for reason, count in unpaid.most_common())
        typer.echo(
            f"{unpaid.total()} need no reopening ({counted}): nothing was paid for them, and the next run tries them "
            "again."
        )
    if not letters:
        typer.echo(f"No dead letters at {path}.")


def _read(path: str) -> list[Letter]:
    from airflow_llm_provider.documents.output import read_dead_letters

    try:
        letters = list(read_dead_letters(path, to_path=_object_storage))
    except FileNotFoundError:
        fail(f"There is no file at {path}, and no dead letters beside it.")
    except (OSError, ValueError, ImportError) as error:
        fail(f"{path} cannot be read: {error}")
    # A file of rows is JSON lines as well.
    if not all(map(_is_letter, letters)):
        fail(f"{path} does not hold dead letters: one of its lines has no document and reason.")
    return letters


def _is_letter(line: object) -> bool:
    return isinstance(line, dict) and all(
        isinstance(line.get(name), str) for name in ("document_id", "reason")
    )


def _object_storage(url: str) -> UPath:
    read_airflow()
    from airflow_llm_provider.hooks.files import object_storage

    path: UPath = object_storage(url)
    return path


async def _reopen(url: str, fingerprints: Collection[str]) -> set[str]:
    """Mark the answers to these requests as reopened; return the requests that had an answer."""
    from airflow_llm_provider.ledger.ledger import Ledger
    from airflow_llm_provider.ledger.records import CallScope, Reopening

    # An empty scope: with a task's scope, its retries would still take the task's own answers.
    scope = CallScope()
    ledger = await asyncio.to_thread(Ledger, url)
    try:
        asked = sorted(fingerprints)
        # Only a request that has an answer in this ledger can be reopened; the output says how many were.
        answers = await asyncio.gather(*(ledger.find_reply(one, scope, "always") for one in asked))
        found = {fingerprint for fingerprint, answer in zip(asked, answers, strict=True) if answer}
        await asyncio.gather(*(ledger.record(Reopening(one, scope)) for one in sorted(found)))
        return found
    finally:
        await asyncio.to_thread(ledger.close)
