"""A temporary PostgreSQL server on this machine, for tests and benchmarks."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil  # type: ignore[import-untyped]  # no stubs among our dependencies

from airflow_llm_provider.testing.processes import (
    ChildSession,
    as_user,
    exit_on_signals,
    free_port,
    is_alive,
    kill_sessions,
    send_signal,
    signals_held,
    wait_until,
)

_START_S = 60.0
_STOP_S = 20.0
_FAST_NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class PostgresUnavailable(RuntimeError):
    """PostgreSQL is not installed or did not start; the message says what to do or shows its log."""


class LocalPostgres:
    """Run PostgreSQL on a free loopback port, without passwords, for this machine only.

    Leaving the context ends it by its pid, on an exception, SIGINT, SIGTERM and SIGHUP too, and removes its
    folder. As root it runs as the user `postgres`, or `nobody`. On Debian root also gets it installed.

    data_dir: the folder of its data, which is kept; default: a folder under /tmp, which is removed.
    durable: False answers before the disk has the data. That is faster, and not how a ledger should be measured.
    """

    def __init__(self, data_dir: Path | None = None, *, durable: bool = True) -> None:
        self.port = 0
        self._data_dir = data_dir
        self._durable = durable
        self._folder: Path | None = None
        self._bin = Path()
        self._server: ChildSession | None = None
        self._user: pwd.struct_passwd | None = None
        self._replaced_handlers: dict[int, Any] = {}

    @property
    def url(self) -> str:
        """Return the SQLAlchemy URL of the database `postgres`, by the psycopg 3 driver."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the SQLAlchemy URL of `database`."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Create the database `name` and return its URL."""
        self._run(["createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name])
        return self.url_of(name)

    def __enter__(self) -> Self:
        self._bin = server_programs()
        self._user = server_user()  # the installation may have created it
        self._replaced_handlers = exit_on_signals()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def processes(self) -> list[psutil.Process]:
        """Return the server's processes, the first one first; each of the others has a session of its own."""
        try:
            first = psutil.Process(self._server.pid) if self._server else None
            return [first, *first.children(recursive=True)] if first else []
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Kill -9 every process of the server, as a crash of its machine would."""
        processes = self.processes()
        for process in processes:
            send_signal(process.pid, signal.SIGKILL)
        wait_until(lambda: not any(is_alive(process) for process in processes), _STOP_S)

    def stop(self) -> None:
        """End the server without waiting for its clients; `restart` starts it again."""
        if self._server is not None:
            server, self._server = self._server, None
            send_signal(server.pid, signal.SIGINT)  # PostgreSQL's "fast" shutdown
            wait_until(server.has_ended, _STOP_S)
            kill_sessions({server.pid})
            wait_until(server.has_ended, 5.0)

    def restart(self) -> None:
        """Start the server with its data, at the same port; stop it first if it runs."""
        self.stop()
        self._start()

    def close(self) -> None:
        """End the server without waiting for its clients, and remove its folder."""
        with signals_held():
            self.stop()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None
            for number, handler in self._replaced_handlers.items():
                signal.signal(number, handler)
            self._replaced_handlers = {}

    def _start(self) -> None:
        # Directly under /tmp: a socket's path has at most 107 characters, and another user must be able to reach it.
        with signals_held():
            self._folder = self._folder or Path(
                tempfile.mkdtemp(prefix="llm-postgres-", dir=Path("/", "tmp"))
            )
        data = self._data_dir.resolve() if self._data_dir is not None else self._folder / "data"
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._user is not None:
            for path in (self._folder, data):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        if not (data / "PG_VERSION").exists():
            options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
            self._run(["initdb", f"--pgdata={data}", *options])
        self.port = free_port(self.port)  # the same again after a restart
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", "max_connections=200"]
        settings += [f"unix_socket_directories={self._folder}"]
        settings += [] if self._durable else _FAST_NOT_DURABLE
        command = [str(self._bin / "postgres"), "-D", str(data)]
        for setting in settings:
            command += ["-c", setting]
        with signals_held():
            self._server = ChildSession.start(
                "postgres",
                command,
                folder=self._folder,
                env=os.environ | {"LC_ALL": "C.UTF-8"},
                log=self._folder / "server.log",
                user=self._user,
            )
        self._wait_ready(self._server, data)

    def _wait_ready(self, server: ChildSession, data: Path) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if server.has_ended():
                break
            with suppress(FileNotFoundError, IndexError):
                # The eighth line of the pid file is the server's state, since PostgreSQL 10.
                lines = (data / "postmaster.pid").read_text().splitlines()
                if int(lines[0]) == server.pid and lines[7].strip() == "ready":
                    return
            time.sleep(0.02)
        raise PostgresUnavailable(f"PostgreSQL did not start in {data}.\n{server.tail()}")

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            [str(self._bin / command[0]), *command[1:]],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            **as_user(self._user),
        )
        if done.returncode:
            raise PostgresUnavailable(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def server_programs() -> Path:
    """Return the folder of PostgreSQL's programs; as root with apt-get, install it first if needed."""
    found = next(_folders_with_server(), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "postgresql"]):
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PostgresUnavailable(f"`{' '.join(command)}` failed: {done.stderr[-2000:]}")
        found = next(_folders_with_server(), None)
    if found is None:
        raise PostgresUnavailable(
            "initdb and postgres were not found by pg_config, under /usr/lib/postgresql or in PATH. "
            "Install the server: `apt-get install postgresql`, `dnf install postgresql-server` "
            "or `brew install postgresql`."
        )
    return found


def _folders_with_server() -> Iterator[Path]:
    candidates = []
    if pg_config := shutil.which("pg_config"):
        done = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        candidates.append(Path(done.stdout.strip() or "/nowhere"))
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(versions, key=lambda path: path.parent.name.zfill(4), reverse=True)
    candidates += [Path(entry) for entry in os.get_exec_path()]
    for candidate in candidates:
        # PATH may have links to single programs; the other programs are beside their targets.
        folder = (candidate / "initdb").resolve().parent
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            yield folder


def server_user() -> pwd.struct_passwd | None:
    """Return who runs a server that refuses to run as root; None for the user that we are."""
    if os.geteuid() != 0:  # only root may not run PostgreSQL
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresUnavailable("PostgreSQL refuses to run as root, and there is no user postgres or nobody.")
