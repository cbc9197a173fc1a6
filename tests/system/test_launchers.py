"""AirflowUnderTest and LocalPostgres start real servers, can be talked to, and leave nothing running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from airflow_llm_provider.testing.processes import session_members, wait_until
from tests.support.airflow import AirflowUnderTest, ComponentFailed
from tests.support.postgres import LocalPostgres

DAG = """
import time
from datetime import timedelta
from airflow.sdk import dag, task

@dag(schedule=None, params={"who": "world"})
def greetings():
    @task(retries=1, retry_delay=timedelta(seconds=1))
    def greet(params=None):
        print("hello", params["who"])
        if params["who"] == "sleeper":
            time.sleep(4)
        return {"who": params["who"], "version": 1}

    greet()

greetings()
"""

# Stands for `make demo`: enters the context, says so, and works until it is told to stop.
PARENT = """
import sys, time
from pathlib import Path
from tests.support.airflow import AirflowUnderTest

with AirflowUnderTest(Path(sys.argv[1]), Path(sys.argv[2])) as airflow:
    print("healthy", flush=True)
    time.sleep(120)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the DAG, its Airflow home shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("launchers")
    (folder / "dags").mkdir()
    (folder / "dags" / "greetings.py").write_text(DAG)
    return folder


@contextmanager
def timed(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.1f} s")


def sessions_of(home: Path) -> set[int]:
    state = json.loads((home / "launcher.json").read_text())
    return {pid for pid, _ in state.get("processes", [])}


def wait_until_started(home: Path) -> set[int]:
    assert wait_until(lambda: (home / "launcher.json").exists() and len(sessions_of(home)) == 4, 30)
    return sessions_of(home)


def test_a_dag_runs_and_a_killed_task_is_retried(folder: Path) -> None:
    with timed("cold start, run, kill, retry, stop"):
        with AirflowUnderTest(folder / "home", folder / "dags") as airflow:
            sessions = set(airflow.pids().values())
            with timed("first run"):
                run = airflow.trigger("greetings", {"who": "Ada"})
                assert airflow.wait("greetings", run, timeout_s=60) == "success"
            assert airflow.xcom("greetings", run, "greet") == {"who": "Ada", "version": 1}
            assert "hello Ada" in airflow.log("greetings", run, "greet")

            file = folder / "dags" / "greetings.py"
            file.write_text(DAG.replace('"version": 1', '"version": 2'))
            with timed("a run killed and retried, of a changed file"):
                run = airflow.trigger("greetings", {"who": "sleeper"})
                states: list[str] = []
                assert wait_until(lambda: bool(airflow.task_pids()), 30)
                (task,) = airflow.task_pids()
                assert airflow.task_instances("greetings", run)[0]["pid"] in (task.runner, None)
                os.kill(task.runner, signal.SIGKILL)
                assert airflow.wait("greetings", run, timeout_s=60, on_progress=states.append) == "success"
            assert airflow.xcom("greetings", run, "greet") == {"who": "sleeper", "version": 2}
            assert airflow.task_instances("greetings", run)[0]["try_number"] == 2
            assert states[-1] == "success"
            used = airflow.cpu_seconds()
        assert 5 < used <= airflow.cpu_seconds()  # nothing is forgotten when processes end
        assert session_members(sessions) == []
    assert (folder / "home" / "launcher.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_parent_that_is_told_to_stop_takes_everything_with_it(folder: Path, signum: int) -> None:
    command = [sys.executable, "-c", PARENT, str(folder / "home"), str(folder / "dags")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        sessions = wait_until_started(folder / "home")
        if signum == signal.SIGINT:  # the other one comes in the middle of the start
            with timed("healthy after"):
                assert parent.stdout.readline() == "healthy\n"
        with timed("stopped after"):
            parent.send_signal(signum)
            parent.send_signal(signum)  # the impatient press it twice
            parent.communicate(timeout=40)
    assert parent.returncode in (-signum, 128 + signum)
    assert session_members(sessions) == []
    assert sessions_of(folder / "home") == set()


def test_a_second_start_is_quick_and_ends_what_a_killed_run_left(folder: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(folder / "home"), str(folder / "dags")]
    with subprocess.Popen(command) as parent:
        left = wait_until_started(folder / "home")
        parent.kill()
    assert len(session_members(left)) >= 4
    database = (folder / "home" / "airflow.db").stat().st_ino
    started = time.monotonic()
    with AirflowUnderTest(folder / "home", folder / "dags") as airflow:
        seconds = time.monotonic() - started
        print(f"second start: {seconds:.1f} s")
        assert session_members(left) == []
        assert seconds < 30
        with (
            pytest.raises(RuntimeError, match="in use by another"),
            AirflowUnderTest(airflow.home, airflow.dags),
        ):
            pass
        run = airflow.trigger("greetings")
        assert airflow.wait("greetings", run, timeout_s=60) == "success"
        airflow.clear("greetings", run)
        assert airflow.wait("greetings", run, timeout_s=60) == "success"
        assert airflow.task_instances("greetings", run)[0]["try_number"] == 2
        sessions = set(airflow.pids().values())
    assert session_members(sessions) == []
    assert (folder / "home" / "airflow.db").stat().st_ino == database


def test_a_component_that_ends_is_named_with_its_log(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(folder / "home", home)  # spares the migration
    bad = {"AIRFLOW__CORE__EXECUTOR": "no.such.Executor"}
    airflow = AirflowUnderTest(home, folder / "dags", config=bad, components=("api-server", "scheduler"))
    with pytest.raises(ComponentFailed, match=r"(?s)airflow (scheduler|api-server) ended.*no.such"):
        airflow.__enter__()
    assert sessions_of(home) == set()


def test_postgres_answers_and_leaves_nothing() -> None:
    with timed("postgres start and stop"), LocalPostgres() as postgres:
        url = postgres.create_database("ledger")
        assert url == f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/ledger"
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("ledger",)
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            folder = connection.execute("SHOW data_directory").fetchone()[0]  # type: ignore[index]
            assert any(folder in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
    assert not Path(folder).parent.exists()
    assert not any(folder in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))


def test_postgres_keeps_a_data_folder_it_was_given() -> None:
    data = Path(tempfile.mkdtemp(prefix="llm-postgres-test-", dir="/tmp"))
    try:
        with LocalPostgres(data, durable=False) as postgres:
            url = postgres.create_database("kept")
        with LocalPostgres(data, durable=False) as postgres:
            url = postgres.url_of("kept")
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                assert connection.execute("SHOW fsync").fetchone() == ("off",)
    finally:
        shutil.rmtree(data)
