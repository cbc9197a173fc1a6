"""The pytest fixture that gives each test its own stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

# Every pytest run on this machine loads this module, so it imports nothing heavier than pytest.
if TYPE_CHECKING:
    from airflow_llm_provider.testing.standin import StandIn


@pytest.fixture
def claude_server() -> Iterator[StandIn]:
    """Give a stand-in of the Claude API that keeps its requests; it validates them when llm-comply is installed."""
    from airflow_llm_provider.testing import contract
    from airflow_llm_provider.testing.standin import StandIn

    with StandIn(validate=contract.is_available(), keep_requests=True) as server:
        yield server
