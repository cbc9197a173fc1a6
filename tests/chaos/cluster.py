"""The services of docker-compose.yaml as processes that can be killed, stopped and restarted, and come back."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psutil
from jobs import runs

from airflow_llm_provider.testing.processes import (
    kill_sessions,
    send_signal,
    session_members,
    wait_until,
)
from tests.support.airflow import TaskProcess
from tests.support.postgres import LocalPostgres

sys.path.append(str(Path(__file__).parents[1] / "distributed"))
from compose import Compose

POSTGRES = "postgres"
# One machine's ledger lies in a file of its own: its tasks run where the file is.
LOCAL_QUEUE, LOCAL_WORKER, MOVED_WORKER = "local", "worker-1", "worker-2"
_TERM_S = 10.0  # how long Docker, too, waits before it kills


class Clock:
    """The wall clock of the processes that get `environment`; needs a C compiler, or it can't be moved."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "clock", folder / "clock.so"
        self.move(0)
        source = Path(__file__).with_name("clock.c")
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
        self.can_move = bool(shutil.which("cc")) and not subprocess.run(command, check=False).returncode
        self.environment = {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(self._file)}

    def move(self, by_s: int) -> None:
        """Set it so much ahead of the right time."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("q", by_s))


class Cluster(Compose):
    """Airflow on many machines whose services end and come back, as `restart: unless-stopped` has it.

    clock: of the machine of worker-2.
    fallen: how often a service has ended that was not struck, most often because another was away.
    """

    def __init__(self, folder: Path, *, dags: Path, more: Mapping[str, str]) -> None:
        super().__init__(folder, dags=dags, more=more)
        self.clock = Clock(folder)
        # Its data outlive a kill; where pytest keeps folders, another user may not go.
        self._data = Path(tempfile.mkdtemp(prefix="chaos-postgres-", dir="/tmp"))
        self._data.chmod(0o755)
        self._postgres = LocalPostgres(self._data / "data")
        self.fallen = 0
        self._down: set[str] = set()

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def close(self) -> None:
        """End every process, those too that were stopped, and remove the database."""
        for service in (*self._running, POSTGRES):
            self.signal(service, signal.SIGCONT)
        super().close()
        shutil.rmtree(self._data, ignore_errors=True)

    def command(self, service: str) -> list[str]:
        """Return the service's command; the local worker listens to a queue of its own, too."""
        command = super().command(service)
        return [*command, "--queues", f"default,{LOCAL_QUEUE}"] if service == LOCAL_WORKER else command

    def environment(self, service: str) -> dict[str, str]:
        """Return the service's environment; worker-2 has a clock that can be moved."""
        own = super().environment(service)
        return own | self.clock.environment if service == MOVED_WORKER and self.clock.can_move else own

    def check(self) -> None:
        """Start again what has ended and should run."""
        if POSTGRES in self._down:
            return  # without it they would start, fail and start again
        for service, child in list(self._running.items()):
            if service != "init" and service not in self._down and child.has_ended():
                self.fallen += 1
                self.start(service)

    def processes(self, service: str) -> list[psutil.Process]:
        """Return the processes of a service."""
        if service == POSTGRES:
            return self._postgres.processes()
        return session_members({self._running[service].pid}) if service in self._running else []

    def signal(self, service: str, number: int) -> None:
        """Send a signal to every process of a service."""
        for process in self.processes(service):
            send_signal(process.pid, number)

    def take_down(self, service: str, *, gracefully: bool) -> None:
        """End a service and keep it down: by kill -9, or told to stop and killed when it does not."""
        self._down.add(service)
        if service == POSTGRES:
            self._postgres.stop() if gracefully else self._postgres.kill()
            return
        child = self._running[service]
        if gracefully:
            send_signal(child.pid, signal.SIGTERM)
            wait_until(child.has_ended, _TERM_S)
        kill_sessions({child.pid})
        wait_until(child.has_ended, _TERM_S)

    def bring_up(self, service: str) -> None:
        """Start a service that is down."""
        if service == POSTGRES:
            self._postgres.restart()
        else:
            self.start(service)
        self._down.discard(service)

    def start(self, service: str) -> None:
        """Start a service; what a killed one left in its home would keep it from starting."""
        for pid_file in (self.folder / service).glob("*.pid"):
            pid_file.unlink()
        super().start(service)

    def tasks(self) -> list[TaskProcess]:
        """Return the processes of the tasks that the workers run now."""
        found = []
        for worker in self.workers:
            for member in self.processes(worker):
                try:  # only a task's runner has a process group of its own
                    if os.getpgid(member.pid) == member.pid != os.getsid(member.pid):
                        found.append(TaskProcess(member.ppid(), member.pid))
                except (ProcessLookupError, psutil.NoSuchProcess):
                    continue
        return found

    def kill_task(self, task: TaskProcess, *, with_supervisor: bool) -> None:
        """Kill -9 a task's runner, and the worker's process that supervises it."""
        victims = [task.supervisor, task.runner] if with_supervisor else [task.runner]
        for pid in victims:
            send_signal(pid, signal.SIGKILL)
        wait_until(lambda: not any(runs(pid) for pid in victims), 5.0)
