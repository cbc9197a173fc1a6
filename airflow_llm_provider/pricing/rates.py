"""Rate cards: the price of each kind of token of a model, by the list that genai-prices keeps.

USD per million tokens is the same number as micro-USD per token, so a card needs no unit conversion.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Self

_SCALE = 1_000_000  # rates are kept as integers of a millionth micro-USD, so that sums are exact
_KINDS = {  # our field of Usage -> genai-prices' field of ModelPrice
    "uncached_tokens": "input_mtok",
    "output_tokens": "output_mtok",
    "cache_read_tokens": "cache_read_mtok",
    "cache_write_5m_tokens": "cache_write_mtok",
    "cache_write_1h_tokens": "cache_write_1h_mtok",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one call by kind, disjoint: their sum is all that was processed."""

    uncached_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0

    @property
    def cache_write_tokens(self) -> int:
        """Tokens written to the prompt cache, of either lifetime."""
        return self.cache_write_5m_tokens + self.cache_write_1h_tokens

    @property
    def input_tokens(self) -> int:
        """All tokens the model read: uncached, read from the cache and written to it."""
        return self.uncached_tokens + self.cache_read_tokens + self.cache_write_tokens

    @classmethod
    def total(cls, usages: Iterable[Self]) -> Self:
        """Add up usages, kind by kind."""
        kept = list(usages)
        return cls(**{name: sum(getattr(usage, name) for usage in kept) for name in cls.__dataclass_fields__})

    @classmethod
    def from_api(cls, usage: Mapping[str, Any]) -> Self:
        """Read the `usage` object of a Messages API reply, where `input_tokens` excludes cached ones."""
        writes = usage.get("cache_creation_input_tokens") or 0
        hourly = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
        return cls(
            uncached_tokens=usage.get("input_tokens") or 0,
            output_tokens=usage.get("output_tokens") or 0,
            cache_read_tokens=usage.get("cache_read_input_tokens") or 0,
            cache_write_5m_tokens=writes - hourly,
            cache_write_1h_tokens=hourly,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RateCard:
    """The rates of one model: `tiers` of (input tokens above which it applies, rate by kind), ascending.

    context_window: the most tokens the model can read and write in one call, where it is known.
    """

    model: str
    context_window: int | None
    tiers: tuple[tuple[int, Mapping[str, int]], ...]

    def price_micro_usd(self, usage: Usage) -> int:
        """Price `usage` in micro-USD, rounded up.

        A long prompt moves *all* its tokens to the tier's rate, as Anthropic bills it.
        """
        total_input = usage.input_tokens
        rates = next(rates for start, rates in reversed(self.tiers) if total_input > start or start == 0)
        exact: int = sum(getattr(usage, kind) * rate for kind, rate in rates.items())
        return -(-exact // _SCALE)

    def ceiling_micro_usd(self, *, input_tokens: int, output_tokens: int) -> int:
        """Price the dearest way these tokens could be billed: every input token as its costliest kind."""
        return max(
            -(
                -(
                    input_tokens * max(r for k, r in rates.items() if k != "output_tokens")
                    + output_tokens * rates["output_tokens"]
                )
                // _SCALE
            )
            for start, rates in self.tiers
            if start == 0 or input_tokens > start
        )


def rate_card(model: str, *, factor: Decimal = Decimal(1)) -> RateCard | None:
    """Return today's rate card of an Anthropic model id; None when its price is unknown.

    factor: on every list price.
    """
    return _rate_card(model, factor, dt.datetime.now(dt.UTC).date())


def context_window(model: str) -> int | None:
    """Return the most tokens a model can read and write in one call; None where it is not known."""
    card = rate_card(model)
    return card.context_window if card else None


@lru_cache(maxsize=256)
def _rate_card(model: str, factor: Decimal, day: dt.date) -> RateCard | None:
    # genai-prices takes 0.13 CPU-s to import and 170 µs a call: imported late, asked once a model and day.
    from genai_prices import Usage as GenaiUsage
    from genai_prices import calc_price
    from genai_prices.types import TieredPrices

    begun = dt.datetime.combine(day, dt.time(), dt.UTC)
    try:
        known = calc_price(
            GenaiUsage(input_tokens=1), model, provider_id="anthropic", genai_request_timestamp=begun
        )
    except LookupError:
        return None
    fields = {kind: getattr(known.model_price, name, None) for kind, name in _KINDS.items()}
    if fields["uncached_tokens"] is None or fields["output_tokens"] is None:
        return None
    # A model without its own cache rates bills those tokens as input.
    fields = {
        kind: price if price is not None else fields["uncached_tokens"] for kind, price in fields.items()
    }
    starts = {
        tier.start for price in fields.values() if isinstance(price, TieredPrices) for tier in price.tiers
    }

    def rate(price: Decimal | Any, start: int) -> int:
        if isinstance(price, TieredPrices):
            price = next((t.price for t in reversed(price.tiers) if t.start <= start), price.base)
        return per_token(price * factor)

    tiers = tuple(
        (start, {kind: rate(price, start) for kind, price in fields.items()})
        for start in sorted({0, *starts})
    )
    return RateCard(model=model, context_window=known.model.context_window, tiers=tiers)


def per_token(usd_per_million: Decimal) -> int:
    """Return a rate as a card keeps it: in millionths of a micro-USD a token, rounded up."""
    return int((usd_per_million * _SCALE).to_integral_value(ROUND_CEILING))


def usd(micro_usd: int | None) -> str | None:
    """Write micro-USD as a decimal string of dollars, exact to the micro-USD; None stays None."""
    if micro_usd is None:
        return None
    sign, amount = ("-", -micro_usd) if micro_usd < 0 else ("", micro_usd)
    return f"{sign}{amount // 1_000_000}.{amount % 1_000_000:06d}"


_MOST_USD = 1_000_000_000  # sums of such amounts still fit the ledger's 64 bits


def micro_usd(dollars: object) -> int:
    """Read an amount in dollars, a number or a decimal string, as micro-USD, rounded down; raises ValueError."""
    try:
        amount = Decimal(str(dollars).strip().removeprefix("$").replace("_", ""))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0 or isinstance(dollars, bool):
        raise ValueError(f"{dollars!r} is no amount in US dollars, such as 2.50")
    if amount > _MOST_USD:
        raise ValueError(f"{dollars!r} is more than {_MOST_USD:,} US dollars")
    return int(amount * 1_000_000)
