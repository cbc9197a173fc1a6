"""One PostgreSQL for all tests of this folder, with a database of its own for each."""

import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.postgres import LocalPostgres

# A shared PostgreSQL may be slow for a moment: no example has a time limit.
settings.register_profile("integration", max_examples=int(os.environ.get("EXAMPLES", "20")), deadline=None)
settings.load_profile("integration")

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[LocalPostgres]:
    with LocalPostgres(durable=False) as server:  # processes are killed here, no machine loses its power
        yield server


@pytest.fixture
def postgres_url(postgres: LocalPostgres) -> str:
    return postgres.create_database(f"ledger_{next(_numbers)}")
