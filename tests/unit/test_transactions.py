"""Single statements on the ledger: cheap, and with the same errors as the ledger's own."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_llm_provider.errors import LedgerUnavailable, LedgerUnusable
from airflow_llm_provider.ledger.schema import review
from airflow_llm_provider.ledger.transactions import open_transactions


def count(connection: sa.Connection, now_ms: int) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(review)).scalar_one())


def test_a_statement_needs_no_thread_and_makes_the_ledger_where_there_is_none(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    with open_transactions(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        assert ledger.read(count) == 0
        assert set(threading.enumerate()) == threads
        before_ms = time.time() * 1000 - 5
        assert before_ms <= ledger.write(lambda _, now_ms: now_ms) <= time.time() * 1000 + 5


def test_the_schema_is_checked_once_per_process_and_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with open_transactions(url) as ledger:
        ledger.write(lambda connection, _: review.drop(connection))
    with open_transactions(url) as ledger, pytest.raises(LedgerUnusable, match="no such table: review"):
        ledger.read(count)


def test_a_database_that_is_away_is_tried_up_to_the_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    url = f"sqlite:///{tmp_path}/missing/ledger.db"
    opening = open_transactions(url, deadline_s=0.05)
    with pytest.raises(LedgerUnavailable, match="does not exist: make it, or mount it"):
        opening.__enter__()
    assert time.monotonic() - started < 5


def test_work_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with open_transactions(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        with pytest.raises(ValueError, match="half way"):
            ledger.write(_fail_half_way)
        assert ledger.read(count) == 0


def _fail_half_way(connection: sa.Connection, now_ms: int) -> None:
    from airflow_llm_provider.ledger import reviews
    from airflow_llm_provider.ledger.records import CallScope

    question = reviews.AskedQuestion(asked_hash="0", shown=b"{}", content=b"{}", why="")
    reviews.store_question(connection, CallScope(), "", question)
    raise ValueError("half way")
