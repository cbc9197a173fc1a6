"""Child processes that end with their parent: sessions, signals and loopback ports."""

from __future__ import annotations

import os
import pwd
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil  # type: ignore[import-untyped]  # no stubs among our dependencies

if TYPE_CHECKING:
    from types import FrameType


_TAIL_LINES = 40


@dataclass(kw_only=True)
class ChildSession:
    """A child process in a session of its own; the session id finds all descendants, orphans too.

    Attributes:
        started_at: seconds since the epoch, taken before the process was started.
        killed: it was ended on purpose.
        returncode: exit status, negative for a signal.
        ended_cpu_s: CPU seconds of the process and the children it awaited; 0 until it has ended.
    """

    name: str
    log: Path
    process: subprocess.Popen[bytes]
    started_at: float
    killed: bool = False
    returncode: int | None = None
    ended_cpu_s: float = 0.0

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        env: Mapping[str, str],
        log: Path,
        user: pwd.struct_passwd | None = None,
    ) -> Self:
        """Start `command` in `folder` and append its output to `log`; only root may give another `user`."""
        started_at = time.time()
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A process stays in its session when its parent dies, so orphans are found and ended, too.
                start_new_session=True,
                **as_user(user),
            )
        return cls(name=name, log=log, process=process, started_at=started_at)

    @property
    def pid(self) -> int:
        """Return the process id, which is the session's id."""
        return self.process.pid

    def has_ended(self) -> bool:
        """Return whether the process has ended; if so, set `returncode` and `ended_cpu_s`."""
        if self.returncode is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.process.returncode = self.returncode = os.waitstatus_to_exitcode(status)
                self.ended_cpu_s = usage.ru_utime + usage.ru_stime
        return self.returncode is not None

    def tail(self) -> str:
        """Return the last lines of its log, below the file's name."""
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return f"--- the last lines of {self.log}\n" + "\n".join(lines)


def as_user(user: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return the arguments with which subprocess runs as `user`; none for None."""
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def free_port(preferred: int = 0) -> int:
    """Return a free TCP port on 127.0.0.1; `preferred` if it is free.

    It is below the ports that the system gives to outgoing connections: one of those could take it before the server
    has started that it is for.
    """
    for port in ([preferred] if preferred else []) + random.sample(range(15_000, 32_000), 100):
        with suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no free TCP port on 127.0.0.1")


def exit_on_signals() -> dict[int, Any]:
    """Make SIGTERM and SIGHUP raise SystemExit, so that contexts are left; return the handlers replaced.

    Only in the main thread, and only for signals that have no other handler.
    """

    def leave(signum: int, _: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    return {number: signal.signal(number, leave) for number in numbers}


@contextmanager
def signals_held() -> Iterator[None]:
    """Delay SIGINT, SIGTERM and SIGHUP until the end of the block (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda signum, _: held.append(signum))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # Each kind once, and now with its own handler.
        for signum in dict.fromkeys(held):
            os.kill(os.getpid(), signum)


def session_members(sessions: Collection[int]) -> list[psutil.Process]:
    """Return the living processes of the sessions; a process stays in its session when its parent dies."""
    members = []
    for pid in psutil.pids() if sessions else ():
        with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(pid) in sessions:
                process = psutil.Process(pid)
                if is_alive(process):
                    members.append(process)
    return members


def is_alive(process: psutil.Process) -> bool:
    """Return whether the process still runs: one that has ended and was not awaited does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def title(process: psutil.Process) -> str:
    """Return the command line of the process; empty when it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""


def send_signal(pid: int, signum: int) -> None:
    """Send `signum` to `pid`; nothing happens when it has ended already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def wait_until(done: Callable[[], bool], within_s: float) -> bool:
    """Call `done` every 20 ms until it returns True; return False after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill_sessions(sessions: Collection[int], within_s: float = 5.0) -> None:
    """Kill every process of the sessions and wait until they are gone, at most `within_s`."""

    def killed() -> bool:
        members = session_members(sessions)
        for member in members:
            send_signal(member.pid, signal.SIGKILL)
        return not members

    wait_until(killed, within_s)


def created_at(pid: int) -> float:
    """Return when the process was created (seconds since the epoch): with its pid, its identity."""
    return float(psutil.Process(pid).create_time())


def end_strays(leaders: Collection[tuple[int, float]], folder: Path) -> list[int]:
    """Kill the sessions an earlier run left behind; return the ids of those killed.

    Args:
        leaders: pid and `created_at` of each session's first process, as that run wrote them down. If the leader has
            ended, the session counts as the earlier run's only if a member still works in `folder`. So a pid that
            another program has now is left alone.
        folder: the working directory of the earlier run's processes.
    """
    ours = []
    for pid, created in leaders:
        members = session_members({pid})
        leader = next((m for m in members if m.pid == pid), None)
        if leader is not None:
            # The same pid at another time of creation is another program.
            is_ours = abs(leader.create_time() - created) < 1.0
        else:
            is_ours = any(_folder_of(member) == folder for member in members)
        if is_ours:
            ours.append(pid)
    kill_sessions(ours)
    return ours


def _folder_of(process: psutil.Process) -> Path | None:
    with suppress(psutil.Error):  # it has ended, or belongs to another user
        return Path(process.cwd())
    return None
