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


def asking(kind: str, **arguments: Any) -> Any:
    """Return a task that may ask a person."""
    from airflow_llm_provider.operators.branch import LLMBranchOperator
    from airflow_llm_provider.operators.claude import ClaudeOperator
    from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
    from airflow_llm_provider.options import Budget
    from airflow_llm_provider.tools import tool

    @tool(needs_approval=True)
    def pay(amount: float) -> str:
        """Pay."""
        return f"{amount} paid"

    match kind:
        case "tool":
            made, how = ClaudeOperator, {"tools": [pay]}
        case "branch":
            made, how = LLMBranchOperator, {"on_unsure": "ask"}
        case "budget":
            made, how = ClaudeOperator, {"budget": Budget(task_usd=1, on_exceeded="ask")}
        case _:
            files = {"documents": "/in", "output": "/out.jsonl"}
            made, how = ClaudeDocumentsOperator, {**files, "budget": Budget(confirm_above_usd=1)}
    return made, {"task_id": "asks", "prompt": "?", **how, **arguments}


@pytest.mark.parametrize("kind", ["tool", "branch", "budget", "price"])
def test_a_task_that_may_ask_a_person_has_the_retries_that_find_a_lost_answer(kind: str) -> None:
    from airflow.sdk import DAG

    def retries(default: dict[str, Any] | None = None, **own: Any) -> set[tuple[int, float]]:
        with DAG("asking", schedule=None, default_args=default or {}):
            made, arguments = asking(kind, **own)
            task = made(**arguments)
            prompt = arguments.pop("prompt")
            mapped = made.partial(**{**arguments, "task_id": "mapped"}).expand(prompt=[prompt])
        return {(each.retries, each.retry_delay.total_seconds()) for each in (task, mapped)}

    assert retries() == {(3, 10.0)}
    assert retries(retries=0) == {(0, 10.0)}  # the author's own
    assert retries({"retries": 1, "retry_delay": dt.timedelta(seconds=5)}) == {(1, 5.0)}


def test_a_task_that_asks_nobody_has_airflows_retries() -> None:
    from airflow.sdk import DAG

    from airflow_llm_provider.operators.claude import ClaudeOperator

    with DAG("silent", schedule=None):
        assert ClaudeOperator(task_id="asks", prompt="?").retries == 0


def test_a_choice_that_got_lost_is_found_by_the_retry(
    deployment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG

    from airflow_llm_provider.operators.branch import LLMBranchOperator
    from airflow_llm_provider.options import Route

    async def no_pause(seconds: float) -> None:
        assert seconds == 10

    def make() -> Any:
        with DAG("lost_choice", schedule=None) as dag:
            route = LLMBranchOperator(
                task_id="approval",
                prompt="Which?",
                model="fast",
                on_unsure="ask",
                route=Route(min_confidence=0.7),
                retry_delay=dt.timedelta(0),
            )
            route >> [EmptyOperator(task_id="left"), EmptyOperator(task_id="right")]
        return dag

    deployment.server.reply(data={"reason": "It says so.", "confidence": 0.3, "choice": "left"})
    desk = Desk(deployment=deployment, make=make).start()
    monkeypatch.setattr(
        "airflow.sdk.execution_time.task_runner.SUPERVISOR_COMMS", TriggererComms(), raising=False
    )
    fail_by_scheduler(desk, state="queued")
    desk.answer("right")
    fail_by_scheduler(desk)
    with monkeypatch.context() as paused:
        assert desk.work().states()["approval"] == "deferred"
        paused.setattr(asyncio, "sleep", no_pause)
        states = desk.trigger().states()
    assert (states["left"], states["right"]) == ("skipped", "success"), desk.log
    assert deployment.server.invoice.paid == 1
