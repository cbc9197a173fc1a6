"""Arguments as a DAG author types them: what can't be meant is an error when the DAG is parsed."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow_llm_provider.errors import require_kinds
from airflow_llm_provider.hooks.people.approval import require_approval, require_people
from airflow_llm_provider.hooks.rendered import is_template
from airflow_llm_provider.pricing import micro_usd
from airflow_llm_provider.tools import by_name

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
_ELSE = {
    "on_exceeded": "A standing budget per day or month can wait.",
    "on_exhausted": 'A stronger model is model=["fast", "strong"].',
}
_LEAST = {
    "limit": 0,
    "max_bytes": 1,
    "max_in_flight": 1,
    "max_input_tokens": 1,
    "max_repairs": 0,
    "max_tokens": 1,
    "max_tool_turns": 0,
    "votes": 1,
}
_AMOUNTS = ("budget_usd", "run_budget_usd", "confirm_above_usd", "max_tool_usd")
# A text among these would be read as its letters.
_LISTS = (*("fall_back_on", "fallbacks", "messages", "stop_sequences", "tags", "tools", "validators"),)
# None is their default, and says so much as: as usual.
_MAY_BE_NONE = (
    *("approval", "fallbacks", "inputs", "limit", "max_input_tokens", "messages", "min_confidence", "model"),
    *("on_unsure", "retry", "stop_sequences", *_AMOUNTS),
)


def require_sound(arguments: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for arguments that can't be meant, whichever operator takes them.

    What another task or a template will give is not looked at: it is read at run time.
    """
    given = {name: value for name, value in arguments.items() if not _comes_later(name, value)}
    for name, choices in CHOICES.items():
        if name in given and given[name] not in choices:
            raise ValueError(
                f"{name}={given[name]!r}: choose one of {', '.join(choices)}. {_ELSE.get(name, '')}".strip()
            )
    for name, least in _LEAST.items():
        value = given.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: give a whole number, {least} or more.")
    for name in _LISTS:
        value = given.get(name, ())
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise ValueError(f"{name}={value!r}: give a list.")
    for name in _AMOUNTS:
        require_amount(name, given.get(name))
    require_share("min_confidence", given.get("min_confidence"))
    _require_tolerance(given.get("max_failed", 0))
    _require_texts(given)
    if retry := given.get("retry"):
        from airflow_llm_provider.engine.retry import policies

        policies(retry)
    require_kinds("fall_back_on", given.get("fall_back_on", ()))
    require_approval(given.get("approval") or {})
    require_people(given.get("assigned_users"), given.get("response_timeout"))
    by_name(given.get("tools", ()))


def require_amount(name: str, dollars: Any) -> None:
    """Raise ValueError for what is no amount of US dollars; None is none."""
    if dollars is None:
        return
    try:
        micro_usd(dollars)
    except ValueError as error:
        raise ValueError(f"{name}= {error}.") from None


def require_share(name: str, share: Any) -> None:
    """Raise ValueError for what is not between 0 and 1; None is no share."""
    if share is not None and not (isinstance(share, (int, float)) and 0 <= share <= 1):
        raise ValueError(f"{name}={share!r}: give a number from 0 to 1.")


def _comes_later(name: str, value: Any) -> bool:
    """Tell what is not known yet, or not stated at all."""
    if value is None:
        return name in _MAY_BE_NONE
    is_reference = hasattr(value, "iter_references")  # to another task: so Airflow tells, too
    return is_reference or (isinstance(value, str) and is_template(value))


def _require_tolerance(max_failed: Any) -> None:
    if isinstance(max_failed, bool) or not isinstance(max_failed, (int, float)) or max_failed < 0:
        raise ValueError(
            f"max_failed={max_failed!r}: give a count (int) or a share (float) of the documents."
        )


def _require_texts(given: Mapping[str, Any]) -> None:
    """Hold what should be text, or hold texts, against that."""
    if not isinstance(version := given.get("version", ""), str):
        raise TypeError(f"version={version!r}: give a text, such as {str(version)!r}.")
    if not isinstance(inputs := given.get("inputs", {}), Mapping):
        raise TypeError(f"inputs={inputs!r}: give a dict, of data by name.")
    if not (model := given.get("model", "fast")):
        raise ValueError(f"model={model!r}: name a tier, a model id, or several to escalate through.")
    try:
        codecs.lookup(encoding := given.get("encoding", "utf-8"))
    except LookupError:
        raise ValueError(f"encoding={encoding!r}: Python knows no such encoding.") from None
