"""Terms of a question for tests and benchmarks of the engine."""

from __future__ import annotations

from typing import Any

from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.options import LongInput, OnInvalid, Options, Reuse, Route


def make_terms(
    scope: CallScope,
    *,
    reuse: Reuse = "run",
    max_repairs: int = 0,
    route: Route | None = None,
    long_input: LongInput | None = None,
    **fields: Any,
) -> Terms:
    """Terms of a question without repairs, unless a test says otherwise."""
    options = Options(
        reuse=reuse,
        on_invalid=OnInvalid(max_repairs=max_repairs),
        route=route or Route(),
        long_input=long_input or LongInput(),
    )
    return Terms(scope=scope, options=options, **fields)
