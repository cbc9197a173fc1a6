"""Tasks of a run that does not exist: their arguments rendered as a worker would, without scheduler and run."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.definitions.xcom_arg import XComArg
from airflow.sdk.exceptions import AirflowException

from airflow_llm_provider import _airflow

if TYPE_CHECKING:
    from airflow.sdk import DAG, BaseOperator, Context

    from airflow_llm_provider._airflow import DagRun


class NeedsUpstream(AirflowException):
    """An argument comes from another task, so nothing is known of it before that task has run."""


def imagined_run(
    dag: DAG,
    *,
    run_id: str,
    conf: Mapping[str, Any] | None = None,
    logical_date: dt.datetime | None = None,
    data_interval: tuple[dt.datetime, dt.datetime] | None = None,
    is_backfill: bool = False,
) -> DagRun:
    """Return a run of `dag` as Airflow would describe it to a task; it is in no database.

    Args:
        dag: the DAG.
        run_id: its id.
        conf: what it is started with.
        logical_date: now, unless given.
        data_interval: an empty one at that date, unless given.
        is_backfill: whether a backfill would make it.
    """
    date = logical_date or dt.datetime.now(dt.UTC)
    return _airflow.imagined_run(
        dag.dag_id,
        run_id=run_id,
        conf=conf or {},
        logical_date=date,
        data_interval=data_interval or (date, date),
        is_backfill=is_backfill,
    )


def map_indexes(task: BaseOperator | MappedOperator) -> range:
    """Return the map indexes that a task would have, -1 alone for one that is not mapped.

    Raises:
        NeedsUpstream: the output of another task decides, or is among the arguments.
    """
    if next(iter(task.iter_mapped_task_groups()), None) is not None:
        raise NeedsUpstream("it is in a mapped task group")
    if isinstance(task, MappedOperator):
        given, mapped = task.partial_kwargs, _airflow.expand_input(task).value
    else:
        given, mapped = {name: getattr(task, name, None) for name in task.template_fields}, None
    upstream = {operator.task_id for operator, _ in XComArg.iter_xcom_references([given, mapped])}
    if upstream:
        raise NeedsUpstream(f"its arguments come from {', '.join(sorted(upstream))}")
    if mapped is None:
        return range(-1, 0)
    # `.expand()` makes every combination of its lists, `.expand_kwargs()` one instance per item of its list.
    return range(math.prod(map(len, mapped.values())) if isinstance(mapped, dict) else len(mapped))


@contextmanager
def rendered_task(
    task: BaseOperator | MappedOperator, run: DagRun, map_index: int = -1
) -> Iterator[tuple[BaseOperator, Context]]:
    """Give a task as it would be executed in `run`, its templates rendered, and its context.

    Raises:
        NeedsUpstream: the output of another task is among its arguments.
    """
    # A pull from a run that does not exist would give None, and the estimate would be of another question.
    with _airflow.rendered_task(task, run, map_index, _refuse) as (operator, context):
        yield operator, context


def _refuse(task_ids: Any = None, *_: Any, **__: Any) -> Any:
    named = [task_ids] if isinstance(task_ids, str) else [str(task_id) for task_id in task_ids or ()]
    raise NeedsUpstream(f"its arguments come from {', '.join(named) or 'another task'}")
