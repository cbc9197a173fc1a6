"""What tests of your DAGs need: the stand-in of the Claude API and its pytest fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_llm_provider.testing.standin import StandIn, serve

__all__ = ["StandIn", "serve"]


def __getattr__(name: str) -> Any:
    # Lazy: every pytest run loads this package, because it holds the fixture.
    if name in __all__:
        from airflow_llm_provider.testing import standin

        return getattr(standin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
