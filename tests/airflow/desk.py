"""A DAG run worked through step by step, and the person at whose desk its questions land."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from conftest import Deployment

from airflow_llm_provider.ledger.reviews import digest
from airflow_llm_provider.ledger.schema import review


@dataclass(kw_only=True)
class Desk:
    """One run of the DAG that `make` makes, anew for every task as a worker does that parses its file."""

    deployment: Deployment
    make: Callable[[], Any]
    run_id: str = ""
    dag_id: str = ""
    log: str = field(default="", repr=False)

    def start(self) -> Desk:
        """Begin a new run and work until nothing is left but waiting."""
        from airflow._shared.timezones import timezone
        from airflow.models.dagrun import get_or_create_dagrun
        from airflow.utils.session import create_session
        from airflow.utils.types import DagRunTriggeredByType

        dag, now = self._dag, timezone.utcnow()
        with create_session() as session:
            run = get_or_create_dagrun(
                dag=dag,
                start_date=now,
                logical_date=now,
                data_interval=None,
                run_after=now,
                run_id=f"manual__{now.isoformat()}",
                session=session,
                conf=None,
                triggered_by=DagRunTriggeredByType.TEST,
                triggering_user_name="test",
            )
            self.dag_id, self.run_id = run.dag_id, run.run_id
        return self.work()

    def work(self) -> Desk:
        """Run what can be run, retries included, as the scheduler would, until the rest is done or waits."""
        from airflow.sdk.definitions.dag import _run_task
        from airflow.utils.session import create_session

        while True:
            with create_session() as session:
                run = self._run(session)
                run.dag = self._dag
                for ti in run.update_state(session=session)[0]:
                    ti.try_number += 1
                    ti.state = "scheduled"
                session.commit()
                scheduled = [ti for ti in run.get_task_instances(session=session) if ti.state == "scheduled"]
                for ti in scheduled:
                    _run_task(ti=ti, task=self._parsed().task_dict[ti.task_id])
            self.log += self.deployment.log()
            if not scheduled:
                return self

    def trigger(self) -> Desk:
        """Run what has deferred, as the triggerer does, and let the run go on."""
        from airflow.models.trigger import Trigger
        from airflow.sdk.module_loading import import_string
        from airflow.utils.session import create_session

        with create_session() as session:
            for ti in self._run(session).get_task_instances(session=session):
                if ti.state == "deferred":
                    row = session.get(Trigger, ti.trigger_id)
                    trigger = import_string(row.classpath)(**row.kwargs)
                    trigger.task_instance = ti
                    Trigger.submit_event(ti.trigger_id, asyncio.run(_first_event(trigger)), session=session)
        return self.work()

    def answer(
        self,
        choice: str = "Approve",
        *,
        task_id: str = "approval",
        map_index: int = -1,
        user: str = "ada",
        **given: Any,
    ) -> Desk:
        """Answer as the page does, and let the run go on; raises HTTPException when Airflow refuses."""
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
        from airflow.api_fastapi.core_api.datamodels.hitl import UpdateHITLDetailPayload
        from airflow.api_fastapi.core_api.routes.public.hitl import update_hitl_detail
        from airflow.utils.session import create_session

        with create_session() as session:
            update_hitl_detail(
                dag_id=self.dag_id,
                dag_run_id=self.run_id,
                task_id=task_id,
                map_index=map_index,
                update_hitl_detail_payload=UpdateHITLDetailPayload(
                    chosen_options=[choice], params_input=given
                ),
                user=SimpleAuthManagerUser(username=user, role="admin"),
                session=session,
            )
        return self.work()

    def let_time_pass(self) -> Desk:
        """Let the scheduler look for questions whose time is over, and the run go on."""
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

        SchedulerJobRunner.check_awaiting_input_timeouts(SimpleNamespace(log=logging.getLogger("sweep")))
        return self.work()

    def clear(self, *task_ids: str, then_work: bool = True) -> Desk:
        """Clear tasks, as the button does."""
        from airflow.models.taskinstance import clear_task_instances
        from airflow.utils.session import create_session

        with create_session() as session:
            tis = [
                ti for ti in self._run(session).get_task_instances(session=session) if ti.task_id in task_ids
            ]
            clear_task_instances(tis, session)
        return self.work() if then_work else self

    def try_again(self, task_id: str) -> Desk:
        """Let Airflow retry a task that has ended, as when its worker was killed at its last step."""
        from airflow._shared.timezones import timezone
        from airflow.utils.session import create_session

        with create_session() as session:
            run = self._run(session)
            run.state = "running"
            for ti in run.get_task_instances(session=session):
                if ti.task_id == task_id:
                    ti.state, ti.next_method, ti.next_kwargs = "up_for_retry", None, None
                    ti.end_date = timezone.utcnow() - dt.timedelta(minutes=1)
                elif ti.state != "success":
                    ti.state = None
        return self.work()

    def states(self) -> dict[str, str]:
        from airflow.utils.session import create_session

        with create_session() as session:
            return {
                ti.task_id: str(ti.state) for ti in self._run(session).get_task_instances(session=session)
            }

    def instance_states(self) -> dict[tuple[str, int], str]:
        """Return the states by task id and map index."""
        from airflow.utils.session import create_session

        with create_session() as session:
            tis = self._run(session).get_task_instances(session=session)
            return {(ti.task_id, ti.map_index): str(ti.state) for ti in tis}

    def form(self, task_id: str = "approval", map_index: int = -1) -> Any:
        """Return the form that Airflow shows; None when nobody was asked."""
        from airflow.models.hitl import HITLDetail
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            held = session.scalar(
                sa.select(HITLDetail)
                .join(TaskInstance, HITLDetail.ti_id == TaskInstance.id)
                .where(
                    TaskInstance.run_id == self.run_id,
                    TaskInstance.task_id == task_id,
                    TaskInstance.map_index == map_index,
                )
            )
            names = ("subject", "body", "options", "params", "defaults", "assignees")
            return held and {name: getattr(held, name) for name in names}

    def xcom(self, task_id: str = "approval", key: str = "return_value", map_index: int = -1) -> Any:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        with create_session() as session:
            row = session.scalar(
                sa.select(XComModel).where(
                    XComModel.dag_id == self.dag_id,
                    XComModel.run_id == self.run_id,
                    XComModel.task_id == task_id,
                    XComModel.key == key,
                    XComModel.map_index == map_index,
                )
            )
            return None if row is None else XComModel.deserialize_value(row)

    @property
    def reviews(self) -> list[dict[str, Any]]:
        """The ledger's rows of this run."""
        engine = sa.create_engine(self.deployment.ledger_url, poolclass=sa.NullPool)
        try:
            with engine.connect() as connection:
                rows = connection.execute(sa.select(review).where(review.c.run_id == self.run_id))
                return [dict(row) for row in rows.mappings()]
        finally:
            engine.dispose()

    def _parsed(self) -> Any:
        """Return the DAG, completed as a file of DAGs is."""
        dag = self.make()
        dag.check_cycle()
        dag.resolve_template_files()
        return dag

    def _run(self, session: Any) -> Any:
        from airflow.models.dagrun import DagRun

        return session.scalar(
            sa.select(DagRun).where(DagRun.dag_id == self.dag_id, DagRun.run_id == self.run_id)
        )

    @cached_property
    def _dag(self) -> Any:
        """The DAG as the scheduler has it, written to the database."""
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.serialization.definitions.dag import SerializedDAG
        from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
        from airflow.utils.session import create_session

        dag = self._parsed()
        with create_session() as session:
            DagBundlesManager().sync_bundles_to_db(session=session)
            session.flush()
            lazy = LazyDeserializedDAG.from_dag(dag)
            SerializedDAG.bulk_write_to_db("dags-folder", None, [lazy], session=session)
            SerializedDagModel.write_dag(lazy, bundle_name="dags-folder", session=session)
        return DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))


async def _first_event(trigger: Any) -> Any:
    return await anext(trigger.run())


def approval(**arguments: Any) -> Callable[[], Any]:
    """Return what makes a DAG that asks a person about what `draft` returns, and delivers what goes on.

    arguments: of the sensor; `draft`: what is decided on, or what makes it; `retries`.
    """
    draft = arguments.pop("draft", "Dear Ms. Mill, you owe us $12.50.")
    retries = arguments.pop("retries", 0)
    usage = arguments.pop("usage", None)
    checks = arguments.pop("checks", None)
    dag_id = arguments.pop("dag_id", "approvals")

    def make() -> Any:
        from airflow.sdk import DAG, task

        from airflow_llm_provider.sensors.approval import ApprovalSensor

        with DAG(dag_id, schedule=None) as dag:

            @task(task_id="draft")
            def drafted(ti: Any = None) -> Any:
                for key, value in (("llm_usage", usage), ("llm_checks", checks)):
                    if value is not None:
                        ti.xcom_push(key, value)
                return draft() if callable(draft) else draft

            asked = ApprovalSensor(
                task_id="approval",
                **{"content": drafted(), "subject": "Send this letter?", "retries": retries, **arguments},
                retry_delay=dt.timedelta(0),
            )

            @task(task_id="send")
            def send(content: Any) -> Any:
                return content

            @task(task_id="redo")
            def redo(decision: Any) -> Any:
                return decision["feedback"]

            @task(task_id="after", trigger_rule="all_done")
            def after() -> str:
                return "done"

            sent = send(asked.output["content"])
            if arguments.get("on_reject") == "redo":
                redo(asked.output)
            sent >> after()
        return dag

    return make


def hash_of(value: Any) -> str:
    from airflow_llm_provider.engine.request import to_json

    return digest(to_json(value))
