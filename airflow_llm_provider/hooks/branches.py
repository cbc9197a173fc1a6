"""Branches of a DAG: the tasks and task groups directly downstream of a task, as a model may choose among them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from airflow_llm_provider.argument_checks import is_share, require

if TYPE_CHECKING:
    from airflow.sdk import DAG, TaskGroup
    from airflow.sdk.types import Operator


@dataclass(frozen=True)
class Branch:
    """A branch that may be chosen.

    Attributes:
        description: when it is the right one, for the model; empty: the `doc_md` or `doc` of the task or group.
        min_confidence: the confidence that this branch needs, instead of the operator's; from 0 to 1.
    """

    description: str = ""
    _: KW_ONLY
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        require("branch.min_confidence", self.min_confidence, is_share, "give a number from 0 to 1.")

    @classmethod
    def of(cls, given: str | Branch) -> Branch:
        """Return the branch that a description alone stands for, or the branch itself."""
        return given if isinstance(given, Branch) else cls(given)


def found_downstream(task: Operator) -> dict[str, str]:
    """Return the tasks and groups directly downstream of `task`, in the DAG's order, with what their docs say.

    A task group that was set downstream as a group is one branch: `@task.branch` takes its id for its roots, too.
    """
    dag = _dag(task)
    groups = [group for group in dag.task_group_dict.values() if task.task_id in group.upstream_task_ids]
    group_of = {root.task_id: group for group in groups for root in group.roots}
    found: dict[str, str] = {}
    # In the DAG's order: the set of ids has another order in each process. The prompt would be another question then,
    # and would be paid for again.
    for task_id, node in dag.task_dict.items():
        if task_id in task.downstream_task_ids:
            branch = group_of.get(task_id, node)
            found[str(branch.node_id)] = _documented(branch)
    return found


def offered(task: Operator, described: Mapping[str, str | Branch] | None) -> dict[str, Branch]:
    """Return the branches to choose among, every one with a description.

    Args:
        task: the task that branches.
        described: branches by id, as the author gave them; None: all that are directly downstream.

    Raises:
        ValueError: a branch is not directly downstream, or there is none.
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
    """Raise ValueError unless each of `names` is a task, or a group with a root, directly downstream of `task`."""
    for name in names:
        group = _dag(task).task_group_dict.get(name)
        roots = {root.task_id for root in group.roots} if group else {name}
        if roots & task.downstream_task_ids:
            continue
        there = list(found_downstream(task))
        close = difflib.get_close_matches(name, there, n=1, cutoff=0.4)
        raise ValueError(
            f"{task.task_id}: {name!r} is not a branch of it: it is not directly downstream. "
            f"{'There are ' + ', '.join(map(repr, there)) if there else 'There is nothing downstream'}"
            f"{f'; did you mean {close[0]!r}?' if close else '.'}"
        )


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
