"""An endpoint: where Claude is reached, by which models, how fast and at which prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_llm_provider.engine.client import Client
from airflow_llm_provider.ledger.rate_limits import Limits
from airflow_llm_provider.pricing import LIST_PRICES, Prices

_NO_LIMIT = 10**12  # per minute; a server that states so much has no limit
_USED_UP = 0.02  # of a limit; a call's tokens are known only roughly
_HEADERS = [
    (f"anthropic-ratelimit-{kind}-limit", f"anthropic-ratelimit-{kind}-remaining")
    for kind in ("requests", "input-tokens", "output-tokens")
]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """What an Airflow connection says of the API it leads to.

    Attributes:
        client: sends requests to it.
        address: platform and base URL. It is in every fingerprint, so that answers of one server are never taken for
            those of another.
        connection_id: the id of the Airflow connection.
        tiers: model ids by tier, such as `fast`.
        default_tier: the tier that is asked where none is named.
        fallbacks: tiers, model ids or `conn:ID`, asked in turn when a model cannot be reached.
        limits: rate limits that the connection states.
        prices: what the connection pays.
        timeout_s: for one attempt to send a request.
        deadline_s: for a request with all its retries, from the first attempt.
    """

    client: Client
    address: str = ""
    connection_id: str = ""
    # A mapping has no hash, so it is left out of the endpoint's own.
    tiers: Mapping[str, str] = field(default_factory=dict, hash=False)
    default_tier: str = "balanced"
    fallbacks: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    prices: Prices = field(default=LIST_PRICES, hash=False)
    timeout_s: float = 300.0
    deadline_s: float = 900.0

    def model(self, name: str | None) -> str:
        """Return the model id of a tier, or of the default tier for None; other names are ids already."""
        name = name or self.default_tier
        return self.tiers.get(name, name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stated:
    """What a response's headers state of rate limits.

    Attributes:
        limits: the limits; none where the headers state none.
        left: the least share of one of them that is left, 0 to 1; None where the headers state none.
    """

    limits: Limits
    left: float | None

    @property
    def is_half_used(self) -> bool:
        """Whether more than half of a limit is used."""
        return self.left is not None and self.left < 0.5

    @property
    def is_used_up(self) -> bool:
        """Whether as good as nothing is left of a limit."""
        return self.left is not None and self.left < _USED_UP


def stated_in_headers(headers: Mapping[str, str]) -> Stated:
    """Return what a response's headers state of rate limits."""
    found: list[int | None] = []
    left: list[float] = []
    for of_limit, of_remaining in _HEADERS:
        try:
            limit, remaining = int(headers[of_limit]), int(headers[of_remaining])
        except (KeyError, ValueError):
            limit = 0
        if not 0 < limit < _NO_LIMIT:
            found.append(None)
            continue
        found.append(limit)
        left.append(remaining / limit)
    return Stated(limits=Limits(rpm=found[0], itpm=found[1], otpm=found[2]), left=min(left, default=None))
