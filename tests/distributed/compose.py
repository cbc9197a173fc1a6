"""The services of docker-compose.yaml, run as processes of this machine."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from airflow_llm_provider.testing.processes import (
    ChildSession,
    exit_on_signals,
    free_port,
    kill_sessions,
    send_signal,
    session_members,
    wait_until,
)
from tests.support.airflow import SteeredAirflow
from tests.support.postgres import LocalPostgres

ROOT = Path(__file__).parents[2]
# What `.env` holds on a real machine; the words of .env.example are checked against these.
SECRETS = {
    "POSTGRES_PASSWORD": secrets.token_hex(8),
    "REDIS_PASSWORD": secrets.token_hex(8),
    "API_SECRET_KEY": secrets.token_hex(32),
    "JWT_SECRET": secrets.token_hex(32),
    "FERNET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "ANTHROPIC_API_KEY": "sk-offline",
    "CLAUDE_BASE_URL": "http://stand-in:8765",
    "ALL_ADMINS": "True",
}
_VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")
_START_S = 180.0
# What the containers have each for itself and processes of one machine can't.
_PORTS = {"postgres": 5432, "redis": 6379, "api-server": 8080, "stand-in": 8765}


class Compose(SteeredAirflow):
    """Run every service of docker-compose.yaml with its own command and environment, and no container.

    folder: the services' homes, the shared volumes and the logs lie below it.
    more: further environment variables for every service, such as shorter time-outs.

    Differs from the containers in what one machine can't have twice: host names and ports become loopback's,
    `/opt/airflow` a folder for each service, the volumes folders shared by all. PostgreSQL and Redis are the
    system's; everything is ended by pid when the context is left.
    """

    def __init__(self, folder: Path, *, dags: Path, more: Mapping[str, str]) -> None:
        super().__init__("")
        self.folder = folder
        self.services: dict[str, dict[str, Any]] = read()["services"]
        self._dags = dags
        self._more = more
        self._ports: dict[str, int] = {}
        self._running: dict[str, ChildSession] = {}
        self._postgres = LocalPostgres()

    def __enter__(self) -> Self:
        exit_on_signals()
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process."""
        self.disconnect()
        order = sorted(self._running, key=lambda name: name in ("redis", "api-server"))
        sessions = [self._running[name].pid for name in order if not self._running[name].has_ended()]
        for pid in sessions:
            send_signal(pid, signal.SIGTERM)
        wait_until(lambda: not session_members(set(sessions)), 10.0)
        kill_sessions(set(sessions))
        wait_until(lambda: all(child.has_ended() for child in self._running.values()), 5.0)
        self._postgres.close()

    def check(self) -> None:
        """Raise when a service has ended that nobody has killed."""
        for name, child in self._running.items():
            if name != "init" and child.has_ended() and not child.killed:
                raise RuntimeError(f"{name} ended with status {child.returncode}.\n{child.tail()}")

    def kill(self, service: str) -> None:
        """Kill -9 every process of a service: what the end of its machine looks like."""
        self._running[service].killed = True
        kill_sessions({self._running[service].pid})
        wait_until(self._running[service].has_ended, 5.0)

    def start(self, service: str) -> None:
        """Start a service as docker-compose.yaml says."""
        home = self.folder / service
        (home / "config").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "deploy/airflow_local_settings.py", home / "config")
        command = self.command(service)
        if service == "redis":
            command += ["--port", str(self._ports["redis"]), "--bind", "127.0.0.1"]
        else:  # this interpreter's programs, whatever the shell would find
            command[0] = str(Path(sys.executable).parent / command[0])
        log = self.folder / f"{service}.log"
        environment = self.environment(service)
        self._running[service] = ChildSession.start(service, command, folder=home, env=environment, log=log)

    def command(self, service: str) -> list[str]:
        """Return the service's command, with this machine's addresses."""
        return [self._local(word, service) for word in shlex.split(self.services[service]["command"])]

    def environment(self, service: str) -> dict[str, str]:
        """Return the service's environment, with this machine's addresses and folders."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        own.pop("PYTHONDONTWRITEBYTECODE", None)
        own |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', os.defpath)}"
        given = self.services[service].get("environment", {})
        return own | {name: self._local(value, service) for name, value in {**given, **self._more}.items()}

    @property
    def ledger_url(self) -> str:
        """Return the address of the one ledger."""
        return self.environment("worker-1")["AIRFLOW__LLM__LEDGER_URL"]

    @property
    def stand_in_url(self) -> str:
        """Return the address of the stand-in."""
        return f"http://127.0.0.1:{self._ports['stand-in']}"

    def resident_bytes(self, service: str) -> int:
        """Return the memory that a service's processes hold, shared pages counted in each."""
        return sum(p.memory_info().rss for p in session_members({self._running[service].pid}))

    def children(self, service: str) -> list[psutil.Process]:
        """Return the processes of a service but the first."""
        first = self._running[service].pid
        return [member for member in session_members({first}) if member.pid != first]

    def _start_all(self) -> None:
        self._postgres.__enter__()
        self._prepare_postgres()
        self._ports = {"postgres": self._postgres.port}
        for name in ("redis", "api-server", "stand-in"):
            self._ports[name] = free_port(_PORTS[name] + 20000)
        self.url = f"http://127.0.0.1:{self._ports['api-server']}"
        for volume in ("documents", "logs"):
            (self.folder / volume).mkdir(parents=True, exist_ok=True)
        for service in ("redis", "stand-in", "init"):
            self.start(service)
        if not wait_until(self._running["init"].has_ended, _START_S) or self._running["init"].returncode:
            raise RuntimeError(self._running["init"].tail())
        for service in self.services:
            if service not in ("postgres", *self._running):
                self.start(service)
        self._wait_healthy()

    def _prepare_postgres(self) -> None:
        """Make what the image makes from its environment, then run the compose file's own script."""
        environment = self.services["postgres"]["environment"]
        user, database = environment["POSTGRES_USER"], environment["POSTGRES_DB"]
        statements = [f"CREATE ROLE {user} SUPERUSER LOGIN", f"CREATE DATABASE {database} OWNER {user}"]
        script = (ROOT / "deploy/create_ledger.sql").read_text()
        for sql in (*statements, script):
            command = ["psql", "-qv", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres"]
            subprocess.run([*command, "-p", str(self._postgres.port), "-c", sql], check=True, text=True)

    def _wait_healthy(self) -> None:
        deadline = time.monotonic() + _START_S
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        while time.monotonic() < deadline:
            time.sleep(0.5)
            self.check()
            try:
                health = self.get("monitor/health")
            except OSError:
                continue
            except Exception as error:  # the server is starting
                if "httpx2" not in type(error).__module__:
                    raise
                continue
            if all(health[part]["status"] == "healthy" for part in parts) and self._workers_answer():
                return
        raise TimeoutError("not healthy:\n" + "\n".join(child.tail() for child in self._running.values()))

    def _workers_answer(self) -> bool:
        logs = [(self.folder / f"{worker}.log").read_text() for worker in self.workers]
        return all(" ready." in log for log in logs)

    @property
    def workers(self) -> Sequence[str]:
        """Return the services that are workers."""
        return [
            name for name, service in self.services.items() if "celery worker" in str(service.get("command"))
        ]

    def _local(self, value: str, service: str) -> str:
        """Return a value of the file with this machine's addresses and folders in it."""
        for host, port in _PORTS.items():
            value = re.sub(
                rf"\b(?:{host}|localhost|0\.0\.0\.0):{port}\b", f"127.0.0.1:{self._ports[host]}", value
            )
            value = str(self._ports[host]) if value == str(port) else value
        value = "127.0.0.1" if value == "0.0.0.0" else value
        value = value.replace("/opt/airflow/dags", str(self._dags))
        for volume in ("documents", "logs"):
            value = value.replace(f"/opt/airflow/{volume}", str(self.folder / volume))
        return value.replace("/opt/airflow", str(self.folder / service))


def read(values: Mapping[str, str] = SECRETS) -> dict[str, Any]:
    """Return docker-compose.yaml with `values` put into its strings, as `docker compose` does."""

    def variable(match: re.Match[str]) -> str:
        name, kind, word = match.groups()
        if values.get(name):
            return values[name]
        if kind == "?":
            raise KeyError(f"{name}: {word}")
        return word if kind == "-" else ""

    def put_in(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: put_in(value) for key, value in node.items()}
        if isinstance(node, list):
            return [put_in(item) for item in node]
        return _VARIABLE.sub(variable, node) if isinstance(node, str) else node

    return dict(put_in(yaml.safe_load((ROOT / "docker-compose.yaml").read_text())))
