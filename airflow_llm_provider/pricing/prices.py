"""What one connection pays: the list prices less its discount, and rates of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Self

from airflow_llm_provider.pricing.rates import RateCard, context_window, per_token, rate_card

_RATES = {  # as a connection names them -> our field of Usage, and its list price in relation to the input's
    "input": ("uncached_tokens", Decimal(1)),
    "output": ("output_tokens", None),
    "cache_read": ("cache_read_tokens", Decimal("0.1")),
    "cache_write_5m": ("cache_write_5m_tokens", Decimal("1.25")),
    "cache_write_1h": ("cache_write_1h_tokens", Decimal(2)),
}
_TOO_DEAR = 1_000_000  # USD per million tokens: a dollar a token


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """The prices of one connection.

    own: rate cards of models with negotiated rates, or that the list does not know.
    discount: factor on the list prices of all other models; 0.85 is fifteen percent off.
    """

    own: Mapping[str, RateCard] = field(default_factory=dict)
    discount: Decimal = Decimal(1)

    @classmethod
    def of(cls, prices: Mapping[str, Any] | str | None, discount_percent: object = None) -> Self:
        """Read what a connection says; raises ValueError naming what is wrong.

        prices: a mapping, or JSON of one: model id -> USD per million tokens by kind, `input`, `output`,
            `cache_read`, `cache_write_5m`, `cache_write_1h`; what is left out of the last three is 0.1, 1.25
            and 2 times the input, as Anthropic bills it. `above` holds rates of long prompts in the same
            form, by the input tokens they begin above.
        discount_percent: off the list prices, 0 to 100.
        """
        return cls(own=_own(prices), discount=_discount(discount_percent))

    def card(self, model: str) -> RateCard | None:
        """Return the rate card of a model; None when its price is unknown."""
        return self.own.get(model) or rate_card(model, factor=self.discount)


LIST_PRICES = Prices()


def _own(prices: Mapping[str, Any] | str | None) -> dict[str, RateCard]:
    if not prices:
        return {}
    try:
        read = json.loads(prices) if isinstance(prices, str) else prices
    except ValueError as error:
        raise ValueError(f"prices is no JSON: {error}") from None
    if not isinstance(read, Mapping):
        raise ValueError('prices should be like {"my-model": {"input": 3, "output": 15}}')
    return {str(model): _card(str(model), rates) for model, rates in read.items()}


def _card(model: str, rates: Any) -> RateCard:
    above = rates.get("above") or {} if isinstance(rates, Mapping) else {}
    tiers = [(0, _by_kind(model, rates))]
    for start, dearer in above.items() if isinstance(above, Mapping) else [("", None)]:
        if not str(start).isdecimal() or int(start) <= 0:
            raise ValueError(
                f'prices of {model}: above should be like {{"200000": {{"input": 6, "output": 22.5}}}}'
            )
        tiers.append((int(start), _by_kind(model, dearer)))
    return RateCard(
        model=model,
        context_window=context_window(model),
        tiers=tuple(sorted(tiers, key=_start)),
    )


def _start(tier: tuple[int, Any]) -> int:
    return tier[0]


def _by_kind(model: str, rates: Any) -> dict[str, int]:
    if not isinstance(rates, Mapping) or not {"input", "output"} <= rates.keys() <= {*_RATES, "above"}:
        raise ValueError(
            f"prices of {model} need input and output, in USD per million tokens, and may have "
            "cache_read, cache_write_5m, cache_write_1h and above"
        )
    found: dict[str, int] = {}
    for name, (kind, of_input) in _RATES.items():
        rate = _number(rates[name]) if name in rates else _number(rates["input"]) * (of_input or 1)
        if not 0 <= rate < _TOO_DEAR:
            raise ValueError(
                f"prices of {model}: {name} is {rates.get(name)!r}, and should be USD per million tokens"
            )
        found[kind] = per_token(rate)
    return found


def _discount(percent: object) -> Decimal:
    if percent in (None, ""):
        return Decimal(1)
    number = _number(percent)
    if not 0 <= number <= 100:
        raise ValueError(f"discount_percent is {percent!r}, and should be a number from 0 to 100")
    return 1 - number / 100


def _number(value: object) -> Decimal:
    """Read a number; what is none becomes one that no check lets through."""
    try:
        number = Decimal(-1) if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        return Decimal(-1)
    return number if number.is_finite() else Decimal(-1)
