"""Skips of downstream tasks: exactly those that belong to the task instance's own map index, also after a clear.

Airflow's SkipMixin skips nothing where a map index is involved: it does nothing in a mapped task instance, and when a
task is cleared, the scheduler looks for the skip at the wrong map index. So a mapped instance names the pairs of task
id and map index to skip, and the tasks that share its map indexes look for the decision themselves before they run. An
operator that skips has `inherits_from_skipmixin = True`, so that the scheduler looks for the decisions of plain tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.sdk import TriggerRule
from airflow.sdk.bases.skipmixin import XCOM_SKIPMIXIN_FOLLOWED, XCOM_SKIPMIXIN_KEY, XCOM_SKIPMIXIN_SKIPPED
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped

from airflow_llm_provider import _airflow

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import Operator

_DECISION = "llm_skip"
"""The XCom in which a mapped task instance keeps its decision, in the form of Airflow's."""

_HELD_BY_A_FAILURE = ("all_success", "none_failed", "none_failed_min_one_success", "all_skipped")
"""Trigger rules with which a task never runs when a task directly upstream has failed."""


def skip(context: Context, tasks: Collection[Operator], *, why: str) -> None:
    """Skip downstream tasks for the map index of this task instance; the task itself succeeds.

    Call it last: where there is something to skip, it raises.

    Args:
        context: of the task instance that decides.
        tasks: the tasks to skip.
        why: the decision, as a sentence, for the error.

    Raises:
        DownstreamTasksSkipped: Airflow skips the tasks.
        AirflowFailException: a task cannot be skipped for this map index alone. What is downstream does not run,
            because this task fails.
    """
    if not tasks:
        return
    others = [task.task_id for task in tasks if not _shares_index(_own(context), task)]
    if others and _map_index(context) >= 0:
        raise AirflowFailException(
            f"{context['ti'].dag_id}.{context['ti'].task_id}: {why} {', '.join(sorted(others))} cannot be skipped for "
            "one map index alone, so this task fails in order that nothing downstream runs. Put the tasks into the "
            "same mapped task group to skip single ones."
        )
    ids = sorted(task.task_id for task in tasks)
    _skip(context, tasks, {XCOM_SKIPMIXIN_SKIPPED: ids})


def skip_all_except(context: Context, followed: Collection[str]) -> None:
    """Skip all tasks directly downstream but `followed`, for the map index of this task instance.

    A task that is skipped here but is also downstream of a followed task is not skipped, as with Airflow's own
    branches. Call it last: where there is something to skip, it raises.

    Args:
        context: of the task instance that decides.
        followed: ids of tasks, or of task groups, whose first tasks are followed.

    Raises:
        DownstreamTasksSkipped: Airflow skips the tasks.
    """
    task = _own(context)
    dag = task.get_dag()
    assert dag is not None, "a task that runs has a DAG"
    # An edge to a group is an edge to its first tasks, so these are what is followed.
    roots = {root for name in followed for root in _roots(dag, name)}
    kept = roots | {
        relative for name in roots for relative in dag.get_task(name).get_flat_relative_ids(upstream=False)
    }
    skipped = [each for each in task.downstream_list if each.task_id not in kept]
    followed_ids = [each.task_id for each in task.downstream_list if each.task_id in kept]
    _skip(context, skipped, {XCOM_SKIPMIXIN_FOLLOWED: followed_ids})


def require_skippable(task: Operator, tasks: Iterable[Operator], *, or_fail: bool) -> None:
    """Raise ValueError where `task` is mapped and a skip of some of `tasks` could not be carried out.

    Args:
        task: the task that decides.
        tasks: the tasks that it may skip.
        or_fail: whether the task fails instead of a skip. Then a task that runs after failures is refused. Else every
            task that does not have the same map index is refused.
    """
    # The decision of a task without map indexes is always found by the scheduler.
    if not _airflow.needs_expansion(task):
        return
    others = [each for each in tasks if not each.is_teardown and not _shares_index(task, each)]
    if not or_fail and others:
        raise ValueError(
            f"{task.task_id} is mapped, so it cannot skip {others[0].task_id!r}, which does not have the same map "
            "index. Put both into the same mapped task group."
        )
    for each in others:
        rule = TriggerRule(each.trigger_rule).value
        if rule not in _HELD_BY_A_FAILURE:
            raise ValueError(
                f"{each.task_id} has the trigger rule {rule!r} and is downstream of "
                f"{task.task_id}, which is mapped. A rejection of one map index would not keep it from running: it "
                f"cannot be skipped for one map index alone, and its rule runs it after a failure. Use one of "
                f"{', '.join(_HELD_BY_A_FAILURE)}, or put both into the same mapped task group."
            )


def keep_skipped(task: Operator) -> None:
    """Let the tasks directly downstream that share the map indexes of `task` look at the decision before they run.

    The scheduler does not find the decision of a map index, so it would start such a task once it is cleared; and a
    task that is mapped over this one has no instances yet when the decision is made. Call it when the DAG is complete.
    """
    if not _airflow.needs_expansion(task):
        return
    for each in task.downstream_list:
        if _shares_index(task, each) and not each.is_teardown:
            _airflow.run_before(each, SkippedBefore(task.task_id))


@dataclass(frozen=True)
class SkippedBefore:
    """Skips a task instance that a task upstream has decided to skip, at the same map index.

    Attributes:
        decider: the id of the task upstream.
    """

    decider: str

    def __call__(self, context: Context) -> None:
        """Raise AirflowSkipException where the task is not to run."""
        ti = context["ti"]
        decided: Any = ti.xcom_pull(task_ids=self.decider, key=_DECISION, map_indexes=ti.map_index)
        if not isinstance(decided, Mapping):
            return
        followed, skipped = decided.get(XCOM_SKIPMIXIN_FOLLOWED), decided.get(XCOM_SKIPMIXIN_SKIPPED)
        if (followed is not None and ti.task_id not in followed) or ti.task_id in (skipped or ()):
            raise AirflowSkipException(f"{self.decider} has decided to skip this task.")


def _skip(context: Context, tasks: Collection[Operator], decision: Mapping[str, Sequence[str]]) -> None:
    ti = context["ti"]
    if _map_index(context) < 0:
        ti.xcom_push(XCOM_SKIPMIXIN_KEY, dict(decision))  # the scheduler looks here, also after a clear
    else:
        # Under Airflow's key the scheduler would skip an instance while it makes the instances of a mapped task. It
        # then overlooks the other instances, and may end the run without them.
        ti.xcom_push(_DECISION, dict(decision))
        keep_skipped(_own(context))  # for `dag.test()`, which does not say that the DAG is complete
    if pairs := sorted(_instances(context, tasks)):
        raise DownstreamTasksSkipped(tasks=pairs)  # type: ignore[no-untyped-call]  # Airflow's class


def _instances(context: Context, tasks: Collection[Operator]) -> Iterator[tuple[str, int]]:
    """Yield task id and map index of what is skipped at once.

    A task that is mapped over this one's XComs has no instances yet; they skip themselves before they run.
    """
    ti = context["ti"]
    map_index = _map_index(context)
    if map_index >= 0:
        group = _mapped_group(_own(context))
        yield from (
            (task.task_id, map_index) for task in tasks if group is not None and _mapped_group(task) == group
        )
        return
    mapped = [task.task_id for task in tasks if _airflow.needs_expansion(task)]
    yield from ((task.task_id, -1) for task in tasks)
    if mapped:
        yield from _airflow.map_indexes(ti, mapped)


def _own(context: Context) -> Operator:
    """Return the task as the DAG has it: that of a mapped task instance is an operator without its mapping."""
    task: Any = context["task"]
    dag = task.get_dag()
    assert dag is not None, "a task that runs has a DAG"
    found: Operator = dag.task_dict[task.task_id]
    return found


def _map_index(context: Context) -> int:
    map_index = context["ti"].map_index
    return -1 if map_index is None else map_index


def _shares_index(task: Operator, other: Operator) -> bool:
    """Tell whether each map index of `task` leads to the same one of `other`."""
    group = _mapped_group(task)
    if group is not None:
        return _mapped_group(other) == group
    return _airflow.is_mapped_over(other, task)


def _mapped_group(task: Operator) -> str | None:
    """Return the id of the mapped task group that a task is in; the groups themselves may be weak references."""
    group = task.get_closest_mapped_task_group()
    return None if group is None else str(group.group_id)


def _roots(dag: Any, name: str) -> list[str]:
    group = dag.task_group_dict.get(name)
    return [root.task_id for root in group.roots] if group else [name]
