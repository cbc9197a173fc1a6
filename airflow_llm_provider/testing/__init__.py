"""What tests need: a stand-in of the Claude API, its pytest fixture, recorded exchanges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_llm_provider.testing.standin import StandIn, serve

__all__ = ["StandIn", "serve"]


def __getattr__(name: str) -> Any:
    # Lazy: the pytest fixture's module lies in this package, and loads with every pytest run.
    if name in __all__:
        from airflow_llm_provider.testing import standin

        return getattr(standin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
