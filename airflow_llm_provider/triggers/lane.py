"""The lane of a call, chosen at parse time: a worker, or the triggerer alone.

Reaches into Airflow's private parts (`OperatorPartial._expand`, `_get_specified_expand_input`), which
tests/airflow/test_lanes.py holds.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from airflow.sdk.definitions.mappedoperator import MappedOperator, OperatorPartial
from airflow.sdk.definitions.xcom_arg import PlainXComArg, XComArg

TRIGGER = "airflow_llm_provider.triggers.claude.ClaudeTrigger"
log = logging.getLogger(__name__)

# What a template may name in a worker only; asking the supervisor for it from a trigger is never answered.
_WORKER_ONLY = re.compile(
    r"\{[{%].*\b(prev_\w+_success|(?:task|asset)_state_store|inlet_events|get_previous_\w+|get_first_\w+)\b",
    re.DOTALL,
)
# What Airflow runs around a task in a worker, and silently leaves out when a trigger ends it.
_CALLBACKS = (
    "on_execute_callback",
    "on_success_callback",
    "on_skipped_callback",
    "_pre_execute_hook",
    "_post_execute_hook",
)


class NeedsWorker(Exception):
    """A call can't be made in the triggerer; the message says why."""


def encode(value: Any) -> Any:
    """Return `value` as JSON data, with XComs as references; raises NeedsWorker for what has no such form."""
    if isinstance(value, str) and (name := _WORKER_ONLY.search(value)):
        raise NeedsWorker(f"its templates use {name[1]}")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, XComArg):
        upstream = _single(value)
        return {"__xcom__": [upstream.operator.task_id, upstream.key]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a RetryPolicy
        return dataclasses.asdict(value)
    raise NeedsWorker(f"a {type(value).__name__} can't be handed to the triggerer")


def encode_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call as JSON data; raises NeedsWorker."""
    from airflow_llm_provider.engine.names import named

    if arguments.get("validators"):
        raise NeedsWorker("it has validators, which are Python")
    if arguments.get("tools"):
        raise NeedsWorker("it has tools, which are Python")
    if (arguments.get("on_exhausted") or "fail") != "fail":
        raise NeedsWorker("on_exhausted= is not 'fail', and only a worker does anything else")
    if arguments.get("budget_notifiers"):
        raise NeedsWorker("it has budget_notifiers, which are Python")
    if arguments.get("on_exceeded") == "ask":
        raise NeedsWorker("on_exceeded='ask' parks the task, which a worker does")
    if arguments.get("reuse") == "never":
        raise NeedsWorker("reuse='never' tells a retry from a clear, which the triggerer can't")
    try:
        output_type = named(arguments.get("output_type"))
    except ValueError as error:
        raise NeedsWorker(str(error)) from error
    python = ("output_type", "validators", "budget_notifiers")
    others = {name: value for name, value in arguments.items() if name not in python}
    return {**encode(others), "output_type": output_type}


def place(task: Any, arguments: Mapping[str, Any], *, push: bool, call_arguments: Iterable[str]) -> None:
    """Let `task` start in the triggerer, or log why it runs in a worker."""
    try:
        require_plain_end(task)
        _require_plain_start(task)
        if isinstance(task, MappedOperator):
            _require_plain_expansion(task, set(call_arguments))
        call = json.dumps({"arguments": encode_arguments(arguments), "push": push})
    except NeedsWorker as reason:
        task.start_from_trigger = False
        log.warning("%s runs in a worker although deferrable=True: %s.", task.task_id, reason)
        return
    from airflow.triggers.base import StartTriggerArgs

    # One string: Airflow would render and decode anything else by rules of its own.
    task.start_trigger_args = StartTriggerArgs(
        trigger_cls=TRIGGER, trigger_kwargs={"call": call}, next_method="resume", timeout=None
    )
    task.start_from_trigger = True


class LanePartial(OperatorPartial):
    """What `.partial()` of an operator with lanes returns, so that `.expand()` chooses one."""

    @classmethod
    def of(cls, made: OperatorPartial) -> LanePartial:
        """Take over what BaseOperator.partial made."""
        made._expand_called = True  # this one is expanded in its place
        return cls(operator_class=made.operator_class, kwargs=made.kwargs, params=made.params)

    def _expand(self, expand_input: Any, *, strict: bool) -> MappedOperator:
        task = super()._expand(expand_input, strict=strict)
        self.operator_class.place_mapped(task)  # type: ignore[attr-defined]  # made by operators that have it
        return task


def _single(reference: XComArg) -> PlainXComArg:
    """Return a reference that a trigger can follow: to one XCom of one unmapped task."""
    if not isinstance(reference, PlainXComArg):
        raise NeedsWorker("it uses .map(), .zip() or .concat() on an XCom")
    upstream = reference.operator
    if upstream.is_mapped or upstream.get_closest_mapped_task_group() is not None:
        raise NeedsWorker(f"its upstream {upstream.task_id!r} is mapped")
    return reference


def require_plain_end(task: Any) -> None:
    """Raise NeedsWorker for what an end in the trigger would silently leave out."""
    if task.outlets:
        raise NeedsWorker("it has outlets")
    # A mapped task keeps some of these as arguments for the task it will make.
    given = {**(task.dag.default_args if task.dag else {}), **getattr(task, "partial_kwargs", {})}
    for name in _CALLBACKS:
        argument = name.removeprefix("_").removesuffix("_hook")
        if getattr(task, name, None) or (isinstance(task, MappedOperator) and given.get(argument)):
            raise NeedsWorker(f"it has {argument}")
    if getattr(task, "multiple_outputs", False) or given.get("multiple_outputs"):
        raise NeedsWorker("it has multiple_outputs")


def _require_plain_start(task: Any) -> None:
    """Raise NeedsWorker for what a start in the trigger could not resolve as a worker does."""
    if task.get_closest_mapped_task_group() is not None:
        raise NeedsWorker("it is in a mapped task group")
    dag = task.get_dag()
    if dag is None:
        return
    shared = {name: _as_data(param) for name, param in dag.params.items()}
    own = [name for name, param in task.params.items() if shared.get(name) != _as_data(param)]
    if own:  # params that don't validate would end the whole triggerer, again and again
        raise NeedsWorker(f"it has params of its own ({', '.join(own)})")
    if (
        dag.user_defined_macros
        or dag.user_defined_filters
        or dag.jinja_environment_kwargs
        or dag.template_searchpath
    ):
        raise NeedsWorker("its DAG has macros, filters or Jinja settings of its own")
    if dag.render_template_as_native_obj:
        raise NeedsWorker("its DAG renders templates as native objects")


def _require_plain_expansion(task: MappedOperator, call_arguments: set[str]) -> None:
    value = task._get_specified_expand_input().value
    if isinstance(value, XComArg):
        _single(value)
        return
    for row in [value] if isinstance(value, Mapping) else list(value):
        if isinstance(row, XComArg):
            _single(row)
            continue
        if unknown := set(row) - call_arguments:
            raise NeedsWorker(f"it is mapped over {', '.join(sorted(unknown))}")
        encode(row)


def _as_data(param: Any) -> tuple[Any, Any]:
    """Return value and schema of a Param, or of the plain value that stands for one."""
    return getattr(param, "value", param), getattr(param, "schema", None) or {}
