"""`airflow-llm ledger`: where the ledger is, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from airflow_llm_provider.cli.connection import claude_hook, read_airflow
from airflow_llm_provider.cli.output import echo_json, fail, shown

app = typer.Typer(help="Look at the ledger of what was asked and paid.", no_args_is_help=True)

LedgerOption = Annotated[
    str | None,
    typer.Option("--ledger-url", help="SQLAlchemy URL; by default that of Airflow's [llm] section."),
]
ConnectionOption = Annotated[
    str | None, typer.Option("--conn-id", help="Take the ledger of this Airflow connection.")
]


@app.callback()
def _ledger() -> None:
    """Keep `show` a command of its own while it is the only one."""


@app.command("show")
def show_ledger(
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    dag: Annotated[str | None, typer.Option("--dag", help="Only the calls of this DAG.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only the calls of this DAG run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Show where the ledger is, its calls by state, what they cost, and what was last wrong with answers."""
    import sqlalchemy as sa

    from airflow_llm_provider.ledger.database import Database
    from airflow_llm_provider.ledger.schema import UNPROVEN
    from airflow_llm_provider.ledger.totals import complaints, size_bytes, totals
    from airflow_llm_provider.pricing import usd

    database = Database(find_ledger(ledger_url, conn_id))
    where = database.url.render_as_string(hide_password=True)
    try:
        found, size = totals(database, dag_id=dag, run_id=run), size_bytes(database)
        complained = complaints(database, dag_id=dag, run_id=run)
    except sa.exc.DBAPIError as error:
        fail(f"The ledger at {where} can't be read: {error.orig}")
    finally:
        database.close()
    told = {
        "ledger": where,
        "size_bytes": size,
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

    table = Table("state", "calls", "cost (USD)")
    for state, sums in found.items():
        table.add_row(state, f"{sums.calls:,}", str(usd(sums.cost_micro_usd)))
    console = Console()
    console.print(f"{where}: {size / 1e6:,.1f} MB", markup=False, soft_wrap=True)
    console.print(table)
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


def find_ledger(ledger_url: str | None, conn_id: str | None) -> str:
    """Return the ledger's URL; ends the command when there is none yet or its URL is no URL."""
    import sqlalchemy as sa

    if ledger_url is not None:
        url = ledger_url
    elif conn_id is not None:
        url = claude_hook(conn_id).settings.ledger_url
    else:
        read_airflow()
        from airflow_llm_provider.hooks.settings import default_ledger_url

        url = default_ledger_url()
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        fail(
            "The ledger's URL is no SQLAlchemy URL, such as sqlite:////path/llm_ledger.db or postgresql+psycopg://…"
        )
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        fail(f"There is no ledger at {parsed.database} yet: the first task that asks something makes it.")
    return url
