"""An answer that Airflow does not hand to its task is found by the retry, and nobody is asked twice."""

from __future__ import annotations

import asyncio
import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from desk import Desk, approval


class TriggererComms:
    """What the triggerer answers its triggers, from Airflow's database."""

    async def asend(self, message: Any) -> Any:
        from airflow.models.hitl import HITLDetail
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        with create_session() as session:
            if type(message).__name__ == "SetXCom":
                XComModel.set(
                    key=message.key,
                    value=message.value,
                    dag_id=message.dag_id,
                    task_id=message.task_id,
                    run_id=message.run_id,
                    map_index=message.map_index,
                    serialize=False,
                    session=session,
                )
                return None
            held = session.scalar(sa.select(HITLDetail).where(HITLDetail.ti_id == message.ti_id))
            by = held.responded_by_user
            return SimpleNamespace(
                response_received=held.response_received,
                responded_at=held.responded_at,
                responded_by_user=by and SimpleNamespace(**by),
                chosen_options=held.chosen_options,
                params_input=held.params_input,
            )


@pytest.fixture
def desk(deployment: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    async def no_pause(seconds: float) -> None:
        assert seconds == 10

    desk = Desk(deployment=deployment, make=approval(retries=3, dag_id="lost")).start()
    monkeypatch.setattr(
        "airflow.sdk.execution_time.task_runner.SUPERVISOR_COMMS", TriggererComms(), raising=False
    )
    monkeypatch.setattr(asyncio, "sleep", no_pause)
    return desk


def fail_by_scheduler(desk: Desk, state: str = "up_for_retry") -> None:
    """Leave the task as the scheduler leaves one whose parking process ended too late: a new try, by another id."""
    from airflow._shared.timezones import timezone
    from airflow.utils.session import create_session

    with create_session() as session:
        (ti,) = [
            ti for ti in desk._run(session).get_task_instances(session=session) if ti.task_id == "approval"
        ]
        ti.prepare_db_for_next_try(session)
        ti.state, ti.next_method, ti.next_kwargs = state, None, None
        ti.end_date = timezone.utcnow() - dt.timedelta(minutes=1)


def test_an_answer_that_got_lost_is_found_by_the_retry(desk: Desk) -> None:
    fail_by_scheduler(desk, state="queued")
    desk.answer("Approve with changes", content=["Dear Ms. Mill,", "pay!"], feedback="Once.")
    fail_by_scheduler(desk)
    assert desk.work().states()["approval"] == "deferred"
    assert desk.trigger().states()["send"] == "success", desk.log
    assert desk.xcom("send") == "Dear Ms. Mill,\npay!"
    decision = desk.xcom()
    assert (decision["status"], decision["feedback"], decision["decided_by"]) == ("modified", "Once.", "ada")


def test_a_retry_before_the_answer_leaves_the_question_open(desk: Desk) -> None:
    shown = desk.form()
    fail_by_scheduler(desk)
    assert desk.work().states()["approval"] == "deferred"
    assert desk.trigger().states()["approval"] == "awaiting_input", desk.log
    assert desk.form() == shown
    assert desk.answer("Approve", feedback="At last.").states()["send"] == "success"


def test_an_answer_while_the_retry_looks_for_one_is_taken(desk: Desk) -> None:
    fail_by_scheduler(desk)
    assert desk.work().states()["approval"] == "deferred"
    assert desk.answer("Reject").states()["send"] == "skipped"


def test_an_answer_of_before_a_clear_is_not_taken_after_it(desk: Desk) -> None:
    fail_by_scheduler(desk, state="queued")
    desk.answer("Approve")
    assert desk.clear("approval").states()["approval"] == "awaiting_input"
    assert desk.answer("Reject").states()["send"] == "skipped"
