"""What values an argument may have, and errors that name the argument."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any], bool]


def comes_later(value: Any) -> bool:
    """Tell a template, and the output of another task, from a value that is there when the DAG is parsed."""
    # By the method and not by the class XComArg: this module is also used where Airflow is not loaded.
    return hasattr(value, "iter_references") or (isinstance(value, str) and ("{{" in value or "{%" in value))


class InvalidArgument(ValueError):
    """An argument has a value that is not valid.

    Attributes:
        without_value: the message without the value, for values that came when the task ran.
    """

    def __init__(self, argument: str, value: Any, cure: str) -> None:
        super().__init__(f"{argument}={value!r}: {cure}")
        self.without_value = f"{argument}= is not valid, it is of type {type(value).__name__}: {cure}"


def message_at_run_time(error: Exception) -> str:
    """Return the message of an invalid argument, without a value that a template or another task gave."""
    return getattr(error, "without_value", str(error))


def require(argument: str, value: Any, check: Check, cure: str) -> None:
    """Raise InvalidArgument unless `check` accepts the value.

    Args:
        argument: the name that the DAG author typed, such as `budget.task_usd`.
        value: what the DAG author typed; it is shown in the message.
        check: accepts a value.
        cure: what to give instead, as a sentence.
    """
    if not check(value):
        raise InvalidArgument(argument, value, cure)


def is_list(value: Any) -> bool:
    """Accept a list of values: not a string, which would be read letter by letter, and not an iterator."""
    return isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))


def is_list_of_strings(value: Any) -> bool:
    """Accept a list of strings."""
    return is_list(value) and all(isinstance(each, str) for each in value)


def is_share(value: Any) -> bool:
    """Accept None and a number from 0 to 1."""
    return value is None or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    )


def is_whole(least: int) -> Check:
    """Return a check that accepts whole numbers from `least`."""
    # True is an int to Python, and would count as 1.
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_amount(value: Any) -> bool:
    """Accept None and an amount in US dollars: a number, 0 or more, or its text."""
    if value is None:
        return True
    from airflow_llm_provider.pricing import micro_usd

    try:
        micro_usd(value)
    except ValueError:
        return False
    return True


def or_none(check: Check) -> Check:
    """Return a check that accepts None, too."""
    return lambda value: value is None or check(value)


def is_string(value: Any) -> bool:
    """Accept a text."""
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    """Accept True and False."""
    return isinstance(value, bool)


def is_mapping(value: Any) -> bool:
    """Accept a dict."""
    return isinstance(value, Mapping)


def require_choice(argument: str, value: Any, choices: Sequence[str], more: str = "") -> None:
    """Raise ValueError unless the value is one of `choices`; `more` ends the message."""
    require(argument, value, lambda given: given in choices, f"choose one of {', '.join(choices)}.{more}")


def is_unset(value: Any) -> bool:
    """Tell None and the text that a template leaves where nothing was given."""
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def is_absolute(place: Any) -> bool:
    """Accept None, an absolute path, a URL, and what is known only when the task runs."""
    return place is None or comes_later(place) or "://" in str(place) or str(place).startswith("/")


ABSOLUTE = "it is relative, and a task may run in any working directory: give an absolute path or a URL."

_SAMPLING = ("temperature", "top_p", "top_k")


def refuse_sampling(given: Iterable[str]) -> None:
    """Raise TypeError for an argument that current models no longer take."""
    if named := [name for name in _SAMPLING if name in given]:
        raise TypeError(
            f"{named[0]}= is not an argument: the current models refuse temperature, top_p and top_k. For an older "
            f'model that takes it: request=RequestFields(extra_body={{"{named[0]}": …}}). For several independent '
            "answers: sample= of the hook, votes= of LLMBranchOperator."
        )


def wrong_type(argument: str, value: Any, wanted: str) -> TypeError:
    """Return the error for a value of a type that the argument does not take; `wanted` says what to give."""
    return TypeError(f"{argument}= is a {type(value).__name__}: give {wanted}.")
