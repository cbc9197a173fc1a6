"""The configuration: what [llm] in airflow.cfg says of ledger, budgets, leases and retention."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowFailException

if TYPE_CHECKING:
    from airflow_llm_provider.ledger.budgets import Budget

_LONGEST_LEASE_S = 86_400


def configured_budgets() -> list[Budget]:
    """Return the budgets that [llm] sets for everything; raises AirflowFailException for a wrong amount."""
    from airflow.sdk.configuration import conf

    from airflow_llm_provider.ledger.budgets import Budget
    from airflow_llm_provider.pricing import micro_usd

    found: list[Budget] = []
    for name, scope, per in (
        ("call_budget_usd", "call", ""),
        ("run_budget_usd", "run", ""),
        ("day_budget_usd", "all", "day"),
        ("month_budget_usd", "all", "month"),
    ):
        dollars = conf.get("llm", name, fallback="")
        if not dollars.strip():
            continue
        try:
            cap = Budget(
                name=name,
                cap_micro_usd=micro_usd(dollars),
                scope=scope,
                per=per,
                timezone=conf.get("llm", "budget_timezone", fallback="UTC"),
                origin="config",
            )
        except ValueError as error:
            raise AirflowFailException(f"[llm] {name}: {error}") from None
        found.append(cap)
    return found


def default_ledger_url() -> str:
    """Return the ledger's URL from [llm] ledger_url; by default SQLite in AIRFLOW_HOME."""
    from airflow.sdk.configuration import conf

    configured: str = conf.get("llm", "ledger_url", fallback="")
    if configured:
        return configured
    home = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
    return f"sqlite:///{home / 'llm_ledger.db'}"


def lease_s() -> float:
    """Return [llm] lease_s: a call whose lease has ended counts as abandoned, and others may make it."""
    from airflow.sdk.configuration import conf

    text = conf.get("llm", "lease_s", fallback="45")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= _LONGEST_LEASE_S:
        raise AirflowFailException(
            f"[llm] lease_s is {text!r}, and should be a number of seconds from 1 to {_LONGEST_LEASE_S}."
        )
    return seconds


def synchronous() -> str:
    """Return [llm] synchronous: how SQLite writes to disk."""
    from airflow.sdk.configuration import conf

    # With NORMAL a commit survives a killed process, and not a power cut: a paid answer could be lost.
    text: str = conf.get("llm", "synchronous", fallback="FULL")
    if text.upper() not in ("FULL", "NORMAL"):
        raise AirflowFailException(f"[llm] synchronous is {text!r}, and should be FULL or NORMAL.")
    return text
