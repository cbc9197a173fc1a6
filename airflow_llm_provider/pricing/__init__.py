"""What tokens cost, in whole micro-USD."""

from airflow_llm_provider.pricing.prices import LIST_PRICES, Prices
from airflow_llm_provider.pricing.rates import RateCard, Usage, context_window, micro_usd, rate_card, usd

__all__ = [
    "LIST_PRICES",
    "Prices",
    "RateCard",
    "Usage",
    "context_window",
    "micro_usd",
    "rate_card",
    "usd",
]
