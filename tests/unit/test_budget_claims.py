"""What budgets promise on every database; tests/integration/test_budgets.py holds PostgreSQL to it, over processes."""

import asyncio
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from test_ledger_claims import let_pass
from waiting import until

from airflow_llm_provider.ledger.accounts import BudgetWarning
from airflow_llm_provider.ledger.budgets import Budget, BudgetRefusal, budget_error, period, remove_budget
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import (
    CallScope,
    ClaimHeld,
    Failure,
    NewAttempt,
    OpenedAttempt,
    Settlement,
)
from airflow_llm_provider.ledger.schema import OPEN, account, call
from airflow_llm_provider.pricing import Usage

NIGHTLY = CallScope(
    dag_id="nightly", run_id="run-1", task_id="ask", trace_id="0" * 32, run_budget_micro_usd=1000
)
STALLED = {"beat_s": 3600.0}  # so rare that no lease is renewed


@pytest.fixture
def ledger_of(ledger_url: str) -> Iterator[Callable[..., Ledger]]:
    """Open ledgers on one database, each an engine's own as in another process."""
    opened: list[Ledger] = []

    def open_one(**options: object) -> Ledger:
        opened.append(Ledger(ledger_url, **options))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(ledger_of: Callable[..., Ledger]) -> Ledger:
    return ledger_of()


_numbers = iter(range(10**9))


def entry(ceiling: int | None = 300, scope: CallScope = NIGHTLY, **fields: object) -> NewAttempt:
    key = hashlib.sha256(b"%d" % next(_numbers)).hexdigest()
    usual = {"fingerprint": key, "reuse": "always", "model": "claude-haiku-5-5"}
    return NewAttempt(**{**usual, "scope": scope, "ceiling_micro_usd": ceiling, **fields})


def settlement(opened: OpenedAttempt, cost: int | None = 100) -> Settlement:
    return Settlement(
        attempt_id=opened.attempt_id,
        fingerprint="f" * 64,
        reply=b"{}",
        prompt=lambda: b"",
        stop_reason="end_turn",
        usage=Usage(uncached_tokens=10, output_tokens=5),
        cost_micro_usd=cost,
        latency_ms=700,
    )


def failure(opened: OpenedAttempt, *, billed: bool = False) -> Failure:
    return Failure(
        attempt_id=opened.attempt_id,
        fingerprint="f" * 64,
        billed=billed,
        error_class="Overloaded",
        error="",
        prompt=lambda: b"",
    )


def standing(ledger: Ledger, **fields: object) -> None:
    """Set a standing budget as the command line does."""
    from airflow_llm_provider.ledger.budgets import set_budget

    with ledger.database.write() as connection:
        set_budget(connection, Budget(**{"name": "cap", "scope": "all", "per": "month", **fields}))


def accounts(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """Return what each account holds: label -> (settled, reserved)."""
    with ledger.database.read() as connection:
        rows = connection.execute(sa.select(account)).all()
    return {row.label: (row.settled_micro_usd, row.reserved_micro_usd) for row in rows}


def summed(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """Return what the calls that name each account add up to."""
    with ledger.database.read() as connection:
        calls = connection.execute(sa.select(call)).all()
        labels = {row.id: row.label for row in connection.execute(sa.select(account))}
    sums = dict.fromkeys(labels.values(), (0, 0))
    for row in calls:
        for name in (row.accounts or "").split():
            settled, reserved = sums[labels[name]]
            held = row.ceiling_micro_usd or 0 if row.state == OPEN else 0
            spent = 0 if row.state == OPEN else row.cost_micro_usd or 0
            sums[labels[name]] = settled + spent, reserved + held
    return sums


async def opened(ledger: Ledger, ceiling: int | None = 300, **fields: Any) -> OpenedAttempt:
    outcome = await ledger.open(entry(ceiling, **fields))
    assert isinstance(outcome, OpenedAttempt)
    return outcome


async def bought(ledger: Ledger, cost: int | None = 100, **fields: Any) -> OpenedAttempt:
    attempt = await opened(ledger, **fields)
    await ledger.record(settlement(attempt, cost))
    return attempt


# Reserve and settle.


async def test_a_call_reserves_its_ceiling_and_settles_its_price(ledger: Ledger) -> None:
    attempt = await opened(ledger, 300)
    assert accounts(ledger) == {"run nightly/run-1": (0, 300)}
    await ledger.record(settlement(attempt, 120))
    assert accounts(ledger) == {"run nightly/run-1": (120, 0)} == summed(ledger)


async def test_what_is_written_twice_is_booked_once(ledger: Ledger) -> None:
    attempt = await bought(ledger, 120)
    await ledger.record(settlement(attempt, 120))
    await ledger.record(failure(attempt, billed=True))
    assert accounts(ledger) == {"run nightly/run-1": (120, 0)} == summed(ledger)


async def test_what_was_not_billed_is_free_again_and_what_may_have_been_is_booked_at_its_ceiling(
    ledger: Ledger,
) -> None:
    free, unproven = await asyncio.gather(opened(ledger, 300), opened(ledger, 200))
    await asyncio.gather(ledger.record(failure(free)), ledger.record(failure(unproven, billed=True)))
    assert accounts(ledger) == {"run nightly/run-1": (200, 0)} == summed(ledger)
    await ledger.record(settlement(unproven, 50))  # a reply that came late is the true price
    assert accounts(ledger) == {"run nightly/run-1": (50, 0)} == summed(ledger)


async def test_a_call_that_could_exceed_the_cap_is_not_opened(ledger: Ledger) -> None:
    await bought(ledger, 800, ceiling=800)
    refusal = await ledger.open(entry(300))
    assert isinstance(refusal, BudgetRefusal)
    assert not refusal.may_fit
    assert (refusal.need_micro_usd, refusal.settled_micro_usd, refusal.budget.cap_micro_usd) == (
        300,
        800,
        1000,
    )
    assert isinstance(await ledger.open(entry(200)), OpenedAttempt), (
        "a cheaper one still fits, to the last micro-USD"
    )
    assert accounts(ledger) == {"run nightly/run-1": (800, 200)} == summed(ledger)


async def test_a_refused_call_leaves_no_trace_and_its_key_free(ledger: Ledger) -> None:
    refused = entry(2000)
    assert isinstance(await ledger.open(refused), BudgetRefusal)
    with ledger.database.read() as connection:
        assert connection.execute(sa.select(call)).all() == []
    raised = dataclasses.replace(NIGHTLY, run_budget_micro_usd=2000)
    assert isinstance(await ledger.open(dataclasses.replace(refused, scope=raised)), OpenedAttempt)


async def test_near_the_cap_a_call_may_fit_once_others_are_settled(ledger: Ledger) -> None:
    others = await asyncio.gather(opened(ledger, 450), opened(ledger, 450))
    waiting = entry(450)
    refusal = await ledger.open(waiting)
    assert isinstance(refusal, BudgetRefusal)
    assert refusal.may_fit
    await ledger.record(settlement(others[0], 10))
    assert isinstance(await ledger.open(waiting), OpenedAttempt)


async def test_a_group_that_does_not_fit_as_a_whole_is_filled_in_its_order(ledger: Ledger) -> None:
    outcomes = await asyncio.gather(*(ledger.open(entry(300)) for _ in range(5)), ledger.open(entry(100)))
    fit = [isinstance(outcome, OpenedAttempt) for outcome in outcomes]
    assert fit == [True, True, True, False, False, True]
    assert accounts(ledger) == {"run nightly/run-1": (0, 1000)} == summed(ledger)


async def test_engines_together_never_reserve_more_than_the_cap(ledger_of: Callable[..., Ledger]) -> None:
    ledgers = [ledger_of() for _ in range(4)]
    outcomes = await asyncio.gather(*(one.open(entry(30)) for one in ledgers for _ in range(30)))
    assert sum(isinstance(outcome, OpenedAttempt) for outcome in outcomes) == 33
    assert accounts(ledgers[0]) == {"run nightly/run-1": (0, 990)} == summed(ledgers[0])


async def test_a_call_is_reserved_in_all_of_its_budgets_or_in_none(ledger: Ledger) -> None:
    standing(ledger, cap_micro_usd=250)
    scope = dataclasses.replace(NIGHTLY, budget_micro_usd=500)
    await ledger.open(entry(200, scope))
    refusal = await ledger.open(entry(200, scope))
    assert isinstance(refusal, BudgetRefusal)
    assert refusal.budget.name == "cap"
    held = {label.split(" ")[0].rstrip(","): amounts for label, amounts in accounts(ledger).items()}
    assert held == {"run": (0, 200), "task": (0, 200), "all": (0, 200)}


async def test_a_cancelled_caller_gives_up_what_it_reserved(ledger: Ledger) -> None:
    await bought(ledger, 0)  # the account is there
    opening = asyncio.ensure_future(ledger.open(entry(300)))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await bought(ledger, 0)  # a later batch
    assert accounts(ledger) == {"run nightly/run-1": (0, 0)} == summed(ledger)


async def test_an_unpriced_model_is_refused_by_a_budget_and_by_nothing_else(ledger: Ledger) -> None:
    refusal = await ledger.open(entry(None))
    assert isinstance(refusal, BudgetRefusal)
    assert refusal.need_micro_usd is None
    assert not refusal.may_fit
    free = dataclasses.replace(NIGHTLY, run_id="run-2", run_budget_micro_usd=None)
    assert isinstance(await ledger.open(entry(None, free)), OpenedAttempt)


# Which budgets limit which calls.


async def test_a_task_instance_has_its_budget_over_all_its_tries(ledger: Ledger) -> None:
    first = dataclasses.replace(NIGHTLY, budget_micro_usd=400)
    await bought(ledger, 300, scope=first)
    second_try = dataclasses.replace(first, try_number=2, first_try=2)
    assert isinstance(await ledger.open(entry(200, second_try)), BudgetRefusal)
    mapped = dataclasses.replace(first, map_index=3)
    assert isinstance(await ledger.open(entry(200, mapped)), OpenedAttempt), "another has a budget of its own"


async def test_each_run_has_its_own_and_every_task_of_it_counts(ledger: Ledger) -> None:
    await bought(ledger, 800, ceiling=800)
    unbound = dataclasses.replace(NIGHTLY, task_id="other", run_budget_micro_usd=None)
    await bought(ledger, 150, scope=unbound, ceiling=900)
    assert accounts(ledger) == {"run nightly/run-1": (950, 0)}
    assert isinstance(await ledger.open(entry(100)), BudgetRefusal)
    other_run = dataclasses.replace(NIGHTLY, run_id="run-2")
    assert isinstance(await ledger.open(entry(900, other_run)), OpenedAttempt)


async def test_stored_budgets_limit_the_calls_that_they_name(ledger: Ledger) -> None:
    free = dataclasses.replace(NIGHTLY, run_budget_micro_usd=None, connection_id="claude_default")
    standing(ledger, name="dag", scope="dag", applies_to="nightly", per="day", cap_micro_usd=100)
    standing(ledger, name="conn", scope="connection", applies_to="other", per="day", cap_micro_usd=200)
    standing(ledger, name="call", scope="call", per="", cap_micro_usd=90)

    async def refused_by(ceiling: int, **fields: Any) -> str | None:
        outcome = await ledger.open(entry(ceiling, dataclasses.replace(free, **fields)))
        return outcome.budget.name if isinstance(outcome, BudgetRefusal) else None

    assert await refused_by(91) == "call"
    assert await refused_by(60) is None
    assert await refused_by(60) == "dag"
    assert await refused_by(60, run_id="run-2") == "dag"
    assert await refused_by(60, dag_id="other") is None
    assert await refused_by(60, dag_id="other", connection_id="other") is None
    assert await refused_by(90, dag_id="third", connection_id="other") is None
    assert await refused_by(60, dag_id="third", connection_id="other") == "conn"


async def test_budgets_of_the_configuration_limit_every_call(ledger_of: Callable[..., Ledger]) -> None:
    cap = Budget(name="day_budget_usd", cap_micro_usd=500, scope="all", per="day", origin="config")
    ledger = ledger_of(budgets=[cap])
    await bought(ledger, 400, ceiling=400)
    refusal = await ledger.open(entry(200))
    assert isinstance(refusal, BudgetRefusal)
    assert refusal.budget == cap


async def test_a_cap_that_is_raised_or_removed_counts_from_the_next_call_on(ledger: Ledger) -> None:
    from airflow_llm_provider.ledger.budgets import remove_budget

    standing(ledger, cap_micro_usd=100)
    assert isinstance(await ledger.open(entry(200)), BudgetRefusal)
    standing(ledger, cap_micro_usd=250)
    await bought(ledger, 200, ceiling=200)
    assert isinstance(await ledger.open(entry(200)), BudgetRefusal)
    with ledger.database.write() as connection:
        assert remove_budget(connection, "cap")
    await bought(ledger, 200, ceiling=200)
    standing(ledger, cap_micro_usd=250)
    refusal = await ledger.open(entry(10))
    assert isinstance(refusal, BudgetRefusal)
    assert refusal.settled_micro_usd == 400, "what was spent without the budget counts all the same"
    assert summed(ledger).keys() == accounts(ledger).keys()


async def test_a_budget_set_in_the_middle_counts_what_was_spent_and_what_is_in_flight(ledger: Ledger) -> None:
    free = dataclasses.replace(NIGHTLY, run_budget_micro_usd=None)
    await bought(ledger, 400, scope=free)
    in_flight = await opened(ledger, 300, scope=free)
    standing(ledger, name="later", cap_micro_usd=900)
    assert isinstance(await ledger.open(entry(250, free)), BudgetRefusal)
    [amounts] = accounts(ledger).values()
    assert amounts == (400, 300)
    await ledger.record(settlement(in_flight, 50))
    assert isinstance(await ledger.open(entry(250, free)), OpenedAttempt)
    [amounts] = accounts(ledger).values()
    assert amounts == (450, 250)


@pytest.mark.parametrize(
    ("per", "timezone", "at", "name", "hours"),
    [
        ("day", "UTC", "2026-11-21T23:30:00+00:00", "2026-11-21", 24),
        ("day", "Europe/Berlin", "2026-11-21T23:30:00+00:00", "2026-11-22", 24),
        ("day", "Europe/Berlin", "2026-10-25T12:00:00+00:00", "2026-10-25", 25),
        ("day", "Europe/Berlin", "2026-03-29T12:00:00+00:00", "2026-03-29", 23),
        ("month", "America/New_York", "2026-03-01T03:00:00+00:00", "2026-02", 28 * 24),
        ("day", "America/Havana", "2026-03-09T03:30:00+00:00", "2026-03-08", 23),  # which has no midnight
        ("day", "America/Havana", "2026-11-01T05:30:00+00:00", "2026-11-01", 25),  # which has two
    ],
)
def test_a_day_and_a_month_are_those_of_the_calendar_there(
    per: str, timezone: str, at: str, name: str, hours: int
) -> None:
    import datetime as dt

    now_ms = int(dt.datetime.fromisoformat(at).timestamp() * 1000)
    found = period(per, timezone, now_ms)
    assert (found.name, found.until_ms - found.since_ms) == (name, hours * 3_600_000)
    assert found.since_ms <= now_ms < found.until_ms


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"scope": "week"}, "scope is one of"),
        ({"scope": "all", "per": ""}, "per day or per month"),
        ({"scope": "run", "per": "day"}, "ends by itself"),
        ({"scope": "all", "per": "day", "applies_to": "nightly"}, "can't apply to"),
        ({"scope": "run", "on_exceeded": "wait"}, "no next day or month"),
        ({"scope": "all", "per": "day", "timezone": "Europe/Nowhere"}, "not a time zone"),
        ({"scope": "all", "per": "day", "on_exceeded": "panic"}, "on_exceeded is one of"),
        ({"scope": "call", "cap_micro_usd": -1}, "is negative"),
    ],
)
def test_a_budget_whose_values_contradict_each_other_is_refused(
    fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Budget(**{"name": "cap", "cap_micro_usd": 1, **fields})


# What is left behind.


async def test_the_reservation_of_a_killed_process_is_booked_at_its_ceiling_once_it_is_needed(
    ledger_of: Callable[..., Ledger],
) -> None:
    killed, other = ledger_of(**STALLED), ledger_of(beat_s=3600.0)
    abandoned = await opened(killed, 600)
    waiting = entry(400)
    assert isinstance(await other.open(entry(500)), BudgetRefusal)
    let_pass(killed, 60)
    refusal = await other.open(entry(500))
    assert isinstance(refusal, BudgetRefusal)
    assert not refusal.may_fit
    assert refusal.settled_micro_usd == 600
    assert isinstance(await other.open(waiting), OpenedAttempt)
    assert accounts(other) == {"run nightly/run-1": (600, 400)} == summed(other)
    await killed.record(settlement(abandoned, 70))  # it was only stalled
    assert accounts(other) == {"run nightly/run-1": (70, 400)} == summed(other)


async def test_whoever_takes_over_an_expired_key_pays_for_it_too(ledger_of: Callable[..., Ledger]) -> None:
    stalled, other = ledger_of(**STALLED), ledger_of()
    abandoned = entry(300)
    await stalled.open(abandoned)
    assert isinstance(await other.open(abandoned), ClaimHeld)
    let_pass(stalled, 60)
    assert isinstance(await other.open(abandoned), OpenedAttempt)
    assert accounts(other) == {"run nightly/run-1": (300, 300)} == summed(other)


async def test_renewing_leases_books_what_other_processes_left_behind(
    ledger_of: Callable[..., Ledger],
) -> None:
    killed = ledger_of(**STALLED)
    await killed.open(entry(600))
    let_pass(killed, 120)
    other = ledger_of(beat_s=0.02)
    await until(lambda: accounts(other) == {"run nightly/run-1": (600, 0)})
    assert accounts(other) == {"run nightly/run-1": (600, 0)} == summed(other)


# Warnings.


async def test_warnings_are_given_once_at_50_80_and_95_percent(ledger_of: Callable[..., Ledger]) -> None:
    heard: list[BudgetWarning] = []
    ledgers = [ledger_of(), ledger_of()]
    for ledger in ledgers:
        ledger.on_warning = heard.append
    for number in range(10):
        await bought(ledgers[number % 2], 100, ceiling=100)
    assert [warning.percent for warning in heard] == [50, 80, 95]
    assert str(heard[0]) == (
        "50% of budget 'budget.run_usd' is used: $0.000500 of $0.001000 for run nightly/run-1."
    )
    raised = dataclasses.replace(NIGHTLY, run_budget_micro_usd=4000)
    await bought(ledgers[0], 1100, scope=raised, ceiling=1100)
    assert [warning.percent for warning in heard[3:]] == [50], "of the raised cap"


async def test_a_warning_and_a_refusal_say_what_was_paid_and_what_may_have_been_billed_apart(
    ledger: Ledger,
) -> None:
    heard: list[BudgetWarning] = []
    ledger.on_warning = heard.append
    await bought(ledger, 200)
    await ledger.record(failure(await opened(ledger, 400), billed=True))
    assert str(heard[-1]) == (
        "50% of budget 'budget.run_usd' is used: $0.000200 paid and at most $0.000400 unproven of $0.001000 for "
        "run nightly/run-1."
    )
    refusal = await ledger.open(entry(500))
    assert isinstance(refusal, BudgetRefusal)
    assert "$0.000400 of what is used is for calls that may have been billed without a reply" in str(
        budget_error(refusal, "m", "c")
    )


async def test_a_budget_that_is_set_again_counts_what_its_meter_missed_whatever_other_budgets_there_are(
    ledger: Ledger,
) -> None:
    nightly = {"name": "nightly", "scope": "dag", "per": "day", "applies_to": "nightly"}
    scope = dataclasses.replace(NIGHTLY, run_budget_micro_usd=None)
    standing(ledger, name="other", scope="dag", per="day", applies_to="other", cap_micro_usd=10)
    standing(ledger, **nightly, cap_micro_usd=10_000)
    await bought(ledger, 100, scope=scope)
    with ledger.database.write() as connection:
        remove_budget(connection, "nightly")
    await bought(ledger, 200, scope=scope)
    standing(ledger, **nightly, cap_micro_usd=10_000)
    await bought(ledger, 50, scope=scope)
    assert [settled for settled, _ in accounts(ledger).values()] == [350]
