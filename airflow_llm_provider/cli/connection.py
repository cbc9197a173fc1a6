"""Reading Airflow connections outside a task: `airflow-llm test-connection`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_llm_provider.cli.output import fail

if TYPE_CHECKING:
    from airflow_llm_provider.hooks.claude import ClaudeHook


def check_connection(
    conn_id: Annotated[
        str, typer.Argument(help="Id of an Airflow connection of type claude.")
    ] = "claude_default",
) -> None:
    """Say which model tiers a connection's key can use, and which model retires soon; spends nothing.

    The connection may be defined in the environment (AIRFLOW_CONN_…), in Airflow's database or in a secrets
    backend. Exit status 1 when the key is missing or wrong, or a tier's model is not available.
    """
    hook = claude_hook(conn_id)
    usable, message = hook.test_connection()
    for line in message.split("; ") if usable else ():
        typer.echo(line)
    if not usable:
        fail(message)


def claude_hook(conn_id: str) -> ClaudeHook:
    """Return the hook of a connection; ends the command when there is no such connection."""
    read_airflow()
    from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

    from airflow_llm_provider.hooks.claude import ClaudeHook

    hook = ClaudeHook(conn_id)
    try:
        _ = hook.connection
    except (AirflowFailException, AirflowNotFoundException) as error:
        fail(error)
    return hook


def read_airflow() -> None:
    """Let Airflow look up connections as its own command line does: in its database too."""
    # Outside a task and a server, 3.3 asks the environment only; `airflow connections` says the same.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
