"""What a day has cost outlives its calls: in budgets, in reports, and whatever order things happen in.

tests/integration/test_budgets.py holds PostgreSQL to the claims that are not about time zones.
"""

import asyncio
import dataclasses
import datetime as dt
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from test_budget_claims import NIGHTLY, accounts, bought, entry, failure, opened, settlement, standing
from test_ledger_claims import let_pass
from test_reports import DAY, MODELS, NOON, ROWS, fresh, put, row

from airflow_llm_provider.ledger.accounts import Accounts
from airflow_llm_provider.ledger.budgets import Budget, BudgetRefusal, remove_budget
from airflow_llm_provider.ledger.daily import SUMS, differing_days
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.maintenance import check, prune
from airflow_llm_provider.ledger.queries import missing_since_ms
from airflow_llm_provider.ledger.records import OpenedAttempt, Saving, is_id, new_id
from airflow_llm_provider.ledger.reports import BY, Costs, Filter, costs
from airflow_llm_provider.ledger.schema import account, call, daily, saving

FREE = dataclasses.replace(
    NIGHTLY, run_budget_micro_usd=None, connection_id="claude_default", owner="finance"
)


@pytest.fixture
def ledger(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    # The pauses of pruning are for others who write: nobody does.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    ledger = Ledger(ledger_url, beat_s=3600.0)
    yield ledger
    ledger.close()


@pytest.fixture
def database(ledger: Ledger) -> Database:
    return ledger.database


def kept(database: Database) -> dict[tuple[bool, str], dict[str, int]]:
    """Return the sums that are not 0, by whether their calls were pruned, and by model."""
    with database.read() as connection:
        rows = connection.execute(sa.select(daily)).mappings().all()
    sums = {(row["is_pruned"], row["model"]): {name: row[name] for name in SUMS if row[name]} for row in rows}
    return {key: one for key, one in sums.items() if one}


def prune_all(database: Database) -> None:
    with database.read() as connection:
        later = database.now_ms(connection) + 1_000
    prune(database, rows_before_ms=later)


# Kept with the calls.


async def test_a_call_is_added_to_its_day_with_its_tokens_in_the_transaction_that_ends_it(
    ledger: Ledger,
) -> None:
    attempt = await opened(ledger, 300, scope=FREE)
    assert kept(ledger.database) == {}
    await ledger.record(settlement(attempt, 120))
    await ledger.record(settlement(attempt, 120))  # its commit was not confirmed
    await ledger.record(failure(await opened(ledger, 300, scope=FREE)))
    await ledger.record(Saving(scope=FREE, model="claude-haiku-5-5", reused=2, reused_micro_usd=80))
    assert kept(ledger.database) == {
        (False, "claude-haiku-5-5"): {
            "calls": 1,
            "failed": 1,
            "uncached_tokens": 10,
            "output_tokens": 5,
            "cost_micro_usd": 120,
            "reused": 2,
            "reused_micro_usd": 80,
        }
    }


async def test_paid_and_unproven_are_kept_apart(ledger: Ledger) -> None:
    await bought(ledger, 120, scope=FREE)
    await ledger.record(failure(await opened(ledger, 300, scope=FREE), billed=True))
    [sums] = kept(ledger.database).values()
    assert (sums["calls"], sums["cost_micro_usd"]) == (1, 120)
    assert (sums["unproven"], sums["unproven_micro_usd"]) == (1, 300)


async def test_a_late_reply_is_booked_on_the_day_on_which_its_call_was_sent(
    ledger: Ledger, ledger_url: str
) -> None:
    attempt = await opened(ledger, 300, scope=FREE)
    with ledger.database.write() as connection:  # it was sent yesterday
        connection.execute(call.update().values(opened_ms=call.c.opened_ms - DAY))
    let_pass(ledger, 200)
    other = Ledger(ledger_url, beat_s=3600.0)
    await asyncio.to_thread(other._beat)
    other.close()
    [(_, sums)] = kept(ledger.database).items()
    assert sums == {"unproven": 1, "unproven_micro_usd": 300}
    await ledger.record(settlement(attempt, 50))
    [(_, sums)] = kept(ledger.database).items()
    assert sums == {"calls": 1, "uncached_tokens": 10, "output_tokens": 5, "cost_micro_usd": 50}
    with ledger.database.read() as connection:
        days = set(connection.scalars(sa.select(daily.c.day)))
        now_ms = ledger.database.now_ms(connection)
    assert days == {now_ms // DAY - 1}


async def test_a_reply_that_comes_after_its_call_was_pruned_changes_nothing(ledger: Ledger) -> None:
    attempt = await opened(ledger, 300, scope=FREE)
    await ledger.record(failure(attempt, billed=True))
    prune_all(ledger.database)
    before = kept(ledger.database)
    await ledger.record(settlement(attempt, 50))
    await ledger.record(failure(attempt))
    assert (
        kept(ledger.database)
        == before
        == {(True, "claude-haiku-5-5"): {"unproven": 1, "unproven_micro_usd": 300}}
    )
    assert check(ledger.database) == []


# Budgets.


async def test_a_budget_that_is_set_again_after_a_pruning_begins_with_what_its_month_has_cost(
    ledger: Ledger,
) -> None:
    standing(ledger, cap_micro_usd=1_000)
    await bought(ledger, 400, ceiling=400, scope=FREE)
    await ledger.record(failure(await opened(ledger, 300, scope=FREE), billed=True))
    prune_all(ledger.database)
    with ledger.database.write() as connection:
        assert remove_budget(connection, "cap")
    standing(ledger, cap_micro_usd=1_000)
    refusal = await ledger.open(entry(301, FREE))
    assert isinstance(refusal, BudgetRefusal)
    assert (refusal.settled_micro_usd, refusal.unproven_micro_usd) == (700, 300)
    assert isinstance(await ledger.open(entry(300, FREE)), OpenedAttempt)


@pytest.mark.parametrize("scope", ["dag", "connection", "all"])
async def test_each_meter_counts_its_own_part_of_what_was_pruned(ledger: Ledger, scope: str) -> None:
    for others in ({}, {"dag_id": "weekly"}, {"connection_id": "other"}):
        await bought(ledger, 100, scope=dataclasses.replace(FREE, **others))
    prune_all(ledger.database)
    standing(ledger, scope=scope, cap_micro_usd=1_000)
    await bought(ledger, 10, scope=FREE)
    assert [settled for settled, _ in accounts(ledger).values()] == [310 if scope == "all" else 210]


async def test_the_account_of_a_run_is_kept_when_its_budget_is_set_again(ledger: Ledger) -> None:
    standing(ledger, scope="run", per="", cap_micro_usd=1_000)
    await bought(ledger, 400, scope=FREE)
    with ledger.database.write() as connection:
        remove_budget(connection, "cap")
    await bought(ledger, 50, scope=FREE)
    prune_all(ledger.database)
    standing(ledger, scope="run", per="", cap_micro_usd=1_000)
    await bought(ledger, 5, scope=FREE)
    assert [settled for settled, _ in accounts(ledger).values()] == [455]


@pytest.mark.parametrize(
    ("timezone", "counted"),
    # 2026-01-01 12:00 UTC: noon in London, 17:30 in Kolkata, 02:00 on the next day in Kiritimati.
    [("UTC", [5]), ("Europe/London", [5]), ("Asia/Kolkata", [3, 5]), ("Pacific/Kiritimati", [5])],
)
def test_in_another_time_zone_the_whole_first_day_of_what_was_pruned_counts(
    database: Database, timezone: str, counted: list[int]
) -> None:
    yesterday, today = row(opened_ms=NOON - DAY, run_id="a"), row(opened_ms=NOON - 3_600_000, run_id="b")
    put(database, {**yesterday, "cost_micro_usd": 3}, {**today, "cost_micro_usd": 5})
    prune(database, rows_before_ms=NOON + 2)
    cap = Budget(name="cap", cap_micro_usd=100, scope="all", per="day", timezone=timezone)
    booking = Accounts(database.dialect, [cap])
    meter = cap.meter(FREE, NOON)
    with database.write() as connection:
        booking.make(connection, NOON, meter)
        assert connection.scalar(sa.select(account.c.settled_micro_usd)) == sum(counted)


# Reports.


@settings(
    max_examples=settings.default.max_examples // 4,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=st.lists(ROWS, min_size=1, max_size=30), data=st.data())
def test_a_report_says_the_same_before_and_after_a_pruning(
    database: Database, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    fresh(database, rows)
    savings = [
        {
            "id": f"{NOON + n}",
            "task_id": "t",
            "map_index": -1,
            "try_number": 1,
            "run_id": "run-1",
            "version": None,
        }
        | {name: one[name] for name in ("dag_id", "connection_id", "owner", "tags", "model")}
        | {"at_ms": one["opened_ms"], "reused": n, "reused_micro_usd": 2 * n, "routed_micro_usd": -n}
        for n, one in enumerate(rows)
    ]
    with database.write() as connection:
        connection.execute(saving.delete())
    put(database, *savings, table=saving)
    before = {by: costs(database, by) for by in BY}
    months = Filter(since_ms=NOON - 12 * 3_600_000, until_ms=NOON + 12 * 3_600_000 + DAY)
    days = costs(database, "day", months)
    prune(database, rows_before_ms=data.draw(st.integers(NOON - 2 * DAY, NOON + 3 * DAY)))
    for by in BY:
        after = costs(database, by)
        if by in ("dag", "owner", "tag", "model", "day"):
            assert after.groups == before[by].groups
        assert _without_savings(after.total) == _without_savings(before[by].total)
    assert costs(database, "day", months).groups == days.groups
    with database.read() as connection:
        assert differing_days(connection) == []


def _without_savings(one: Costs) -> Costs:
    return dataclasses.replace(one, reused=0, reused_micro_usd=0, routed_micro_usd=0)


def test_what_is_not_known_of_a_pruned_call_stands_apart(database: Database) -> None:
    put(database, row(run_id="old", uncached_tokens=1_000_000), row(run_id="new", opened_ms=NOON + DAY))
    prune(database, rows_before_ms=NOON + DAY // 2)
    report = costs(database, "run")
    assert {key: one.calls for key, one in report.groups.items()} == {
        ("nightly", None): 1,
        ("nightly", "new"): 1,
    }
    assert report.pruned.calls == 1
    assert report.pruned.cost_micro_usd == report.total.cost_micro_usd > 0
    assert costs(database, "dag", Filter(names={"run_id": "old"})).total.calls == 0
    assert costs(database, "dag", Filter(names={"dag_id": "nightly", "model": MODELS[0]})).total.calls == 2


def test_each_pruned_day_is_in_exactly_one_of_two_neighbouring_reports(database: Database) -> None:
    put(database, *(row(opened_ms=NOON + n * DAY) for n in range(4)))
    prune(database, rows_before_ms=NOON + 10 * DAY)
    cut = NOON + DAY + 3_600_000
    halves = costs(database, "dag", Filter(until_ms=cut)), costs(database, "dag", Filter(since_ms=cut))
    assert [half.total.calls for half in halves] == [2, 2]


def test_a_check_names_the_days_whose_sums_are_wrong(database: Database) -> None:
    put(database, row(), row(opened_ms=NOON + DAY))
    with database.write() as connection:
        connection.execute(daily.update().where(daily.c.day == NOON // DAY).values(cost_micro_usd=7))
    findings = [finding for finding in check(database) if "days" in finding.what]
    assert [finding.examples for finding in findings] == [[str(dt.date(2026, 1, 1))]]


async def test_whatever_is_pruned_when_a_month_never_costs_less_than_was_paid(ledger: Ledger) -> None:
    dice, paid = random.Random(13), Counter[str]()
    for number in range(12):
        scope = dataclasses.replace(FREE, dag_id=dice.choice(["a", "b"]), run_id=f"run-{number}")
        cost = dice.randrange(100)
        await bought(ledger, cost, scope=scope)
        paid[scope.dag_id] += cost
        if dice.random() < 0.2:
            prune_all(ledger.database)
            with ledger.database.write() as connection:
                remove_budget(connection, "cap")
        standing(ledger, scope="dag", per="month", cap_micro_usd=10_000)
        refusal = await ledger.open(entry(10_000, scope))
        assert isinstance(refusal, BudgetRefusal)
        assert refusal.settled_micro_usd == paid[scope.dag_id]


# A ledger that lacks what its rows have.


async def test_a_ledger_says_since_when_it_lacks_calls(ledger: Ledger) -> None:
    async def missing_since(call_id: str) -> int | None:
        return await ledger.read(lambda connection, _: missing_since_ms(connection, call_id))

    later = new_id(2 * NOON)
    assert await missing_since(later) == 0
    known = await bought(ledger, scope=FREE)
    with ledger.database.read() as connection:
        opened_ms = connection.scalar(sa.select(call.c.opened_ms))
    assert await missing_since(later) == opened_ms
    assert await missing_since(known.attempt_id) is None
    prune_all(ledger.database)
    assert await missing_since(known.attempt_id) is None
    assert await missing_since(later) == 0


@pytest.mark.parametrize("value", [None, 7, "", "x" * 32, "0" * 31, "0" * 33, "0" * 31 + "\n", ["0" * 32]])
def test_what_stands_in_a_manifest_is_an_id_or_is_not_used(value: Any) -> None:
    assert not is_id(value)
    assert is_id("0" * 32)
