"""Reports: whatever is added up by, it is the same money."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_llm_provider.ledger.daily import (
    CALL_COLUMNS,
    DailyChanges,
    day_of,
    day_of_saving,
    sums_of,
    sums_of_saving,
)
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope, Saving, new_id
from airflow_llm_provider.ledger.reports import BY, Costs, Filter, cost_of_run, costs
from airflow_llm_provider.ledger.schema import call, daily, saving
from airflow_llm_provider.pricing import Usage, rate_card

MODELS = ("claude-haiku-5-5", "claude-opus-5-5", "nobody-knows-1")
NOON = 1_767_268_800_000  # 2026-01-01 12:00 UTC
DAY = 86_400_000


def row(**fields: Any) -> dict[str, Any]:
    """Return a row of the table `call`: a paid one, unless `fields` say otherwise."""
    state, model = fields.get("state", "settled"), fields.get("model", MODELS[0])
    tokens = {name: fields.pop(name, 0) for name in Usage.__dataclass_fields__}
    card = rate_card(model)
    known = card.price_micro_usd(Usage(**tokens)) if card else None
    is_paid = state in ("settled", "late", "reopened")
    made = {
        "id": new_id(fields.get("opened_ms", NOON)),
        "fingerprint": new_id(NOON),
        "claim": new_id(NOON),
        "state": state,
        "holder": "h",
        "lease_until_ms": 0,
        "purpose": "answer",
        "connection_id": "claude_default",
        "dag_id": "nightly",
        "run_id": "run-1",
        "task_id": "read",
        "map_index": -1,
        "try_number": 1,
        "trace_id": "0" * 32,
        "model": model,
        "ceiling_micro_usd": 900,
        "opened_ms": NOON,
        "closed_ms": None if state == "open" else NOON + 1,
        "item_id": None,
        "owner": None,
        "tags": None,
        "version": None,
        "cost_micro_usd": known if is_paid else 900 if state == "unproven" else None,
        **{name: count if is_paid else None for name, count in tokens.items()},
    }
    return {**made, **fields}


def put(database: Database, *rows: dict[str, Any], table: sa.Table = call) -> None:
    """Insert rows, and add calls and savings to their days, as the ledger does."""
    days = DailyChanges()
    with database.write() as connection:
        connection.execute(table.insert(), list(rows))
        if table is call:
            ids = [one["id"] for one in rows if one["state"] != "open"]
            for one in connection.execute(sa.select(*CALL_COLUMNS).where(call.c.id.in_(ids))):
                days.add(day_of(one), sums_of(one))
        if table is saving:
            for one in rows:
                days.add(day_of_saving(one), sums_of_saving(one))
        days.write(connection)


@pytest.fixture
def database(ledger_url: str) -> Iterator[Database]:
    database = Database(ledger_url)
    database.migrate()
    yield database
    database.close()


ROWS = st.builds(
    row,
    state=st.sampled_from(["settled", "settled", "late", "reopened", "failed", "unproven", "open"]),
    model=st.sampled_from(MODELS),
    dag_id=st.sampled_from(["nightly", "weekly"]),
    run_id=st.sampled_from(["run-1", "run-2"]),
    task_id=st.sampled_from(["read", "ask"]),
    item_id=st.sampled_from([None, "a.txt", "b.txt"]),
    owner=st.sampled_from([None, "finance"]),
    tags=st.sampled_from([None, "[]", '["red"]', '["blue", "red"]']),
    version=st.sampled_from([None, "1", "2"]),
    purpose=st.sampled_from(["answer", "repair"]),
    opened_ms=st.integers(NOON - 2 * DAY, NOON + 2 * DAY),
    uncached_tokens=st.integers(0, 300_000),
    output_tokens=st.integers(0, 9_000),
    cache_read_tokens=st.integers(0, 50_000),
    cache_write_5m_tokens=st.integers(0, 50_000),
    cache_write_1h_tokens=st.integers(0, 50_000),
)


def fresh(database: Database, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the rows, with ids of their own, in place of all calls; return them."""
    with database.write() as connection:
        for table in (call, daily):
            connection.execute(table.delete())
    rows = [{**one, "id": new_id(one["opened_ms"]), "claim": new_id(NOON)} for one in rows]
    put(database, *rows)
    return rows


@settings(
    max_examples=settings.default.max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=st.lists(ROWS, min_size=1, max_size=40))
def test_the_groups_add_up_to_the_total_whatever_they_are(
    database: Database, rows: list[dict[str, Any]]
) -> None:
    rows = fresh(database, rows)
    paid = [one for one in rows if one["state"] in ("settled", "late", "reopened")]
    states = Counter(one["state"] for one in rows)
    for by in BY:
        report = costs(database, by)
        assert report.total.calls == len(paid)
        assert (report.total.failed, report.total.open) == (states["failed"], states["open"])
        assert report.total.unproven == states["unproven"]
        if by not in ("tag", "day"):
            counted = Counter(tuple(one[column] for column in report.columns) for one in paid)
            assert {key: group.calls for key, group in report.groups.items() if group.calls} == counted
        assert report.total.cost_micro_usd == sum(one["cost_micro_usd"] or 0 for one in paid)
        assert report.total.unpriced == sum(one["cost_micro_usd"] is None for one in paid)
        assert report.total.unproven_micro_usd == 900 * states["unproven"]
        assert report.total.input_tokens + report.total.output_tokens == sum(
            one[name] for one in paid for name in Usage.__dataclass_fields__
        )
        assert report.total == costs(database, "dag").total
    days = costs(database, "day").groups
    assert list(days) == sorted(days)
    assert set(days) == {
        (str(dt.datetime.fromtimestamp(one["opened_ms"] / 1000, dt.UTC).date()),) for one in rows
    }


def test_a_call_with_two_tags_counts_under_both_and_once_in_all(database: Database) -> None:
    put(
        database,
        row(tags='["blue", "red"]', uncached_tokens=1_000_000),
        row(tags='["red"]', uncached_tokens=1_000_000),
        row(uncached_tokens=1_000_000),
    )
    report = costs(database, "tag")
    assert {key: one.calls for key, one in report.groups.items()} == {("red",): 2, ("blue",): 1, (None,): 1}
    assert report.total.calls == 3
    assert report.overlaps


def test_only_what_is_asked_for_is_added_up(database: Database) -> None:
    put(database, row(), row(dag_id="weekly"), row(opened_ms=NOON + DAY), row(model=MODELS[1]))
    assert costs(database, "dag", Filter(names={"dag_id": "nightly", "model": MODELS[0]})).total.calls == 2
    assert costs(database, "dag", Filter(since_ms=NOON + 1)).total.calls == 1
    assert costs(database, "dag", Filter(until_ms=NOON)).total.calls == 0
    assert costs(database, "dag", Filter(since_ms=NOON, until_ms=NOON + 1)).total.calls == 3
    assert costs(database, "dag", Filter(names={"dag_id": "never"})).total == Costs()


def test_caching_saves_what_reads_cost_less_minus_what_writes_cost_more(database: Database) -> None:
    put(database, row(cache_write_5m_tokens=1_000_000), *(row(cache_read_tokens=1_000_000) for _ in range(9)))
    card = rate_card(MODELS[0])
    assert card is not None
    plain, read, write = (
        card.price_micro_usd(Usage(**{kind: 1_000}))
        for kind in ("uncached_tokens", "cache_read_tokens", "cache_write_5m_tokens")
    )
    saved = costs(database, "model").total
    assert saved.cached_micro_usd == 1_000 * (9 * (plain - read) - (write - plain))
    assert saved.cached_share == 0.9


def test_caching_that_was_never_read_is_a_loss(database: Database) -> None:
    put(database, row(cache_write_1h_tokens=10_000))
    assert costs(database, "run").total.cached_micro_usd < 0


async def test_savings_are_counted_by_what_a_task_is_known_by(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    scope = CallScope(
        dag_id="nightly", run_id="run-1", task_id="read", tags=json.dumps(["a", "b"]), owner="me"
    )
    for reused, routed in ((3, 0), (0, -50), (0, 0)):
        kept = Saving(
            scope=scope,
            model=MODELS[0],
            reused=reused,
            reused_micro_usd=100 * reused,
            routed_micro_usd=routed,
        )
        await ledger.record(kept)
    with ledger.database.read() as connection:
        assert (
            connection.scalar(sa.select(sa.func.count()).select_from(saving)) == 2
        )  # nothing saved, nothing written
    for by in BY:
        total = costs(ledger.database, by).total
        known = (3, 300, -50) if by not in ("document", "purpose") else (0, 0, 0)
        assert (total.reused, total.reused_micro_usd, total.routed_micro_usd) == known
    tags = costs(ledger.database, "tag").groups
    assert {key: one.reused for key, one in tags.items()} == {("a",): 3, ("b",): 3}
    ledger.close()


async def test_a_saving_is_kept_whatever_its_texts_hold(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    scope = CallScope(dag_id="nightly", run_id="by \0 hand", task_id="read", owner="\udc80")
    await ledger.record(Saving(scope=scope, model="m", version="v\udc80\0", reused=1))
    assert set(costs(ledger.database, "version").groups) == {("v?\N{REPLACEMENT CHARACTER}",)}
    ledger.close()


def test_what_a_run_has_paid_and_what_may_have_been_billed_stand_apart(database: Database) -> None:
    put(database, row(uncached_tokens=1_000), row(state="unproven"), row(state="failed"), row(run_id="run-2"))
    paid = rate_card(MODELS[0]).price_micro_usd(Usage(uncached_tokens=1_000))
    with database.read() as connection:
        assert cost_of_run(connection, "nightly", "run-1") == (paid, 900)
        assert cost_of_run(connection, "nightly", "run-9") == (0, 0)
