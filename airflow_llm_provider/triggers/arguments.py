"""Arguments of a call in the triggerer: XComs pulled, mapped values chosen, templates rendered, as in a worker.

Reaches into Airflow's private parts, since 3.3 hands a trigger the arguments as they were before mapping;
tests/airflow/test_lanes.py holds that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.triggers.lane import NeedsWorker

if TYPE_CHECKING:
    from airflow.sdk import Context

_SHARED_S = 1.0  # so long one pull serves all who ask; longer, and a clear could leave them a stale value
_pulls: dict[tuple[Any, ...], tuple[float, asyncio.Future[Any]]] = {}


async def resolved(
    arguments: Mapping[str, Any], context: Context, templates: frozenset[str]
) -> dict[str, Any]:
    """Return the arguments of this task instance.

    templates: the arguments whose strings are rendered. What comes from an XCom never is.
    Raises NeedsWorker for what only a worker can resolve, and what Jinja raises.
    """
    from airflow.sdk.definitions._internal.templater import create_template_env

    ti: Any = context["ti"]
    # The worker's environment, where an undefined name is an error; a trigger's own renders it as nothing.
    environment = create_template_env()
    names = {**context, "ti": _OnePull(ti), "task_instance": _OnePull(ti)}
    data: frozenset[str] = frozenset()
    if ti.map_index >= 0:
        mapped, data = await _mapped(ti)
        arguments = {**arguments, **mapped}

    async def walk(value: Any, *, render: bool) -> Any:
        if isinstance(value, str):
            return environment.from_string(value).render(names) if render and "{" in value else value
        if isinstance(value, (list, tuple)):
            return [await walk(item, render=render) for item in value]
        if isinstance(value, Mapping):
            if list(value) == ["__xcom__"]:
                task_id, key = value["__xcom__"]
                return await _pull(ti, task_id, key)
            return {key: await walk(item, render=render) for key, item in value.items()}
        return await _referenced(value, ti) if hasattr(value, "iter_references") else value

    return {
        name: value if name in data else await walk(value, render=name in templates)
        for name, value in arguments.items()
    }


async def _mapped(ti: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return what this map index is given, and the names of what came from an XCom."""
    from airflow.sdk.definitions._internal.expandinput import DictOfListsExpandInput

    stored = ti.task._get_specified_expand_input()
    if stored.EXPAND_INPUT_TYPE == "dict-of-lists":
        data = frozenset(name for name, value in stored.value.items() if hasattr(value, "iter_references"))
        lists = {
            name: await _referenced(value, ti) if name in data else value
            for name, value in stored.value.items()
        }
        return dict(DictOfListsExpandInput(lists).resolve({"ti": ti})[0]), data
    rows = stored.value
    row = (await _referenced(rows, ti) if hasattr(rows, "iter_references") else rows)[ti.map_index]
    if hasattr(row, "iter_references"):
        row = await _referenced(row, ti)
        return row, frozenset(row)
    return row, frozenset(row) if rows is not stored.value or hasattr(
        rows, "iter_references"
    ) else frozenset()


async def _referenced(reference: Any, ti: Any) -> Any:
    from airflow.serialization.definitions.mappedoperator import is_mapped
    from airflow.serialization.definitions.xcom_arg import SchedulerPlainXComArg

    if not isinstance(reference, SchedulerPlainXComArg) or is_mapped(reference.operator):
        raise NeedsWorker("it refers to an XCom in a way that only a worker can follow")
    return await _pull(ti, reference.operator.task_id, reference.key)


async def _pull(ti: Any, task_id: str, key: str) -> Any:
    """Pull the XCom of an unmapped task; those who ask within a second share one answer."""
    from airflow.sdk.execution_time.xcom import XCom

    now = time.monotonic()
    for old in [name for name, (since, _) in _pulls.items() if now - since > _SHARED_S]:
        del _pulls[old]
    name = (id(asyncio.get_running_loop()), ti.dag_id, ti.run_id, task_id, key)
    if name not in _pulls:
        pull = XCom.aget_one(key=key, dag_id=ti.dag_id, task_id=task_id, run_id=ti.run_id, map_index=-1)
        _pulls[name] = now, asyncio.ensure_future(pull)
    return await asyncio.shield(_pulls[name][1])


class _OnePull:
    """The task instance in a template: an xcom_pull without map_indexes is never answered in a trigger."""

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ti, name)

    def xcom_pull(self, task_ids: Any = None, **kwargs: Any) -> Any:
        from airflow.serialization.definitions.mappedoperator import is_mapped

        for task_id in [task_ids] if isinstance(task_ids, str) else task_ids or ():
            if is_mapped(self._ti.task.dag.get_task(task_id)):
                raise NeedsWorker(f"its template pulls the XCom of {task_id!r}, which is mapped")
        return self._ti.xcom_pull(task_ids, **{"map_indexes": -1, **kwargs})
