"""`airflow-llm budgets`: set, list and remove the budgets that the ledger stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_llm_provider.cli.connection import ConnectionOption, LedgerOption, find_ledger, reading
from airflow_llm_provider.cli.output import JsonOption, ShowsByItself, echo_json, fail, shown
from airflow_llm_provider.pricing import micro_usd, usd

if TYPE_CHECKING:
    from airflow_llm_provider.ledger.budgets import Budget, MeterReading
    from airflow_llm_provider.ledger.database import Database

app = typer.Typer(
    cls=ShowsByItself,
    help="Limit what calls may cost, over all processes, before it is spent. Default command: `list`.",
)

Name = Annotated[str, typer.Argument(help="The budget's name in messages, such as nightly-cap.")]


@app.command("set")
def set_one(
    name: Name,
    dollars: Annotated[str | None, typer.Option("--usd", help="The highest cost, in US dollars.")] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            help="What is added up: call, task, run, dag, connection or all. With an id, only that one: dag:nightly."
        ),
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(help="day or month, for dag, connection and all; run, for each run of a dag."),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option("--tz", help="Time zone of days and months, such as Europe/Berlin; default: UTC."),
    ] = None,
    on_exceeded: Annotated[
        str | None,
        typer.Option(
            help="What happens to the task: fail, skip, wait (for the next day or month) or ask (a person)."
        ),
    ] = None,
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a budget, or change the given options of the budget with this name.

    It applies from the next call on, also in running tasks. It counts what was spent before.
    """
    from airflow_llm_provider.ledger.budgets import set_budget, stored_budgets

    with (
        _writing(find_ledger(ledger_url, conn_id, must_exist=False)) as database,
        database.write() as connection,
    ):
        known = next((one for one in stored_budgets(connection) if one.name == name), None)
        new = _changed(known, name, dollars, scope, per, timezone, on_exceeded)
        set_budget(connection, new)
    if as_json:
        echo_json(_as_dict(new))
        return
    typer.echo(f"{shown(name)}: {_in_words(new)}")


@app.command("list")
def list_all(
    ledger_url: LedgerOption = None, conn_id: ConnectionOption = None, as_json: JsonOption = False
) -> None:
    """List the stored budgets, with what was paid, and may have been billed at most, in their latest periods."""
    from airflow_llm_provider.ledger.budgets import meter_readings, stored_budgets

    with reading(find_ledger(ledger_url, conn_id)) as database, database.read() as connection:
        found = [(one, meter_readings(connection, one)) for one in stored_budgets(connection)]
    if as_json:
        echo_json([_as_dict(one) | {"latest": list(map(_reading_as_dict, latest))} for one, latest in found])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("budget", "cap", "latest", "paid", "unproven", "in flight", "left")
    for one, latest in found:
        table.add_row(shown(one.name), _in_words(one), *_cells(one, latest[0] if latest else None))
        for count in latest[1:]:
            table.add_row("", "", *_cells(one, count))
    Console().print(
        table if found else "No budgets are stored. Set one: airflow-llm budgets set NAME --usd …"
    )


@app.command("remove")
def remove(
    name: Name,
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a budget: it no longer limits any call."""
    from airflow_llm_provider.ledger.budgets import remove_budget

    with reading(find_ledger(ledger_url, conn_id)) as database, database.write() as connection:
        if not remove_budget(connection, name):
            fail(f"There is no budget {shown(name)}; `airflow-llm budgets list` shows all.")
    if as_json:
        echo_json({"removed": name})
        return
    typer.echo(f"{shown(name)}: removed")


@contextmanager
def _writing(url: str) -> Iterator[Database]:
    """Give the ledger's database; create the ledger if there is none yet."""
    import sqlalchemy as sa

    from airflow_llm_provider.ledger.database import Database
    from airflow_llm_provider.ledger.migrations import current_version, migrate

    database = Database(url)
    try:
        with database.write() as connection:
            # A budget may be set before the first task has run, which would create the ledger.
            if current_version(connection) is None:
                migrate(connection)
    except (sa.exc.DBAPIError, OSError) as error:
        fail(f"The ledger cannot be used: {getattr(error, 'orig', None) or error}")
    finally:
        database.close()
    with reading(url) as opened:
        yield opened


def _changed(
    known: Budget | None,
    name: str,
    dollars: str | None,
    scope: str | None,
    per: str | None,
    timezone: str | None,
    on_exceeded: str | None,
) -> Budget:
    from airflow_llm_provider.ledger.budgets import Budget

    given: dict[str, Any] = {}
    if scope is not None:
        given["scope"], colon, given["applies_to"] = scope.partition(":")
        # A period of the earlier scope may not fit the new one.
        given["per"] = ""
        if colon and not given["applies_to"].strip():  # an empty $DAG in "dag:$DAG" would limit each DAG
            fail(
                f"--scope {scope!r} names no {given['scope']}. Without the colon, the budget applies to each of them."
            )
    if per is not None:
        given["per"] = per
    # A budget for each run of a DAG is one of scope `run` to the ledger.
    if per == "run" and given.get("scope", known and known.scope) in ("dag", "run"):
        given |= {"scope": "run", "per": ""}
    given |= {"timezone": timezone} if timezone else {}
    given |= {"on_exceeded": on_exceeded} if on_exceeded else {}
    try:
        given |= {"cap_micro_usd": micro_usd(dollars)} if dollars is not None else {}
        if known is not None:
            return dataclasses.replace(known, **given)
        if dollars is None or scope is None:
            raise ValueError(f"There is no budget {shown(name)} yet: a new one needs --usd and --scope.")
        if not (name.strip() and name.isprintable() and len(name) <= 100):
            raise ValueError("A budget's name is one line of at most 100 visible characters.")
        return Budget(**{"name": name, **given})
    except ValueError as error:
        fail(error)


def _in_words(one: Budget) -> str:
    """Return a budget as one line: `$5.00 per day (Europe/Berlin) for DAG nightly; when exceeded: wait`."""
    per = f" per {one.per} ({one.timezone})" if one.per else ""
    return f"${_dollars(one.cap_micro_usd)}{per} for {_calls_of(one)}; when exceeded: {one.on_exceeded}"


def _calls_of(one: Budget) -> str:
    scope = {"dag": "DAG", "run": "DAG run"}.get(one.scope, one.scope)
    if one.scope == "all":
        return "all calls"
    if not one.applies_to:
        return f"each {scope}"
    if one.scope in ("task", "run"):
        return f"each {scope} of {shown(one.applies_to)}"
    return f"{scope} {shown(one.applies_to)}"


def _dollars(micro_usd: int) -> str:
    """Return an amount with two decimals, or with more where it has more."""
    whole, _, decimals = str(usd(micro_usd)).partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def _cells(one: Budget, count: MeterReading | None) -> list[str]:
    if count is None:
        return [""] * 5
    left = max(0, one.cap_micro_usd - count.settled_micro_usd - count.reserved_micro_usd)
    amounts = (count.paid_micro_usd, count.unproven_micro_usd, count.reserved_micro_usd, left)
    return [shown(count.label), *(f"${usd(amount)}" for amount in amounts)]


def _as_dict(one: Budget) -> dict[str, Any]:
    return {
        "name": one.name,
        "cap_usd": usd(one.cap_micro_usd),
        "scope": one.scope,
        "applies_to": one.applies_to,
        "per": one.per,
        "timezone": one.timezone,
        "on_exceeded": one.on_exceeded,
    }


def _reading_as_dict(count: MeterReading) -> dict[str, Any]:
    return {
        "of": count.label,
        "paid_usd": usd(count.paid_micro_usd),
        "unproven_usd_at_most": usd(count.unproven_micro_usd),
        "in_flight_usd": usd(count.reserved_micro_usd),
    }
