"""An Airflow on this machine for the demo and for tests: its components are child processes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from airflow_llm_provider.testing.airflow_rest import RunningAirflow
from airflow_llm_provider.testing.processes import (
    ChildSession,
    created_at,
    end_strays,
    exit_on_signals,
    free_port,
    is_alive,
    kill_sessions,
    send_signal,
    session_members,
    signals_held,
    title,
    wait_until,
)

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")

_STOP_S = 12.0  # the triggerer takes 10 s when it has to escalate
# The log servers listen on every interface; on one machine the API server reads the files itself.
_FLAGS = {"scheduler": ["--skip-serve-logs"], "triggerer": ["--skip-serve-logs"]}


class ComponentFailed(RuntimeError):
    """A component of Airflow ended or did not become healthy; the message shows the end of its log."""


class TaskProcess(NamedTuple):
    """The two processes of one running task; `runner` is also the `pid` of its task instance."""

    supervisor: int
    runner: int


class LocalAirflow(RunningAirflow):
    """Run Airflow from `home` with the DAGs in `dags`.

    The API server listens on 127.0.0.1 only. The UI opens without a password. A DAG runs only when it is triggered
    (`AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE` in `config` turns schedules on). The caller's own `AIRFLOW*` variables
    are not passed on. Leaving the context ends every process, also after an exception, SIGINT, SIGTERM or SIGHUP.
    The next start of the same home ends what a killed run left behind.

    Args:
        home: holds the database, logs, ports and secrets (mode 600); a second start reuses them.
        connections: connection id to Airflow's JSON form, such as `{"conn_type": "claude", "password": "…"}`.
        config: environment variables, such as `{"AIRFLOW__LLM__PAYLOAD": "none"}`; they win over ours.
        database_url: default: SQLite in `home`; else an existing database, `postgresql+psycopg://…`.
        components: what to start; "celery worker" is possible, "api-server" is needed.
        keep_home: False removes `home` at the end.
        python: the interpreter whose Airflow is run, this one by default.
        start_timeout_s: seconds until all components must be healthy; ComponentFailed after that.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        *,
        executor: str = "LocalExecutor",
        parallelism: int = 4,
        connections: Mapping[str, Mapping[str, Any]] | None = None,
        config: Mapping[str, str] | None = None,
        database_url: str | None = None,
        components: Sequence[str] = COMPONENTS,
        keep_home: bool = True,
        python: str | Path = sys.executable,
        start_timeout_s: float = 120.0,
    ) -> None:
        super().__init__("")  # the address is known when the port is chosen
        if "api-server" not in components:
            raise ValueError(f"components={components!r} lacks 'api-server': tasks report to it.")
        self.home = Path(home).resolve()
        self.dags = Path(dags).resolve()
        self.python = str(python)
        self.start_timeout_s = start_timeout_s
        self._executor = executor
        self._parallelism = parallelism
        self._connections = connections or {}
        self._config = config or {}
        self._database_url = database_url
        self._names = tuple(components)
        self._keep_home = keep_home
        self.components: dict[str, ChildSession] = {}
        self.started: list[ChildSession] = []
        self._lock: int | None = None
        self._replaced_handlers: dict[int, Any] = {}
        self._state: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._replaced_handlers = exit_on_signals()
        try:
            self._open_home()
            self._migrate()
            for name in self._names:
                self.start(name)
            self.wait_healthy(self._names)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of this Airflow: TERM, and KILL for what is left after some seconds."""
        with signals_held():
            self.disconnect()
            self._end_all()
            if self._lock is not None:
                if not self._keep_home:
                    shutil.rmtree(self.home, ignore_errors=True)
                os.close(self._lock)
                self._lock = None
            for number, handler in self._replaced_handlers.items():
                signal.signal(number, handler)
            self._replaced_handlers = {}

    def start(self, component: str) -> None:
        """Start one component and return at once; its output goes to `logs/<component>.log` in `home`."""
        log = self.home / "logs" / f"{component.replace(' ', '-')}.log"
        log.parent.mkdir(exist_ok=True)
        command = [self.python, "-m", "airflow", *component.split(), *_FLAGS.get(component, [])]
        with signals_held():
            child = ChildSession.start(component, command, folder=self.home, env=self.environment(), log=log)
            self.components[component] = child
            self.started.append(child)
            # With the time of creation, because the system gives a pid to another process later.
            self._state.setdefault("processes", []).append([child.pid, created_at(child.pid)])
            self._save()

    def task_pids(self) -> list[TaskProcess]:
        """Return the processes of the tasks that LocalExecutor runs now.

        After kill -9 of a runner its supervisor reports the failure at once; a retry follows after the task's
        retry_delay. After kill -9 of a supervisor the runner works on, but its heartbeats stop: the scheduler fails
        the task `AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT` (300 s) after the last one.
        """
        members = session_members(self.sessions())
        parents = {member.pid: member for member in members}
        found = []
        for member in members:
            # Only the runner has a process group of its own in its session.
            with suppress(ProcessLookupError):
                if os.getpgid(member.pid) == member.pid != os.getsid(member.pid):
                    supervisor = parents.get(member.ppid())
                    if supervisor is not None and "LocalExecutor" in title(supervisor):
                        found.append(TaskProcess(supervisor.pid, member.pid))
        return found

    def check(self) -> None:
        """Raise ComponentFailed when a component has ended that `kill` did not end."""
        for child in self.components.values():
            if child.has_ended() and not child.killed:
                raise ComponentFailed(
                    f"airflow {child.name} ended with status {child.returncode}.\n{child.tail()}"
                )

    def environment(self) -> dict[str, str]:
        """Return the components' environment: for `airflow` and `airflow-llm` commands beside them."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # without .pyc files every task compiles what it imports
        for name in ("NO_PROXY", "no_proxy"):  # Airflow's own clients use a proxy for loopback too
            env[name] = ",".join(filter(None, ["127.0.0.1", "localhost", env.get(name)]))
        env["PATH"] = f"{Path(self.python).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
        env |= {"PYTHONUNBUFFERED": "1", "AIRFLOW_HOME": str(self.home)}
        # Seconds that a writer waits for the others. The 5 of SQLite end the scheduler on a busy machine.
        database_url = self._database_url or f"sqlite:///{self.home}/airflow.db?timeout=60"
        settings = {
            "CORE__DAGS_FOLDER": str(self.dags),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__EXECUTOR": self._executor,
            "CORE__PARALLELISM": str(self._parallelism),
            "CORE__FERNET_KEY": self._state["fernet_key"],
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
            "DATABASE__SQL_ALCHEMY_CONN": database_url,
            "API__HOST": "127.0.0.1",
            "API__PORT": str(self._state["port"]),
            "API__BASE_URL": self.url,
            "API__SECRET_KEY": self._state["secret_key"],
            "API__WORKERS": "1",
            "API__LOG_FETCH_TIMEOUT_SEC": "1",
            "API_AUTH__JWT_SECRET": self._state["jwt_secret"],
            "SCHEDULER__USE_JOB_SCHEDULE": "False",
            # On a busy machine a component is slow, not dead.
            "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "180",
            "DAG_PROCESSOR__HEALTH_CHECK_THRESHOLD": "180",
            "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "180",
            # New files are seen within 2 s, changed ones within 1 s, whatever the parsing interval.
            "DAG_PROCESSOR__REFRESH_INTERVAL": "2",
            "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
            # A supervisor may notice the end of its task this many seconds late; it holds the slot until then.
            "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "LOGGING__COLORED_CONSOLE_LOG": "False",
            "LOGGING__WORKER_LOG_SERVER_PORT": str(self._state["worker_log_port"]),
            "LOGGING__TRIGGER_LOG_SERVER_PORT": str(self._state["trigger_log_port"]),
        }
        if database_url.startswith("postgresql+psycopg:"):
            settings["DATABASE__SQL_ALCHEMY_CONN_ASYNC"] = database_url  # else Airflow asks for asyncpg
        env |= {f"AIRFLOW__{name}": value for name, value in settings.items()}
        for conn_id, connection in self._connections.items():
            env[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(connection)
        return env | dict(self._config)

    def _open_home(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.home / "launcher.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # The kernel frees the lock when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise RuntimeError(
                f"{self.home} is in use by another LocalAirflow: use another folder."
            ) from None
        self._lock = lock
        self._state = {
            "jwt_secret": secrets.token_hex(32),
            "secret_key": secrets.token_hex(32),
            "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        }
        with suppress(FileNotFoundError):
            self._state |= json.loads((self.home / "launcher.json").read_text())
        # Before the ports are chosen: a component that an earlier run left behind still holds them.
        end_strays(self._state.pop("processes", []), self.home)
        for port in ("port", "worker_log_port", "trigger_log_port"):
            self._state[port] = free_port(self._state.get(port, 0))
        self.url = f"http://127.0.0.1:{self._state['port']}"
        self._save()

    def _save(self) -> None:
        draft = self.home / "launcher.json.new"
        # Readable by the owner alone from the first byte on: the file holds secrets.
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(self._state, file)
        # Replaced as a whole: a killed launcher must not leave half a list of processes.
        draft.replace(self.home / "launcher.json")

    def _migrate(self) -> None:
        """Bring the database up to date; this home's own SQLite file once for each version of Airflow."""
        probe = "import importlib.metadata as m; print(m.version('apache-airflow-core'))"
        version = subprocess.check_output([self.python, "-c", probe], text=True).strip()
        is_known = self._database_url is None and (self.home / "airflow.db").exists()
        if is_known and self._state.get("migrated") == version:
            return
        command = [self.python, "-m", "airflow", "db", "migrate"]
        done = subprocess.run(
            command, cwd=self.home, env=self.environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            output = (done.stdout + done.stderr)[-4000:]
            raise ComponentFailed(f"`airflow db migrate` ended with status {done.returncode}:\n{output}")
        self._state["migrated"] = version
        self._save()

    def sessions(self) -> set[int]:
        """Return the ids of the sessions that the components were started in."""
        return {child.pid for child in self.started}

    def wait_healthy(self, names: Collection[str]) -> None:
        """Wait until these components report a fresh heartbeat; ComponentFailed after `start_timeout_s`."""
        import httpx2

        deadline = time.monotonic() + self.start_timeout_s
        waiting = list(names)
        while waiting and time.monotonic() < deadline:
            time.sleep(0.2)
            self.check()
            with suppress(httpx2.TransportError, httpx2.HTTPStatusError):
                health = self.get("monitor/health")
                waiting = [name for name in names if not self._is_healthy(name, health)]
        if waiting:
            tails = "\n".join(self.components[name].tail() for name in waiting)
            raise ComponentFailed(
                f"Not healthy after {self.start_timeout_s:.0f} s: {', '.join(waiting)}.\n{tails}"
            )

    def _is_healthy(self, name: str, health: Mapping[str, Mapping[str, Any]]) -> bool:
        part = name.replace("-", "_")
        if part not in health:
            return bool(health["metadatabase"]["status"] == "healthy")
        # The job of an earlier run may still count as healthy: the heartbeat must be younger than the process.
        beat = health[part].get(f"latest_{part}_heartbeat") or "1970-01-01T00:00Z"
        return datetime.fromisoformat(beat).timestamp() > self.components[name].started_at

    def _end_all(self) -> None:
        # So that `check` does not take the end of a component for a failure.
        for child in self.started:
            child.killed = True
        running = [child for child in self.components.values() if not child.has_ended()]
        # Tasks report their end to the API server, so it is ended last. It shuts down in 0.1 s, but then frees its
        # memory for three CPU seconds.
        self.end([child for child in running if child.name != "api-server"], _STOP_S)
        self.end([child for child in running if child.name == "api-server"], 1.0)
        kill_sessions(self.sessions())  # processes of components that had ended before
        if self._state.pop("processes", None):
            self._save()

    def end(self, components: Collection[ChildSession], within_s: float) -> None:
        """End components by TERM, and by KILL after `within_s`; wait until they are gone."""
        for component in components:
            if component.name == "triggerer":
                self._end_triggers(component.pid)
            send_signal(component.pid, signal.SIGTERM)
        for component in components:
            if component.name == "scheduler":
                self._end_tasks(component.pid)
        sessions = {component.pid for component in components}
        wait_until(lambda: not session_members(sessions), within_s)
        kill_sessions(sessions)
        # A killed process with threads can be awaited only a moment after it has ended.
        wait_until(lambda: all(component.has_ended() for component in components), 5.0)

    def _end_triggers(self, triggerer: int) -> None:
        """End the triggerer's runner first: otherwise the triggerer often misses its end, and waits 10 s."""
        runners = [member for member in session_members({triggerer}) if member.pid != triggerer]
        for runner in runners:
            send_signal(runner.pid, signal.SIGTERM)
        wait_until(lambda: not any(is_alive(runner) for runner in runners), 3.0)

    def _end_tasks(self, scheduler: int) -> None:
        """End the running tasks as Airflow does, by TERM (for on_kill) and KILL 5 s later; let them report it.

        A scheduler that waits for its workers can hold SQLite's write lock, or never end. It is killed after 2 s, so
        that the workers can report the end of their tasks.
        """
        for task in self.task_pids():
            send_signal(task.runner, signal.SIGTERM)
        wait_until(lambda: not self.task_pids(), 5.0)
        for task in self.task_pids():
            send_signal(task.runner, signal.SIGKILL)
        if not wait_until(lambda: not session_members({scheduler}), 2.0):
            send_signal(scheduler, signal.SIGKILL)
            wait_until(lambda: all(title(m).endswith("<idle>") for m in session_members({scheduler})), 6.0)
            kill_sessions({scheduler})
