"""What tokens cost, in whole micro-USD."""

from airflow_llm_provider.pricing.rates import RateCard, Usage, context_window, rate_card, usd

__all__ = ["RateCard", "Usage", "context_window", "rate_card", "usd"]
