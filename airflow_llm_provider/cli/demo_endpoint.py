"""The server that the demo asks: a stand-in of its own, Claude, or another one."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_llm_provider.pricing import usd

# Below the range that outgoing connections take their ports from, so that a port is likely free again.
_PORTS = range(8766, 8800)
_LATENCY_S = 1.0  # about what a short answer takes


class EndpointFailed(RuntimeError):
    """No server answers at the address that the demo was given."""


@dataclass(frozen=True, kw_only=True)
class Billed:
    """What a stand-in's invoice comes to."""

    cost_micro_usd: int
    unpriced: int

    def since(self, before: Billed) -> str | None:
        """Return what was billed since `before`, in USD; None when some of it has no known price."""
        return None if self.unpriced > before.unpriced else usd(self.cost_micro_usd - before.cost_micro_usd)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server of the Messages API.

    Attributes:
        base_url: None for Claude itself.
        told: lines for the user: what answers, and what that means.
        costs_money: a real key is used.
        port_file: where the port of our own stand-in is remembered.
    """

    base_url: str | None
    api_key: str
    told: tuple[str, ...]
    is_stand_in: bool
    costs_money: bool = False
    port_file: Path | None = None

    @property
    def connection(self) -> dict[str, Any]:
        """Return the Airflow connection, in Airflow's JSON form."""
        host = {"host": self.base_url} if self.base_url else {}
        return {"conn_type": "claude", "password": self.api_key, **host}

    def remember(self) -> None:
        """Remember our stand-in's port: answers are reused only from the same address."""
        if self.port_file is not None and self.base_url is not None:
            self.port_file.write_text(json.dumps({"port": urlsplit(self.base_url).port}))

    def invoice(self) -> Billed | None:
        """Return what a stand-in has billed so far; None for other servers."""
        if not self.is_stand_in or self.base_url is None:
            return None
        found = _get(f"{self.base_url}/stand-in/invoice").json()
        return Billed(cost_micro_usd=found["cost_micro_usd"], unpriced=found["unpriced"])


def open_endpoint(base_url: str | None, api_key: str, home: Path, open_things: ExitStack) -> Endpoint:
    """Return the server to ask: `base_url` if given, Claude if there is a key, else a stand-in started here.

    Args:
        base_url: of an Anthropic-compatible server.
        api_key: Claude's, or empty. A stand-in never gets it.
        home: the demo's folder, which remembers the stand-in's port.
        open_things: closes the stand-in when it is closed.

    Raises:
        EndpointFailed: no server answers at `base_url`.
    """
    if base_url is not None:
        return _other(base_url.rstrip("/"), api_key)
    if api_key:
        told = (
            "ANTHROPIC_API_KEY is set: this asks Claude itself, and spends money from that key's account.",
            "A dry run comes first and says how much at most. `env -u ANTHROPIC_API_KEY make demo` spends nothing.",
        )
        return Endpoint(base_url=None, api_key=api_key, told=told, is_stand_in=False, costs_money=True)
    return _own_stand_in(home, open_things)


def _own_stand_in(home: Path, open_things: ExitStack) -> Endpoint:
    from airflow_llm_provider.testing.standin import StandIn

    port_file = home / "stand-in.json"
    known: int | None = None
    with suppress(FileNotFoundError, ValueError, KeyError):
        known = int(json.loads(port_file.read_text())["port"])
    # The address is part of a request's key, so answers are found again only at the same port.
    for port in (*([known] if known else []), *_PORTS, 0):
        try:
            server = open_things.enter_context(StandIn(port=port, latency_s=_LATENCY_S))
            break
        except OSError:
            continue
    else:
        raise EndpointFailed("The stand-in found no free port on 127.0.0.1.")
    told = [
        f"No ANTHROPIC_API_KEY, so a stand-in at {server.url} answers: not Claude, but a test double.",
        "It picks words out of documents by simple rules, so the answers mean nothing. Its invoice is not charged.",
    ]
    if known and server.port != known:
        told.append(
            f"Its previous port, {known}, is taken. Another address is another endpoint: its answers are not reused, "
            "every document is asked anew."
        )
    return Endpoint(
        base_url=server.url, api_key="stand-in", told=tuple(told), is_stand_in=True, port_file=port_file
    )


def _other(base_url: str, api_key: str) -> Endpoint:
    import httpx2

    if not base_url.startswith(("http://", "https://")):
        raise EndpointFailed(f"--base-url {base_url}: give a URL, such as http://127.0.0.1:8765")
    try:
        answer = _get(f"{base_url}/stand-in")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise EndpointFailed(f"No server answers at {base_url}: {error}") from error
    note = "Another address is another endpoint: answers from other addresses are not reused."
    if answer.is_success and "stand-in" in answer.text:
        told = (f"Asking the stand-in at {base_url}: not Claude. Its answers mean nothing.", note)
        return Endpoint(base_url=base_url, api_key="stand-in", told=told, is_stand_in=True)
    key = "with the key in ANTHROPIC_API_KEY; it may charge for it" if api_key else "without a key"
    return Endpoint(
        base_url=base_url,
        api_key=api_key or "none",
        told=(f"Asking the server at {base_url}, {key}.", note),
        is_stand_in=False,
        costs_money=bool(api_key),
    )


def _get(url: str) -> Any:
    import httpx2

    # Requests to loopback must not go through a proxy.
    is_local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    return httpx2.get(url, timeout=10.0, trust_env=not is_local)
