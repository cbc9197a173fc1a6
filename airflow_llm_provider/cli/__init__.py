"""The command line, `airflow-llm`: its commands and their names."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from airflow_llm_provider import __version__
from airflow_llm_provider.cli import (
    budgets,
    connection,
    costs,
    dead_letters,
    demo,
    effects,
    estimate,
    ledger,
    stand_in,
)
from airflow_llm_provider.cli.output import fail
from airflow_llm_provider.errors import LLMError


class _OneLineErrors(TyperGroup):
    """Shows our own errors as one line without a traceback: they say what to do."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LLMError as error:
            fail(error)


app = typer.Typer(
    name="airflow-llm",
    cls=_OneLineErrors,
    help="Claude in Airflow: try it, estimate and add up its cost, handle dead letters, inspect the ledger.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals may hold a key
)
app.command("demo")(demo.demo)
app.command("stand-in")(stand_in.stand_in)
app.command("test-connection")(connection.check_connection)
app.command("estimate")(estimate.estimate)
app.command("costs")(costs.costs)
app.add_typer(budgets.app, name="budgets")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(effects.app, name="effects")
app.add_typer(ledger.app, name="ledger")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Take what stands before the command."""
