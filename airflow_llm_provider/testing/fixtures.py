"""The pytest fixture that gives a test its own stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

# Every pytest run beside this package loads this module: nothing heavier than pytest up here.
if TYPE_CHECKING:
    from airflow_llm_provider.testing.standin import StandIn


@pytest.fixture
def claude_server() -> Iterator[StandIn]:
    """Give a stand-in of the Claude API that keeps requests, and checks them when llm-comply is installed."""
    from airflow_llm_provider.testing import contract
    from airflow_llm_provider.testing.standin import StandIn

    with StandIn(validate=contract.is_available(), keep_requests=True) as server:
        yield server
