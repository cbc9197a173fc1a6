"""The books: what `balance` accepts, and what it does not let pass."""

from __future__ import annotations

import dataclasses

import pytest
import sqlalchemy as sa

from airflow_llm_provider.ledger.schema import call
from tests.support.books import balance


def change(deployment, **values) -> None:
    """Falsify the first row."""
    first = first_row(deployment)["id"]
    engine = sa.create_engine(deployment.ledger_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(call.update().where(call.c.id == first).values(**values))
    engine.dispose()


def first_row(deployment) -> dict:
    return min(deployment.calls, key=lambda row: row["id"])


@pytest.fixture
def lines(deployment):
    deployment.ask(deployment.texts(5))
    return deployment.server.invoice.lines


def test_books_that_balance_are_added_up(deployment, lines):
    books = deployment.balance()
    assert (books.paid, books.unproven, books.lost) == (5, 0, 0)
    assert books.cost_micro_usd == deployment.server.invoice.cost_micro_usd


def test_a_ledger_that_is_not_there_holds_no_rows(deployment):
    assert balance(f"sqlite:///{deployment.folder}/none.db", []).paid == 0
    assert not (deployment.folder / "none.db").exists()


def test_a_call_that_the_ledger_does_not_know_is_found(deployment, lines):
    with pytest.raises(
        AssertionError, match="1 calls of claude-haiku-5-5 were charged that no settled row has"
    ):
        balance(deployment.ledger_url, [*lines, lines[0]])


def test_a_row_that_nobody_charged_is_found(deployment, lines):
    with pytest.raises(AssertionError, match="1 rows in the ledger, not on the invoice"):
        balance(deployment.ledger_url, lines[1:])


@pytest.mark.parametrize("field", ["output_tokens", "input_tokens", "cache_read_tokens"])
def test_one_token_more_is_found(deployment, lines, field):
    more = dataclasses.replace(lines[0], **{field: getattr(lines[0], field) + 1})
    with pytest.raises(AssertionError, match="not on the invoice"):
        balance(deployment.ledger_url, [more, *lines[1:]])


def test_one_micro_usd_more_is_found(deployment, lines):
    cost = first_row(deployment)["cost_micro_usd"]
    change(deployment, cost_micro_usd=cost + 1)
    with pytest.raises(AssertionError, match=f"1 x .* {cost + 1} µUSD"):
        deployment.balance()
    change(deployment, cost_micro_usd=cost)


@pytest.mark.parametrize("state", ["unproven", "open"])
def test_a_lost_reply_is_explained_by_a_row_that_was_booked_at_no_less(deployment, lines, state):
    change(deployment, state=state)
    books = deployment.balance()
    assert (books.paid, books.unproven, books.lost) == (4, 1, 1)
    assert 0 < books.lost_micro_usd <= books.ceiling_micro_usd
    ceiling = first_row(deployment)["ceiling_micro_usd"]
    change(deployment, ceiling_micro_usd=1)
    with pytest.raises(AssertionError, match="it was booked at 1 at most"):
        deployment.balance()
    change(deployment, ceiling_micro_usd=ceiling)


def test_an_unproven_call_at_another_model_explains_nothing(deployment, lines):
    change(deployment, state="unproven", model="claude-opus-5-5")
    with pytest.raises(AssertionError, match="only 0 are booked as unproven"):
        deployment.balance()
    change(deployment, model="claude-haiku-5-5")
