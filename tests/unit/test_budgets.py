"""Budgets as an engine meets them, and the accounts under any order of events."""

import asyncio
import atexit
import dataclasses
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from conftest import SCOPE, Clock, Wire, make_terms, message, question
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from typer.testing import CliRunner, Result
from waiting import until

from airflow_llm_provider.cli import app
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.errors import (
    BudgetExceeded,
    BudgetSkips,
    BudgetWaits,
    Overloaded,
    UnknownPrice,
    error_of,
    record_of,
)
from airflow_llm_provider.ledger.accounts import Accounts, MissingAccounts
from airflow_llm_provider.ledger.budgets import Budget, set_budget
from airflow_llm_provider.ledger.daily import differing_days
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.payloads import PayloadPolicy
from airflow_llm_provider.ledger.records import CallScope, Failure, NewAttempt, OpenedAttempt, Settlement
from airflow_llm_provider.ledger.schema import OPEN, account, call, daily
from airflow_llm_provider.ledger.writes import Writes
from airflow_llm_provider.options import Route
from airflow_llm_provider.pricing import Prices, Usage

CAPPED = dataclasses.replace(SCOPE, run_budget_micro_usd=5_500)


def standing(ledger: Ledger, **fields: Any) -> None:
    with ledger.database.write() as connection:
        set_budget(connection, Budget(**{"name": "cap", "scope": "all", "per": "day", **fields}))


def spent(ledger: Ledger) -> list[tuple[int, int]]:
    with ledger.database.read() as connection:
        return [
            (row.settled_micro_usd, row.reserved_micro_usd) for row in connection.execute(sa.select(account))
        ]


# What the caller is told.


async def test_a_call_that_could_pass_the_budget_is_not_sent_and_the_error_says_what_to_do(
    engine: Engine, wire: Wire
) -> None:
    capped = dataclasses.replace(SCOPE, run_budget_micro_usd=100)
    with pytest.raises(BudgetExceeded) as caught:
        await engine.ask(question(), make_terms(scope=capped))
    assert wire.sent == []
    assert str(caught.value) == (
        "run nightly/run-1: up to $0.002703 needed, $0.000100 of $0.000100 left in budget 'budget.run_usd'. "
        "Nothing was sent; raise budget.run_usd of the task and clear it. Paid answers are kept."
    )


async def test_a_standing_budget_names_the_command_that_raises_it(engine: Engine) -> None:
    standing(engine.ledger, cap_micro_usd=100)
    with pytest.raises(BudgetExceeded, match=r"`airflow-llm budgets set cap --usd …` and clear the task"):
        await engine.ask(question(), make_terms())


async def test_what_is_paid_is_answered_whatever_the_budget_says(engine: Engine, wire: Wire) -> None:
    await engine.ask(question(), make_terms())
    empty = dataclasses.replace(SCOPE, run_budget_micro_usd=0)
    assert (await engine.ask(question(), make_terms(scope=empty))).reused
    assert len(wire.sent) == 1


async def test_repairs_and_escalations_are_held_by_the_budget_too(engine: Engine, wire: Wire) -> None:
    wire.usually = message("no JSON")
    with pytest.raises(BudgetExceeded):
        await engine.ask(
            question(), make_terms(scope=CAPPED, max_repairs=1_000, validators=[lambda _: "Not so."])
        )
    [(settled, reserved)] = spent(engine.ledger)
    assert len(wire.sent) > 1
    assert settled <= 5_500
    assert reserved == 0


async def test_near_the_cap_a_call_waits_for_what_is_in_flight(
    engine: Engine, wire: Wire, clock: Clock
) -> None:
    wire.gate = asyncio.Event()
    asking = [asyncio.create_task(engine.ask(question(f"{n}?"), make_terms(scope=CAPPED))) for n in range(6)]
    await until(lambda: bool(clock.slept))
    assert len(wire.sent) == 2, "two ceilings fit, the others wait"
    wire.gate.set()
    replies = await asyncio.gather(*asking)
    assert len(replies) == len(wire.sent) == 6
    [(settled, reserved)] = spent(engine.ledger)
    assert (settled, reserved) == (sum(reply.cost_micro_usd or 0 for reply in replies), 0)


async def test_waiting_for_others_ends_at_the_deadline(engine: Engine, wire: Wire, clock: Clock) -> None:
    wire.gate = asyncio.Event()
    engine.endpoint = dataclasses.replace(engine.endpoint, deadline_s=20.0)
    capped = dataclasses.replace(SCOPE, run_budget_micro_usd=3_300)
    first = asyncio.create_task(engine.ask(question("1?"), make_terms(scope=capped)))
    await until(lambda: bool(wire.sent))
    with pytest.raises(BudgetExceeded, match=r"\$0\.002701 of it reserved by calls in flight"):
        await engine.ask(question("2?"), make_terms(scope=capped))
    assert engine.endpoint.deadline_s - 1 < clock.now() <= engine.endpoint.deadline_s
    wire.gate.set()
    await first


@pytest.mark.parametrize(("on_exceeded", "error"), [("skip", BudgetSkips), ("wait", BudgetWaits)])
async def test_what_becomes_of_the_task_is_the_budgets_word(
    engine: Engine, on_exceeded: str, error: type[Exception]
) -> None:
    standing(engine.ledger, cap_micro_usd=10, on_exceeded=on_exceeded)
    with pytest.raises(error) as caught:
        await engine.ask(question(), make_terms())
    again = error_of(record_of(caught.value))
    assert type(again) is error, "it survives the way from the triggerer to a worker"
    if isinstance(again, BudgetWaits):
        assert 0 < (again.retry_after_s or 0) <= 86_400


# Prices.


async def test_an_unknown_price_stops_a_call_with_a_budget_and_says_how_to_add_it(
    engine: Engine, wire: Wire
) -> None:
    with pytest.raises(
        UnknownPrice, match=r'claude_default.*\{"prices": \{"my-model": \{"input": …, "output": …\}\}\}'
    ):
        await engine.ask(question(model="my-model"), make_terms(scope=CAPPED))
    assert wire.sent == []
    free = dataclasses.replace(SCOPE, run_id="run-2")
    assert (await engine.ask(question(model="my-model"), make_terms(scope=free))).cost_micro_usd is None


async def test_the_connections_own_prices_are_reserved_and_booked(wire: Wire, ledger_url: str) -> None:
    prices = Prices.of({"my-model": {"input": 1, "output": 2}})
    engine = Engine(endpoint=Endpoint(client=wire, prices=prices), ledger=Ledger(ledger_url))
    scope = dataclasses.replace(SCOPE, run_budget_micro_usd=20_000)
    reply = await engine.ask(question(model="my-model"), make_terms(scope=scope))
    assert reply.cost_micro_usd == 10 * 1 + 5 * 2
    assert spent(engine.ledger) == [(20, 0)]
    await engine.close()


async def test_a_fallback_connection_is_priced_by_its_own(engine: Engine, wire: Wire) -> None:
    prices = Prices.of({"claude-haiku-5-5": {"input": 100, "output": 100}})
    other = Endpoint(
        client=wire,
        address="elsewhere",
        connection_id="other",
        default_tier="claude-haiku-5-5",
        prices=prices,
    )
    engine.connect(other)
    wire.script = [Overloaded("busy")] * 20
    route = Route(fallbacks=["conn:other"], fall_back_on=["overloaded"])
    reply = await engine.ask(question(), make_terms(route=route))
    assert reply.cost_micro_usd == 1_500


# The command line.


def command(ledger_url: str, *arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["budgets", *arguments, "--ledger-url", ledger_url], env={"COLUMNS": "200"}
    )


async def test_the_command_line_sets_changes_shows_and_removes_budgets(ledger_url: str, wire: Wire) -> None:
    new = (
        "--scope",
        "dag:nightly",
        "--per",
        "day",
        "--tz",
        "Europe/Berlin",
        "--usd",
        "5",
        "--on-exceeded",
        "wait",
    )
    said = command(ledger_url, "set", "nights", *new)
    assert said.output == "nights: $5.00 per day (Europe/Berlin) for DAG nightly; when exceeded: wait\n"
    said = command(ledger_url, "set", "nights", "--usd", "7.50", "--on-exceeded", "fail")
    assert said.output == "nights: $7.50 per day (Europe/Berlin) for DAG nightly; when exceeded: fail\n"
    engine = Engine(endpoint=Endpoint(client=wire), ledger=Ledger(ledger_url))
    await engine.ask(question(), make_terms())
    [shown] = json.loads(command(ledger_url, "list", "--json").output)
    assert shown["latest"][0]["of"].startswith("dag nightly, 20")
    assert shown["latest"][0]["paid_usd"] == "0.000004"
    assert "$7.499996" in command(ledger_url, "list").output
    told = json.loads(command(ledger_url, "set", "nights", "--usd", "8", "--json").output)
    assert (told["cap_usd"], told["scope"], told["applies_to"]) == ("8.000000", "dag", "nightly")
    assert command(ledger_url, "remove", "nights").output == "nights: removed\n"
    assert command(ledger_url, "remove", "nights").exit_code == 1
    await engine.close()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--usd", "5"], "a new one needs --usd and --scope"),
        (["--usd", "five", "--scope", "run"], "'five' is not an amount in US dollars"),
        (["--usd", "5", "--scope", "all"], "per day or per month"),
        (["--usd", "5", "--scope", "all", "--per", "day", "--tz", "Mars"], "not a time zone"),
        (["--usd", "1e30", "--scope", "run"], "'1e30' is more than 1,000,000,000 US dollars"),
        (["--usd", "1e999999", "--scope", "run"], "'1e999999' is more than 1,000,000,000 US dollars"),
        (["--usd", "5", "--scope", "dag:", "--per", "day"], "'dag:' names no dag"),
        (["--usd", "5", "--scope", "task: "], "'task: ' names no task"),
    ],
)
def test_a_wrong_option_is_explained(ledger_url: str, arguments: list[str], complaint: str) -> None:
    said = command(ledger_url, "set", "cap", *arguments)
    assert said.exit_code == 1
    assert complaint in said.output


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[31m", "n" * 101])
def test_a_budget_has_a_name_that_can_be_said(ledger_url: str, name: str) -> None:
    said = command(ledger_url, "set", name, "--usd", "5", "--scope", "run")
    assert said.exit_code == 1
    assert "A budget's name is" in said.output
    assert json.loads(command(ledger_url, "list", "--json").output) == []


def test_a_name_that_can_not_be_said_may_be_changed_and_removed_where_it_is(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    standing(ledger, name="a\nb", cap_micro_usd=1)
    ledger.close()
    assert command(ledger_url, "set", "a\nb", "--usd", "7").exit_code == 0
    assert command(ledger_url, "remove", "a\nb").exit_code == 0


def test_a_dag_per_run_is_each_of_its_runs(ledger_url: str) -> None:
    said = command(ledger_url, "set", "cap", "--usd", "1", "--scope", "dag:nightly", "--per", "run")
    assert said.output == "cap: $1.00 for each DAG run of nightly; when exceeded: fail\n"


# Any order of events.


CAPS = {"run": 1_000, "task": 700, "all": 1_500}


@cache
def _database() -> Database:
    folder = tempfile.mkdtemp()
    database = Database(f"sqlite:///{Path(folder) / 'ledger.db'}", synchronous="NORMAL")
    database.migrate()
    atexit.register(shutil.rmtree, folder)
    atexit.register(database.close)
    return database


class Accounting(RuleBasedStateMachine):
    """Two engines open, settle, fail, stall and come late; the accounts are always the sum over the calls."""

    @initialize()
    def begin(self) -> None:
        self.database = _database()
        with self.database.write() as connection:
            for table in (account, call, daily):
                connection.execute(table.delete())
        self.now, self.number = 1_760_000_000_000, 0
        self.attempts: list[tuple[str, NewAttempt]] = []
        self.unbilled: set[str] = set()
        self.answered: dict[str, int] = {}
        config = Budget(name="day", cap_micro_usd=CAPS["all"], scope="all", per="day", origin="config")
        self.accounts = [Accounts("sqlite", [config]) for _ in range(2)]
        self.engines = [
            Writes(
                dialect="sqlite",
                holder=str(n),
                lease_ms=1_000,
                policy=PayloadPolicy("none"),
                accounts=accounts,
            )
            for n, accounts in enumerate(self.accounts)
        ]

    def apply(self, engine: int, *batch: Any) -> list[Any]:
        self.now += 1
        while True:
            try:
                with self.database.write() as connection:
                    done = self.engines[engine].apply(connection, self.now, batch)
            except MissingAccounts as missing:
                for meter in missing.meters:
                    with self.database.write() as connection:
                        self.accounts[engine].make(connection, self.now, meter)
                continue
            self.engines[engine].forget_ids()
            return done

    def entry(self, ceiling: int, run: int, task: int, key: int) -> NewAttempt:
        scope = CallScope(
            dag_id="nightly",
            run_id=f"run-{run}",
            task_id=f"task-{task}",
            # One run has no budget of its own, but counts where another task's has made a meter for it.
            run_budget_micro_usd=CAPS["run"] if task else None,
            budget_micro_usd=CAPS["task"],
        )
        return NewAttempt(
            fingerprint=f"{key:064x}", scope=scope, reuse="run", model="m", ceiling_micro_usd=ceiling
        )

    ENGINE = st.integers(0, 1)
    CALLS = st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 1), st.integers(0, 1), st.integers(0, 12)),
        min_size=1,
        max_size=5,
    )

    @rule(engine=ENGINE, calls=CALLS, ending=st.integers(0, 3), choice=st.integers(0), share=st.floats(0, 1))
    def open_and_end(
        self, engine: int, calls: list[tuple[int, int, int, int]], ending: int, choice: int, share: float
    ) -> None:
        entries = [self.entry(*one) for one in calls]
        ends = self.ends(ending, choice, share)
        outcomes = self.apply(engine, *ends, *entries)[len(ends) :]
        self.attempts += [
            (outcome.attempt_id, entry)
            for entry, outcome in zip(entries, outcomes, strict=True)
            if isinstance(outcome, OpenedAttempt)
        ]

    @precondition(lambda self: self.attempts)
    @rule(engine=ENGINE, ending=st.integers(1, 3), choice=st.integers(0), share=st.floats(0, 1))
    def end(self, engine: int, ending: int, choice: int, share: float) -> None:
        self.apply(engine, *self.ends(ending, choice, share))

    def ends(self, ending: int, choice: int, share: float) -> list[Any]:
        """Return no write, a settlement, or a failure of some attempt, in whatever state it is."""
        if not ending or not self.attempts:
            return []
        name, attempt = self.attempts[choice % len(self.attempts)]
        if name in self.unbilled:
            ending = 2  # what was provably not billed is never answered; to say so again changes nothing
        elif ending == 3 and name not in self.answered:
            self.unbilled.add(name)
        common = {"attempt_id": name, "fingerprint": attempt.fingerprint, "prompt": lambda: b""}
        if ending > 1:
            return [Failure(**common, billed=ending == 2, error_class="", error="")]
        cost = self.answered.setdefault(name, int((attempt.ceiling_micro_usd or 0) * share))
        usage = Usage(uncached_tokens=cost, output_tokens=1)
        paid = {"stop_reason": "end_turn", "usage": usage, "cost_micro_usd": cost, "latency_ms": 1}
        return [Settlement(**common, reply=b"{}", **paid)]

    @rule(engine=ENGINE, passed_ms=st.integers(0, 3_000))
    def time_passes(self, engine: int, passed_ms: int) -> None:
        self.now += passed_ms
        with self.database.write() as connection:
            self.engines[engine].renew(connection, self.now)

    @invariant()
    def the_sums_of_each_day_are_those_of_its_calls(self) -> None:
        if not hasattr(self, "database"):
            return
        with self.database.read() as connection:
            assert differing_days(connection) == []

    @invariant()
    def accounts_are_the_sum_of_their_calls_and_within_their_caps(self) -> None:
        if not hasattr(self, "database"):
            return
        with self.database.read() as connection:
            rows = connection.execute(sa.select(call)).all()
            accounts = connection.execute(sa.select(account)).all()
        for one in accounts:
            mine = [row for row in rows if one.label.startswith("all") or _is_counted(one.label, row)]
            reserved = sum(row.ceiling_micro_usd for row in mine if row.state == OPEN)
            settled = sum(row.cost_micro_usd or 0 for row in mine if row.state != OPEN)
            assert (one.settled_micro_usd, one.reserved_micro_usd) == (settled, reserved)
            # The run's meter counts a task that it does not bind; the others bind all that they count.
            if not one.kind.startswith("run"):
                assert settled + reserved <= CAPS[one.kind.split()[0]]


def _is_counted(label: str, row: Any) -> bool:
    return label in (f"run {row.dag_id}/{row.run_id}", f"task {row.dag_id}.{row.task_id} of {row.run_id}")


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=settings.default.max_examples // 2, stateful_step_count=25)
