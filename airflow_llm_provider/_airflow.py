"""Every use of Airflow's private parts, and why it is needed; tests/airflow/test_private_parts.py watches each."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.mappedoperator import MappedOperator, OperatorPartial

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.api.datamodels._generated import (
        DagRun as DagRun,  # other modules take the type from here
    )
    from airflow.sdk.types import Operator

# -- when the DAG is parsed --------------------------------------------------------------------------


def is_made_from_mapped(task: BaseOperator) -> bool:
    """Tell whether an operator is an instance of a mapped task: its arguments may come from other tasks."""
    return bool(getattr(task, "_BaseOperator__from_mapped", False))


def expand_input(task: Any) -> Any:
    """Return what `.expand()` was given, as it was given; Airflow has no public way to see it."""
    return task._get_specified_expand_input()


class DeferrablePartial(OperatorPartial):
    """What `.partial()` of a deferrable operator returns, so that `.expand()` decides where the task runs.

    Only then is it known over what the task is mapped, and Airflow calls nothing of the operator's at that moment.
    """

    @classmethod
    def of(cls, made: OperatorPartial) -> DeferrablePartial:
        """Take over what BaseOperator.partial made."""
        made._expand_called = True  # else Airflow warns that it was never expanded
        return cls(operator_class=made.operator_class, kwargs=made.kwargs, params=made.params)

    def _expand(self, expand_input: Any, *, strict: bool) -> MappedOperator:
        task = super()._expand(expand_input, strict=strict)
        self.operator_class.start_mapped_in_triggerer(task)  # type: ignore[attr-defined]  # of deferrable operators
        return task


class CheckedPartial(OperatorPartial):
    """What `.partial()` of an operator returns whose class checks the mapped task once the DAG is complete.

    The class method `require_complete(task)` is called then. Airflow calls nothing of the operator's class for a mapped
    task; `resolve_template_files` is what it calls of each task of a DAG file.
    """

    @classmethod
    def of(cls, made: OperatorPartial) -> CheckedPartial:
        """Take over what BaseOperator.partial made."""
        made._expand_called = True  # else Airflow warns that it was never expanded
        return cls(operator_class=made.operator_class, kwargs=made.kwargs, params=made.params)

    def _expand(self, expand_input: Any, *, strict: bool) -> MappedOperator:
        task = super()._expand(expand_input, strict=strict)
        require = self.operator_class.require_complete  # type: ignore[attr-defined]  # of operators that use this
        when_complete(task, lambda: require(task))
        return task


def drop(partial: OperatorPartial) -> None:
    """Keep Airflow from warning that a partial, whose arguments are not valid, was never mapped."""
    partial._expand_called = True


def when_complete(task: MappedOperator, check: Callable[[], None]) -> None:
    """Call `check` when the DAG file has been parsed and all tasks have their edges; its errors are import errors."""
    # Airflow calls this method of every task once the DAG is complete, and calls nothing else of a mapped one.
    task.resolve_template_files = check  # type: ignore[method-assign]


def needs_expansion(task: Operator) -> bool:
    """Tell whether the instances of a task have map indexes: it is mapped, or it is in a mapped task group."""
    return isinstance(task, MappedOperator) or task.get_closest_mapped_task_group() is not None


def is_mapped_over(task: Operator, source: Operator) -> bool:
    """Tell whether `task` is mapped over what `source` returns, and over nothing else: index by index."""
    from airflow.sdk.definitions.xcom_arg import MapXComArg, PlainXComArg

    if not isinstance(task, MappedOperator):
        return False
    given: Any = expand_input(task).value
    if isinstance(given, Mapping):
        # Several lists are combined, and then an index is not that of one source.
        if len(given) != 1:
            return False
        (given,) = given.values()
    # `.map()` changes each item and keeps its index.
    while isinstance(given, MapXComArg):
        given = given.arg
    return isinstance(given, PlainXComArg) and given.operator.task_id == source.task_id


def run_before(task: Operator, hook: Callable[[Context], None]) -> None:
    """Run `hook` in each worker before the task, and after a `pre_execute` of the author's; start it in a worker.

    A hook that is equal to one that runs already is not added.
    """
    earlier: Any = (
        task.partial_kwargs.get("pre_execute") if isinstance(task, MappedOperator) else task._pre_execute_hook
    )
    if hook in getattr(earlier, "hooks", ()):
        return

    def run(context: Context) -> None:
        if earlier is not None:
            earlier(context)
        hook(context)

    run.hooks = (*getattr(earlier, "hooks", ()), hook)  # type: ignore[attr-defined]
    if isinstance(task, MappedOperator):
        task.partial_kwargs["pre_execute"] = run
    else:
        task._pre_execute_hook = run
    # Nothing would run before a task that starts in the triggerer, or that the scheduler itself marks successful.
    if task.start_from_trigger:
        task.start_from_trigger = False
    if not isinstance(task, MappedOperator) and task.inherits_from_empty_operator:
        task.inherits_from_empty_operator = False  # type: ignore[misc]  # EmptyOperator's own attribute


# -- in a worker -------------------------------------------------------------------------------------


def fetched(rows: Sequence[Any]) -> list[Any]:
    """Return the XComs that a mapped task pushed as a list: a slice takes one request, iterating takes one per row."""
    from airflow.sdk.execution_time.lazy_sequence import LazyXComSequence

    return list(rows[:] if isinstance(rows, LazyXComSequence) else rows)


def map_indexes(ti: Any, task_ids: Collection[str]) -> Iterator[tuple[str, int]]:
    """Yield task id and map index of the instances that mapped tasks of the run have by now."""
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=list(task_ids), run_ids=[ti.run_id])
    for name in states.get(ti.run_id, {}):
        task_id, _, map_index = name.rpartition("_")  # the API's way to write an instance
        if task_id in task_ids and map_index.isdigit():
            yield task_id, int(map_index)


def show_form(ti_id: Any, form: Mapping[str, Any]) -> dict[str, Any]:
    """Give Airflow the form of a required action; return the form that it will show: the first it was given.

    An answer to an earlier form of the task instance is deleted. `upsert_hitl_detail()` of the SDK does the same, and
    does not return the reply.
    """
    from airflow.sdk.execution_time.comms import CreateHITLDetailPayload, HITLDetailRequestResult
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    # The API does not report that it keeps an older form of this task instance. Only the reply tells what people will
    # see.
    reply = SUPERVISOR_COMMS.send(CreateHITLDetailPayload(ti_id=ti_id, **form))
    assert isinstance(reply, HITLDetailRequestResult), reply
    held = reply.model_dump(mode="json", include=set(form))
    return held | {"assigned_users": held["assigned_users"] or [], "params": held["params"] or {}}


# -- in the triggerer --------------------------------------------------------------------------------


def template_environment() -> jinja2.Environment:
    """Return the worker's Jinja environment, where an undefined name is an error; a trigger's renders it as nothing."""
    from airflow.sdk.definitions._internal.templater import create_template_env

    return create_template_env()


def expanded(lists: Mapping[str, Any], ti: Any) -> dict[str, Any]:
    """Return what the map index of `ti` is given of `.expand(**lists)`; 3.3 hands a trigger the lists themselves."""
    from airflow.sdk.definitions._internal.expandinput import DictOfListsExpandInput

    return dict(DictOfListsExpandInput(dict(lists)).resolve({"ti": ti})[0])


def upstream_of(reference: Any) -> tuple[str, str] | None:
    """Return task id and key of a serialized XCom reference; None where it is not to one XCom of an unmapped task."""
    from airflow.serialization.definitions.xcom_arg import SchedulerPlainXComArg

    if not isinstance(reference, SchedulerPlainXComArg) or is_mapped(reference.operator):
        return None
    return reference.operator.task_id, reference.key


def is_mapped(serialized_task: Any) -> bool:
    """Tell whether a task, as the triggerer has it, is mapped."""
    from airflow.serialization.definitions.mappedoperator import is_mapped

    return bool(is_mapped(serialized_task))


async def pull_xcom(ti: Any, task_id: str, key: str) -> Any:
    """Return an XCom of an unmapped task of the same run, from a trigger."""
    from airflow.sdk.execution_time.xcom import XCom

    return await XCom.aget_one(key=key, dag_id=ti.dag_id, task_id=task_id, run_id=ti.run_id, map_index=-1)


async def push_xcom(ti: Any, key: str, value: Any, *, mapped_length: int | None = None) -> None:
    """Push an XCom from a trigger, with its length where a task downstream expands over it."""
    from airflow.sdk.execution_time.xcom import XCom

    await XCom.aset(
        key,
        value,
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=ti.map_index,
        _mapped_length=mapped_length,
    )


async def delete_xcom(ti: Any, key: str) -> None:
    """Delete an XCom from a trigger: Airflow deletes those of an earlier attempt only when a worker starts."""
    from airflow.sdk.execution_time.comms import DeleteXCom
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    await SUPERVISOR_COMMS.asend(
        DeleteXCom(key=key, dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index)
    )


async def find_answer(ti_id: str) -> dict[str, Any] | None:
    """Return the answer to a task instance's required action, as Airflow resumes a task with it; None: no answer yet.

    Airflow offers this to triggers alone.
    """
    from airflow.sdk.execution_time.comms import GetHITLDetailResponse
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    reply: Any = await SUPERVISOR_COMMS.asend(GetHITLDetailResponse(ti_id=uuid.UUID(ti_id)))
    if not reply.response_received:
        return None
    user = reply.responded_by_user
    return {
        "chosen_options": list(reply.chosen_options or []),
        "params_input": dict(reply.params_input or {}),
        "responded_at": reply.responded_at.isoformat(),
        "responded_by_user": None if user is None else {"id": user.id, "name": user.name},
        "timedout": user is None,
    }


# -- without a run -----------------------------------------------------------------------------------


def imagined_run(
    dag_id: str,
    *,
    run_id: str,
    conf: Mapping[str, Any],
    logical_date: dt.datetime,
    data_interval: tuple[dt.datetime, dt.datetime],
    is_backfill: bool,
) -> DagRun:
    """Return a DAG run as Airflow would describe it to a worker; it is in no database."""
    from airflow.sdk.api.datamodels._generated import DagRun, DagRunState, DagRunType

    start, end = data_interval
    return DagRun(
        dag_id=dag_id,
        run_id=run_id,
        logical_date=logical_date,
        data_interval_start=start,
        data_interval_end=end,
        run_after=end,
        start_date=dt.datetime.now(dt.UTC),
        end_date=None,
        run_type=DagRunType.BACKFILL if is_backfill else DagRunType.MANUAL,
        state=DagRunState.RUNNING,
        conf=dict(conf),
        consumed_asset_events=[],
        partition_key=None,
    )


@contextmanager
def rendered_task(
    task: BaseOperator | MappedOperator, run: DagRun, map_index: int, on_xcom_pull: Any
) -> Iterator[tuple[BaseOperator, Context]]:
    """Give a task as a worker would execute it in `run`, its templates rendered, and its context.

    Args:
        task: as the DAG file defines it.
        run: as `imagined_run` makes it.
        map_index: -1 for a task that is not mapped.
        on_xcom_pull: called in place of `ti.xcom_pull`, with its arguments.
    """
    from airflow.sdk.api.datamodels._generated import TIRunContext
    from airflow.sdk.execution_time.context import set_current_context
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    class TaskInstance(RuntimeTaskInstance):
        def xcom_pull(self, *args: Any, **kwargs: Any) -> Any:
            return on_xcom_pull(*args, **kwargs)

    # model_construct checks nothing: much of what the scheduler fills in does not exist here.
    ti = TaskInstance.model_construct(
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


def past_runs(dag: Any, first: dt.datetime, last: dt.datetime) -> Iterator[Any]:
    """Yield the runs that the DAG's timetable has between two dates, as Airflow's scheduler would make them."""
    from airflow.serialization.serialized_objects import DagSerialization

    # Only the form of a DAG that the scheduler reads can list its runs.
    timetable = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    yield from timetable.iter_dagrun_infos_between(first, last)
