"""A real Airflow in this process: its own home and database, task instances run as `dag.test()` runs them."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Airflow reads its environment when it is imported, and nothing may have imported it before.
assert "airflow" not in sys.modules, "Airflow is loaded already, with another home"
_HOME = Path(tempfile.mkdtemp(prefix="airflow-llm-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
(_HOME / "dags").mkdir()
os.environ.update(
    AIRFLOW_HOME=str(_HOME),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__DAGS_FOLDER=str(_HOME / "dags"),
    AIRFLOW__CORE__TEST_CONNECTION="Enabled",
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{_HOME / 'airflow.db'}",
)
for name in [name for name in os.environ if name.startswith(("AIRFLOW__LLM__", "AIRFLOW_CONN_"))]:
    del os.environ[name]

import orjson  # noqa: E402 - after the environment
import pytest  # noqa: E402
import sqlalchemy as sa  # noqa: E402

from airflow_llm_provider.ledger.schema import call  # noqa: E402
from airflow_llm_provider.testing.standin import StandIn  # noqa: E402
from tests.support.books import Books, balance  # noqa: E402

KEY = "sk-ant-api03-planted-secret-4711-do-not-leak"


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """A home with a migrated database."""
    from airflow.utils.db import initdb

    initdb()
    return _HOME


@dataclass(kw_only=True)
class Ran:
    """A DAG run that has ended, as its database tells it."""

    dag_id: str
    run_id: str
    state: str
    folder: Path
    log: str
    instances: dict[tuple[str, int], Any]

    def ti(self, task_id: str = "read", map_index: int = -1) -> Any:
        return self.instances[task_id, map_index]

    def xcom(self, task_id: str = "read", *, key: str = "return_value", map_index: int = -1) -> Any:
        """Return what was pushed, as the next task would get it."""
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        with create_session() as session:
            row = session.scalar(
                sa.select(XComModel).where(
                    XComModel.dag_id == self.dag_id,
                    XComModel.run_id == self.run_id,
                    XComModel.task_id == task_id,
                    XComModel.map_index == map_index,
                    XComModel.key == key,
                )
            )
            return None if row is None else XComModel.deserialize_value(row)

    @property
    def manifest(self) -> dict[str, Any]:
        """Return what the one task returned, or pushed before it failed."""
        manifest: dict[str, Any] | None = self.xcom() or self.xcom(key="manifest")
        assert manifest is not None, f"{self.state}, and no manifest:\n{self.log}"
        return manifest

    @property
    def outcomes(self) -> dict[str, int]:
        """Return how many documents ended in which outcome, those that none did left out."""
        return {name: count for name, count in self.manifest["outcomes"].items() if count}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return _lines(self.manifest["output"])

    @property
    def dead_letters(self) -> list[dict[str, Any]]:
        path = self.manifest["dead_letters"]
        return _lines(path) if path else []

    def rendered(self, task_id: str = "read", map_index: int = -1) -> dict[str, Any]:
        """Return what the page Rendered Templates shows."""
        from airflow.models.renderedtifields import RenderedTaskInstanceFields
        from airflow.utils.session import create_session

        with create_session() as session:
            return session.scalar(
                sa.select(RenderedTaskInstanceFields.rendered_fields).where(
                    RenderedTaskInstanceFields.dag_id == self.dag_id,
                    RenderedTaskInstanceFields.run_id == self.run_id,
                    RenderedTaskInstanceFields.task_id == task_id,
                    RenderedTaskInstanceFields.map_index == map_index,
                )
            )


@dataclass(kw_only=True)
class Deployment:
    """An Airflow whose connection `claude_default` leads to a stand-in, with a ledger and folders of its own."""

    server: StandIn
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    log: Callable[[], str]
    key: str = KEY

    @property
    def ledger_url(self) -> str:
        return f"sqlite:///{self.folder / 'ledger.db'}"

    @property
    def inbox(self) -> Path:
        """A folder for documents."""
        folder = self.folder / "inbox"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def output(self) -> str:
        return str(self.folder / "out" / "rows.jsonl")

    def connect(
        self,
        conn_id: str = "claude_default",
        *,
        key: str | None = None,
        host: str | None = None,
        **fields: Any,
    ) -> None:
        """Set the connection; `fields` are those of its form."""
        connection = {
            "conn_type": "claude",
            "password": self.key if key is None else key,
            "host": self.server.url if host is None else host,
            "extra": {"ledger_url": self.ledger_url, **fields},
        }
        self.monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))

    def texts(self, count: int, *, start: int = 0) -> list[dict[str, str]]:
        return [
            {"id": f"doc-{n}", "text": f"Letter {n}: we owe you ${n}.00."}
            for n in range(start, start + count)
        ]

    def files(self, count: int) -> Path:
        """Write so many text files and return their folder."""
        for n in range(count):
            (self.inbox / f"doc-{n:04}.txt").write_text(f"Letter {n}: we owe you ${n}.00.")
        return self.inbox

    def dag(
        self, name: str = "nightly", *, retries: int = 0, tags: tuple[str, ...] = (), **asking: Any
    ) -> Any:
        """Return a DAG whose one task, `read`, asks; `asking` goes to the operator."""
        from airflow.sdk import DAG

        from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator

        asking = {"prompt": "What is owed?", "output": self.output, "model": "fast"} | asking
        params = asking.pop("params", None)
        if "task_tags" in asking:  # `tags` are the DAG's here
            asking["tags"] = asking.pop("task_tags")
        with DAG(name, schedule=None, tags=list(tags), params=params) as dag:
            ClaudeDocumentsOperator(task_id="read", retries=retries, retry_delay=0, **asking)
        return dag

    def run(self, dag: Any, **how: Any) -> Ran:
        """Run a DAG to its end, retries included, as a new run. It is in this process: there need be no file of it.

        Templates are rendered in place, where a worker would parse the file anew: make a DAG for every run.
        """
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.serialization.definitions.dag import SerializedDAG
        from airflow.serialization.serialized_objects import LazyDeserializedDAG
        from airflow.utils.session import create_session

        with create_session() as session:
            DagBundlesManager().sync_bundles_to_db(session=session)
            session.flush()
            lazy = LazyDeserializedDAG.from_dag(dag)
            SerializedDAG.bulk_write_to_db("dags-folder", None, [lazy], session=session)
            SerializedDagModel.write_dag(lazy, bundle_name="dags-folder", session=session)
        self.log()
        return self._ran(dag.test(**how))

    def clear(self, ran: Ran, dag: Any) -> Ran:
        """Clear all tasks of a run that has ended, as the button does, and run them."""
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import clear_task_instances
        from airflow.sdk.definitions.dag import _run_task
        from airflow.utils.session import create_session

        with create_session() as session:
            run = session.scalar(
                sa.select(DagRun).where(DagRun.dag_id == ran.dag_id, DagRun.run_id == ran.run_id)
            )
            clear_task_instances(run.get_task_instances(session=session), session)
            session.commit()
            run.dag = run.dag or dag
            for ti in run.get_task_instances(session=session):
                ti.try_number += 1  # as the scheduler does
                session.commit()
                _run_task(ti=ti, task=dag.task_dict[ti.task_id])
            session.expire_all()
            run.update_state(session=session)
            session.commit()
            return self._ran(run)

    def _ran(self, run: Any) -> Ran:
        return Ran(
            dag_id=run.dag_id,
            run_id=run.run_id,
            state=str(run.state),
            folder=self.folder,
            log=self.log(),
            instances={(ti.task_id, ti.map_index): ti for ti in run.get_task_instances()},
        )

    def ask(self, documents: Any, *, run_conf: dict[str, Any] | None = None, **asking: Any) -> Ran:
        """Run a DAG of one task over `documents`, as a new run."""
        return self.run(self.dag(documents=documents, **asking), run_conf=run_conf)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The ledger's rows, in the order of opening."""
        engine = sa.create_engine(self.ledger_url, poolclass=sa.NullPool)
        try:
            with engine.connect() as connection:
                return [
                    dict(row)
                    for row in connection.execute(sa.select(call).order_by(call.c.opened_ms)).mappings()
                ]
        finally:
            engine.dispose()

    def balance(self) -> Books:
        """Hold the ledger against the invoice."""
        return balance(self.ledger_url, self.server.invoice)


@pytest.fixture
def deployment(
    airflow_home: Path,
    claude_server: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Deployment]:
    """A deployment of its own for each test, whose books balance at the end."""

    def log() -> str:
        out, err = capfd.readouterr()
        raw = caplog.text  # what was logged before Airflow masked any of it
        caplog.clear()
        return f"{out}{err}{raw}"

    deployment = Deployment(server=claude_server, folder=tmp_path, monkeypatch=monkeypatch, log=log)
    deployment.connect()
    yield deployment
    deployment.balance()


def _lines(path: str) -> list[dict[str, Any]]:
    from airflow.sdk import ObjectStoragePath

    return [orjson.loads(line) for line in ObjectStoragePath(path).read_bytes().splitlines()]
