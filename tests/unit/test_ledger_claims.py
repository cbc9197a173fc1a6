"""What the ledger promises on every database; tests/integration/test_ledger_postgres.py holds PostgreSQL to it."""

import asyncio
import dataclasses
import gc
import hashlib
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import sqlalchemy as sa
from waiting import until

from airflow_llm_provider.errors import BudgetWaits, LedgerUnusable
from airflow_llm_provider.ledger import effects, rate_limits, reviews
from airflow_llm_provider.ledger.budgets import (
    Budget,
    BudgetRefusal,
    budget_error,
    remove_budget,
    set_budget,
)
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.maintenance import prune
from airflow_llm_provider.ledger.payloads import unpack_prompt
from airflow_llm_provider.ledger.records import (
    CallScope,
    ClaimHeld,
    Failure,
    InvalidAnswer,
    NewAttempt,
    OpenedAttempt,
    PromptToKeep,
    Reopening,
    Saving,
    SettledReply,
    Settlement,
    Sighting,
    first_id_of,
)
from airflow_llm_provider.ledger.schema import call, daily, payload, rate_limit, saving
from airflow_llm_provider.pricing import Usage
from tests.support.forks import in_a_child

NIGHTLY = CallScope(dag_id="nightly", run_id="run-1", task_id="ask", trace_id="0" * 32)
KEY = hashlib.sha256(b"How are you?").hexdigest()
REPLY = b'{"content":[{"type":"text","text":"Fine."}]}'
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


def entry(fingerprint: str = KEY, **fields: object) -> NewAttempt:
    usual = {"scope": NIGHTLY, "reuse": "always", "model": "claude-haiku-5-5", "ceiling_micro_usd": 900}
    return NewAttempt(**{"fingerprint": fingerprint, **usual, **fields})


def settlement(opened: OpenedAttempt, fingerprint: str = KEY, **fields: object) -> Settlement:
    usual = {"reply": REPLY, "prompt": lambda: b"the prompt", "stop_reason": "end_turn", "latency_ms": 700}
    paid = {"usage": Usage(uncached_tokens=10, output_tokens=5), "cost_micro_usd": 4}
    return Settlement(
        **{"attempt_id": opened.attempt_id, "fingerprint": fingerprint, **usual, **paid, **fields}
    )


def failure(opened: OpenedAttempt, **fields: object) -> Failure:
    usual = {"billed": False, "error_class": "RateLimited", "error": "429", "prompt": lambda: b"the prompt"}
    return Failure(**{"attempt_id": opened.attempt_id, "fingerprint": KEY, **usual, **fields})


async def bought(ledger: Ledger, fingerprint: str = KEY, **fields: object) -> OpenedAttempt:
    opened = await ledger.open(entry(fingerprint, **fields))
    assert isinstance(opened, OpenedAttempt)
    await ledger.record(settlement(opened, fingerprint))
    return opened


def rows(ledger: Ledger) -> list[sa.Row]:
    with ledger.database.read() as connection:
        return list(connection.execute(sa.select(call).order_by(call.c.opened_ms)))


def states(ledger: Ledger) -> list[str]:
    return [row.state for row in rows(ledger)]


def let_pass(ledger: Ledger, seconds: float) -> None:
    """Let so much time pass for the leases: instead of the database's clock, their ends move."""
    with ledger.database.write() as connection:
        ends = call.c.lease_until_ms - round(seconds * 1000)
        connection.execute(sa.update(call).where(call.c.state == "open").values(lease_until_ms=ends))


def prompts(ledger: Ledger) -> list[bytes]:
    with ledger.database.read() as connection:
        kept = connection.scalars(sa.select(payload.c.prompt).where(payload.c.prompt.is_not(None)))
        return [unpack_prompt(prompt) for prompt in kept]


# One live attempt per key.


async def test_one_attempt_holds_a_key_until_it_ends(ledger: Ledger) -> None:
    first = await ledger.open(entry())
    assert isinstance(first, OpenedAttempt)
    assert await ledger.open(entry()) == ClaimHeld(ledger.holder)
    await ledger.record(settlement(first))
    second = await ledger.open(entry())
    assert isinstance(second, SettledReply)
    assert (second.attempt_id, second.reply, second.cost_micro_usd) == (first.attempt_id, REPLY, 4)
    assert states(ledger) == ["settled"]


async def test_many_engines_that_ask_at_once_open_each_key_once(ledger_of: Callable[..., Ledger]) -> None:
    ledgers = [ledger_of() for _ in range(4)]
    keys = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(100)]
    opened = await asyncio.gather(*(ledger.open(entry(key)) for ledger in ledgers for key in keys))
    assert sum(isinstance(outcome, OpenedAttempt) for outcome in opened) == 100
    assert sum(isinstance(outcome, ClaimHeld) for outcome in opened) == 300


async def test_a_failed_attempt_frees_its_key_at_once(ledger: Ledger) -> None:
    await ledger.record(failure(await ledger.open(entry())))
    assert isinstance(await ledger.open(entry()), OpenedAttempt)
    assert states(ledger) == ["failed", "open"]
    assert rows(ledger)[0].cost_micro_usd is None


async def test_when_a_lease_ends_the_next_caller_gets_the_key_and_the_old_attempt_is_booked_at_its_ceiling(
    ledger_of: Callable[..., Ledger],
) -> None:
    stalled, next_one = ledger_of(**STALLED), ledger_of()
    await stalled.open(entry())
    assert isinstance(await next_one.open(entry()), ClaimHeld)
    let_pass(stalled, 60)
    assert isinstance(await next_one.open(entry()), OpenedAttempt)
    old, new = rows(next_one)
    assert (old.state, old.cost_micro_usd, old.error_class) == ("unproven", 900, "LeaseExpired")
    assert (new.state, new.cost_micro_usd) == ("open", None)


async def test_only_one_caller_gets_the_key_when_a_lease_ends(ledger_of: Callable[..., Ledger]) -> None:
    stalled = ledger_of(**STALLED)
    ledgers = [ledger_of() for _ in range(4)]
    await stalled.open(entry())
    let_pass(stalled, 60)
    outcomes = await asyncio.gather(*(ledger.open(entry()) for ledger in ledgers for _ in range(5)))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ClaimHeld"] * 19 + ["OpenedAttempt"]


async def test_a_reply_that_comes_after_its_lease_is_booked_and_reused(
    ledger_of: Callable[..., Ledger],
) -> None:
    stalled, next_one = ledger_of(**STALLED), ledger_of()
    old = await stalled.open(entry())
    let_pass(stalled, 60)
    new = await next_one.open(entry())
    await stalled.record(settlement(old))
    assert (await next_one.find_reply(KEY, NIGHTLY, "always")).attempt_id == old.attempt_id
    await next_one.record(settlement(new, latency_ms=800))
    assert [(row.state, row.cost_micro_usd) for row in rows(next_one)] == [("late", 4), ("settled", 4)]
    assert (await next_one.find_reply(KEY, NIGHTLY, "always")).attempt_id == new.attempt_id


async def test_a_late_reply_is_taken_instead_of_buying_another(
    ledger_of: Callable[..., Ledger],
) -> None:
    stalled, next_one = ledger_of(**STALLED), ledger_of()
    old = await stalled.open(entry())
    let_pass(stalled, 60)
    await next_one.record(failure(await next_one.open(entry())))
    await stalled.record(settlement(old))
    # A waiter that looked the answer up before it came only opens, again and again.
    outcome = await next_one.open(entry())
    assert isinstance(outcome, SettledReply)
    assert outcome.attempt_id == old.attempt_id


async def test_proof_that_comes_late_corrects_what_was_booked_at_the_ceiling(
    ledger_of: Callable[..., Ledger],
) -> None:
    stalled, next_one = ledger_of(**STALLED), ledger_of()
    old = await stalled.open(entry())
    let_pass(stalled, 60)
    await next_one.open(entry())
    await stalled.record(failure(old, billed=False))
    assert [(row.state, row.cost_micro_usd) for row in rows(next_one)] == [("failed", None), ("open", None)]


async def test_a_live_holder_keeps_its_key_however_long_the_call_takes(
    ledger_of: Callable[..., Ledger],
) -> None:
    alive, other = ledger_of(lease_s=45, beat_s=0.02), ledger_of()
    opened = await alive.open(entry())
    for _ in range(3):
        until_ms = rows(other)[0].lease_until_ms
        let_pass(other, 30)
        await until(lambda: rows(other)[0].lease_until_ms >= until_ms)  # noqa: B023
    assert isinstance(await other.open(entry()), ClaimHeld)
    await alive.record(settlement(opened))
    assert states(alive) == ["settled"]


async def test_an_attempt_of_a_dead_process_is_booked_even_if_it_is_never_asked_again(
    ledger_of: Callable[..., Ledger],
) -> None:
    dead = ledger_of(**STALLED)
    await dead.open(entry())
    let_pass(dead, 120)
    ledger_of(beat_s=0.02)
    await until(lambda: states(dead) == ["unproven"])
    assert [(row.state, row.cost_micro_usd) for row in rows(dead)] == [("unproven", 900)]


# Committed before the caller hears of it.


def lose_a_commit(ledger: Ledger) -> list[bool]:
    """Let the next transaction be committed and its connection break before it says so; return what is left to lose."""
    lost = [True]

    def commit_and_lose_the_connection(connection: sa.Connection) -> None:
        if lost.pop() if lost else False:
            connection.connection.commit()
            raise sa.exc.OperationalError("COMMIT", {}, OSError("the connection broke"))

    sa.event.listen(ledger.database._writer, "commit", commit_and_lose_the_connection)
    return lost


async def test_a_write_whose_commit_was_not_confirmed_is_not_booked_twice(ledger: Ledger) -> None:
    opened = await ledger.open(entry())
    lost = lose_a_commit(ledger)
    await ledger.record(settlement(opened))
    assert lost == []
    assert [(row.state, row.cost_micro_usd) for row in rows(ledger)] == [("settled", 4)]


async def test_an_opening_whose_commit_was_not_confirmed_is_the_callers_own(ledger: Ledger) -> None:
    lost = lose_a_commit(ledger)
    opened = await ledger.open(entry())
    assert lost == []
    assert isinstance(opened, OpenedAttempt)
    assert [row.id for row in rows(ledger)] == [opened.attempt_id]
    await ledger.record(settlement(opened))
    assert states(ledger) == ["settled"]


async def test_a_saving_whose_commit_was_not_confirmed_counts_once(ledger: Ledger) -> None:
    lost = lose_a_commit(ledger)
    await ledger.record(Saving(scope=NIGHTLY, model="m", reused=3))
    assert lost == []
    with ledger.database.read() as connection:
        assert connection.scalars(sa.select(saving.c.reused)).all() == [3]
        assert connection.scalars(sa.select(daily.c.reused)).all() == [3]


async def test_a_write_outlives_the_cancellation_of_its_waiter(ledger: Ledger) -> None:
    opened = await ledger.open(entry())
    waiting = asyncio.create_task(ledger.record(settlement(opened)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    ledger.close()
    assert states(ledger) == ["settled"]


async def test_closing_commits_what_nobody_waited_for(ledger: Ledger) -> None:
    opened = await ledger.open(entry())
    ledger.record_later(failure(opened, billed=True))
    await asyncio.to_thread(ledger.close)
    assert states(ledger) == ["unproven"]


async def test_using_a_closed_ledger_is_an_error_at_once(ledger: Ledger) -> None:
    ledger.close()
    with pytest.raises(RuntimeError, match="closed"):
        await ledger.open(entry())


# Rows that the database refuses.


async def test_nul_and_lone_surrogates_are_stored_as_replacement_characters(ledger: Ledger) -> None:
    odd = "a\0b\ud800c"
    scope = dataclasses.replace(NIGHTLY, dag_id=odd, owner=odd, tags=odd)
    opened = await ledger.open(entry(item_id=odd, scope=scope, model=odd))
    await ledger.record(failure(opened, error=odd))
    again = await ledger.open(entry(item_id=odd, scope=scope))
    await ledger.record(settlement(again, stop_reason=odd))
    first, second = rows(ledger)
    assert (
        first.item_id
        == first.error
        == first.dag_id
        == first.owner
        == first.model
        == "a\N{REPLACEMENT CHARACTER}b?c"
    )
    assert second.stop_reason == first.error


async def test_a_row_that_is_refused_does_not_stop_the_others_of_its_group(ledger: Ledger) -> None:
    keys = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(20)]
    entries = [entry(key, ceiling_micro_usd=2**70 if i == 7 else 1) for i, key in enumerate(keys)]
    outcomes = await asyncio.gather(*(ledger.open(e) for e in entries), return_exceptions=True)
    assert isinstance(outcomes.pop(7), Exception)
    assert all(isinstance(outcome, OpenedAttempt) for outcome in outcomes)


async def test_a_prompt_that_can_not_be_serialised_fails_alone(
    ledger_of: Callable[..., Ledger],
) -> None:
    ledger = ledger_of(payload="full")

    def broken() -> bytes:
        raise ValueError("no prompt")

    good, bad = await ledger.open(entry()), await ledger.open(entry("f" * 64))
    results = await asyncio.gather(
        ledger.record(settlement(good)),
        ledger.record(settlement(bad, "f" * 64, prompt=broken)),
        return_exceptions=True,
    )
    assert results[0] is None
    assert isinstance(results[1], ValueError)
    assert sorted(states(ledger)) == ["open", "settled"]


async def test_an_error_of_the_database_shows_nothing_of_what_was_stored(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    secret = dataclasses.replace(NIGHTLY, trace_id="the patient's name" * 10, map_index=2**70)
    with caplog.at_level(logging.DEBUG), pytest.raises(Exception) as caught:  # noqa: PT011
        await ledger.open(entry(item_id="the patient's name", scope=secret))
    assert "patient" not in "".join(traceback.format_exception(caught.value, limit=0))
    assert "patient" not in caplog.text


# Reuse.


@pytest.mark.parametrize(
    ("bought_with", "asked_with", "scope", "found"),
    [
        ("always", "always", {"dag_id": "another", "run_id": "run-2"}, True),
        ("run", "always", {"dag_id": "another", "run_id": "run-2"}, True),
        ("run", "run", {"task_id": "another", "map_index": 7}, True),
        ("always", "run", {"task_id": "another"}, True),
        ("run", "run", {"run_id": "run-2"}, False),
        ("run", "run", {"dag_id": "another"}, False),
        ("never", "never", {"try_number": 2}, True),
        ("never", "never", {"try_number": 2, "first_try": 2}, False),
        ("never", "never", {"map_index": 1}, False),
        ("run", "never", {}, False),
    ],
)
async def test_a_reply_is_found_within_the_scope_of_its_reuse(
    ledger: Ledger, bought_with: str, asked_with: str, scope: dict, found: bool
) -> None:
    await bought(ledger, reuse=bought_with)
    answer = await ledger.find_reply(KEY, dataclasses.replace(NIGHTLY, **scope), asked_with)
    assert (answer is not None) == found


async def test_the_newest_reply_is_taken(ledger: Ledger) -> None:
    await bought(ledger, reuse="run")
    await asyncio.sleep(0.02)
    scope = dataclasses.replace(NIGHTLY, run_id="run-2")
    newest = await bought(ledger, reuse="run", scope=scope)
    assert (await ledger.find_reply(KEY, NIGHTLY, "always")).attempt_id == newest.attempt_id


async def test_an_invalid_answer_is_noted_and_stays_a_settled_reply(ledger: Ledger) -> None:
    opened = await bought(ledger)
    for complaint in ("total: Field required", "total: too\0low"):
        await ledger.record(InvalidAnswer(opened.attempt_id, "InvalidOutput", complaint))
    assert isinstance(await ledger.find_reply(KEY, NIGHTLY, "always"), SettledReply)
    (row,) = rows(ledger)
    assert (row.state, row.cost_micro_usd) == ("settled", 4)
    assert (row.error_class, row.error) == ("InvalidOutput", "total: too\N{REPLACEMENT CHARACTER}low")


async def test_a_reopened_reply_is_bought_again_and_stays_booked(ledger: Ledger) -> None:
    await bought(ledger)
    later = dataclasses.replace(NIGHTLY, run_id="run-2")
    await ledger.record(Reopening(KEY, later))
    assert await ledger.find_reply(KEY, later, "always") is None
    await bought(ledger, scope=later)
    assert [(row.state, row.cost_micro_usd) for row in rows(ledger)] == [("reopened", 4), ("settled", 4)]


async def test_a_retry_does_not_reopen_what_was_bought_since_the_last_clear(ledger: Ledger) -> None:
    await bought(ledger)
    await ledger.record(Reopening(KEY, dataclasses.replace(NIGHTLY, try_number=2)))
    assert states(ledger) == ["settled"]
    cleared = dataclasses.replace(NIGHTLY, try_number=2, first_try=2)
    await ledger.record(Reopening(KEY, cleared))
    assert states(ledger) == ["reopened"]


async def test_copies_of_a_document_share_the_reply(ledger: Ledger) -> None:
    await bought(ledger)
    for copy in ("a" * 64, "b" * 64):
        await ledger.record(Sighting(copy, KEY))
        assert (await ledger.find_reply_by_sighting(copy, NIGHTLY, "run")).fingerprint == KEY
    assert await ledger.find_reply_by_sighting("c" * 64, NIGHTLY, "run") is None
    assert (
        await ledger.find_reply_by_sighting("a" * 64, dataclasses.replace(NIGHTLY, run_id="run-2"), "run")
        is None
    )


async def test_a_sighting_leads_to_the_latest_request(ledger: Ledger) -> None:
    await bought(ledger)
    await bought(ledger, "f" * 64)
    await ledger.record(Sighting("a" * 64, KEY))
    await ledger.record(Sighting("a" * 64, "f" * 64))
    assert (await ledger.find_reply_by_sighting("a" * 64, NIGHTLY, "always")).fingerprint == "f" * 64


async def test_thousands_of_lookups_at_once_each_get_their_own_reply(ledger: Ledger) -> None:
    keys = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(1500)]
    opened = await asyncio.gather(*(ledger.open(entry(key)) for key in keys))
    await asyncio.gather(
        *(ledger.record(settlement(o, k, reply=k.encode())) for o, k in zip(opened, keys, strict=True))
    )
    for reuse in ("always", "run"):
        answers = await asyncio.gather(*(ledger.find_reply(key, NIGHTLY, reuse) for key in [*keys, "0" * 64]))
        assert answers.pop() is None
        assert [answer.reply for answer in answers] == [key.encode() for key in keys]


# Which prompts are kept.


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("full", 3), ("errors", 2), ("sampled:1", 3), ("sampled:0", 2), ("none", 0)],
)
async def test_prompts_are_kept_by_policy_and_replies_always(
    ledger_of: Callable[..., Ledger], policy: str, kept: int
) -> None:
    ledger = ledger_of(payload=policy)
    await bought(ledger)
    invalid = await bought(ledger, "f" * 64)
    await ledger.record(PromptToKeep(invalid.attempt_id, "f" * 64, lambda: b"the prompt"))
    await ledger.record(failure(await ledger.open(entry("e" * 64))))
    assert prompts(ledger) == [b"the prompt"] * kept
    for key in (KEY, "f" * 64):
        assert (await ledger.find_reply(key, NIGHTLY, "always")).reply == REPLY


async def test_a_sample_has_the_same_documents_in_every_run(ledger_of: Callable[..., Ledger]) -> None:
    keys = [hashlib.sha256(b"document %d" % i).hexdigest() for i in range(400)]

    async def sampled(run: str) -> set[bytes]:
        ledger = ledger_of(payload="sampled:0.1")
        scope = dataclasses.replace(NIGHTLY, run_id=run)
        opened = await asyncio.gather(*(ledger.open(entry(key, reuse="run", scope=scope)) for key in keys))
        await asyncio.gather(
            *(
                ledger.record(settlement(o, k, prompt=lambda k=k: f"{run} {k}".encode()))
                for o, k in zip(opened, keys, strict=True)
            )
        )
        return {prompt.split()[1] for prompt in prompts(ledger) if prompt.startswith(run.encode())}

    monday, tuesday = await sampled("monday"), await sampled("tuesday")
    assert monday == tuesday
    assert 20 <= len(monday) <= 60


@pytest.mark.parametrize(
    "policy", ["", "everything", "sampled", "sampled:2", "sampled:-1", "sampled:nan", "full:1"]
)
def test_a_payload_policy_that_can_not_be_read_is_named(ledger_url: str, policy: str) -> None:
    with pytest.raises(LedgerUnusable, match="use full, errors, none or sampled") as caught:
        Ledger(ledger_url, payload=policy)
    assert repr(policy) in str(caught.value)


# The database's clock alone.

HOUR_S = 3600


@pytest.fixture(params=[-30 * 24, -1, 26], ids=lambda hours: f"{hours}h")
def moved_s(request: pytest.FixtureRequest) -> int:
    """So many seconds are added to the clock of a worker."""
    return int(request.param) * HOUR_S


@pytest.fixture
def moved_clock(ledger_of: Callable[..., Ledger], moved_s: int, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Open a ledger, and move all clocks of this process but the database's."""
    ledger = ledger_of(**STALLED)
    true_time, true_time_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: true_time() + moved_s)
    monkeypatch.setattr(time, "time_ns", lambda: true_time_ns() + moved_s * 10**9)
    return ledger


def now_ms(ledger: Ledger) -> int:
    with ledger.database.read() as connection:
        return ledger.database.now_ms(connection)


async def test_ids_and_times_of_calls_are_by_the_databases_clock(moved_clock: Ledger) -> None:
    before_ms = now_ms(moved_clock)
    await bought(moved_clock)
    await moved_clock.record(Saving(scope=NIGHTLY, model="m", reused=1))
    after_ms = now_ms(moved_clock)
    [row] = rows(moved_clock)
    with moved_clock.database.read() as connection:
        kept = connection.execute(sa.select(saving)).one()
    for at_ms in (row.opened_ms, row.closed_ms, kept.at_ms):
        assert before_ms <= at_ms <= after_ms
    for name in (row.id, kept.id):
        assert first_id_of(before_ms) <= name < first_id_of(after_ms + 1)


async def test_a_budget_sees_the_calls_of_a_worker_whose_clock_is_wrong(moved_clock: Ledger) -> None:
    await bought(moved_clock, ceiling_micro_usd=4)
    for per in ("day", "month"):
        cap = Budget(name=per, cap_micro_usd=5, scope="all", per=per)
        await moved_clock.write(lambda connection, _: set_budget(connection, cap))  # noqa: B023
        refusal = await moved_clock.open(entry("f" * 64, ceiling_micro_usd=2))
        assert isinstance(refusal, BudgetRefusal)
        assert refusal.settled_micro_usd == 4
        await moved_clock.write(lambda connection, _: remove_budget(connection, per))  # noqa: B023


async def test_a_task_waits_until_the_next_day_begins_by_the_databases_clock(moved_clock: Ledger) -> None:
    cap = Budget(name="day", cap_micro_usd=5, scope="all", per="day", on_exceeded="wait")
    await moved_clock.write(lambda connection, _: set_budget(connection, cap))
    refusal = await moved_clock.open(entry(ceiling_micro_usd=6))
    assert isinstance(refusal, BudgetRefusal)
    error = budget_error(refusal, "claude-haiku-5-5", "claude_default")
    assert isinstance(error, BudgetWaits)
    left_s = 86_400 - now_ms(moved_clock) / 1000 % 86_400
    assert error.retry_after_s == pytest.approx(left_s, abs=30) or left_s > 86_370  # or midnight has passed


async def test_a_worker_whose_clock_is_wrong_neither_breaks_a_lease_nor_loses_its_own(
    moved_clock: Ledger, ledger_of: Callable[..., Ledger]
) -> None:
    await moved_clock.open(entry())
    other = ledger_of(**STALLED)
    assert isinstance(await other.open(entry()), ClaimHeld)
    let_pass(other, 60)
    assert isinstance(await other.open(entry()), OpenedAttempt)


async def test_a_pruning_by_a_worker_whose_clock_is_wrong_removes_what_is_old(moved_clock: Ledger) -> None:
    await bought(moved_clock)
    young = await asyncio.to_thread(prune, moved_clock.database, rows_before_ms=now_ms(moved_clock) - 60_000)
    old = await asyncio.to_thread(prune, moved_clock.database, rows_before_ms=now_ms(moved_clock) + 60_000)
    assert (young.rows, old.rows) == (0, 1)


async def test_the_rate_of_late_is_measured_by_the_databases_clock(moved_clock: Ledger) -> None:
    for number in range(20):
        await bought(moved_clock, f"{number:064x}")
    bucket = rate_limits.Bucket(connection_id="", model="claude-haiku-5-5", stated=rate_limits.Limits())
    cut = rate_limits.Cut(share=0.5, sent_rpm=0.0, accepted=0.5, sent_ago_s=0.0)
    await moved_clock.write(partial(rate_limits.slow_down, bucket=bucket, cut=cut))
    with moved_clock.database.read() as connection:
        # 20 calls within ten seconds are at least 120 per minute, of which half was accepted.
        assert 60 <= connection.scalar(sa.select(rate_limit.c.cut_rpm)) <= 600


async def test_an_effect_and_a_review_are_dated_by_the_databases_clock(moved_clock: Ledger) -> None:
    before_ms = now_ms(moved_clock)
    intent = effects.Intent(
        scope=NIGHTLY,
        item_id=None,
        call_id="c" * 32,
        tool_use_id="toolu_1",
        tool="send_mail",
        is_irreversible=True,
        arguments=b"{}",
    )
    began = await moved_clock.write(partial(effects.begin, intent=intent, lease_ms=10_000))
    asked = reviews.AskedQuestion(asked_hash="a" * 64, shown=b'"form"', content=b'"letter"', why="")
    await moved_clock.write(lambda connection, _: reviews.store_question(connection, NIGHTLY, "", asked))
    await moved_clock.write(partial(reviews.store_shown, scope=NIGHTLY, key=""))
    shown = await moved_clock.read(lambda connection, _: reviews.find(connection, NIGHTLY, ""))
    assert shown is not None
    for at_ms in (began.began_ms, shown.shown_ms):
        assert before_ms <= at_ms <= now_ms(moved_clock)
    assert began.is_live


# A child that was forked.


async def test_a_forked_child_can_not_use_the_ledger_and_leaves_its_parents_connections_alone(
    ledger: Ledger, ledger_of: Callable[..., Ledger], ledger_url: str
) -> None:
    opened = await ledger.open(entry())

    def write() -> None:
        with ledger.database.write():
            pass

    def read() -> None:
        with ledger.database.read():
            pass

    def find() -> None:
        asyncio.run(ledger.find_reply(KEY, NIGHTLY, "always"))

    def run_out_of_use() -> None:
        ledger.close()
        gc.collect()

    for work in (write, read, find):
        assert "LedgerUnusable: The ledger was opened in a process" in in_a_child(work)
    assert in_a_child(run_out_of_use) == "None"
    await ledger.record(settlement(opened))
    assert states(ledger) == ["settled"]

    def open_another() -> None:
        another = Ledger(ledger_url)
        assert states(another) == ["settled"]
        another.close()

    assert in_a_child(open_another) == "None"
