"""Airflow's connections outside a task, and the ledgers they lead to; `airflow-llm test-connection`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_llm_provider.cli.output import JsonOption, echo_json, fail

if TYPE_CHECKING:
    from airflow_llm_provider.hooks.claude import ClaudeHook
    from airflow_llm_provider.ledger.database import Database

LedgerOption = Annotated[
    str | None,
    typer.Option("--ledger-url", help="SQLAlchemy URL; default: that of Airflow's [llm] section."),
]
ConnectionOption = Annotated[
    str | None, typer.Option("--conn-id", help="Use the ledger of this Airflow connection.")
]


def check_connection(
    conn_id: Annotated[
        str, typer.Argument(help="Id of an Airflow connection of type claude.")
    ] = "claude_default",
    as_json: JsonOption = False,
) -> None:
    """Show which model tiers a connection's key can use, and which model retires soon. Costs nothing.

    The connection may be defined in the environment (AIRFLOW_CONN_…), in Airflow's database or in a secrets
    backend. The exit status is 1 when the key is missing or wrong, or a tier's model is not available.
    """
    hook = claude_hook(conn_id)
    usable, message = hook.test_connection()
    if as_json:
        echo_json({"connection": conn_id, "usable": usable, "message": message})
        raise typer.Exit(0 if usable else 1)
    if not usable:
        fail(message)
    typer.echo("\n".join(message.split("; ")))


def claude_hook(conn_id: str) -> ClaudeHook:
    """Return the hook of a connection; end the command when the connection does not exist."""
    read_airflow()
    from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

    from airflow_llm_provider.hooks.claude import ClaudeHook

    hook = ClaudeHook(conn_id)
    try:
        # Read now, so that a wrong field ends the command with one line.
        _ = hook.connection
    except (AirflowFailException, AirflowNotFoundException) as error:
        fail(error)
    return hook


def read_airflow() -> None:
    """Let Airflow look up connections as its own command line does: also in its database."""
    # Outside a task and a server, Airflow 3.3 reads the environment only. `airflow connections` sets the same.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")


def find_ledger(ledger_url: str | None, conn_id: str | None, *, must_exist: bool = True) -> str:
    """Return the ledger's URL; end the command when the ledger must exist and does not.

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
        fail(f"There is no ledger at {parsed.database} yet: the first task that asks Claude creates it.")
    return url


@contextmanager
def reading(url: str) -> Iterator[Database]:
    """Give the ledger's database; end the command when it cannot be read."""
    import sqlalchemy as sa

    from airflow_llm_provider.ledger.database import Database
    from airflow_llm_provider.ledger.migrations import LATEST_VERSION, current_version

    database = Database(url)
    where = database.shown_url
    try:
        with database.read() as connection:
            found = current_version(connection)
        if found is None:
            fail(f"{where} holds no ledger yet: the first task that asks Claude creates it.")
        if found < LATEST_VERSION:  # we do not upgrade it: workers of the old version may be running
            fail(f"The ledger at {where} is of an older version: the first task of this version upgrades it.")
        if found > LATEST_VERSION:
            fail(f"The ledger at {where} is of a newer version: upgrade the package on this machine.")
        yield database
    except (sa.exc.DBAPIError, OSError) as error:
        fail(f"The ledger at {where} cannot be read: {getattr(error, 'orig', None) or error}")
    finally:
        database.close()
