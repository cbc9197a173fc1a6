"""The daily sums on PostgreSQL: the same promises."""

import sys
from pathlib import Path

import pytest

# What the claims ask for is `ledger_url`, and here it is PostgreSQL's.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
pytest.register_assert_rewrite("test_daily")
from test_daily import *  # noqa: E402, F403


@pytest.fixture
def ledger_url(postgres_url: str) -> str:
    return postgres_url
