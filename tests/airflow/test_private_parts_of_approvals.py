"""What approvals use of Airflow's private parts is there and works as they need it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, BaseOperator, task, task_group

from airflow_llm_provider import _airflow


def two_indexes() -> Any:
    with DAG("parts", schedule=None) as dag:

        @task
        def one(letter: str) -> str:
            return letter

        @task
        def other(letter: Any, more: Any = None) -> None:
            pass

        mapped = one.expand(letter=["a", "b"])
        other.override(task_id="aligned").expand(letter=mapped)
        other.override(task_id="changed").expand(letter=mapped.map(str))
        other.override(task_id="crossed").expand(letter=mapped, more=["x", "y"])
        other.override(task_id="by_dicts").expand_kwargs(mapped.map(lambda letter: {"letter": letter}))
        other.override(task_id="joined")(mapped)

        @task_group
        def group(letter: str) -> None:
            one.override(task_id="inner")(letter)

        group.expand(letter=["a", "b"])
    return dag


def test_a_task_that_is_mapped_over_another_alone_is_told_from_others() -> None:
    dag = two_indexes()
    aligned = {
        task_id
        for task_id, each in dag.task_dict.items()
        if _airflow.is_mapped_over(each, dag.get_task("one"))
    }
    assert aligned == {"aligned", "changed", "by_dicts"}
    expanded = {task_id for task_id, each in dag.task_dict.items() if _airflow.needs_expansion(each)}
    assert expanded == set(dag.task_ids) - {"joined"}


def test_airflow_calls_each_task_of_a_file_once_its_dag_is_complete(tmp_path: Path, deployment: Any) -> None:
    from airflow.dag_processing.dagbag import DagBag

    file = tmp_path / "complete.py"
    file.write_text(
        textwrap.dedent("""
            from airflow.sdk import DAG, task
            from airflow_llm_provider import ApprovalSensor

            @task(trigger_rule="all_done")
            def pay(decision=None):
                pass

            with DAG("wrong_mapped", schedule=None):
                pay(ApprovalSensor.partial(task_id="approval", subject="?").expand(content=["a", "b"]).output)
        """)
    )
    bag = DagBag(str(file))
    (error,) = bag.import_errors.values()
    assert "pay has the trigger rule 'all_done' and is downstream of approval, which is mapped" in error


def test_a_hook_runs_before_a_task_in_its_worker(deployment: Any) -> None:
    ran: list[str] = []

    class Work(BaseOperator):
        def execute(self, context: Any) -> None:
            ran.append("work")

    with DAG("hooked", schedule=None) as dag:
        _airflow.run_before(
            Work(task_id="work", pre_execute=lambda _: ran.append("author")), lambda _: ran.append("hook")
        )
    assert deployment.run(dag).state == "success"
    assert ran == ["author", "hook", "work"]


def test_a_task_that_the_scheduler_would_end_by_itself_starts_in_a_worker() -> None:
    from airflow.providers.standard.operators.empty import EmptyOperator

    empty = EmptyOperator(task_id="empty")
    assert empty.inherits_from_empty_operator
    _airflow.run_before(empty, lambda _: None)
    assert not empty.inherits_from_empty_operator
