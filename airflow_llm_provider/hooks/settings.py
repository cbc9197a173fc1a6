"""The settings of a connection, and the engine they make."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.hooks.connection import Fields

if TYPE_CHECKING:
    from airflow_llm_provider.engine.client import AnthropicClient
    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.ledger.budgets import Budget
    from airflow_llm_provider.ledger.rate_limits import Limits
    from airflow_llm_provider.pricing import Prices

DEFAULT_CONNECTION = "claude_default"
TIERS = {"fast": "claude-haiku-5-5", "balanced": "claude-sonnet-5-5", "strong": "claude-opus-5-5"}
_LONGEST_LEASE_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a connection says; of which types it may be, and what its fields may hold, is for Fields to tell."""

    client: AnthropicClient
    limits: Limits
    prices: Prices = field(hash=False)
    tiers: dict[str, str] = field(hash=False)
    default_tier: str
    fallbacks: tuple[str, ...]
    timeout_s: float
    deadline_s: float
    ledger_url: str = field(repr=False)  # may hold a password, as may the client's proxy

    def model(self, name: str | None) -> str:
        """Return the model id of a tier; an id, and what else it may be, is returned as it is."""
        name = name or self.default_tier
        return self.tiers.get(name, name)

    @classmethod
    def of(cls, connection: Any, conn_id: str) -> Self:
        """Read an Airflow connection; raises AirflowFailException naming the field that is wrong."""
        from airflow_llm_provider.engine.client import DEFAULT_BASE_URL, AnthropicClient
        from airflow_llm_provider.ledger.rate_limits import Limits
        from airflow_llm_provider.pricing import Prices

        fields = Fields.of(connection, conn_id)
        try:
            prices = Prices.of(fields.extra.get("prices"), fields.extra.get("discount_percent"))
        except ValueError as error:
            raise fields.wrong(str(error)) from None
        a_minute = {name: fields.number(name, least=1) for name in ("rpm", "itpm", "otpm")}
        return cls(
            client=AnthropicClient(
                api_key=fields.key(),
                base_url=fields.base_url() or DEFAULT_BASE_URL,
                proxy=fields.proxy(),
                ca_bundle=fields.text("ca_bundle") or None,
            ),
            limits=Limits(
                **{name: None if most is None else int(most) for name, most in a_minute.items()},
                burst_s=fields.number("burst_s") or Limits().burst_s,
            ),
            prices=prices,
            tiers={tier: fields.text(tier) or model for tier, model in TIERS.items()},
            default_tier=fields.text("default_tier") or "balanced",
            fallbacks=fields.names("fallbacks"),
            timeout_s=fields.number("timeout_s") or 300.0,
            deadline_s=fields.number("deadline_s") or 900.0,
            ledger_url=fields.text("ledger_url") or default_ledger_url(),
        )

    def engine(self) -> Engine:
        """Return a new engine; make it in the process and loop that use it."""
        from airflow.sdk.configuration import conf

        from airflow_llm_provider.engine.run import Engine
        from airflow_llm_provider.ledger.ledger import Ledger

        # The SDK's transport logs every request at INFO, which is Airflow's level: a line a document.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        lease_s = _lease_s()
        ledger = Ledger(
            self.ledger_url,
            payload=conf.get("llm", "payload", fallback="errors"),
            synchronous=_synchronous(),
            lease_s=lease_s,
            beat_s=lease_s / 4.5,  # three renewals may fail or come late
            budgets=configured_budgets(),
        )
        return Engine(
            client=self.client,
            ledger=ledger,
            limits=self.limits,
            prices=self.prices,
            timeout_s=self.timeout_s,
            deadline_s=self.deadline_s,
        )


def configured_budgets() -> list[Budget]:
    """Return the budgets that [llm] sets for everything; raises AirflowFailException for what is none."""
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


def _lease_s() -> float:
    """Return [llm] lease_s: too short, and others take a call that is waited for as abandoned."""
    from airflow.sdk.configuration import conf

    text = conf.get("llm", "lease_s", fallback="45")
    try:
        lease_s = float(text)
    except ValueError:
        lease_s = 0.0
    if not 1 <= lease_s <= _LONGEST_LEASE_S:
        raise AirflowFailException(
            f"[llm] lease_s is {text!r}, and should be a number of seconds from 1 to {_LONGEST_LEASE_S}."
        )
    return lease_s


def _synchronous() -> str:
    from airflow.sdk.configuration import conf

    text: str = conf.get("llm", "synchronous", fallback="FULL")
    if text.upper() not in ("FULL", "NORMAL"):
        raise AirflowFailException(f"[llm] synchronous is {text!r}, and should be FULL or NORMAL.")
    return text
