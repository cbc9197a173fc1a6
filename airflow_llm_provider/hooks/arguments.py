"""Arguments: checked as the DAG author typed them, and read again as templates leave them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.argument_checks import (
    ABSOLUTE,
    Check,
    comes_later,
    is_absolute,
    is_flag,
    is_list,
    is_string,
    is_whole,
    or_none,
    refuse_sampling,
    require,
)
from airflow_llm_provider.options import Options, RequestFields
from airflow_llm_provider.pricing import micro_usd
from airflow_llm_provider.tools import by_name


def _is_by_name(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _are_validators(value: Any) -> bool:
    if not is_list(value):
        return False
    others = [each for each in value if not callable(each)]
    if not others:
        return True
    # Here, so that a DAG file without Judges does not load the module.
    from airflow_llm_provider.validators import Judge

    return all(isinstance(each, Judge) for each in others)


_RUN_VALUES = re.compile(
    r"\{\{[^}]*\b(ds|ts|run_id|logical_date|data_interval_\w+|dag_run|ti|task_instance|execution_date|prev_\w+"
    r"|ds_nodash|ts_nodash\w*)\b"
)
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "none", "")

_FLAG = (is_flag, "give True or False.")
_TEXT = (or_none(is_string), "give a text.")  # None: the function of a decorator returns it
_BY_NAME = (or_none(_is_by_name), "give a dict of data by name.")
_LIST = (or_none(is_list), "give a list.")
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
    "limit": (or_none(is_whole(0)), "give a whole number, 0 or more."),
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
    refuse_sampling(arguments)
    given = {name: value for name, value in arguments.items() if not comes_later(value)}
    known = {*_DATA, *_PLAIN, *_OPTIONS}
    # Airflow renders template fields only. Elsewhere the text of the template itself would become the value.
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
    require_absolute("output", given.get("output"))
    # Made only to be checked: each value object checks itself.
    options = Options.of(given)
    # A decorator does not know the DAG's default_args, among which there may be a `request`.
    require_output_type(given.get("output_type"), options.request if "request" in given else None)
    require_messages(given.get("messages") or ())
    by_name(given.get("tools") or ())


def require_data(name: str, value: Any, check: Check | None = None, cure: str = "") -> None:
    """Raise ValueError for a prompt, system prompt, inputs or messages of the wrong type; the value is not shown."""
    if check is None:
        check, cure = _DATA[name]
    if not check(value):
        raise ValueError(f"{name}= is of type {type(value).__name__}: {cure}")


def require_output_type(output_type: Any, request: RequestFields | None = None) -> None:
    """Raise ValueError for what is no type or schema, and for one that the API would not enforce.

    Args:
        output_type: the operator's.
        request: the fields of the request; None: the type is not looked at for the API.
    """
    if output_type is None and not (request and request.strict_tools):
        return
    # Here, so that a DAG file without types of its own does not load the modules.
    from airflow_llm_provider.engine.output_type import OutputType
    from airflow_llm_provider.errors import TerminalError

    try:
        output = OutputType(output_type)
        _ = output.schema, output.item_schema
        if request is not None:
            output.require_enforceable(request)
    except TerminalError as error:
        # The classes that it names may stand further down in the file. Then it is checked before it is sent.
        if getattr(error.__cause__, "code", None) == "class-not-fully-defined":
            return
        raise ValueError(str(error).removesuffix(" Nothing was sent.")) from None


def require_absolute(argument: str, place: Any) -> None:
    """Raise ValueError for a relative path."""
    require(argument, place, is_absolute, ABSOLUTE)


def require_messages(messages: Any) -> None:
    """Raise ValueError for anything but turns of a conversation."""
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(
                f"messages[{number}] is of type {type(message).__name__}: give dicts, each with a role and content."
            )


def read_amount(task_id: str, name: str, dollars: Any) -> int | None:
    """Read an amount in US dollars as micro-USD; None where a template left nothing, or `None`."""
    if dollars is None or str(dollars).strip() in ("", "None"):
        return None
    try:
        return micro_usd(dollars)
    except ValueError:
        raise AirflowFailException(
            f"{task_id}: {name}= is {_kind(dollars)}: give an amount in US dollars, such as 2.50."
        ) from None


def read_count(task_id: str, name: str, count: int | str | None) -> int | None:
    """Read a whole number; None where a template left nothing, or `None`."""
    if count is None or count in ("", "None"):
        return None
    try:
        read = int(str(count))  # int(2.7) would be 2
    except ValueError:
        read = -1
    if read < 0:
        raise AirflowFailException(f"{task_id}: {name}= is {_kind(count)}: give a whole number, 0 or more.")
    return read


def read_flag(task_id: str, name: str, value: bool | str | None) -> bool:
    """Read true or false; nothing is false."""
    # A template gives a text, and the text "False" is true to Python.
    said = str(value).strip().lower()
    if said not in (*_YES, *_NO):
        raise AirflowFailException(f"{task_id}: {name}= is {_kind(value)}: give true or false.")
    return said in _YES


def _kind(value: Any) -> str:
    """Return what kind of value came from a template or another task; the value itself is never in a message."""
    length = f" of {len(value):,} characters" if isinstance(value, str) else ""
    return f"of type {type(value).__name__}{length}"


def require_text(task_id: str, name: str, text: Any) -> None:
    """Raise AirflowFailException for anything but text, and for blank text."""
    if not isinstance(text, str):
        raise AirflowFailException(f"{task_id}: the {name} is a {type(text).__name__}, and should be text.")
    if not text.strip():
        raise AirflowFailException(f"{task_id}: the {name} is empty.")


def run_values(*templates: str | None) -> list[str]:
    """Return the variables in templates that differ in every run: in a prompt, they make it a new question."""
    return sorted({name for template in templates for name in _RUN_VALUES.findall(template or "")})
