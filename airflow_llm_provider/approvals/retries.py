"""Default retries of tasks that may ask a person: a retry finds an answer that Airflow did not hand to its task.

Airflow 3.3 marks a task failed when it is answered within seconds after it parked, because the scheduler has not yet
read that the process that parked it has ended.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

RETRIES = 3
RETRY_DELAY = dt.timedelta(seconds=10)


def with_retries(arguments: Mapping[str, Any], *, asks: bool = True) -> dict[str, Any]:
    """Return a task's arguments with these retries, unless the author has set others.

    Args:
        arguments: what the constructor of BaseOperator takes, the DAG's `default_args` among it.
        asks: whether the task may ask a person. Others get Airflow's defaults.
    """
    set_by_author = {*(arguments.get("default_args") or {}), *arguments}
    return {**(_beside(set_by_author) if asks else {}), **arguments}


def add_retries(made: OperatorPartial, arguments: Mapping[str, Any]) -> None:
    """Add these retries to a partial of a task that may ask a person, unless the author has set others.

    Args:
        made: the partial, into which Airflow has filled its own defaults.
        arguments: what the author gave `.partial()`.
    """
    scopes = (made.kwargs["dag"], made.kwargs["task_group"])
    given = [scope.default_args or {} for scope in scopes if scope is not None]
    made.kwargs.update(_beside({name for each in (*given, arguments) for name in each}))


def _beside(set_by_author: Collection[str]) -> dict[str, Any]:
    defaults = {"retries": RETRIES, "retry_delay": RETRY_DELAY}
    return {name: value for name, value in defaults.items() if name not in set_by_author}
