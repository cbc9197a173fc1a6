"""An Airflow connection: its fields, each checked when it is read, and the engine that they make."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import SplitResult, urlsplit

from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.hooks import configuration

if TYPE_CHECKING:
    from airflow_llm_provider.engine.endpoint import Endpoint
    from airflow_llm_provider.engine.engine import Engine

DEFAULT_CONNECTION = "claude_default"
# Models retire. A DAG names a tier, so that another model is set in the connection alone.
TIERS = {"fast": "claude-haiku-5-5", "balanced": "claude-sonnet-5-5", "strong": "claude-opus-5-5"}

# Connections of other types hold the key of another service. The type may be missing in the environment's JSON.
_TYPES = ("claude", "anthropic", "http", "https", "generic", "", None)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields of a connection; reading one raises AirflowFailException that names the field if it is wrong."""

    conn_id: str
    connection: Any = field(repr=False)
    extra: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, connection: Any, conn_id: str) -> Self:
        """Read the type and the extra; warns of fields that the type `claude` does not have."""
        if connection.conn_type not in _TYPES:
            raise _wrong(conn_id, f"it is of type {connection.conn_type!r}, and should be of type 'claude'")
        try:
            extra = json.loads(connection.extra) if connection.extra else {}
        except ValueError:  # Airflow logs it and ignores the extra
            extra = None
        if not isinstance(extra, dict):
            raise _wrong(conn_id, 'its extra should be a JSON object, such as {"rpm": 600}')
        # A connection of another type may have fields that are meant for other programs.
        if connection.conn_type == "claude":
            _warn_of_unknown(extra, conn_id)
        return cls(conn_id=conn_id, connection=connection, extra=connection.extra_dejson)  # masked in logs

    def number(self, name: str, *, least: int = 0) -> float | None:
        """Return a number that is `least` or more, and above 0; None where the field is empty."""
        given = self.extra.get(name)
        if given is None or given == "":
            return None
        try:
            # float(True) would be 1: a limit of one request per minute.
            value = math.nan if isinstance(given, bool) else float(given)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not (math.isfinite(value) and value > 0 and value >= least):
            allowed = f", {least} or more; empty for none" if least else " above 0"
            raise self.wrong(f"{name} is {given!r}, and should be a number{allowed}")
        return value

    def text(self, name: str) -> str:
        """Return a text; empty when the field is."""
        given = self.extra.get(name) or ""
        if not isinstance(given, str):
            raise self.wrong(f"{name} in its extra should be a text")
        return given

    def names(self, name: str) -> tuple[str, ...]:
        """Return the names in a list, or in a text that separates them by commas."""
        given = self.extra.get(name) or ()
        names = given.split(",") if isinstance(given, str) else given
        if not isinstance(names, (list, tuple)) or not all(isinstance(each, str) for each in names):
            raise self.wrong(f"{name} is {given!r}, and should be names with commas between them")
        return tuple(each.strip() for each in names if each.strip())

    def key(self) -> str:
        """Return the API key; empty when the connection has none."""
        key: str = (self.connection.password or "").strip()
        # The key is sent in an HTTP header, which takes printable ASCII only.
        if not (key.isascii() and key.isprintable()):
            raise self.wrong(
                "the API key in its password field has a line break or another character that no key has"
            )
        return key

    def base_url(self) -> str | None:
        """Return the base URL of the host field, which may be a bare host beside a schema and a port."""
        host = (self.connection.host or "").strip()
        if not host:
            return None
        if "://" not in host:
            # The SDK adds `/v1` by itself, so one in the field would be doubled.
            host = f"{self.connection.schema or 'https'}://{host.rstrip('/').removesuffix('/v1')}"
            if self.connection.port:
                host += f":{self.connection.port}"
        url: str = host.rstrip("/").removesuffix("/v1")
        parts = _parts(url)
        if parts is None:
            raise self.wrong("the base URL should be http:// or https:// and a host, and a port that is one")
        if parts.username or parts.password:
            raise self.wrong(
                "the base URL has a user or password in it: the API key goes in the password field"
            )
        return url

    def proxy(self) -> str | None:
        """Return the proxy's URL, repeating no part of it in an error: any part may hold the password."""
        url = str(self.extra.get("proxy") or "").strip()
        if url and _parts(url) is None:
            raise self.wrong(
                "its proxy should be http://host:port or http://user:password@host:port, with @ : / ? # in the "
                "password as %40 %3A %2F %3F %23",
            )
        return url or None

    def wrong(self, what: str) -> AirflowFailException:
        """Return the error that says what is wrong, of which connection."""
        return _wrong(self.conn_id, what)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What a connection leads to.

    Attributes:
        endpoint: where calls go.
        ledger_url: where they are written down. It may hold a password.
    """

    endpoint: Endpoint
    ledger_url: str = field(repr=False)

    @classmethod
    def of(cls, connection: Any, conn_id: str) -> Self:
        """Read an Airflow connection; raises AirflowFailException that names the wrong field."""
        from airflow_llm_provider.engine.client import DEFAULT_BASE_URL, AnthropicClient
        from airflow_llm_provider.engine.endpoint import Endpoint
        from airflow_llm_provider.ledger.rate_limits import Limits
        from airflow_llm_provider.pricing import Prices

        fields = Fields.of(connection, conn_id)
        try:
            prices = Prices.of(fields.extra.get("prices"), fields.extra.get("price_change_percent"))
        except ValueError as error:
            raise fields.wrong(str(error)) from None
        per_minute = {name: fields.number(name, least=1) for name in ("rpm", "itpm", "otpm")}
        client = AnthropicClient(
            api_key=fields.key(),
            base_url=fields.base_url() or DEFAULT_BASE_URL,
            proxy=fields.proxy(),
            no_proxy=fields.names("no_proxy"),
            ca_bundle=fields.text("ca_bundle") or None,
        )
        endpoint = Endpoint(
            client=client,
            address=client.endpoint,
            connection_id=conn_id,
            limits=Limits(
                **{name: None if most is None else int(most) for name, most in per_minute.items()},
                burst_s=fields.number("burst_s") or Limits().burst_s,
            ),
            prices=prices,
            tiers={tier: fields.text(tier) or model for tier, model in TIERS.items()},
            default_tier=fields.text("default_tier") or "balanced",
            fallbacks=fields.names("fallbacks"),
            timeout_s=fields.number("timeout_s") or 300.0,
            deadline_s=fields.number("deadline_s") or 900.0,
        )
        return cls(
            endpoint=endpoint, ledger_url=fields.text("ledger_url") or configuration.default_ledger_url()
        )

    def engine(self) -> Engine:
        """Return a new engine; make it in the process and event loop that use it."""
        from airflow.sdk.configuration import conf

        from airflow_llm_provider.engine.engine import Engine
        from airflow_llm_provider.ledger.ledger import Ledger

        lease_s = configuration.lease_s()
        ledger = Ledger(
            self.ledger_url,
            payload=conf.get("llm", "payload", fallback="errors"),
            synchronous=configuration.synchronous(),
            lease_s=lease_s,
            beat_s=lease_s / 4.5,  # three renewals may fail or come late
            budgets=configuration.configured_budgets(),
        )
        return Engine(endpoint=self.endpoint, ledger=ledger)


def missing(conn_id: str) -> str:
    """Say that there is no such connection, and how to add it."""
    return (
        f"There is no connection {conn_id!r}, neither in the environment nor in Airflow's database. Add it with "
        f"`airflow connections add {conn_id} --conn-type claude --conn-password …`, or export "
        f'AIRFLOW_CONN_{conn_id.upper()}=\'{{"conn_type": "claude", "password": "…"}}\'.'
    )


def _parts(url: str) -> SplitResult | None:
    """Split a URL; None unless it is an HTTP URL with a host."""
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an unclosed bracket, a port that is not a number
        return None
    return parts if is_http and not any(map(str.isspace, url)) else None


def _warn_of_unknown(extra: Mapping[str, Any], conn_id: str) -> None:
    from airflow_llm_provider.provider_info import get_provider_info

    [kind] = get_provider_info()["connection-types"]
    for name in extra.keys() - kind["conn-fields"].keys():
        [*near] = get_close_matches(name, kind["conn-fields"], n=1)
        meant = f" Is {near[0]} meant?" if near else ""
        log.warning(
            "Connection %r has no field %r: what its extra says there is not read.%s", conn_id, name, meant
        )


def _wrong(conn_id: str, what: str) -> AirflowFailException:
    return AirflowFailException(f"Connection {conn_id!r}: {what}. Correct it under Admin, Connections.")
