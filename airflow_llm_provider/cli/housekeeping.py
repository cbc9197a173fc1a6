"""`airflow-llm ledger check`, `export` and `prune`: looking after the ledger."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_llm_provider.cli.connection import read_airflow
from airflow_llm_provider.cli.ledger import ConnectionOption, JsonOption, LedgerOption, find_ledger, reading
from airflow_llm_provider.cli.output import CSV_LINE_END, cell, echo_json, fail, moment_ms, shown

if TYPE_CHECKING:
    from airflow_llm_provider.ledger.maintenance import Pruned

ExportFormat = StrEnum("ExportFormat", ["jsonl", "csv"])
_AGE = re.compile(r"(\d+(?:\.\d+)?)([dh])")


def check_ledger(
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="On SQLite, hold the indexes against the tables too; reads all of it."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look for damage, replies without a call, answers without a reply, and calls left open.

    Exit status 1 when something is found.
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


def export_ledger(
    output: Annotated[str, typer.Argument(help="A file, or - for standard output.")] = "-",
    form: Annotated[ExportFormat, typer.Option("--format", help="How to write it.")] = ExportFormat.jsonl,
    with_payload: Annotated[
        bool,
        typer.Option("--with-payload", help="JSONL only: prompts and replies too, as far as they are kept."),
    ] = False,
    since: Annotated[str | None, typer.Option(help="Calls from this date or time on; UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Calls before this date or time.")] = None,
    dag: Annotated[str | None, typer.Option("--dag", help="Only the calls of this DAG.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only the calls of this DAG run.")] = None,
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
) -> None:
    """Write calls out, one a line: who asked, model, tokens, price, times. No prompts and replies by default."""
    from airflow_llm_provider.ledger.maintenance import CALL_COLUMNS, export
    from airflow_llm_provider.ledger.reports import Filter

    if with_payload and form.value == "csv":
        fail("Prompts and replies are nested: --with-payload writes them as --format jsonl.")
    named = {name: value for name, value in (("dag_id", dag), ("run_id", run)) if value is not None}
    wanted = Filter(since_ms=moment_ms("--since", since), until_ms=moment_ms("--until", until), names=named)
    with reading(find_ledger(ledger_url, conn_id)) as database, _opened(output) as file:
        calls = export(database, wanted, with_payload=with_payload)
        if form.value == "jsonl":
            for one in calls:
                file.write(json.dumps(one, ensure_ascii=False) + "\n")
            return
        writer = csv.DictWriter(file, CALL_COLUMNS, lineterminator=CSV_LINE_END)
        writer.writeheader()
        for one in calls:
            row = {**one, "tags": " ".join(one["tags"])}
            writer.writerow({name: cell(value) for name, value in row.items()})


def prune_ledger(
    older_than: Annotated[
        str | None,
        typer.Option(
            help="Age such as 90d or 36h; by default [llm] retention_days and payload_retention_days."
        ),
    ] = None,
    payload_only: Annotated[
        bool, typer.Option("--payload-only", help="Only prompts and replies; the books keep their rows.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what is old, in small steps: tasks that pay meanwhile hardly wait.

    An answer that is gone is asked and paid anew when a run needs it, also by nightly runs over documents that
    have not changed since. Kept whatever their age: open calls, and all of a run that did anything lately.
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
    verb = "would go" if dry_run else "went"
    notes = "" if dry_run else f", {gone.documents:,} notes on documents"
    typer.echo(f"{gone.rows:,} calls and {gone.payloads:,} prompts and replies {verb}{notes}.")
    if gone.kept:
        typer.echo(f"{gone.kept:,} old calls stay: their runs are still active.")
    if gone.rows and not dry_run and url.startswith("sqlite"):
        typer.echo("The file keeps its size; what is free in it is used again.")


def _ages(older_than: str | None, payload_only: bool) -> tuple[int | None, int | None]:
    """Return the ages, in milliseconds, from which on rows and payloads go."""
    if older_than is not None:
        match = _AGE.fullmatch(older_than.strip())
        if match is None or not float(match[1]):
            fail(f"--older-than is {older_than!r}, and should be an age such as 90d or 36h.")
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
        fail("Everything is kept: give --older-than, or set [llm] retention_days or payload_retention_days.")
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
        fail(f"{output} can't be written: {error}")
    with file:
        yield file
