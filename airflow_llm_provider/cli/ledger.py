"""`airflow-llm ledger`: where the ledger is, what it holds, its checks, exports and pruning."""

from __future__ import annotations

import csv
import datetime as dt
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_llm_provider.cli.connection import (
    ConnectionOption,
    LedgerOption,
    find_ledger,
    read_airflow,
    reading,
)
from airflow_llm_provider.cli.output import (
    CSV_LINE_END,
    CsvOption,
    JsonOption,
    ShowsByItself,
    cell,
    echo_json,
    fail,
    moment_ms,
    shown,
)

if TYPE_CHECKING:
    from airflow_llm_provider.ledger.maintenance import Pruned

app = typer.Typer(
    cls=ShowsByItself,
    help="Show, check, back up, export and prune the ledger of calls and payments. Default command: `show`.",
)

_AGE = re.compile(r"(\d+(?:\.\d+)?)([dh])")


@app.command("show")
def show_ledger(
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    dag: Annotated[str | None, typer.Option("--dag", help="Only the calls of this DAG.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only the calls of this DAG run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where the ledger is, its size, its calls by state, their cost, and the latest invalid answers."""
    from airflow_llm_provider.ledger.maintenance import size, wal_bytes
    from airflow_llm_provider.ledger.reports import (
        Costs,
        Filter,
        invalid_answers,
        pruned_costs,
        totals_by_state,
    )
    from airflow_llm_provider.ledger.schema import UNPROVEN
    from airflow_llm_provider.pricing import paid_and_unproven, usd

    named = {"dag_id": dag, "run_id": run}
    with reading(find_ledger(ledger_url, conn_id)) as database:
        where = database.shown_url
        found, measured = totals_by_state(database, dag_id=dag, run_id=run), size(database)
        complained = invalid_answers(database, dag_id=dag, run_id=run)
        in_wal = wal_bytes(database)
        pruned = pruned_costs(database, Filter(names={name: one for name, one in named.items() if one}))
    told = {
        "ledger": where,
        "size_bytes": measured.bytes_total,
        "wal_bytes": in_wal,
        "tables": {name: {"rows": rows, "bytes": taken} for name, (rows, taken) in measured.tables.items()},
        "oldest": _day(measured.oldest_ms),
        "newest": _day(measured.newest_ms),
        "calls": {state: sums.calls for state, sums in found.items()},
        "paid_usd": usd(sum(sums.cost_micro_usd for state, sums in found.items() if sums.is_paid)),
        "unpriced_calls": sum(sums.unpriced for sums in found.values() if sums.is_paid),
        "unproven_usd_at_most": usd(found[UNPROVEN].cost_micro_usd if UNPROVEN in found else 0),
        "pruned": {
            "calls": pruned.calls,
            "paid_usd": usd(pruned.cost_micro_usd),
            "unproven_usd_at_most": usd(pruned.unproven_micro_usd),
        },
        "complaints": complained,
    }
    if as_json:
        echo_json(told)
        return
    from rich.console import Console
    from rich.table import Table

    states = Table("state", "calls", "cost (USD)")
    for state, sums in found.items():
        states.add_row(state, f"{sums.calls:,}", str(usd(sums.cost_micro_usd)))
    tables = Table("table", "rows", "MB")
    for name, (rows, taken) in measured.tables.items():
        if rows:
            tables.add_row(name, f"{rows:,}", "" if taken is None else f"{taken / 1e6:,.1f}")
    console = Console()
    console.print(f"{where}: {measured.bytes_total / 1e6:,.1f} MB", markup=False, soft_wrap=True)
    if in_wal:
        console.print(
            f"{in_wal / 1e6:,.1f} MB of it in the -wal beside the file, perhaps with the latest calls: a copy of the "
            "file alone lacks them. `airflow-llm ledger backup` copies both.",
            markup=False,
        )
    if measured.oldest_ms:
        console.print(f"calls from {told['oldest']} to {told['newest']}", markup=False)
    console.print(tables)
    console.print(states)
    console.print(
        f"paid ${told['paid_usd']}; unproven, at most ${told['unproven_usd_at_most']}", markup=False
    )
    if pruned != Costs():
        amounts = paid_and_unproven(pruned.cost_micro_usd, pruned.unproven_micro_usd)
        console.print(f"and of {pruned.calls:,} calls that were pruned: {amounts}", markup=False)
    if told["unpriced_calls"]:
        console.print(f"{told['unpriced_calls']} paid calls have no known price.", markup=False)
    for each in complained:
        where = shown(f"{each['dag_id']}.{each['task_id']} {each['item_id'] or ''}", 200)
        console.print(
            f"{where}: {each['error_class']}: {shown(each['error'], 200)}", markup=False, soft_wrap=True
        )


@app.command("backup")
def back_up_ledger(
    output: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a ledger on SQLite to a file, also while tasks run.

    The latest calls stand in a -wal beside the ledger's file. The backup has them; a copy of the file alone has not.
    """
    from airflow_llm_provider.ledger.maintenance import back_up

    with reading(find_ledger(ledger_url, conn_id)) as database:
        if database.dialect != "sqlite":
            fail("This ledger is on PostgreSQL: back it up with pg_dump.")
        try:
            back_up(database, output)
        except OSError as error:
            fail(f"{output} cannot be written: {error.strerror}")
    written = output.stat().st_size
    if as_json:
        echo_json({"backup": str(output), "size_bytes": written})
        return
    typer.echo(f"{output}: {written / 1e6:,.1f} MB")


@app.command("check")
def check_ledger(
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="On SQLite, compare the indexes with the tables too; this reads the whole ledger."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look for damage, replies without a call, answers without a reply, and calls left open.

    The exit status is 1 when something is found.
    """
    from airflow_llm_provider.ledger.maintenance import check

    with reading(find_ledger(ledger_url, conn_id)) as database:
        findings = check(database, full=full)
    if as_json:
        echo_json([{"what": f.what, "count": f.count, "examples": list(f.examples)} for f in findings])
    for finding in () if as_json else findings:
        examples = ", ".join(shown(example, 200) for example in finding.examples)
        typer.echo(f"{finding.count:,} {finding.what}: {examples}")
    if findings:
        raise typer.Exit(1)
    if not as_json:
        typer.echo("The ledger is sound.")


@app.command("export")
def export_ledger(
    output: Annotated[str, typer.Argument(help="A file, or - for standard output.")] = "-",
    as_csv: CsvOption = False,
    with_payload: Annotated[
        bool,
        typer.Option("--with-payload", help="Add prompts and replies, where they are kept; not with --csv."),
    ] = False,
    since: Annotated[str | None, typer.Option(help="Calls from this date or time on; UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Calls before this date or time.")] = None,
    dag: Annotated[str | None, typer.Option("--dag", help="Only the calls of this DAG.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only the calls of this DAG run.")] = None,
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
) -> None:
    """Write one JSON line per call: DAG, run, task, model, tokens, price, times. Default: no prompts, no replies."""
    from airflow_llm_provider.ledger.maintenance import CALL_COLUMNS, export
    from airflow_llm_provider.ledger.reports import Filter

    if with_payload and as_csv:
        fail("Prompts and replies are nested, so CSV cannot hold them: leave --csv or --with-payload out.")
    named = {name: value for name, value in (("dag_id", dag), ("run_id", run)) if value is not None}
    wanted = Filter(since_ms=moment_ms("--since", since), until_ms=moment_ms("--until", until), names=named)
    # The ledger first: opening the file empties it, and a ledger that cannot be read gives nothing to put there.
    with reading(find_ledger(ledger_url, conn_id)) as database, _opened(output) as file:
        calls = export(database, wanted, with_payload=with_payload)
        if not as_csv:
            for one in calls:
                file.write(json.dumps(one, ensure_ascii=False) + "\n")
            return
        writer = csv.DictWriter(file, CALL_COLUMNS, lineterminator=CSV_LINE_END)
        writer.writeheader()
        for one in calls:
            row = {**one, "tags": " ".join(one["tags"])}
            writer.writerow({name: cell(value) for name, value in row.items()})


@app.command("prune")
def prune_ledger(
    older_than: Annotated[
        str | None,
        typer.Option(
            help="Age such as 90d or 36h; default: [llm] retention_days and payload_retention_days."
        ),
    ] = None,
    payload_only: Annotated[
        bool,
        typer.Option("--payload-only", help="Remove only prompts and replies; the rows of the calls stay."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove old calls in small steps, so that running tasks hardly wait.

    A run that needs a removed answer asks and pays for it again, even if the document has not changed. Open calls,
    and all calls of a run that was active lately, are kept at any age.
    """
    from airflow_llm_provider.ledger.maintenance import prune

    rows, payloads = _ages(older_than, payload_only)
    url = find_ledger(ledger_url, conn_id)
    with reading(url) as database:
        with database.read() as connection:
            now_ms = database.now_ms(connection)
        gone = prune(
            database,
            rows_before_ms=None if rows is None else now_ms - rows,
            payloads_before_ms=None if payloads is None else now_ms - payloads,
            dry_run=dry_run,
        )
    if as_json:
        echo_json(_as_dict(gone, dry_run))
        return
    verb = "would be removed" if dry_run else "were removed"
    notes = "" if dry_run else f", {gone.documents:,} records of unchanged files"
    typer.echo(f"{gone.rows:,} calls and {gone.payloads:,} prompts and replies {verb}{notes}.")
    if gone.kept:
        typer.echo(f"{gone.kept:,} old calls stay: their runs are still active.")
    # SQLite gives no space back to the disk without a VACUUM, which locks and copies the whole file.
    if gone.rows and not dry_run and url.startswith("sqlite"):
        typer.echo("The file keeps its size; the free space in it is used again.")


def _ages(older_than: str | None, payload_only: bool) -> tuple[int | None, int | None]:
    """Return the ages, in milliseconds, from which rows and payloads are removed."""
    if older_than is not None:
        match = _AGE.fullmatch(older_than.strip())
        if match is None or not float(match[1]):
            fail(f"--older-than is {older_than!r}; it must be an age such as 90d or 36h.")
        age = round(float(match[1]) * (86_400_000 if match[2] == "d" else 3_600_000))
        return (None, age) if payload_only else (age, None)
    read_airflow()
    from airflow.sdk.exceptions import AirflowFailException

    from airflow_llm_provider.hooks.retention import retention_ms

    try:
        rows, payloads = retention_ms()
    except AirflowFailException as error:
        fail(error)
    if payload_only:
        rows = None
    if rows is None and payloads is None:
        fail(
            "Everything is kept, so nothing can be removed: give --older-than, or set [llm] retention_days or "
            "payload_retention_days."
        )
    return rows, payloads


def _as_dict(gone: Pruned, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "calls": gone.rows,
        "payloads": gone.payloads,
        "documents": gone.documents,
        "kept": gone.kept,
        "steps": gone.steps,
        "longest_step_s": round(gone.longest_s, 3),
    }


@contextmanager
def _opened(output: str) -> Iterator[Any]:
    if output == "-":
        yield sys.stdout
        return
    try:
        file = Path(output).open("w", encoding="utf-8", newline="")  # noqa: SIM115  # its errors alone are caught
    except OSError as error:
        fail(f"{output} cannot be written: {error}")
    with file:
        yield file


def _day(ms: int | None) -> str | None:
    return None if ms is None else dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat(timespec="seconds")
