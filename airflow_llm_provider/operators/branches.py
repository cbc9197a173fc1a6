"""Branches: the tasks and task groups right behind a task, as a model gets to choose among them."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

if TYPE_CHECKING:
    from airflow.sdk import DAG, Context, TaskGroup
    from airflow.sdk.types import Operator

RECORD, SETTINGS = "llm_branch", "llm_branch_settings"
"""The XComs that say what was decided, and with which settings the branch taken is to run."""

# Where our operators keep arguments whose names BaseOperator has for something else.
_ATTRIBUTES = {"output": "output_path", "roots": "allowed_roots", "dry_run": "is_dry_run"}


@dataclass(frozen=True)
class Branch:
    """A branch that may be chosen.

    description: when it is the right one, for the model; empty: the `doc_md` or `doc` of the task or group.
    min_confidence: the bar for this branch, instead of the operator's.
    settings: arguments for the tasks behind it, by name; JSON data, or functions of the DAG file.
    """

    description: str = ""
    _: KW_ONLY
    min_confidence: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: str | Branch) -> Branch:
        """Return the branch that a description alone stands for, or the branch itself."""
        return given if isinstance(given, Branch) else cls(given)

    def written_settings(self) -> dict[str, Any]:
        """Return the settings as JSON data, functions by their names; raises ValueError naming what has no form."""
        return {name: _written(value, f"settings[{name!r}]") for name, value in self.settings.items()}


def found_downstream(task: Operator) -> dict[str, str]:
    """Return the tasks and groups right behind `task`, in the DAG's order, with what their docs say.

    A group that was set downstream as a group is one branch, as `@task.branch` takes its id for its roots.
    """
    dag = _dag(task)
    groups = [group for group in dag.task_group_dict.values() if task.task_id in group.upstream_task_ids]
    group_of = {root.task_id: group for group in groups for root in group.roots}
    found: dict[str, str] = {}
    for task_id, node in dag.task_dict.items():
        if task_id in task.downstream_task_ids:
            branch = group_of.get(task_id, node)
            found[str(branch.node_id)] = _documented(branch)
    return found


def offered(task: Operator, described: Mapping[str, str | Branch] | None) -> dict[str, Branch]:
    """Return the branches to choose among, every one with a description.

    described: by id, as the author gave them; None: all that are downstream. Raises ValueError for one that
    is not downstream of `task`, and where there is none.
    """
    if described is None:
        branches = {name: Branch(text) for name, text in found_downstream(task).items()}
    else:
        require_downstream(task, described)
        branches = {name: Branch.of(given) for name, given in described.items()}
    if not branches:
        raise ValueError(f"{task.task_id}: it has no branch; set tasks or task groups downstream of it.")
    return {
        name: branch
        if branch.description
        else dataclasses.replace(branch, description=_documented(_node(task, name)))
        for name, branch in branches.items()
    }


def require_downstream(task: Operator, names: Collection[str]) -> None:
    """Raise ValueError unless each of `names` is a task, or a group with a root, right behind `task`."""
    for name in names:
        group = _dag(task).task_group_dict.get(name)
        roots = {root.task_id for root in group.roots} if group else {name}
        if roots & task.downstream_task_ids:
            continue
        there = list(found_downstream(task))
        close = difflib.get_close_matches(name, there, n=1, cutoff=0.4)
        raise ValueError(
            f"{task.task_id}: {name!r} is no branch of it, since it is not directly downstream. "
            f"{'There are ' + ', '.join(map(repr, there)) if there else 'There is nothing downstream'}"
            f"{f'; did you mean {close[0]!r}?' if close else '.'}"
        )


def use_branch_settings(task_id: str) -> Callable[[Context], None]:
    """Return a `pre_execute` that gives a task the settings of the branch it belongs to, as its own arguments.

    task_id: of the LLMBranchOperator upstream. A task behind several branches gets the settings of the one that
    was taken. They are those of the DAG file, so that functions (tools, validators) can be among them.
    """

    def use(context: Context) -> None:
        task, ti = context["task"], context["ti"]
        # In a mapped group, the choice of this task's own index.
        indexes = [-1 if ti.map_index is None else ti.map_index, -1]
        record = next(filter(None, ti.xcom_pull(task_ids=task_id, key=RECORD, map_indexes=indexes)), None)
        if not record:
            raise AirflowFailException(f"{task.task_id}: {task_id} has taken no branch in this run.")
        taken = record["taken"]
        own = [name for name in taken if name in set(_ids(task))] or taken
        if len(own) > 1:
            raise AirflowFailException(
                f"{task.task_id}: {task_id} took several branches ({', '.join(own)}), and this task is in none of "
                "them: it can't have the settings of all."
            )
        settings = _settings_of(_dag(task).get_task(task_id), own[0]) if own else {}
        for name, value in settings.items():
            attributes = [each for each in (_ATTRIBUTES.get(name), name) if each and hasattr(task, each)]
            if not attributes:
                raise AirflowFailException(
                    f"{task.task_id} has no argument {name!r}, a setting of {own[0]!r}."
                )
            setattr(task, attributes[0], value)

    return use


def _ids(task: Operator) -> Iterator[str]:
    """Yield the ids of a task and of the groups it is in."""
    node: Any = task
    while node is not None and node.node_id is not None:
        yield str(node.node_id)
        node = node.task_group


def _settings_of(chooser: Any, branch: str) -> Mapping[str, Any]:
    given = chooser.partial_kwargs if hasattr(chooser, "partial_kwargs") else vars(chooser)
    return Branch.of((given.get("branches") or {}).get(branch, "")).settings


def _dag(task: Operator) -> DAG:
    dag = task.get_dag()
    assert dag is not None, "an operator that runs has a DAG"
    return dag


def _node(task: Operator, name: str) -> Operator | TaskGroup:
    dag = _dag(task)
    return dag.task_group_dict.get(name) or dag.task_dict[name]


def _documented(node: Operator | TaskGroup) -> str:
    """Return what the docs of a task or group say it is for; else its id is all there is to go by."""
    for attribute in ("doc_md", "doc", "doc_rst", "tooltip"):
        if text := getattr(node, attribute, None):
            return str(text).strip()
    return str(node.node_id)


def _written(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _written(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if callable(value):
        return (
            getattr(value, "__qualname__", None) or getattr(value, "name", None) or type(value).__qualname__
        )
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(
            f"{where} is a {type(value).__name__}, which can't travel in an XCom: settings are JSON "
            "data, or functions of the DAG file. Give anything else to the branch's own task."
        ) from None
    return value
