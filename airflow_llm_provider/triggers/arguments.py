"""Arguments of a call in the triggerer: XComs pulled, mapped values chosen, templates rendered, as in a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from airflow_llm_provider import _airflow
from airflow_llm_provider.options import VALUE_OBJECTS
from airflow_llm_provider.triggers.deferral import VALUE_OBJECT, XCOM, NeedsWorker, value_object

if TYPE_CHECKING:
    from airflow.sdk import Context

_SHARED_S = 1.0  # one pull serves all who ask within this time; after a clear, a longer one would be stale
_pulls: dict[tuple[Any, ...], tuple[float, asyncio.Future[Any]]] = {}
_TEMPLATES = {cls.__name__: getattr(cls, "template_fields", ()) for cls in VALUE_OBJECTS.values()}


async def resolved(
    arguments: Mapping[str, Any], context: Context, templates: Collection[str]
) -> dict[str, Any]:
    """Return the arguments of this task instance, value objects made.

    Args:
        arguments: as `deferral.encode_arguments` wrote them.
        context: Airflow's context in the trigger.
        templates: the arguments whose strings are rendered. What comes from an XCom never is.

    Raises:
        NeedsWorker: only a worker can resolve one of them.
        jinja2.TemplateError: a template is wrong.
    """
    ti: Any = context["ti"]
    environment = _airflow.template_environment()
    variables = {**context, "ti": _OnePull(ti), "task_instance": _OnePull(ti)}
    data: frozenset[str] = frozenset()
    if ti.map_index >= 0:
        mapped, data = await _mapped(ti)
        arguments = {**arguments, **mapped}

    async def walk(value: Any, *, render: bool) -> Any:
        if isinstance(value, str):
            return environment.from_string(value).render(variables) if render and "{" in value else value
        if isinstance(value, (list, tuple)):
            return [await walk(item, render=render) for item in value]
        if isinstance(value, Mapping):
            # What was pulled is returned as it is. Walked again, a document could hold a template or name another XCom.
            if list(value) == [XCOM]:
                task_id, key = value[XCOM]
                return await _pull(ti, task_id, key)
            if VALUE_OBJECT in value:
                names = _TEMPLATES[value[VALUE_OBJECT]]
                fields = {key: await walk(item, render=key in names) for key, item in value.items()}
                return value_object(fields)
            return {key: await walk(item, render=render) for key, item in value.items()}
        return await _referenced(value, ti) if hasattr(value, "iter_references") else value

    return {
        # What an upstream task returned is not walked: it is data, whatever it looks like.
        name: value if name in data else await walk(value, render=name in templates)
        for name, value in arguments.items()
    }


async def _mapped(ti: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return what this map index is given, and the names of what came from an XCom."""
    stored = _airflow.expand_input(ti.task)
    if stored.EXPAND_INPUT_TYPE == "dict-of-lists":
        data = frozenset(name for name, value in stored.value.items() if hasattr(value, "iter_references"))
        # This is `.expand()`: lists by argument, of which Airflow makes all combinations, so it has to choose by the
        # map index.
        lists = {
            name: await _referenced(value, ti) if name in data else value
            for name, value in stored.value.items()
        }
        return _airflow.expanded(lists, ti), data
    # This is `.expand_kwargs()`: one dict of arguments per map index. The list can be an XCom, and so can each dict in
    # it.
    rows = stored.value
    row = (await _referenced(rows, ti) if hasattr(rows, "iter_references") else rows)[ti.map_index]
    if hasattr(row, "iter_references"):
        row = await _referenced(row, ti)
        return row, frozenset(row)
    return row, frozenset(row) if rows is not stored.value or hasattr(
        rows, "iter_references"
    ) else frozenset()


async def _referenced(reference: Any, ti: Any) -> Any:
    upstream = _airflow.upstream_of(reference)
    if upstream is None:
        raise NeedsWorker("it refers to an XCom in a way that only a worker can follow")
    return await _pull(ti, *upstream)


async def _pull(ti: Any, task_id: str, key: str) -> Any:
    """Pull the XCom of an unmapped task; those who ask within a second share one answer."""
    now = time.monotonic()
    for old in [name for name, (since, _) in _pulls.items() if now - since > _SHARED_S]:
        del _pulls[old]
    # By event loop: a future belongs to one loop and cannot be awaited in another.
    name = (id(asyncio.get_running_loop()), ti.dag_id, ti.run_id, task_id, key)
    if name not in _pulls:
        _pulls[name] = now, asyncio.ensure_future(_airflow.pull_xcom(ti, task_id, key))
    # The pull is shared, so the end of one trigger must not cancel it for the others.
    return await asyncio.shield(_pulls[name][1])


class _OnePull:
    """The task instance in a template: an xcom_pull without map_indexes is never answered in a trigger."""

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ti, name)

    def xcom_pull(self, task_ids: Any = None, **kwargs: Any) -> Any:
        for task_id in [task_ids] if isinstance(task_ids, str) else task_ids or ():
            if _airflow.is_mapped(self._ti.task.dag.get_task(task_id)):
                raise NeedsWorker(f"its template pulls the XCom of {task_id!r}, which is mapped")
        return self._ti.xcom_pull(task_ids, **{"map_indexes": -1, **kwargs})
