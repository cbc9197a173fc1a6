"""`airflow-llm effects`: what tools have done, and what a person says of calls whose end is unknown."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_llm_provider.cli.connection import ConnectionOption, LedgerOption, find_ledger, reading
from airflow_llm_provider.cli.output import JsonOption, ShowsByItself, echo_json, fail, shown

if TYPE_CHECKING:
    from airflow_llm_provider.ledger.effects import Effect

app = typer.Typer(
    cls=ShowsByItself,
    help="List what tools have done; settle calls that may or may not have happened. Default command: `list`.",
)


@app.command("list")
def list_effects(
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    dag: Annotated[str | None, typer.Option("--dag", help="Only the tool calls of this DAG.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only the tool calls of this DAG run.")] = None,
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
        typer.echo("No tool calls match.")
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
    effect_id: Annotated[str, typer.Argument(help="The tool call's id, or its first characters.")],
    output: Annotated[
        str | None, typer.Option("--output", help="It happened: the output that the model is given.")
    ] = None,
    did_not_happen: Annotated[
        bool, typer.Option("--did-not-happen", help="It did not happen; the task may run it.")
    ] = False,
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record whether an irreversible tool call happened whose process was killed. Clear its task afterwards."""
    from airflow_llm_provider.ledger import effects

    if did_not_happen == (output is not None):
        fail("Give either --output with what the tool returned, or --did-not-happen.")
    with reading(find_ledger(ledger_url, conn_id)) as database, database.write() as connection:
        now_ms = database.now_ms(connection)
        found = effects.list_effects(connection, now_ms, id_begins_with=effect_id)
        if len(found) != 1:
            fail(f"{len(found) or 'No'} tool calls have an id that begins with {shown(effect_id)}.")
        [effect] = found
        # A call whose end is known must not be overwritten: the model was told its output.
        if not effect.is_unknown:
            fail(f"There is nothing to settle: the tool call {effect.id[:12]} {_STATES[_state(effect)]}.")
        if output is None:
            effects.forget(connection, effect.id)
        else:
            effects.end(connection, now_ms, effect.id, effects.Outcome(content=output))
    if as_json:
        echo_json({"settled": effect.id, "dag": effect.dag_id, "run": effect.run_id, "task": effect.task_id})
        return
    typer.echo(
        f"Settled. Clear {effect.dag_id}.{effect.task_id} of the run {shown(effect.run_id)}; paid answers are kept."
    )


_STATES = {
    "ended": "has ended, and its output is known",
    "failed": "has ended with an error, which the model was told",
    "running": "is running, or its process died less than a minute ago",
    "interrupted": "is not irreversible, so the task runs it again",
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
