"""Arguments as a DAG author types them: what can't be meant is an error when the DAG is parsed."""

from __future__ import annotations

import codecs
import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_llm_provider.errors import require_kinds
from airflow_llm_provider.hooks.rendered import is_template
from airflow_llm_provider.pricing import micro_usd
from airflow_llm_provider.tools import by_name


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What an argument should be: `holds` tells whether a value is, `cure` says what to give instead."""

    holds: Callable[[Any], bool]
    cure: str

    def or_none(self) -> Kind:
        """Return the kind of an argument that may be left at None."""
        return Kind(holds=lambda value: value is None or self.holds(value), cure=self.cure)


def _whole(least: int) -> Kind:
    return Kind(
        holds=lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        cure=f"give a whole number, {least} or more.",
    )


def _is_list(value: Any) -> bool:
    """Tell lists from a text, which would be read as its letters, and from what can be gone through but once."""
    return isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))


def _is_encoding(name: Any) -> bool:
    try:
        codecs.lookup(name)
    except (LookupError, TypeError):
        return False
    return True


def _are_validators(value: Any) -> bool:
    if not _is_list(value):
        return False
    others = [each for each in value if not callable(each)]
    if not others:
        return True
    from airflow_llm_provider.validators import Judge

    return all(isinstance(each, Judge) for each in others)


def _is_tolerance(value: Any) -> bool:
    return _whole(0).holds(value) or (isinstance(value, float) and 0 <= value <= 1)


def _is_model(value: Any) -> bool:
    names = value if _is_list(value) and value else [value]
    return all(name is None or isinstance(name, str) for name in names)


_TEXT = Kind(holds=lambda value: isinstance(value, str), cure="give a text.")
_FLAG = Kind(holds=lambda value: isinstance(value, bool), cure="give True or False.")
_DICT = Kind(holds=lambda value: isinstance(value, Mapping), cure="give a dict.")
_LIST = Kind(holds=_is_list, cure="give a list.")
_TEXTS = Kind(
    holds=lambda value: _is_list(value) and all(isinstance(each, str) for each in value),
    cure="give a list of texts.",
)
SHARE = Kind(
    holds=lambda value: isinstance(value, (int, float)) and 0 <= value <= 1,
    cure="give a number from 0 to 1.",
).or_none()

CHOICES: Mapping[str, Sequence[str]] = {
    "framing": ("document", "tag"),
    "on_changed": ("fail", "frozen"),
    "on_exceeded": ("fail", "skip", "ask"),
    "on_exhausted": ("fail", "skip", "default", "review", "dead_letter"),
    "on_timeout": ("deny", "approve", "fail"),
    "on_unsure": ("default", "review", "fail"),
    "pdf": ("auto", "text", "native"),
    "reuse": ("always", "run", "never"),
    "strings": ("text", "path"),
    "too_long": ("fail", "truncate", "map_reduce"),
}
_BESIDES = {
    "on_exceeded": " A standing budget per day or month can wait.",
    "on_exhausted": ' A stronger model is model=["fast", "strong"].',
}


def _choice(name: str) -> Kind:
    choices = CHOICES[name]
    return Kind(
        holds=choices.__contains__, cure=f"choose one of {', '.join(choices)}.{_BESIDES.get(name, '')}"
    )


_KINDS: Mapping[str, Kind] = {
    **{name: _choice(name) for name in CHOICES},
    "approval": _DICT.or_none(),
    "deferrable": _FLAG,
    "editable": _FLAG,
    "effort": _TEXT.or_none(),
    "encoding": Kind(holds=_is_encoding, cure="Python knows no such encoding."),
    "extra_body": _DICT.or_none(),
    "fall_back_on": _TEXTS,
    "fallbacks": _TEXTS.or_none(),
    "id_field": _TEXT,
    "ignore_downstream_trigger_rules": _FLAG,
    "inputs": _DICT.or_none(),
    "limit": _whole(0).or_none(),
    "max_bytes": _whole(1),
    "max_failed": Kind(
        holds=_is_tolerance, cure="give a count (int), or a share (float, 0 to 1) of the documents."
    ),
    "max_in_flight": _whole(1),
    "max_input_tokens": _whole(1).or_none(),
    "max_repairs": _whole(0),
    "max_tokens": _whole(1),
    "max_tool_s": Kind(
        holds=lambda value: isinstance(value, (int, float)) and value > 0, cure="give a number of seconds."
    ),
    "max_tool_turns": _whole(0),
    "messages": _LIST.or_none(),
    "metadata": _DICT.or_none(),
    "min_confidence": SHARE,
    "model": Kind(holds=_is_model, cure="name a tier, a model id, or several in a list to escalate through."),
    "multiple": _FLAG,
    "on_unsure": _choice("on_unsure").or_none(),
    "prompt": _TEXT.or_none(),  # a decorator's function gives it
    "retry": _DICT.or_none(),
    "retry_dead": _FLAG,
    "stop_sequences": _TEXTS.or_none(),
    "system": _TEXT.or_none(),
    "tags": _TEXTS,
    "text_field": _TEXT.or_none(),
    "thinking": _DICT.or_none(),
    "tools": _LIST,
    "validators": Kind(holds=_are_validators, cure="give a list of functions and Judges."),
    "votes": _whole(1),
}
_AMOUNTS = ("budget_usd", "run_budget_usd", "confirm_above_usd", "max_tool_usd")


_OF_APPROVAL = ("response_timeout", "assigned_users", "notifiers")


def require_approval(approval: Mapping[str, Any]) -> None:
    """Raise ValueError, when the DAG is parsed, for an option of `approval=` that does not exist or can't be meant."""
    if unknown := sorted(set(approval) - set(_OF_APPROVAL)):
        raise ValueError(f"approval= knows no {unknown[0]!r}; there are {', '.join(_OF_APPROVAL)}.")
    require_people(approval.get("assigned_users"), approval.get("response_timeout"))


def require_people(assigned_users: Any, response_timeout: Any) -> None:
    """Raise ValueError, when the DAG is parsed, for users that are no list and a time that has no unit."""
    if isinstance(assigned_users, (str, Mapping)):  # letters and keys would be taken for users
        raise ValueError(f"assigned_users={assigned_users!r}: give a list, such as ['ada'].")
    if response_timeout is not None and not isinstance(response_timeout, dt.timedelta):
        raise ValueError(
            f"response_timeout={response_timeout!r}: give a timedelta, such as timedelta(hours=8)."
        )


def require_sound(arguments: Mapping[str, Any], *, templated: Collection[str]) -> None:
    """Raise TypeError or ValueError for arguments that can't be meant, whichever operator takes them.

    templated: the arguments that may be templates and other tasks' outputs; these are looked at when the task runs.
    """
    given = {name: value for name, value in arguments.items() if not _comes_later(value)}
    for name, kind in _KINDS.items():
        if name in given:
            require(name, kind, given[name])
    for name in _AMOUNTS:
        _require_amount(name, given.get(name))
    unrendered = {*_KINDS, *_AMOUNTS} - {*templated}
    for name in sorted(unrendered & (arguments.keys() - given.keys())):
        raise ValueError(
            f"{name}={arguments[name]!r}: neither a template nor another task's output can stand here. Give the "
            "value itself, or map over it with .expand()."
        )
    require_messages(given.get("messages") or ())
    if retry := given.get("retry"):
        from airflow_llm_provider.engine.retry import policies

        policies(retry)
    require_kinds("fall_back_on", given.get("fall_back_on", ()))
    require_approval(given.get("approval") or {})
    require_people(arguments.get("assigned_users"), arguments.get("response_timeout"))
    by_name(given.get("tools", ()))


def require(name: str, kind: Kind, value: Any) -> None:
    """Raise ValueError for a value that is not of its kind."""
    if not kind.holds(value):
        raise ValueError(f"{name}={value!r}: {kind.cure}")


def require_messages(messages: Any) -> None:
    """Raise ValueError for what are no turns of a conversation."""
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"messages= holds {message!r}: give dicts, each with a role and content.")


def _require_amount(name: str, dollars: Any) -> None:
    """Raise ValueError for what is no amount of US dollars; None is none."""
    if dollars is None:
        return
    try:
        micro_usd(dollars)
    except ValueError as error:
        raise ValueError(f"{name}= {error}.") from None


def _comes_later(value: Any) -> bool:
    """Tell a template, and another task's output, which names the tasks it refers to."""
    return hasattr(value, "iter_references") or (isinstance(value, str) and is_template(value))
