"""Arguments as templates leave them: amounts, counts and yes or no that have become text."""

from __future__ import annotations

import re
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.pricing import micro_usd

_RUN_VALUES = re.compile(
    r"\{\{[^}]*\b(ds|ts|run_id|logical_date|data_interval_\w+|dag_run|ti|task_instance|execution_date|prev_\w+"
    r"|ds_nodash|ts_nodash\w*)\b"
)
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "none", "")


def is_template(text: str) -> bool:
    """Tell text that Airflow will render."""
    return "{{" in text or "{%" in text


def amount(task_id: str, name: str, dollars: Any) -> int | None:
    """Read an amount in US dollars as micro-USD; None where none is written, as nothing or None."""
    if dollars is None or str(dollars).strip() in ("", "None"):
        return None
    try:
        return micro_usd(dollars)
    except ValueError as error:
        raise AirflowFailException(f"{task_id}: {name}= {error}.") from None


def number(task_id: str, name: str, count: int | str | None) -> int | None:
    """Read a whole number; None where none is written."""
    if count is None or count in ("", "None"):
        return None
    try:
        read = int(str(count))  # int(2.7) would be 2
    except ValueError:
        read = -1
    if read < 0:
        raise AirflowFailException(f"{task_id}: {name}={count!r}: give a whole number, 0 or more.")
    return read


def flag(task_id: str, name: str, value: bool | str | None) -> bool:
    """Read a yes or no; nothing is a no."""
    said = str(value).strip().lower()
    if said not in (*_YES, *_NO):
        raise AirflowFailException(f"{task_id}: {name}={value!r}: give true or false.")
    return said in _YES


def require_text(task_id: str, name: str, text: Any) -> None:
    """Raise AirflowFailException for what is no text, or has nothing in it."""
    if not isinstance(text, str):
        raise AirflowFailException(f"{task_id}: the {name} is a {type(text).__name__}, and should be text.")
    if not text.strip():
        raise AirflowFailException(f"{task_id}: the {name} is empty.")


def run_values(*templates: str | None) -> list[str]:
    """Return the variables in templates that differ at every run: in a prompt they make it a new question."""
    return sorted({name for template in templates for name in _RUN_VALUES.findall(template or "")})
