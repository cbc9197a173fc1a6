"""What tokens cost, in whole micro-USD: the list of genai-prices, published factors, and a connection's own prices.

USD per million tokens is the same number as micro-USD per token, so a card needs no unit conversion.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import Any, Self

_SCALE = 1_000_000  # rates are integers in millionths of a micro-USD, so that sums are exact
_KINDS = {  # our field of Usage -> genai-prices' field of ModelPrice
    "uncached_tokens": "input_mtok",
    "output_tokens": "output_mtok",
    "cache_read_tokens": "cache_read_mtok",
    "cache_write_5m_tokens": "cache_write_mtok",
    "cache_write_1h_tokens": "cache_write_1h_mtok",
}
# https://platform.claude.com/docs/en/about-claude/pricing and /build-with-claude/fast-mode, read in December 2026. The
# factors apply to tokens of every kind, and multiply each other.
_US_FACTOR = Fraction(11, 10)
_US_SINCE = (4, 6)  # Opus 4.6, Sonnet 4.6, and every later model
_OLD_NAMES = ("claude-2", "claude-3")  # the version came before the name
_FAST_FACTOR = Fraction(2)
_FAST_MODELS = frozenset(
    {"claude-opus-4-8", "claude-opus-5", "claude-opus-5-5", "claude-fable-5-2", "claude-mythos-5-2"}
)
_BATCH_FACTOR = Fraction(1, 2)
_NEUTRAL_WORDS = frozenset({"global", "not_available", "standard"})  # the list price itself
_VERSION = re.compile(r"^claude-[a-z]+-(\d+)(?:-(\d{1,2}))?(?:-latest)?$")
LARGEST_WINDOW = 1_000_000
"""No model of the list reads more tokens. The API refuses a longer prompt, and bills nothing for it."""
FEES_MICRO_USD: Mapping[str, int] = {"web_search_requests": 10_000, "web_fetch_requests": 0}
"""What a use of a tool that runs on the server costs besides its tokens, by its name in `usage.server_tool_use`:
https://platform.claude.com/docs/en/about-claude/pricing#specific-tool-pricing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one call by kind. The kinds are disjoint, and their sum is everything that was processed.

    Attributes:
        uncached_tokens: Input that was neither read from the cache nor written to it.
        output_tokens: Output.
        cache_read_tokens: Input read from the prompt cache.
        cache_write_5m_tokens: Input written to the cache for five minutes.
        cache_write_1h_tokens: Input written to the cache for an hour.
    """

    uncached_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0

    @property
    def cache_write_tokens(self) -> int:
        """Tokens written to the prompt cache, for either lifetime."""
        return self.cache_write_5m_tokens + self.cache_write_1h_tokens

    @property
    def input_tokens(self) -> int:
        """All tokens that the model read: uncached, read from the cache and written to it."""
        return self.uncached_tokens + self.cache_read_tokens + self.cache_write_tokens

    @classmethod
    def total(cls, usages: Iterable[Self]) -> Self:
        """Return the sum of usages, kind by kind."""
        kept = list(usages)
        return cls(**{name: sum(getattr(usage, name) for usage in kept) for name in cls.__dataclass_fields__})

    def beyond(self, other: Self) -> Self | None:
        """Return the tokens of each kind that `other` has fewer of; None if there are none."""
        kinds = self.__dataclass_fields__
        more = {kind: max(0, getattr(self, kind) - getattr(other, kind)) for kind in kinds}
        return type(self)(**more) if any(more.values()) else None

    @classmethod
    def from_api(cls, usage: Mapping[str, Any]) -> Self:
        """Read the `usage` object of the Messages API, whose `input_tokens` excludes cached tokens."""
        # The API omits what was not used, or sends null.
        by_lifetime = usage.get("cache_creation") or {}
        hourly = by_lifetime.get("ephemeral_1h_input_tokens") or 0
        writes = usage.get("cache_creation_input_tokens")
        if writes is None:  # a server may state the lifetimes alone
            writes = hourly + (by_lifetime.get("ephemeral_5m_input_tokens") or 0)
        return cls(
            uncached_tokens=usage.get("input_tokens") or 0,
            output_tokens=usage.get("output_tokens") or 0,
            cache_read_tokens=usage.get("cache_read_input_tokens") or 0,
            cache_write_5m_tokens=writes - hourly,
            cache_write_1h_tokens=hourly,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RateCard:
    """The rates of one model.

    Attributes:
        model: The model id.
        context_window: The most tokens that the model can read and write in one call; None if unknown.
        tiers: Pairs of (input tokens above which it applies, rate by kind), ascending; a rate is in millionths of a
            micro-USD per token.
        factors: What all rates are multiplied with, by the API's words for geography, speed and service tier, such as
            `us` and `fast`.
    """

    model: str
    context_window: int | None
    tiers: tuple[tuple[int, Mapping[str, int]], ...]
    factors: Mapping[str, Fraction] = field(default_factory=dict)

    @property
    def price_step(self) -> int | None:
        """The input tokens above which *every* token of a call costs more; None where all prompts cost the same."""
        return self.tiers[1][0] if len(self.tiers) > 1 else None

    def factor(self, words: Iterable[str]) -> Fraction | None:
        """Return what words such as `us` and `fast` multiply the rates with; None where one has no known factor."""
        product = Fraction(1)
        for word in words:
            if word in _NEUTRAL_WORDS:
                continue
            if word not in self.factors:
                return None
            product *= self.factors[word]
        return product

    def price_micro_usd(self, usage: Usage) -> int:
        """Return the price of `usage` in micro-USD, rounded up, at standard speed in any geography."""
        return rounded_up(self.exact(usage))

    def exact(self, usage: Usage) -> int:
        """Return the price of `usage` in millionths of a micro-USD.

        A long prompt is billed at its tier's rate for *all* its tokens, as Anthropic does it.
        """
        total_input = usage.input_tokens
        rates = next(rates for start, rates in reversed(self.tiers) if total_input > start or start == 0)
        return sum(getattr(usage, kind) * rate for kind, rate in rates.items())

    def ceiling_micro_usd(self, *, input_tokens: int, output_tokens: int) -> int:
        """Return the highest price of these tokens at standard speed in any geography, in micro-USD."""
        return rounded_up(self.exact_ceiling(input_tokens=input_tokens, output_tokens=output_tokens))

    def exact_ceiling(self, *, input_tokens: int, output_tokens: int) -> int:
        """Return the highest price of these tokens in millionths of a micro-USD.

        Every input token is billed as the most expensive kind.
        """
        # The call may have fewer tokens than this bound. Then a lower tier applies, so all tiers below count.
        return max(
            input_tokens * max(r for k, r in rates.items() if k != "output_tokens")
            + output_tokens * rates["output_tokens"]
            for start, rates in self.tiers
            if start == 0 or input_tokens > start
        )


def rounded_up(exact: Fraction | int) -> int:
    """Return millionths of a micro-USD as micro-USD, rounded up."""
    # Integer division rounds down, and the minus signs turn that around.
    return -(-exact // _SCALE)


def rate_card(model: str, *, factor: Decimal = Decimal(1)) -> RateCard | None:
    """Return today's rate card of an Anthropic model; None if its price is unknown.

    Args:
        model: The model id.
        factor: By which every list price is multiplied.
    """
    # The day is part of the cache's key, so that a process that runs for days uses the new prices.
    return _rate_card(model, factor, dt.datetime.now(dt.UTC).date())


def context_window(model: str) -> int | None:
    """Return the most tokens that a model can read and write in one call; None if unknown."""
    card = rate_card(model)
    return card.context_window if card else None


@lru_cache(maxsize=256)
def _rate_card(model: str, factor: Decimal, day: dt.date) -> RateCard | None:
    # genai-prices takes 0.13 CPU-seconds to import and 170 µs per call, so it is imported late and asked once per
    # model and day.
    from genai_prices import Usage as GenaiUsage
    from genai_prices import calc_price
    from genai_prices.types import TieredPrices

    # Some platforms have an id of its own for the fast mode of a model, and genai-prices takes it for the model's.
    if model.endswith("-fast"):
        return None
    # The beginning of the day, because the result is cached for the whole day.
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
        return per_token(Fraction(price) * Fraction(factor))

    tiers = tuple(
        (start, {kind: rate(price, start) for kind, price in fields.items()})
        for start in sorted({0, *starts})
    )
    return RateCard(
        model=model,
        context_window=known.model.context_window,
        tiers=tiers,
        factors=_published_factors(known.model.id),
    )


def _published_factors(model: str) -> Mapping[str, Fraction]:
    """Return the factors of a model, by its id in genai-prices."""
    found = _VERSION.match(model)
    # Older models cannot be asked for a geography, and have no premium for one.
    version = (int(found[1]), int(found[2] or 0)) if found else _US_SINCE
    is_older = version < _US_SINCE or model.startswith(_OLD_NAMES)
    factors = {"batch": _BATCH_FACTOR, "us": Fraction(1) if is_older else _US_FACTOR}
    if model in _FAST_MODELS:
        factors["fast"] = _FAST_FACTOR
    return factors


def per_token(usd_per_million: Fraction) -> int:
    """Return a rate in millionths of a micro-USD per token, rounded up."""
    return -(-usd_per_million * _SCALE // 1)


def usd(micro_usd: int | None) -> str | None:
    """Return micro-USD as a decimal string of dollars, exact to the micro-USD; None stays None."""
    if micro_usd is None:
        return None
    sign, amount = ("-", -micro_usd) if micro_usd < 0 else ("", micro_usd)
    return f"{sign}{amount // 1_000_000}.{amount % 1_000_000:06d}"


def paid_and_unproven(paid_micro_usd: int, unproven_micro_usd: int) -> str:
    """Return two amounts in words, apart: what was paid, and what calls without a reply may have cost at most."""
    paid = f"${usd(paid_micro_usd)}"
    return f"{paid} paid and at most ${usd(unproven_micro_usd)} unproven" if unproven_micro_usd else paid


_MAX_USD = 1_000_000_000  # sums of such amounts still fit the ledger's 64 bits


def micro_usd(dollars: object) -> int:
    """Return an amount in dollars, a number or a decimal string, as micro-USD, rounded down; raises ValueError."""
    try:
        amount = Decimal(str(dollars).strip().removeprefix("$").replace("_", ""))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0 or isinstance(dollars, bool):
        raise ValueError(f"{dollars!r} is not an amount in US dollars, such as 2.50")
    if amount > _MAX_USD:
        raise ValueError(f"{dollars!r} is more than {_MAX_USD:,} US dollars")
    # Rounded down, so that a cap is never higher than what was typed.
    return int(amount * 1_000_000)


_RATES = {  # name in a connection -> field of Usage, and the usual share of the input's price
    "input": ("uncached_tokens", Fraction(1)),
    "output": ("output_tokens", Fraction(1)),
    "cache_read": ("cache_read_tokens", Fraction(1, 10)),
    "cache_write_5m": ("cache_write_5m_tokens", Fraction(5, 4)),
    "cache_write_1h": ("cache_write_1h_tokens", Fraction(2)),
}
_MAX_RATE = 1_000_000  # USD per million tokens: a dollar a token
_MAX_FACTOR = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """The prices of one connection.

    Attributes:
        own: Rate cards of models with negotiated rates, or models that are not in the list.
        factor: Factor on the list prices of all other models, and on fees; 0.85 is fifteen percent below the list.
    """

    own: Mapping[str, RateCard] = field(default_factory=dict)
    factor: Decimal = Decimal(1)

    @classmethod
    def of(cls, prices: Mapping[str, Any] | str | None, price_change_percent: object = None) -> Self:
        """Read the prices that a connection states.

        Args:
            prices: A mapping, or JSON of one, from model id to USD per million tokens by kind: `input`, `output`,
                `cache_read`, `cache_write_5m`, `cache_write_1h`. The last three default to the input's price times
                what the list has for the model; for a model that is not in the list, times 0.1, 1.25 and 2. `above`
                has the rates of long prompts in the same form, by the number of input tokens above which they apply.
                `factors` has what all rates are multiplied with, by the API's words `us`, `fast`, `priority` …; those
                that it leaves out are those of the list.
            price_change_percent: On the list prices of all other models: -15 is fifteen percent below them, 10 is ten
                percent above.

        Raises:
            ValueError: Names what is wrong.
        """
        return cls(own=_own(prices), factor=_changed(price_change_percent))

    def card(self, model: str) -> RateCard | None:
        """Return the rate card of a model; None if its price is unknown."""
        return self.own.get(model) or rate_card(model, factor=self.factor)


LIST_PRICES = Prices()


def _own(prices: Mapping[str, Any] | str | None) -> dict[str, RateCard]:
    if not prices:
        return {}
    try:
        read = json.loads(prices) if isinstance(prices, str) else prices
    except ValueError as error:
        raise ValueError(f"prices is not JSON: {error}") from None
    if not isinstance(read, Mapping):
        raise ValueError('prices should be like {"my-model": {"input": 3, "output": 15}}')
    return {str(model): _card(str(model), rates) for model, rates in read.items()}


def _card(model: str, rates: Any) -> RateCard:
    listed = rate_card(model)
    above = rates.get("above") or {} if isinstance(rates, Mapping) else {}
    tiers = [(0, _by_kind(model, rates, _shares(listed, 0)))]
    for start, dearer in above.items() if isinstance(above, Mapping) else [("", None)]:
        if not str(start).isdecimal() or int(start) <= 0:
            raise ValueError(
                f'prices of {model}: above should be like {{"200000": {{"input": 6, "output": 22.5}}}}'
            )
        tiers.append((int(start), _by_kind(model, dearer, _shares(listed, int(start)))))
    factors = rates.get("factors") or {}
    if not isinstance(factors, Mapping) or not all(0 < _number(f) <= _MAX_FACTOR for f in factors.values()):
        raise ValueError(f'prices of {model}: factors should be like {{"us": 1.1, "fast": 2}}')
    own = {str(word): Fraction(_number(factor)) for word, factor in factors.items()}
    return RateCard(
        model=model,
        context_window=listed.context_window if listed else None,
        tiers=tuple(sorted(tiers, key=_start)),
        factors={**(listed.factors if listed else {}), **own},
    )


def _start(tier: tuple[int, Any]) -> int:
    return tier[0]


def _shares(listed: RateCard | None, start: int) -> Mapping[str, Fraction]:
    """Return the price of each kind of input as a share of the uncached input's, where prompts are above `start`."""
    if listed is None:
        return dict(_RATES.values())
    rates = next(rates for begin, rates in reversed(listed.tiers) if begin <= start)
    return {kind: Fraction(rate, rates["uncached_tokens"]) for kind, rate in rates.items()}


def _by_kind(model: str, rates: Any, shares: Mapping[str, Fraction]) -> dict[str, int]:
    known = {*_RATES, "above", "factors"}
    if not isinstance(rates, Mapping) or not {"input", "output"} <= rates.keys() <= known:
        raise ValueError(
            f"prices of {model} need input and output, in USD per million tokens, and may have "
            "cache_read, cache_write_5m, cache_write_1h, above and factors"
        )
    found: dict[str, int] = {}
    for name, (kind, _) in _RATES.items():
        stated, share = (rates[name], Fraction(1)) if name in rates else (rates["input"], shares[kind])
        rate = Fraction(_number(stated)) * share
        if not 0 <= rate < _MAX_RATE:
            raise ValueError(
                f"prices of {model}: {name} is {rates.get(name)!r}, and should be USD per million tokens"
            )
        found[kind] = per_token(rate)
    return found


def _changed(percent: object) -> Decimal:
    if percent in (None, ""):
        return Decimal(1)
    number = _number(percent, otherwise=Decimal("Infinity"))
    if not -100 <= number <= 100 * _MAX_FACTOR:
        raise ValueError(
            f"price_change_percent is {percent!r}, and should be a number from -100: -15 is fifteen percent below the "
            "list prices, 10 is ten percent above them"
        )
    return 1 + number / 100


def _number(value: object, *, otherwise: Decimal = Decimal(-1)) -> Decimal:
    """Return a number; anything else becomes `otherwise`, which every check rejects."""
    try:
        # From the text: Decimal(0.1) would have the binary digits of the float.
        number = otherwise if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        return otherwise
    return number if number.is_finite() else otherwise
