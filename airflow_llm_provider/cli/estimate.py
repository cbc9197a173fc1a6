"""`airflow-llm estimate`: what a DAG's documents tasks would ask and cost, before they run."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_llm_provider.cli.connection import read_airflow
from airflow_llm_provider.cli.output import JsonOption, echo_json, fail, moment_ms, shown

if TYPE_CHECKING:
    from airflow.sdk import DAG

    from airflow_llm_provider._airflow import DagRun
    from airflow_llm_provider.documents.estimate import Estimate


@dataclass(kw_only=True)
class DagEstimate:
    """What is known of the runs of one DAG before they are made.

    tasks: estimates by task id. unknown: why some, or some of their runs, have none.
    single: tasks that ask Claude a single question, which are not estimated.
    """

    dag_id: str
    runs: int = 0
    tasks: dict[str, Estimate] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    single: list[str] = field(default_factory=list)


def estimate(
    dag_id: Annotated[str, typer.Argument(help="Id of a DAG, which need not have run yet.")],
    conf: Annotated[
        str | None, typer.Option("--conf", help="The run's configuration, as JSON: params by name.")
    ] = None,
    backfill: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--backfill", metavar="FROM TO", help="All runs of a range of dates; what they share counts once."
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", help="The DAG's file or folder; by default all that Airflow knows."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what the documents tasks of a DAG would ask, what it would cost and how long it would take.

    Asks nothing. Renders the tasks' arguments as a run would, calls the functions of @task.claude_documents, reads the
    documents that the ledger does not know, and has the API count the tokens of a few of them, which is free. Prices
    are low, likely and high: from what the task's answers took so far, else from its schema and from bounds.
    """
    read_airflow()
    with contextlib.redirect_stdout(sys.stderr):  # what DAG files print must not mix with the answer
        dag = _find(dag_id, file)
        # Shared by all tasks and runs: what one of them would pay for, the next would find in the ledger.
        estimates, paid_for = DagEstimate(dag_id=dag_id), set[str]()
        for run in _runs(dag, _conf(conf), backfill):
            estimates.runs += 1
            _add(estimates, dag, run, paid_for)
    if as_json:
        echo_json(_as_dict(estimates))
    else:
        _show(estimates)


def _find(dag_id: str, file: str | None) -> DAG:
    """Return a DAG as its file makes it; ends the command where there is none."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag

    errors: dict[str, str] = {}
    for bundle in DagBundlesManager().get_all_dag_bundles():  # type: ignore[no-untyped-call]
        bundle.initialize()
        bag = BundleDagBag(dag_folder=file or bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        if dag := bag.dags.get(dag_id):
            return dag
        errors |= bag.import_errors
    broken = f" {len(errors)} files could not be loaded, such as {next(iter(errors))}." if errors else ""
    return fail(f"There is no DAG {dag_id!r} in {file or 'the DAG folders'}.{broken}")


def _conf(text: str | None) -> dict[str, Any]:
    try:
        conf = json.loads(text or "{}")
    except ValueError as error:
        fail(f"--conf is no JSON: {error}")
    if not isinstance(conf, dict):
        fail('--conf is a JSON object, such as {"limit": 10}.')
    return conf


def _runs(dag: DAG, conf: dict[str, Any], backfill: tuple[str, str] | None) -> Iterator[DagRun]:
    """Yield the runs to be estimated: the next one, or those that the timetable has between two dates."""
    from airflow_llm_provider import _airflow
    from airflow_llm_provider.hooks.dry_run import imagined_run

    if backfill is None:
        yield imagined_run(dag, run_id="estimate", conf=conf)
        return
    first, last = (
        dt.datetime.fromtimestamp((moment_ms("--backfill", date) or 0) / 1000, dt.UTC) for date in backfill
    )
    now, found = dt.datetime.now(dt.UTC), 0
    for info in _airflow.past_runs(dag, first, last):
        if info.data_interval is None or info.data_interval.end >= now:
            continue  # Airflow's backfill leaves these out as well
        found += 1
        yield imagined_run(
            dag,
            run_id=f"estimate {info.logical_date}",
            conf=conf,
            logical_date=info.logical_date,
            data_interval=(info.data_interval.start, info.data_interval.end),
            is_backfill=True,
        )
    if not found:
        fail(f"The schedule of {dag.dag_id} has no past run from {backfill[0]} to {backfill[1]}.")


def _add(estimates: DagEstimate, dag: DAG, run: DagRun, paid_for: set[str]) -> None:
    """Add the estimates of what one run would ask."""
    from airflow_llm_provider.hooks.dry_run import NeedsUpstream, map_indexes, rendered_task
    from airflow_llm_provider.operators.claude import ClaudeOperator
    from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator

    for task in dag.tasks:
        kind = getattr(task, "operator_class", type(task))
        if issubclass(kind, ClaudeOperator) and task.task_id not in estimates.single:
            estimates.single.append(task.task_id)
        if not issubclass(kind, ClaudeDocumentsOperator):
            continue
        try:
            for map_index in map_indexes(task):
                with rendered_task(task, run, map_index) as (operator, context):
                    one = operator.estimate(context, paid_for=paid_for)  # type: ignore[attr-defined]
                # The runs of a backfill and the instances of a mapped task are added up per task.
                known = estimates.tasks.get(task.task_id)
                estimates.tasks[task.task_id] = one if known is None else known + one
        except NeedsUpstream as reason:
            estimates.unknown[task.task_id] = f"{reason}: known only when that has run"
        except Exception as error:  # noqa: BLE001  # an author's template or function may raise anything
            day = f"{run.logical_date:%Y-%m-%d}: " if run.logical_date else ""
            estimates.unknown.setdefault(task.task_id, f"{day}{type(error).__name__}: {error}")


def _as_dict(estimates: DagEstimate) -> dict[str, Any]:
    return {
        "dag_id": estimates.dag_id,
        "runs": estimates.runs,
        "tasks": {task_id: one.as_dict() for task_id, one in estimates.tasks.items()},
        "total": _total(estimates).as_dict(),
        "unknown": estimates.unknown,
        "single_questions": estimates.single,
    }


def _total(estimates: DagEstimate) -> Estimate:
    from airflow_llm_provider.documents.estimate import Estimate

    return sum(estimates.tasks.values(), Estimate())


def _show(estimates: DagEstimate) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if estimates.tasks:
        table = Table("task", *_total(estimates).as_text())
        rows = [*estimates.tasks.items()]
        if len(rows) > 1:
            rows.append(("all", _total(estimates)))
        for name, one in rows:
            table.add_row(*(Text(shown(cell), overflow="fold") for cell in (name, *one.as_text().values())))
        console.print(f"{estimates.dag_id}: {estimates.runs} run{'s' * (estimates.runs != 1)}", markup=False)
        console.print(table)
        console.print("Tokens and price: low, likely, high. No model was asked, and nothing was paid.")
    for name, one in estimates.tasks.items():
        console.print(
            f"{name}: {one.basis}; its pace is set by {one.paced_by}.", markup=False, soft_wrap=True
        )
        if reasons := ", ".join(f"{reason} {count}" for reason, count in one.reasons.most_common()):
            console.print(f"{name}: dead letters: {reasons}", markup=False, soft_wrap=True)
    for name, why in estimates.unknown.items():
        console.print(f"{name}: not estimated, {shown(why)}", markup=False, soft_wrap=True)
    for name in estimates.single:
        console.print(f"{name}: not estimated, it asks a single question.", markup=False, soft_wrap=True)
    if not (estimates.tasks or estimates.unknown):
        fail(f"{estimates.dag_id} has no documents task.")
