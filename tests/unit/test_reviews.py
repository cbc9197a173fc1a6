"""What the ledger promises of questions to a person; the integration tests run it on PostgreSQL too."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_llm_provider.errors import ChangedSinceShown
from airflow_llm_provider.ledger import reviews
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.reviews import AskedQuestion, StoredReview, Verdict, digest
from airflow_llm_provider.ledger.schema import review

SCOPE = CallScope(dag_id="letters", run_id="monday", task_id="approval")
CLEARED = dataclasses.replace(SCOPE, first_try=2)


def asked(text: bytes = b'"a letter"', *, aside: bytes = b"", is_shown: bool = True) -> AskedQuestion:
    return AskedQuestion(
        asked_hash=digest(text),
        shown=b'{"body": %s}%s' % (text, aside) if is_shown else None,
        content=text,
        why="always\0",
    )


def verdict(status: str = reviews.APPROVED, decided: bytes = b'"a letter"') -> Verdict:
    return Verdict(
        status=status,
        choice="Approve",
        decided=decided,
        decided_by="ada",
        feedback="Fine.\0",
        decided_ms=None,
    )


class Book:
    """The ledger as the hook uses it, a transaction a step."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def keep(
        self, question: AskedQuestion, scope: CallScope = SCOPE, key: str = "", **how: Any
    ) -> StoredReview:
        return await self.ledger.write(lambda c, _: reviews.store_question(c, scope, key, question, **how))

    async def settle(self, said: Verdict, scope: CallScope = SCOPE) -> None:
        await self.ledger.write(partial(reviews.store_verdict, scope=scope, key="", verdict=said))

    async def let_pass(self, question: AskedQuestion, scope: CallScope = SCOPE) -> StoredReview:
        return await self.ledger.write(lambda c, now: reviews.store_not_asked(c, now, scope, "", question))

    async def find(self, scope: CallScope = SCOPE, key: str = "") -> StoredReview | None:
        return await self.ledger.write(lambda c, _: reviews.find(c, scope, key))


@pytest.fixture
async def book(ledger_url: str) -> AsyncIterator[Book]:
    ledger = Ledger(ledger_url)
    yield Book(ledger)
    await asyncio.to_thread(ledger.close)


async def test_two_processes_of_a_task_instance_keep_one_question(book: Book) -> None:
    with book.ledger.database.write() as connection:
        first = reviews.store_question(connection, SCOPE, "", asked())
        second = asyncio.create_task(book.keep(asked()))
        await asyncio.sleep(0.08)  # so that it has looked, and waits for the first
    assert await second == first


@pytest.mark.parametrize("hours", [-26, -1, 1, 26])
async def test_a_decision_is_dated_between_showing_and_storing_whatever_airflows_clock_says(
    book: Book, hours: int
) -> None:
    await book.keep(asked())
    await book.ledger.write(partial(reviews.store_shown, scope=SCOPE, key=""))
    now_ms = await book.ledger.read(lambda _, now_ms: now_ms)
    await book.settle(dataclasses.replace(verdict(), decided_ms=now_ms + hours * 3_600_000))
    stored = await book.find()
    assert stored is not None
    assert stored.verdict is not None
    assert 0 <= stored.verdict.decided_ms - stored.shown_ms < 60_000


async def test_a_question_is_kept_as_it_was_first_shown(book: Book) -> None:
    first = await book.keep(asked())
    assert (first.asked.shown, first.verdict) == (asked().shown, None)
    again = await book.keep(asked(aside=b" it cost more now"))
    assert again == first


async def test_a_retry_keeps_the_decision_and_a_clear_asks_again(book: Book) -> None:
    await book.keep(asked())
    await book.settle(verdict())
    retried = await book.keep(asked())
    assert retried.verdict is not None
    assert dataclasses.replace(retried.verdict, decided_ms=None) == dataclasses.replace(
        verdict(), feedback="Fine.\N{REPLACEMENT CHARACTER}"
    )
    cleared = await book.keep(asked(), CLEARED)
    assert (cleared.verdict, cleared.first_try) == (None, 2)


async def test_a_question_counts_as_shown_once_airflow_shows_it_and_a_clear_shows_it_again(
    book: Book,
) -> None:
    assert (await book.keep(asked())).shown_ms == 0
    await book.ledger.write(lambda c, now: reviews.store_shown(c, now, SCOPE, ""))
    assert (await book.keep(asked())).shown_ms > 0
    assert (await book.keep(asked(), CLEARED)).shown_ms == 0


@pytest.mark.parametrize("scope", [SCOPE, CLEARED])
async def test_another_question_never_replaces_one_that_was_shown(book: Book, scope: CallScope) -> None:
    await book.keep(asked())
    other = await book.keep(asked(b'"another"'), scope)
    assert other.asked.content == b'"a letter"'
    frozen = await book.keep(asked(b'"another"'), scope, frozen=True)
    assert (frozen.asked.content, frozen.verdict, frozen.first_try) == (b'"a letter"', None, scope.first_try)


async def test_a_review_that_passed_is_replaced_by_a_question(book: Book) -> None:
    passed = await book.let_pass(asked(is_shown=False))
    assert (passed.verdict.status, passed.verdict.decided_by, passed.asked.shown) == ("passed", None, None)
    shown = await book.keep(asked(b'"another"'), CLEARED)
    assert (shown.asked.content, shown.verdict) == (b'"another"', None)


async def test_a_retry_does_not_replace_what_a_person_decided(book: Book) -> None:
    await book.keep(asked())
    await book.settle(verdict(reviews.REJECTED))
    assert (await book.let_pass(asked(is_shown=False))).verdict.status == "rejected"
    assert (await book.let_pass(asked(is_shown=False), CLEARED)).verdict.status == "passed"
    # Airflow still holds the form of the first going, so a later one must be asked as that.
    third = dataclasses.replace(SCOPE, first_try=3)
    assert (await book.keep(asked(aside=b" anew"), third)).asked.shown == asked().shown


async def test_questions_are_told_apart_by_instance_and_key(book: Book) -> None:
    await book.keep(asked(b"1"))
    await book.keep(asked(b"2"), key="tools")
    await book.keep(asked(b"3"), dataclasses.replace(SCOPE, map_index=7))
    await book.keep(asked(b"4"), dataclasses.replace(SCOPE, run_id="tuesday"))
    assert (await book.find()).asked.content == b"1"
    assert (await book.find(key="tools")).asked.content == b"2"
    assert await book.find(dataclasses.replace(SCOPE, map_index=8)) is None


@pytest.mark.parametrize("column", ["shown", "content", "decided"])
async def test_a_review_that_was_changed_in_the_ledger_is_refused(book: Book, column: str) -> None:
    await book.keep(asked())
    await book.settle(verdict())

    def tamper(connection: sa.Connection, _: int) -> None:
        import zlib

        connection.execute(review.update().values({column: zlib.compress(b'"pay Mallory"')}))

    await book.ledger.write(tamper)
    with pytest.raises(ChangedSinceShown, match="was changed after it was stored"):
        await book.find()


async def test_sqlalchemys_log_at_debug_has_nothing_that_a_person_wrote(
    book: Book, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="sqlalchemy.engine")
    await book.keep(asked())
    await book.settle(dataclasses.replace(verdict(), feedback="plantedword"))
    stored = await book.find()
    assert stored is not None
    assert stored.verdict is not None
    assert stored.verdict.feedback == "plantedword"
    assert "SELECT review" in caplog.text  # it logs what the ledger reads
    assert "plantedword" not in caplog.text
