"""The settings of a connection, and the engine they make."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from airflow.sdk.exceptions import AirflowFailException

if TYPE_CHECKING:
    from airflow_llm_provider.engine.client import AnthropicClient
    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.ledger.budgets import Budget
    from airflow_llm_provider.ledger.permits import Limits
    from airflow_llm_provider.pricing import Prices

DEFAULT_CONNECTION = "claude_default"
TIERS = {"fast": "claude-haiku-5-5", "balanced": "claude-sonnet-5-5", "strong": "claude-opus-5-5"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a connection of type `claude` says."""

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
        from airflow_llm_provider.ledger.permits import Limits
        from airflow_llm_provider.pricing import Prices

        extra = connection.extra_dejson

        def number(name: str, default: float) -> float:
            try:
                value = float(extra.get(name) or default)
            except (TypeError, ValueError):
                value = -1.0
            if value < 0 or (default and not value):
                raise _wrong(conn_id, f"{name} is {extra[name]!r}, and should be a number above 0")
            return value

        if not isinstance(extra, dict) or not all(isinstance(extra.get(tier) or "", str) for tier in TIERS):
            raise _wrong(conn_id, "its extra should be a JSON object, and the tiers in it model ids")

        fallbacks = extra.get("fallbacks") or ""
        names = fallbacks.split(",") if isinstance(fallbacks, str) else fallbacks
        try:
            prices = Prices.of(extra.get("prices"), extra.get("discount_percent"))
        except ValueError as error:
            raise _wrong(conn_id, str(error)) from None
        return cls(
            client=AnthropicClient(
                api_key=(connection.password or "").strip(),
                base_url=_base_url(connection, conn_id) or DEFAULT_BASE_URL,
                proxy=_proxy(extra.get("proxy"), conn_id),
                ca_bundle=extra.get("ca_bundle") or None,
            ),
            limits=Limits(
                **{name: int(number(name, 0)) or None for name in ("rpm", "itpm", "otpm")},
                burst_s=number("burst_s", Limits().burst_s),
            ),
            prices=prices,
            tiers={tier: extra.get(tier) or model for tier, model in TIERS.items()},
            default_tier=extra.get("default_tier") or "balanced",
            fallbacks=tuple(str(name).strip() for name in names if str(name).strip()),
            timeout_s=number("timeout_s", 300),
            deadline_s=number("deadline_s", 900),
            ledger_url=extra.get("ledger_url") or default_ledger_url(),
        )

    def engine(self) -> Engine:
        """Return a new engine; make it in the process and loop that use it."""
        from airflow.sdk.configuration import conf

        from airflow_llm_provider.engine.run import Engine
        from airflow_llm_provider.ledger.store import Ledger

        # The SDK's transport logs every request at INFO, which is Airflow's level: a line a document.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        lease_s = conf.getfloat("llm", "lease_s", fallback=45.0)
        ledger = Ledger(
            self.ledger_url,
            payload=conf.get("llm", "payload", fallback="errors"),
            synchronous=conf.get("llm", "synchronous", fallback="FULL"),
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


def _base_url(connection: Any, conn_id: str) -> str | None:
    """Read the host field, which may be a URL or a bare host with schema and port beside it."""
    host = (connection.host or "").strip().rstrip("/").removesuffix("/v1")
    if not host:
        return None
    if "://" not in host:
        host = f"{connection.schema or 'https'}://{host}"
        if connection.port:
            host += f":{connection.port}"
    parts = urlsplit(host)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _wrong(conn_id, "the base URL should be http:// or https:// and a host")
    if parts.username or parts.password:
        raise _wrong(
            conn_id, "the base URL has a user or password in it: the API key goes in the password field"
        )
    return host


def _proxy(url: Any, conn_id: str) -> str | None:
    """Read the proxy's URL, repeating no part of it in an error: any part may hold the password."""
    if not url:
        return None
    try:
        parts = urlsplit(str(url).strip())
        is_proxy = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_proxy = False
    if not is_proxy:
        raise _wrong(
            conn_id,
            "its proxy should be http://host:port or http://user:password@host:port, with @ : / ? # in the password "
            "as %40 %3A %2F %3F %23",
        )
    return str(url).strip()


def _wrong(conn_id: str, what: str) -> AirflowFailException:
    return AirflowFailException(f"Connection {conn_id!r}: {what}. Correct it under Admin, Connections.")
