"""Deferral: whether a call can start and end in the triggerer, and its arguments as JSON."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.definitions.xcom_arg import PlainXComArg, XComArg

from airflow_llm_provider import _airflow
from airflow_llm_provider.options import VALUE_OBJECTS, Budget, OnInvalid, Options, Reuse

# By name: DAG files load this module, and the trigger would load the engine with it.
TRIGGER = "airflow_llm_provider.triggers.claude.ClaudeTrigger"
log = logging.getLogger(__name__)

ARGUMENTS = frozenset(
    {
        *("prompt", "inputs", "messages", "system", "output_type", "validators", "tools", "claude_conn_id"),
        *(field.name for field in dataclasses.fields(Options)),
    }
)
"""The arguments that make a call: those of a question, its options, and the connection."""
XCOM, VALUE_OBJECT = "__xcom__", "__value_object__"
"""Keys that mark a reference to an XCom, and the class of a value object, in JSON."""

# What a template may name in a worker only; a trigger that asks the supervisor for it never gets an answer.
_WORKER_ONLY = re.compile(
    r"\{[{%].*\b(prev_\w+_success|(?:task|asset)_state_store|inlet_events|get_previous_\w+|get_first_\w+)\b",
    re.DOTALL,
)
# What Airflow runs around a task in a worker, and leaves out without a word when a trigger ends the task.
_CALLBACKS = (
    "on_execute_callback",
    "on_success_callback",
    "on_skipped_callback",
    "_pre_execute_hook",
    "_post_execute_hook",
)


class NeedsWorker(Exception):
    """A call cannot be made in the triggerer; the message says why."""


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
        upstream = _followable(value)
        return {XCOM: [upstream.operator.task_id, upstream.key]}
    if type(value) in _VALUE_OBJECTS.values():
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {VALUE_OBJECT: type(value).__name__, **encode(fields)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a RetryPolicy
        return dataclasses.asdict(value)
    raise NeedsWorker(f"a {type(value).__name__} cannot be handed to the triggerer")


_VALUE_OBJECTS = {cls.__name__: cls for cls in VALUE_OBJECTS.values()}


def value_object(fields: Mapping[str, Any]) -> Any:
    """Return the value object that `encode` wrote."""
    others = {name: value for name, value in fields.items() if name != VALUE_OBJECT}
    return _VALUE_OBJECTS[fields[VALUE_OBJECT]](**others)


def decoded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that a worker had resolved before it encoded them, with their value objects.

    Everything else is data: a mark in it, such as a document that looks like a reference, means nothing.
    """
    return {
        name: value_object(value)
        if name in VALUE_OBJECTS and isinstance(value, Mapping) and VALUE_OBJECT in value
        else value
        for name, value in arguments.items()
    }


def encode_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call as JSON data; raises NeedsWorker."""
    from airflow_llm_provider.engine.output_type import type_to_name

    if arguments.get("validators"):
        raise NeedsWorker("it has validators, which are Python")
    if arguments.get("tools"):
        raise NeedsWorker("it has tools, which are Python")
    require_plain_end_of_call(
        OnInvalid.of(arguments.get("on_invalid")), _budget(arguments), arguments.get("reuse", "run")
    )
    try:
        output_type = type_to_name(arguments.get("output_type"))
    except ValueError as error:
        raise NeedsWorker(str(error)) from error
    # A person is asked by a worker only, so reviewers are not needed in the triggerer.
    python = ("output_type", "validators", "tools", "reviewers")
    others = {name: value for name, value in arguments.items() if name not in python}
    return {**encode(others), "output_type": output_type}


def _budget(arguments: Mapping[str, Any]) -> Budget:
    given = arguments.get("budget")
    # A budget from another task is not known yet; the trigger checks it once it is.
    return Budget() if isinstance(given, XComArg) else Budget.of(given)


def require_plain_end_of_call(on_invalid: OnInvalid, budget: Budget, reuse: Reuse) -> None:
    """Raise NeedsWorker for options that only a worker can carry out."""
    if on_invalid.then != "fail":
        raise NeedsWorker(f"on_invalid.then={on_invalid.then!r}, and only a worker does anything but fail")
    if budget.notifiers:
        raise NeedsWorker("its budget has notifiers, which are Python")
    if budget.on_exceeded == "ask":
        raise NeedsWorker("budget.on_exceeded='ask' parks the task, which a worker does")
    if reuse == "never":
        raise NeedsWorker("reuse='never' tells a retry from a clear, which the triggerer cannot")


def start_in_triggerer(task: Any, arguments: Mapping[str, Any], *, push: bool) -> None:
    """Let `task` start in the triggerer, or log why it runs in a worker.

    Args:
        task: an operator or a mapped operator.
        arguments: of the call, without those that are mapped over.
        push: whether the answer is wanted as an XCom.
    """
    try:
        require_plain_end(task)
        _require_plain_start(task)
        if isinstance(task, MappedOperator):
            _require_plain_expansion(task)
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


def _followable(reference: XComArg) -> PlainXComArg:
    """Return a reference that a trigger can follow: to one XCom of one unmapped task."""
    if not isinstance(reference, PlainXComArg):
        raise NeedsWorker("it uses .map(), .zip() or .concat() on an XCom")
    upstream = reference.operator
    # A trigger pulls one XCom, at map index -1. A mapped task has one per map index, and none there.
    if upstream.is_mapped or upstream.get_closest_mapped_task_group() is not None:
        raise NeedsWorker(f"its upstream {upstream.task_id!r} is mapped")
    return reference


def require_plain_end(task: Any) -> None:
    """Raise NeedsWorker for outlets, callbacks, multiple_outputs: Airflow ignores them when a trigger ends a task."""
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


def _require_plain_expansion(task: MappedOperator) -> None:
    value = _airflow.expand_input(task).value
    if isinstance(value, XComArg):
        _followable(value)
        return
    for row in [value] if isinstance(value, Mapping) else list(value):
        if isinstance(row, XComArg):
            _followable(row)
            continue
        if unknown := set(row) - ARGUMENTS:
            raise NeedsWorker(f"it is mapped over {', '.join(sorted(unknown))}")
        # Airflow hands a value object to the trigger as its repr; plain values in its place arrive as they are.
        if objects := sorted(name for name, values in row.items() if _has_value_object(values)):
            raise NeedsWorker(f"it is mapped over value objects ({', '.join(objects)})")
        # Only to find what cannot be encoded: Airflow itself hands mapped values to the trigger.
        encode(row)


def _has_value_object(values: Any) -> bool:
    """Tell whether a value, or one in a list of them, is a value object."""
    each = values if isinstance(values, (list, tuple)) else [values]
    return any(type(value) in _VALUE_OBJECTS.values() for value in each)


def _as_data(param: Any) -> tuple[Any, Any]:
    """Return value and schema of a Param, or of the plain value that stands for one."""
    return getattr(param, "value", param), getattr(param, "schema", None) or {}
