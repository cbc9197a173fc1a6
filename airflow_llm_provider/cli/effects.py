"""`airflow-llm effects`: what tools have done, and the word of a person where nobody knows."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_llm_provider.cli.ledger import (
    ConnectionOption,
    JsonOption,
    LedgerOption,
    ShowsByItself,
    find_ledger,
    reading,
)
from airflow_llm_provider.cli.output import echo_json, fail, shown

if TYPE_CHECKING:
    from airflow_llm_provider.ledger.effects import Effect

app = typer.Typer(
    cls=ShowsByItself,
    help="See what tools have done; settle what may or may not have happened. Without a command, `list`.",
)


@app.command("list")
def list_effects(
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    dag: Annotated[str | None, typer.Option("--dag", help="Only those of this DAG.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only those of this DAG run.")] = None,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Only irreversible ones that may or may not have happened.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List tool calls, in the order in which they began."""
    from airflow_llm_provider.ledger.effects import list_effects

    with reading(find_ledger(ledger_url, conn_id)) as database, database.read() as connection:
        found = list_effects(connection, database.now_ms(connection), dag_id=dag, run_id=run)
    told = [_told(effect) for effect in found if effect.is_unknown or not unknown]
    if as_json:
        echo_json(told)
        return
    if not told:
        typer.echo("No tool calls, of those that were asked for.")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("id", "task", "tool", "state", "began", "arguments", "output")
    for one in told:
        task = f"{one['dag']}.{one['task']}" + (f"[{one['map_index']}]" if one["map_index"] >= 0 else "")
        cells = (
            one["id"][:12],
            task,
            one["tool"],
            one["state"],
            one["began"],
            one["arguments"],
            one["output"],
        )
        table.add_row(*(escape(shown(cell or "", most=60)) for cell in cells))
    Console().print(table)


@app.command("settle")
def settle_effect(
    effect_id: Annotated[str, typer.Argument(help="Its id, or the beginning of it.")],
    output: Annotated[
        str | None, typer.Option("--output", help="It happened: what the model is told it returned.")
    ] = None,
    did_not_happen: Annotated[
        bool, typer.Option("--did-not-happen", help="It did not happen, and may be run.")
    ] = False,
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
) -> None:
    """Say what became of an irreversible tool call whose process was killed; then clear its task."""
    from airflow_llm_provider.ledger import effects

    if did_not_happen == (output is not None):
        fail("Say either --output with what it returned, or --did-not-happen.")
    with reading(find_ledger(ledger_url, conn_id)) as database, database.write() as connection:
        now_ms = database.now_ms(connection)
        found = effects.list_effects(connection, now_ms, id_begins_with=effect_id)
        if len(found) != 1:
            fail(f"{len(found) or 'No'} tool calls have an id that begins with {shown(effect_id)}.")
        [effect] = found
        if not effect.is_unknown:
            fail(f"There is nothing to settle: the tool call {effect.id[:12]} {_STATES[_state(effect)]}.")
        if output is None:
            effects.forget(connection, effect.id)
        else:
            effects.end(connection, now_ms, effect.id, effects.Outcome(content=output))
    typer.echo(
        f"Settled. Clear {effect.dag_id}.{effect.task_id} of the run {shown(effect.run_id)}: what was paid is kept."
    )


_STATES = {
    "ended": "has ended, and its output is known",
    "failed": "has ended with an error, which the model was told",
    "running": "is being made, or its process died less than a minute ago",
    "interrupted": "can be made again, and will be",
}


def _state(effect: Effect) -> str:
    if effect.outcome:
        return "failed" if effect.outcome.is_error else "ended"
    if effect.is_unknown:
        return "unknown"
    return "running" if effect.is_live else "interrupted"


def _told(effect: Effect) -> dict[str, Any]:
    return {
        "id": effect.id,
        "dag": effect.dag_id,
        "run": effect.run_id,
        "task": effect.task_id,
        "map_index": effect.map_index,
        "call_id": effect.call_id,
        "tool": effect.tool,
        "is_irreversible": effect.is_irreversible,
        "state": _state(effect),
        "began": _time(effect.began_ms),
        "ended": None if effect.ended_ms is None else _time(effect.ended_ms),
        "arguments": effect.arguments.decode(),
        "output": effect.outcome and effect.outcome.content,
    }


def _time(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat(timespec="seconds")
