"""`airflow-llm ledger`: where the ledger is, and what it holds."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from airflow_llm_provider.cli.connection import claude_hook, read_airflow
from airflow_llm_provider.cli.output import echo_json, fail, shown

if TYPE_CHECKING:
    from airflow_llm_provider.ledger.database import Database


class ShowsByItself(TyperGroup):
    """Commands of which one shows what there is: `show` or `list`, also where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in front of its options."""
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = [next(name for name in ("show", "list") if name in self.commands), *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ShowsByItself,
    help="Look at the ledger of what was asked and paid, and look after it. Without a command, `show`.",
)

LedgerOption = Annotated[
    str | None,
    typer.Option("--ledger-url", help="SQLAlchemy URL; by default that of Airflow's [llm] section."),
]
ConnectionOption = Annotated[
    str | None, typer.Option("--conn-id", help="Take the ledger of this Airflow connection.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@app.command("show")
def show_ledger(
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    dag: Annotated[str | None, typer.Option("--dag", help="Only the calls of this DAG.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only the calls of this DAG run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where the ledger is, its size, its calls by state, what they cost, and what was last wrong with answers."""
    from airflow_llm_provider.ledger.maintenance import size
    from airflow_llm_provider.ledger.reports import invalid_answers, totals_by_state
    from airflow_llm_provider.ledger.schema import UNPROVEN
    from airflow_llm_provider.pricing import usd

    with reading(find_ledger(ledger_url, conn_id)) as database:
        where = database.shown_url
        found, measured = totals_by_state(database, dag_id=dag, run_id=run), size(database)
        complained = invalid_answers(database, dag_id=dag, run_id=run)
    told = {
        "ledger": where,
        "size_bytes": measured.bytes_total,
        "tables": {name: {"rows": rows, "bytes": taken} for name, (rows, taken) in measured.tables.items()},
        "oldest": _day(measured.oldest_ms),
        "newest": _day(measured.newest_ms),
        "calls": {state: sums.calls for state, sums in found.items()},
        "paid_usd": usd(sum(sums.cost_micro_usd for state, sums in found.items() if sums.is_paid)),
        "unpriced_calls": sum(sums.unpriced for sums in found.values() if sums.is_paid),
        "unproven_usd_at_most": usd(found[UNPROVEN].cost_micro_usd if UNPROVEN in found else 0),
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
    if measured.oldest_ms:
        console.print(f"calls from {told['oldest']} to {told['newest']}", markup=False)
    console.print(tables)
    console.print(states)
    console.print(
        f"paid ${told['paid_usd']}; unproven, at most ${told['unproven_usd_at_most']}", markup=False
    )
    if told["unpriced_calls"]:
        console.print(f"{told['unpriced_calls']} paid calls have no known price.", markup=False)
    for each in complained:
        where = shown(f"{each['dag_id']}.{each['task_id']} {each['item_id'] or ''}", 200)
        console.print(
            f"{where}: {each['error_class']}: {shown(each['error'], 200)}", markup=False, soft_wrap=True
        )


def find_ledger(ledger_url: str | None, conn_id: str | None, *, must_exist: bool = True) -> str:
    """Return the ledger's URL; ends the command when there is none yet but must be.

    Raises LedgerUnusable for a URL that no ledger can have.
    """
    from airflow_llm_provider.ledger.database import parse_url

    if ledger_url is not None:
        url = ledger_url
    elif conn_id is not None:
        url = claude_hook(conn_id).connection.ledger_url
    else:
        read_airflow()
        from airflow_llm_provider.hooks.configuration import default_ledger_url

        url = default_ledger_url()
    parsed = parse_url(url)
    if must_exist and parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        fail(f"There is no ledger at {parsed.database} yet: the first task that asks something makes it.")
    return url


@contextmanager
def reading(url: str) -> Iterator[Database]:
    """Give the ledger's database; ends the command when it can't be read."""
    import sqlalchemy as sa

    from airflow_llm_provider.ledger.database import Database
    from airflow_llm_provider.ledger.migrations import LATEST_VERSION, current_version

    database = Database(url)
    where = database.shown_url
    try:
        with database.read() as connection:
            found = current_version(connection)
        if found is None:
            fail(f"{where} holds no ledger yet: the first task that asks something makes it.")
        if found < LATEST_VERSION:  # not ours to upgrade: workers of the old version may be running
            fail(f"The ledger at {where} is of an older version: the first task of this one upgrades it.")
        if found > LATEST_VERSION:
            fail(f"The ledger at {where} is of a newer version: upgrade the package on this machine.")
        yield database
    except (sa.exc.DBAPIError, OSError) as error:
        fail(f"The ledger at {where} can't be read: {getattr(error, 'orig', None) or error}")
    finally:
        database.close()


def _day(ms: int | None) -> str | None:
    return None if ms is None else dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat(timespec="seconds")
