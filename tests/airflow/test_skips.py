"""A rejection holds in every shape of a DAG: what is downstream of the rejected item does not run, the others' does."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from desk import Desk

from airflow_llm_provider.options import Reviewers

LETTERS = ["a", "b"]
NOW = dt.timedelta(milliseconds=1)


def sensor(content: Any = None, **arguments: Any) -> Any:
    from airflow_llm_provider.sensors.approval import ApprovalSensor

    return ApprovalSensor(task_id="approval", subject="Pay?", content=content, retries=0, **arguments)


def pay(rule: str) -> Any:
    from airflow.sdk import task

    @task(task_id="pay", trigger_rule=rule)
    def paid(decision: Any = None) -> str:
        return "paid"

    return paid


def plain(rule: str, **arguments: Any) -> Any:
    from airflow.sdk import DAG

    with DAG("skips_plain", schedule=None) as dag:
        pay(rule)(sensor("a", **arguments).output)
    return dag


def group(rule: str, **arguments: Any) -> Any:
    from airflow.sdk import DAG, TaskGroup

    with DAG("skips_group", schedule=None) as dag, TaskGroup("refund"):
        pay(rule)(sensor("a", **arguments).output)
    return dag


def mapped_sensor(rule: str, **arguments: Any) -> Any:
    from airflow.sdk import DAG

    from airflow_llm_provider.sensors.approval import ApprovalSensor

    with DAG("skips_mapped", schedule=None) as dag:
        asked = ApprovalSensor.partial(task_id="approval", subject="Pay?", retries=0, **arguments).expand(
            content=LETTERS
        )
        pay(rule).expand(decision=asked.output)
    return dag


def mapped_group(rule: str, **arguments: Any) -> Any:
    from airflow.sdk import DAG, task_group

    with DAG("skips_mapped_group", schedule=None) as dag:

        @task_group
        def refund(letter: str) -> None:
            pay(rule)(sensor(letter, **arguments).output)

        refund.expand(letter=LETTERS)
    return dag


def nested(rule: str, **arguments: Any) -> Any:
    from airflow.sdk import DAG, TaskGroup, task_group

    with DAG("skips_nested", schedule=None) as dag, TaskGroup("outer"):

        @task_group
        def refund(letter: str) -> None:
            asked = sensor(letter, **arguments)
            with TaskGroup("inner"):
                pay(rule)(asked.output)

        refund.expand(letter=LETTERS)
    return dag


SHAPES = {shape.__name__: shape for shape in (plain, mapped_sensor, group, mapped_group, nested)}


class Refunds:
    """A run whose first item is rejected, and whose second, where there is one, is approved."""

    def __init__(self, deployment: Any, make: Callable[..., Any], rule: str, **arguments: Any) -> None:
        self.desk = Desk(deployment=deployment, make=lambda: make(rule, **arguments))
        tasks = {task_id.rpartition(".")[2]: task_id for task_id in make(rule).task_ids}
        self.approval, self.pay = tasks["approval"], tasks["pay"]
        self.indexes = [0, 1] if "mapped" in make.__name__ or make is nested else [-1]

    def decide(self) -> None:
        self.desk.answer("Reject", task_id=self.approval, map_index=self.indexes[0])
        for index in self.indexes[1:]:
            self.desk.answer("Approve", task_id=self.approval, map_index=index)

    def run_out(self) -> None:
        for index in self.indexes[1:]:
            self.desk.answer("Approve", task_id=self.approval, map_index=index)
        self.desk.let_time_pass()

    def paid(self) -> list[bool]:
        return [self.desk.xcom(self.pay, map_index=index) is not None for index in self.indexes]

    def states(self, task_id: str) -> list[str]:
        states = self.desk.instance_states()
        return [states[task_id, index] for index in self.indexes]

    def require_held(self, *, fails: bool = False) -> None:
        first, *others = self.states(self.pay)
        assert self.paid()[0] is False, self.desk.log[-3000:]
        assert first == ("upstream_failed" if fails else "skipped")
        if fails:  # Airflow asks after all instances of a mapped task, and after one in a mapped group
            return
        assert others == ["success"] * len(others), self.desk.log[-3000:]
        assert self.paid()[1:] == [True] * len(others)


@pytest.mark.parametrize(
    "rule", ["all_success", pytest.param("none_failed", marks=pytest.mark.slow), "all_done"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_rejection_skips_what_is_directly_downstream_at_its_own_index_through_clears(
    deployment: Any, shape: str, rule: str
) -> None:
    refunds = Refunds(deployment, SHAPES[shape], rule)
    refunds.desk.start()
    refunds.decide()
    assert refunds.states(refunds.approval) == ["success"] * len(refunds.indexes)
    refunds.require_held()

    refunds.desk.clear(refunds.pay)
    refunds.require_held()

    refunds.desk.clear(refunds.approval, refunds.pay)  # asks again
    assert refunds.states(refunds.approval) == ["awaiting_input"] * len(refunds.indexes)
    for index in refunds.indexes:
        refunds.desk.answer("Approve", task_id=refunds.approval, map_index=index)
    assert refunds.paid() == [True] * len(refunds.indexes)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_answer_in_time_rejects_in_every_shape(deployment: Any, shape: str) -> None:
    refunds = Refunds(deployment, SHAPES[shape], "all_done", reviewers=Reviewers(timeout=NOW))
    refunds.desk.start()
    refunds.run_out()
    refunds.require_held()
    refunds.desk.clear(refunds.pay)
    refunds.require_held()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rejection_that_fails_lets_nothing_run_that_waits_for_success(deployment: Any, shape: str) -> None:
    refunds = Refunds(deployment, SHAPES[shape], "all_success", on_reject="fail")
    refunds.desk.start()
    refunds.decide()
    assert refunds.states(refunds.approval)[0] == "failed"
    assert refunds.paid()[0] is False
    refunds.desk.clear(refunds.pay)
    assert refunds.paid()[0] is False


def joined(rule: str, **arguments: Any) -> Any:
    """Two sensors whose task downstream is one for both."""
    from airflow.sdk import DAG

    from airflow_llm_provider.sensors.approval import ApprovalSensor

    with DAG("skips_joined", schedule=None) as dag:
        asked = ApprovalSensor.partial(task_id="approval", subject="Pay?", retries=2, **arguments).expand(
            content=LETTERS
        )
        pay(rule)(asked.output)
    return dag


def joined_group(rule: str, **arguments: Any) -> Any:
    """A mapped task group, and one task for all behind it."""
    from airflow.sdk import DAG, task_group

    with DAG("skips_joined_group", schedule=None) as dag:

        @task_group
        def refund(letter: str) -> Any:
            return sensor(letter, **arguments).output

        pay(rule)(refund.expand(letter=LETTERS))
    return dag


@pytest.mark.parametrize("rule", ["all_success", "none_failed"])
@pytest.mark.parametrize("shape", [joined, joined_group])
def test_where_one_index_cannot_be_skipped_the_sensor_fails(deployment: Any, shape: Any, rule: str) -> None:
    refunds = Refunds(deployment, shape, rule)
    refunds.indexes = [0, 1]
    refunds.desk.start()
    refunds.decide()
    assert refunds.states(refunds.approval) == ["failed", "success"]
    assert refunds.desk.instance_states()[refunds.pay, -1] == "upstream_failed"
    assert "ada rejected it. pay cannot be skipped for one map index alone" in refunds.desk.log
    refunds.desk.clear(refunds.pay)
    assert refunds.desk.xcom(refunds.pay) is None


@pytest.mark.parametrize(
    "rule", ["all_done", "always", "one_done", "none_skipped", "all_failed", "one_failed"]
)
@pytest.mark.parametrize("shape", [joined, joined_group])
def test_there_a_task_that_runs_after_failures_does_not_parse(shape: Any, rule: str) -> None:
    dag = shape(rule)
    with pytest.raises(
        ValueError, match=f"pay has the trigger rule '{rule}' and is downstream of .*approval"
    ):
        dag.resolve_template_files()


def test_what_is_further_downstream_is_skipped_too_where_trigger_rules_are_ignored(deployment: Any) -> None:
    from airflow.sdk import DAG, task, task_group

    def make() -> Any:
        with DAG("skips_all", schedule=None) as dag:

            @task(trigger_rule="all_done")
            def later() -> str:
                return "done"

            @task_group
            def refund(letter: str) -> None:
                asked = sensor(letter, ignore_downstream_trigger_rules=True)
                pay("all_success")(asked.output) >> later()

            refund.expand(letter=LETTERS)
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    desk.answer("Reject", task_id="refund.approval", map_index=0)
    desk.answer("Approve", task_id="refund.approval", map_index=1)
    states = desk.instance_states()
    assert [states["refund.later", index] for index in (0, 1)] == ["skipped", "success"]


def test_tasks_that_are_mapped_already_are_skipped_one_by_one(deployment: Any) -> None:
    from airflow.sdk import DAG, task

    def make() -> Any:
        with DAG("skips_expanded", schedule=None) as dag:

            @task(trigger_rule="all_done")
            def later(number: int) -> int:
                return number

            asked = sensor("a", ignore_downstream_trigger_rules=True)
            pay("all_success")(asked.output) >> later.expand(number=[1, 2, 3])
        return dag

    desk = Desk(deployment=deployment, make=make).start().answer("Reject")
    states = desk.instance_states()
    assert {state for (task_id, _), state in states.items() if task_id == "later"} == {"skipped"}, states


def test_a_pre_execute_of_the_authors_runs_too(deployment: Any) -> None:
    from airflow.sdk import DAG, task, task_group

    ran: list[int] = []

    def make() -> Any:
        with DAG("skips_hooked", schedule=None) as dag:

            @task(pre_execute=lambda context: ran.append(context["ti"].map_index))
            def pay(decision: Any) -> str:
                return "paid"

            @task_group
            def refund(letter: str) -> None:
                pay(sensor(letter).output)

            refund.expand(letter=LETTERS)
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    desk.answer("Reject", task_id="refund.approval", map_index=0)
    desk.answer("Approve", task_id="refund.approval", map_index=1)
    assert ran == [1]


@pytest.mark.parametrize("choice", ["Approve", "Reject"])
def test_a_rejection_that_leads_to_a_branch_skips_at_its_own_index(deployment: Any, choice: str) -> None:
    from airflow.sdk import DAG, task, task_group

    def make() -> Any:
        with DAG("skips_branch", schedule=None) as dag:

            @task
            def redo(decision: Any) -> str:
                return "done"

            @task_group
            def refund(letter: str) -> None:
                asked = sensor(letter, on_reject="refund.redo")
                pay("all_success")(asked.output)
                redo(asked.output)

            refund.expand(letter=LETTERS)
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    other = "Reject" if choice == "Approve" else "Approve"
    desk.answer(choice, task_id="refund.approval", map_index=0)
    desk.answer(other, task_id="refund.approval", map_index=1)

    def require_held() -> None:
        states = desk.instance_states()
        approved, rejected = (0, 1) if choice == "Approve" else (1, 0)
        assert (states["refund.pay", approved], states["refund.redo", approved]) == ("success", "skipped")
        assert (states["refund.pay", rejected], states["refund.redo", rejected]) == ("skipped", "success")

    require_held()
    desk.clear("refund.pay", "refund.redo")
    require_held()


def test_a_branch_that_cannot_be_skipped_for_one_index_does_not_parse() -> None:
    from airflow.sdk import DAG

    from airflow_llm_provider.sensors.approval import ApprovalSensor

    with DAG("skips_branch", schedule=None) as dag:
        asked = ApprovalSensor.partial(task_id="approval", subject="Pay?", on_reject="pay").expand(
            content=LETTERS
        )
        pay("all_success")(asked.output)
    with pytest.raises(ValueError, match="approval is mapped, so it cannot skip 'pay'"):
        dag.resolve_template_files()
