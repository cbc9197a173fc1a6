"""A temporary PgBouncer in front of a temporary PostgreSQL, for tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

from airflow_llm_provider.testing.processes import (
    ChildSession,
    free_port,
    kill_sessions,
    send_signal,
    signals_held,
    wait_until,
)
from tests.support.postgres import LocalPostgres, server_user

_START_S = 30.0
_STOP_S = 10.0


class PgBouncerUnavailable(RuntimeError):
    """PgBouncer is not installed or did not start; the message says what to do or shows its log."""


class LocalPgBouncer:
    """Run PgBouncer on a free loopback port, in transaction mode, for all databases of a server.

    Leaving the context ends it by its pid and removes its folder. As root it runs as the user `postgres`, or `nobody`.
    On Debian root also gets it installed.

    server: the PostgreSQL that it leads to.
    pool_size: connections to the server per database; so many transactions run at a time, the others wait.
    """

    def __init__(self, server: LocalPostgres, *, pool_size: int = 2) -> None:
        self.port = 0
        self._server, self._pool_size = server, pool_size
        self._folder = Path()
        self._process: ChildSession | None = None

    def url_of(self, database: str) -> str:
        """Return the URL of a database of the server, by way of PgBouncer."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def __enter__(self) -> Self:
        program, user = pgbouncer_program(), server_user()
        with signals_held():
            self._folder = Path(tempfile.mkdtemp(prefix="llm-pgbouncer-"))
            self.port = free_port()
            (self._folder / "users.txt").write_text('"postgres" ""\n')
            settings = {
                "listen_addr": "127.0.0.1",
                "listen_port": self.port,
                "unix_socket_dir": "",
                "auth_type": "trust",
                "auth_file": self._folder / "users.txt",
                "pool_mode": "transaction",
                "default_pool_size": self._pool_size,
                "max_client_conn": 500,
            }
            lines = [
                "[databases]",
                f"* = host=127.0.0.1 port={self._server.port} user=postgres",
                "[pgbouncer]",
            ]
            lines += [f"{name} = {value}" for name, value in settings.items()]
            (self._folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
            if user is not None:
                for path in (self._folder, *self._folder.iterdir()):
                    os.chown(path, user.pw_uid, user.pw_gid)
            self._process = ChildSession.start(
                "pgbouncer",
                [program, str(self._folder / "pgbouncer.ini")],
                folder=self._folder,
                env=dict(os.environ),
                log=self._folder / "pgbouncer.log",
                user=user,
            )
        try:
            self._wait_ready(self._process)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End it without waiting for its clients, and remove its folder."""
        with signals_held():
            if self._process is not None:
                process, self._process = self._process, None
                send_signal(process.pid, signal.SIGTERM)  # its immediate shutdown
                wait_until(process.has_ended, _STOP_S)
                kill_sessions({process.pid})
            shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_ready(self, process: ChildSession) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and not process.has_ended():
            with suppress(OSError), closing(socket.create_connection(("127.0.0.1", self.port), timeout=1)):
                return
            time.sleep(0.02)
        raise PgBouncerUnavailable(f"PgBouncer did not start.\n{process.tail()}")


def pgbouncer_program() -> str:
    """Return the path of pgbouncer; as root with apt-get, install it first if needed."""
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])  # where Debian has it
    found = shutil.which("pgbouncer", path=search)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "pgbouncer"]):
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PgBouncerUnavailable(f"`{' '.join(command)}` failed: {done.stderr[-2000:]}")
        found = shutil.which("pgbouncer", path=search)
    if found is None:
        raise PgBouncerUnavailable(
            "pgbouncer was not found. Install it: `apt-get install pgbouncer`, `dnf install pgbouncer` or "
            "`brew install pgbouncer`."
        )
    return found
