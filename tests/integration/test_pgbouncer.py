"""The ledger behind PgBouncer in transaction mode: the same promises, with two server connections for all."""

import asyncio
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.ledger import Ledger
from tests.support.pgbouncer import LocalPgBouncer
from tests.support.postgres import LocalPostgres

# The claims that depend on transactions, once more: what they ask for is `ledger_url`, and here PgBouncer stands in
# between.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
pytest.register_assert_rewrite("test_ledger_claims", "test_budget_claims")
from test_budget_claims import (  # noqa: E402, F401
    test_engines_together_never_reserve_more_than_the_cap,
    test_the_reservation_of_a_killed_process_is_booked_at_its_ceiling_once_it_is_needed,
)
from test_ledger_claims import (  # noqa: E402, F401
    NIGHTLY,
    bought,
    ledger,
    ledger_of,
    moved_clock,
    states,
    test_a_budget_sees_the_calls_of_a_worker_whose_clock_is_wrong,
    test_a_forked_child_can_not_use_the_ledger_and_leaves_its_parents_connections_alone,
    test_a_late_reply_is_taken_instead_of_buying_another,
    test_a_live_holder_keeps_its_key_however_long_the_call_takes,
    test_a_reply_that_comes_after_its_lease_is_booked_and_reused,
    test_a_row_that_is_refused_does_not_stop_the_others_of_its_group,
    test_a_write_whose_commit_was_not_confirmed_is_not_booked_twice,
    test_an_attempt_of_a_dead_process_is_booked_even_if_it_is_never_asked_again,
    test_many_engines_that_ask_at_once_open_each_key_once,
    test_one_attempt_holds_a_key_until_it_ends,
    test_only_one_caller_gets_the_key_when_a_lease_ends,
    test_when_a_lease_ends_the_next_caller_gets_the_key_and_the_old_attempt_is_booked_at_its_ceiling,
)


@pytest.fixture(scope="session")
def pgbouncer(postgres: LocalPostgres) -> Iterator[LocalPgBouncer]:
    with LocalPgBouncer(postgres) as bouncer:
        yield bouncer


@pytest.fixture
def ledger_url(postgres_url: str, pgbouncer: LocalPgBouncer) -> str:
    return pgbouncer.url_of(sa.make_url(postgres_url).database or "")


@pytest.fixture
def moved_s() -> int:
    """Once is enough here: tests/integration/test_ledger_postgres.py moves the clock in both directions."""
    return -26 * 3600


def keys(count: int) -> list[str]:
    return [hashlib.sha256(b"%d" % i).hexdigest() for i in range(count)]


def test_two_transactions_of_one_connection_run_on_different_connections_of_the_server(
    ledger_url: str,
) -> None:
    """So these tests would see a prepared statement, or a setting of a session."""
    first, second = Database(ledger_url), Database(ledger_url)
    pid = sa.text("SELECT pg_backend_pid()")
    seen = set()
    with first.write() as connection:
        seen.add(connection.scalar(pid))
        with second.write() as connection:
            seen.add(connection.scalar(pid))
    assert len(seen) == 2
    with second.write() as held:
        its_own = held.scalar(pid)
        with first.write() as connection:
            seen = {connection.scalar(pid)}
            assert its_own not in seen
    first.close()
    second.close()


async def test_many_ledgers_share_two_connections_of_the_server(ledger_url: str) -> None:
    ledgers = [await asyncio.to_thread(Ledger, ledger_url) for _ in range(6)]
    wanted = keys(120)
    await asyncio.gather(*(bought(ledgers[n % 6], key) for n, key in enumerate(wanted)))
    found = await asyncio.gather(
        *(ledgers[n % 5].find_reply(key, NIGHTLY, "run") for n, key in enumerate(wanted))
    )
    assert all(found)
    assert states(ledgers[0]) == ["settled"] * 120
    with ledgers[0].database.read() as connection:
        query = "SELECT count(*) FROM pg_prepared_statements"
        assert connection.execute(sa.text(query)).scalar_one() == 0
    for one in ledgers:
        await asyncio.to_thread(one.close)
