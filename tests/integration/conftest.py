"""One PostgreSQL for all tests of this folder, with a database of its own for each."""

import itertools
from collections.abc import Iterator

import pytest

from tests.support.postgres import LocalPostgres

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[LocalPostgres]:
    with LocalPostgres(durable=False) as server:  # processes are killed here, no machine loses its power
        yield server


@pytest.fixture
def postgres_url(postgres: LocalPostgres) -> str:
    return postgres.create_database(f"ledger_{next(_numbers)}")
