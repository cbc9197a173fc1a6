"""Tasks of a run that does not exist: their arguments rendered as a worker would, with no scheduler and no run."""

from __future__ import annotations

import datetime as dt
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.definitions.xcom_arg import XComArg
from airflow.sdk.exceptions import AirflowException
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

if TYPE_CHECKING:
    from airflow.sdk import DAG, BaseOperator, Context
    from airflow.sdk.api.datamodels._generated import DagRun


class NeedsUpstream(AirflowException):
    """What a task would be given is what another task returns: nobody knows before that one has run."""


class _TaskInstance(RuntimeTaskInstance):
    """A task instance to which no other has returned anything."""

    def xcom_pull(self, task_ids: Any = None, *_: Any, **__: Any) -> Any:
        named = [task_ids] if isinstance(task_ids, str) else [str(task_id) for task_id in task_ids or ()]
        raise NeedsUpstream(f"its arguments come from {', '.join(named) or 'another task'}")


def would_be_run(
    dag: DAG,
    *,
    run_id: str,
    conf: Mapping[str, Any] | None = None,
    logical_date: dt.datetime | None = None,
    data_interval: tuple[dt.datetime, dt.datetime] | None = None,
    is_backfill: bool = False,
) -> DagRun:
    """Return a run of `dag` as a task would be told of it; it is in no database.

    logical_date: now, unless given; data_interval: an empty one at that date, unless given.
    """
    from airflow.sdk.api.datamodels._generated import DagRun, DagRunState, DagRunType

    date = logical_date or dt.datetime.now(dt.UTC)
    start, end = data_interval or (date, date)
    return DagRun(
        dag_id=dag.dag_id,
        run_id=run_id,
        logical_date=date,
        data_interval_start=start,
        data_interval_end=end,
        run_after=end,
        start_date=dt.datetime.now(dt.UTC),
        end_date=None,
        run_type=DagRunType.BACKFILL if is_backfill else DagRunType.MANUAL,
        state=DagRunState.RUNNING,
        conf=dict(conf or {}),
        consumed_asset_events=[],
        partition_key=None,
    )


def map_indexes(task: BaseOperator | MappedOperator) -> range:
    """Return the map indexes that a task would have, -1 alone for one that is not mapped.

    Raises NeedsUpstream where another task's output decides, or is among the arguments.
    """
    if next(iter(task.iter_mapped_task_groups()), None) is not None:
        raise NeedsUpstream("it is in a mapped task group")
    if isinstance(task, MappedOperator):
        given, mapped = task.partial_kwargs, cast("Any", task._get_specified_expand_input().value)
    else:
        given, mapped = {name: getattr(task, name, None) for name in task.template_fields}, None
    upstream = {operator.task_id for operator, _ in XComArg.iter_xcom_references([given, mapped])}
    if upstream:
        raise NeedsUpstream(f"its arguments come from {', '.join(sorted(upstream))}")
    if mapped is None:
        return range(-1, 0)
    return range(math.prod(map(len, mapped.values())) if isinstance(mapped, dict) else len(mapped))


@contextmanager
def rehearsed(
    task: BaseOperator | MappedOperator, run: DagRun, map_index: int = -1
) -> Iterator[tuple[BaseOperator, Context]]:
    """Give a task as it would be when executed in `run`, its templates rendered, and its context.

    Raises NeedsUpstream where another task's output is among its arguments, and what rendering raises.
    """
    from airflow.sdk.api.datamodels._generated import TIRunContext
    from airflow.sdk.execution_time.context import set_current_context

    ti = _TaskInstance.model_construct(
        id=uuid.uuid4(),
        dag_id=run.dag_id,
        run_id=run.run_id,
        task_id=task.task_id,
        map_index=map_index,
        try_number=1,
        max_tries=task.retries or 0,
        start_date=dt.datetime.now(dt.UTC),
        task=task.prepare_for_execution() if not isinstance(task, MappedOperator) else task,
        _ti_context_from_server=TIRunContext(dag_run=run, max_tries=task.retries or 0),
    )
    context = ti.get_template_context()
    with set_current_context(context):
        ti.render_templates(context)
        yield ti.task, context
