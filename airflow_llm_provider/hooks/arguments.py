"""Arguments as a DAG author types them: what can't be meant is an error when the DAG is parsed."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Mapping, Sequence
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
_FLAGS = ("deferrable", "editable", "ignore_downstream_trigger_rules", "multiple", "retry_dead")
# A text among these would be read as its letters.
_LISTS_OF_TEXT = ("fall_back_on", "fallbacks", "stop_sequences", "tags")
_LISTS = (*_LISTS_OF_TEXT, "messages", "tools", "validators")
_DICTS = ("approval", "extra_body", "inputs", "metadata", "retry")
_TEXTS = ("effort", "id_field", "prompt", "system", "text_field")
_CHECKED = frozenset(
    {
        *(*CHOICES, *_LEAST, *_AMOUNTS, *_FLAGS, *_LISTS, *_DICTS, *_TEXTS, "encoding", "max_failed"),
        *("max_tool_s", "min_confidence", "model", "thinking"),
    }
)
# None is their default, and says so much as: as usual. A decorator's function gives the prompt.
_MAY_BE_NONE = frozenset(
    {
        *(
            "effort",
            "fallbacks",
            "limit",
            "max_input_tokens",
            "messages",
            "min_confidence",
            "model",
            "on_unsure",
        ),
        *("prompt", "stop_sequences", "system", "text_field", "thinking", *_AMOUNTS, *_DICTS),
    }
)


def require_sound(arguments: Mapping[str, Any], *, templated: Collection[str]) -> None:
    """Raise TypeError or ValueError for arguments that can't be meant, whichever operator takes them.

    templated: the arguments that may be templates and other tasks' outputs; these are looked at when the task runs.
    """
    given = {}
    for name in _CHECKED & arguments.keys():
        value = arguments[name]
        if not _comes_later(value):
            if value is not None or name not in _MAY_BE_NONE:
                given[name] = value
        elif name not in templated:
            raise ValueError(
                f"{name}={value!r}: neither a template nor another task's output can stand here. Give the value "
                "itself, or map over it with .expand()."
            )
    _require_simple(given)
    if not isinstance(model := given.get("model", "fast"), str):
        _require_list("model", model)
        if not model or not all(each is None or isinstance(each, str) for each in model):
            raise ValueError(f"model={model!r}: name a tier, a model id, or several to escalate through.")
    require_messages(given.get("messages", ()))
    require_share("min_confidence", given.get("min_confidence"))
    _require_tolerance(given.get("max_failed", 0))
    try:
        codecs.lookup(encoding := given.get("encoding", "utf-8"))
    except (LookupError, TypeError):
        raise ValueError(f"encoding={encoding!r}: Python knows no such encoding.") from None
    if retry := given.get("retry"):
        from airflow_llm_provider.engine.retry import policies

        policies(retry)
    require_kinds("fall_back_on", given.get("fall_back_on", ()))
    require_approval(given.get("approval", {}))
    require_people(arguments.get("assigned_users"), arguments.get("response_timeout"))
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


def _comes_later(value: Any) -> bool:
    """Tell a template, and another task's output, which names the tasks it refers to."""
    return hasattr(value, "iter_references") or (isinstance(value, str) and is_template(value))


def _require_simple(given: Mapping[str, Any]) -> None:
    """Hold what needs no more than a look against its kind."""
    for name in CHOICES.keys() & given.keys():
        if given[name] not in CHOICES[name]:
            choices = ", ".join(CHOICES[name])
            raise ValueError(
                f"{name}={given[name]!r}: choose one of {choices}. {_ELSE.get(name, '')}".strip()
            )
    for name, least in _LEAST.items():
        value = given.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: give a whole number, {least} or more.")
    if not isinstance(seconds := given.get("max_tool_s", 1), (int, float)) or not seconds > 0:
        raise ValueError(f"max_tool_s={seconds!r}: give a number of seconds.")
    for name in _AMOUNTS:
        require_amount(name, given.get(name))
    for name in _FLAGS:
        if not isinstance(given.get(name, False), bool):
            raise TypeError(f"{name}={given[name]!r}: give True or False.")
    for name in _TEXTS:
        if not isinstance(given.get(name, ""), str):
            raise TypeError(f"{name}={given[name]!r}: give a text.")
    for name in _DICTS:
        if not isinstance(given.get(name, {}), Mapping):
            raise TypeError(f"{name}={given[name]!r}: give a dict.")
    for name in _LISTS:
        _require_list(name, value := given.get(name, ()))
        if name in _LISTS_OF_TEXT and not all(isinstance(each, str) for each in value):
            raise TypeError(f"{name}={value!r}: give a list of texts.")


def _require_list(name: str, value: Any) -> None:
    # What can be gone through but once would be empty when it is needed.
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection):
        raise ValueError(f"{name}={value!r}: give a list.")


def require_messages(messages: Any) -> None:
    """Raise ValueError for what are no turns of a conversation."""
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"messages= holds {message!r}: give dicts, each with a role and content.")


def _require_tolerance(max_failed: Any) -> None:
    is_share = isinstance(max_failed, float) and 0 <= max_failed <= 1
    if not is_share and (isinstance(max_failed, bool) or not isinstance(max_failed, int) or max_failed < 0):
        raise ValueError(
            f"max_failed={max_failed!r}: give a count (int), or a share (float, 0 to 1) of the documents."
        )
