"""`airflow-llm dead-letters`: list, show and reopen the documents that got no answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_llm_provider.cli.connection import read_airflow
from airflow_llm_provider.cli.ledger import ConnectionOption, LedgerOption, find_ledger
from airflow_llm_provider.cli.output import echo_json, fail, shown

if TYPE_CHECKING:
    from upath import UPath

app = typer.Typer(help="List, show and reopen the documents that got no answer.", no_args_is_help=True)

Letter = dict[str, Any]
PathArgument = Annotated[
    str,
    typer.Argument(
        help="The dead-letter file, the output it stands beside, or a folder of parts; a path or a URL such as "
        "s3://conn@bucket/rows.jsonl."
    ),
]


@app.command("list")
def list_letters(
    path: PathArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, with nothing cut.")] = False,
) -> None:
    """List dead letters: which document, why, and how many for each reason."""
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
        table.add_row(*(Text(shown(cell, 200), overflow="fold") for cell in cells))
    console = Console()
    console.print(table)
    counted = ", ".join(f"{shown(reason)} {count}" for reason, count in reasons.most_common())
    console.print(f"{len(letters)} dead letters: {counted}", markup=False)


@app.command("show")
def show_letter(
    path: PathArgument,
    document_id: Annotated[str, typer.Argument(metavar="ID", help="The document's id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Show all that is known of one dead letter, with the reply that was no answer."""
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
) -> None:
    """Have paid answers that were no answers asked anew, and paid anew, by the next run.

    Without ids, all of them. What was never paid (unreadable, too large, …) is tried again by any run.
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
    if paid:
        url = find_ledger(ledger_url, conn_id)
        wanted = {fingerprint for letter in paid for fingerprint in letter["fingerprints"]}
        reopened = asyncio.run(_reopen(url, wanted))
        there = sum(not reopened.isdisjoint(letter["fingerprints"]) for letter in paid)
        typer.echo(f"{there} reopened ({len(reopened)} calls): the next run asks them anew, and pays anew.")
        if there < len(paid):
            typer.echo(
                f"{len(paid) - there} not reopened: this ledger holds no answer to them. They have been reopened "
                "already, or were asked under another ledger (--ledger-url, --conn-id)."
            )
    if unpaid:
        counted = ", ".join(f"{shown(reason)} {count}" for reason, count in unpaid.most_common())
        typer.echo(
            f"{unpaid.total()} need no reopening ({counted}): nothing was paid for them, and the next run tries them "
            "again anyway."
        )
    if not letters:
        typer.echo(f"No dead letters at {path}.")


def _read(path: str) -> list[Letter]:
    from airflow_llm_provider.documents.output import read_dead_letters

    try:
        letters = list(read_dead_letters(path, to_path=_object_storage))
    except FileNotFoundError:
        fail(f"There is nothing at {path}, and no dead letters beside it.")
    except (OSError, ValueError, ImportError) as error:
        fail(f"{path} can't be read: {error}")
    if not all(map(_is_letter, letters)):
        fail(f"{path} holds something else than dead letters: a line of it names no document and reason.")
    return letters


def _is_letter(line: object) -> bool:
    return isinstance(line, dict) and all(
        isinstance(line.get(name), str) for name in ("document_id", "reason")
    )


def _object_storage(url: str) -> UPath:
    read_airflow()
    from airflow.sdk import ObjectStoragePath

    return ObjectStoragePath(url)  # type: ignore[return-value]  # a UPath by the class it derives from


async def _reopen(url: str, fingerprints: Collection[str]) -> set[str]:
    """Mark the answers of these requests as to be asked anew; return those that had one."""
    from airflow_llm_provider.ledger.ledger import Ledger
    from airflow_llm_provider.ledger.records import CallScope, Reopening

    # Nobody's scope: it spares no task's own answers, as a retry's would.
    scope = CallScope()
    ledger = await asyncio.to_thread(Ledger, url)
    try:
        asked = sorted(fingerprints)
        answers = await asyncio.gather(*(ledger.find_reply(one, scope, "always") for one in asked))
        found = {fingerprint for fingerprint, answer in zip(asked, answers, strict=True) if answer}
        await asyncio.gather(*(ledger.record(Reopening(one, scope)) for one in sorted(found)))
        return found
    finally:
        await asyncio.to_thread(ledger.close)
