"""Arguments as a DAG author types them: what is not valid is an error when the DAG is parsed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from airflow_llm_provider.options import Check, Options, comes_later, is_list, is_whole, require
from airflow_llm_provider.tools import by_name


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_by_name(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _are_validators(value: Any) -> bool:
    if not is_list(value):
        return False
    others = [each for each in value if not callable(each)]
    if not others:
        return True
    from airflow_llm_provider.validators import Judge

    return all(isinstance(each, Judge) for each in others)


_FLAG = (_is_flag, "give True or False.")
_TEXT = (_or_none(_is_string), "give a text.")  # None: the function of a decorator returns it
_BY_NAME = (_or_none(_is_by_name), "give a dict of data by name.")
_LIST = (_or_none(is_list), "give a list.")
_COUNT = (is_whole(1), "give a whole number, 1 or more.")

# Their values are data, and never part of a message: only their type is named.
_DATA: Mapping[str, tuple[Check, str]] = {
    "prompt": _TEXT,
    "system": _TEXT,
    "inputs": _BY_NAME,
    "messages": _LIST,
}
_PLAIN: Mapping[str, tuple[Check, str]] = {
    "deferrable": _FLAG,
    "editable": _FLAG,
    "ignore_downstream_trigger_rules": _FLAG,
    "limit": (_or_none(is_whole(0)), "give a whole number, 0 or more."),
    "max_in_flight": _COUNT,
    "multiple": _FLAG,
    "retry_dead": _FLAG,
    "tools": (is_list, "give a list."),
    "validators": (_are_validators, "give a list of functions and Judges."),
    "votes": _COUNT,
}
_OPTIONS = frozenset({*Options.__dataclass_fields__, "reading"})


def require_arguments(arguments: Mapping[str, Any], *, templated: Collection[str]) -> None:
    """Raise TypeError or ValueError for arguments that are not valid, whichever operator takes them.

    Args:
        arguments: by name, as the DAG author gave them. Templates and outputs of other tasks are checked when the task
            runs.
        templated: the arguments in which these may stand.
    """
    given = {name: value for name, value in arguments.items() if not comes_later(value)}
    known = {*_DATA, *_PLAIN, *_OPTIONS}
    for name in sorted((arguments.keys() - given.keys()) & known - {*templated}):
        raise ValueError(
            f"{name}={arguments[name]!r}: neither a template nor the output of another task can stand here. Give the "
            "value itself, or map over it with .expand()."
        )
    for name, (check, cure) in _DATA.items():
        if name in given:
            require_data(name, given[name], check, cure)
    for name, (check, cure) in _PLAIN.items():
        if name in given:
            require(name, given[name], check, cure)
    if is_list(given.get("model")):
        raise ValueError(f"model={given['model']!r}: name one. Several to escalate through are a route=.")
    Options.of(given)
    require_messages(given.get("messages") or ())
    by_name(given.get("tools") or ())


def require_data(name: str, value: Any, check: Check | None = None, cure: str = "") -> None:
    """Raise ValueError for a prompt, system prompt, inputs or messages of the wrong type; the value is not shown."""
    if check is None:
        check, cure = _DATA[name]
    if not check(value):
        raise ValueError(f"{name}= is of type {type(value).__name__}: {cure}")


def require_messages(messages: Any) -> None:
    """Raise ValueError for anything but turns of a conversation."""
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(
                f"messages[{number}] is of type {type(message).__name__}: give dicts, each with a role and content."
            )
