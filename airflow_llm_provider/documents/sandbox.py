"""The sandbox: child processes in which every parser of foreign bytes runs, within limits of memory, CPU and time."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import queue
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import IO, Any

import orjson

from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.document import Reason

MAX_RESIDENT_BYTES = 400 * 1024 * 1024
"""Resident memory of one child process."""
CPU_S, CPU_S_PER_MB = 5.0, 1.0
"""CPU time for one file: so much, and so much more per megabyte of the file."""
WALL_TIMES_CPU = 12
"""A file may take so many times its CPU limit, for a machine that has other work; it ends what only waits."""

_MAX_DATA_BYTES = (
    480 * 1024 * 1024
)  # private writable memory; the kernel refuses more between two looks of the parent
_MAX_REPLY_BYTES = 256 * 1024 * 1024
_START_S = 60.0
_LOOK_MS = 20
_OUT_OF_MEMORY = 77  # the child's exit status
_TOO_MUCH_MEMORY = "needed too much memory"
_TOO_MUCH_CPU = "took too much CPU time"
_TOO_LONG = "took too long"
_ENDS: dict[int | None, str] = {
    _OUT_OF_MEMORY: _TOO_MUCH_MEMORY,
    -signal.SIGXCPU: _TOO_MUCH_CPU,
    -signal.SIGALRM: _TOO_LONG,
}
_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one document may take.

    Attributes:
        cpu_s: CPU seconds.
        wall_s: seconds.
    """

    cpu_s: float
    wall_s: float

    @classmethod
    def of(cls, size: int) -> Limits:
        """Return the limits for a file of `size` bytes."""
        cpu_s = CPU_S + CPU_S_PER_MB * size / 1e6
        return cls(cpu_s=cpu_s, wall_s=WALL_TIMES_CPU * cpu_s)


def run(function: str, raw: bytes, arguments: dict[str, Any], limits: Limits | None = None) -> Any:
    """Return what a function makes of a file's bytes, called in a child process. It blocks; threads may share it.

    As many children as there are cores work at once; the others wait for one of them.

    Args:
        function: `package.module:name`, importable in the child; it is called as `name(raw, **arguments)` and returns
            plain JSON data or dataclasses, which arrive as dicts.
        raw: the file's bytes.
        arguments: plain JSON data.
        limits: of this call; None: those for the file's size.

    Raises:
        Unreadable: as the function raised it, and for a file that made the child crash or pass a limit.
        OSError: no child can be started.
    """
    return _pool.run(function, raw, arguments, limits or Limits.of(len(raw)))


class _Ended(Exception):
    """The child ended, or was killed, while it worked; the text says why.

    Attributes:
        reason: of the dead letter.
    """

    @property
    def reason(self) -> Reason:
        return "too_large" if str(self) in (_TOO_MUCH_MEMORY, _TOO_MUCH_CPU, _TOO_LONG) else "unreadable"


class _Child:
    """One process of the sandbox. It works on one file at a time."""

    def __init__(self) -> None:
        # -P: a file in the working folder must not replace a module. What libraries print could be the document's
        # text, and nothing of it may reach the log.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,  # what an author's reader starts ends with it
        )
        assert self.process.stdin is not None
        # A child that no longer reads must not hold a thread.
        os.set_blocking(self.process.stdin.fileno(), False)
        try:
            self._receive(time.monotonic() + _START_S)
        except _Ended as ended:
            raise OSError(f"The process that reads documents did not start: it {ended}.") from None

    @property
    def resident_bytes(self) -> int:
        """The physical memory that it holds; 0 once it has ended."""
        import psutil  # type: ignore[import-untyped]

        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def ask(self, header: bytes, raw: bytes, limits: Limits) -> Any:
        """Return the child's answer; raise _Ended, with the child gone, where there is none."""
        deadline = time.monotonic() + limits.wall_s
        for data in (_LENGTH.pack(len(header)), header, _LENGTH.pack(len(raw)), raw):
            self._send(data, deadline)
        # JSON and not pickle: a file may have taken over the child, and JSON runs no code here.
        return orjson.loads(self._receive(deadline))

    def close(self) -> None:
        """Kill the process, and wait until it has ended: else it stays as a zombie until the task ends."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.let_go()

    def let_go(self) -> None:
        """Close the pipes. A process that was forked from this one must not hold them open."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _send(self, data: bytes, deadline: float) -> None:
        assert self.process.stdin is not None
        descriptor = self.process.stdin.fileno()
        ready = select.poll()
        ready.register(descriptor, select.POLLOUT)
        rest = memoryview(data)
        while rest:
            if not ready.poll(1000 * max(deadline - time.monotonic(), 0)):
                raise _Ended(self._end(_TOO_LONG))
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BrokenPipeError:
                raise _Ended(self._end()) from None

    def _receive(self, deadline: float) -> bytes:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size, deadline))
        if length > _MAX_REPLY_BYTES:
            raise _Ended(self._end(f"found more than {_MAX_REPLY_BYTES >> 20:,} MiB in it"))
        return self._exactly(length, deadline)

    def _exactly(self, length: int, deadline: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        data = bytearray()
        while len(data) < length:
            if time.monotonic() > deadline:
                raise _Ended(self._end(_TOO_LONG))
            if not ready.poll(_LOOK_MS):
                if self.resident_bytes > MAX_RESIDENT_BYTES:
                    raise _Ended(self._end(_TOO_MUCH_MEMORY))
                continue
            piece = os.read(descriptor, min(length - len(data), 1 << 20))
            if not piece:
                raise _Ended(self._end())
            data += piece
        return bytes(data)

    def _end(self, why: str = "") -> str:
        """Kill the child, and return why: as given, else as its exit status tells."""
        if not why:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)  # it has closed its pipe, and is about to end
        status = self.process.poll()
        self.close()
        if why:
            return why
        return _ENDS.get(status, f"crashed (exit status {status})")


class _Pool:
    """The children of this process: started when they are needed, replaced when they have ended."""

    def __init__(self) -> None:
        # Last in, first out: one document at a time needs one child, however many there may be.
        self._slots: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        self._children: set[_Child] = set()
        for _ in range(cores()):
            self._slots.put(None)

    def run(self, function: str, raw: bytes, arguments: dict[str, Any], limits: Limits) -> Any:
        header = orjson.dumps(
            {"function": function, "arguments": arguments, "cpu_s": limits.cpu_s, "wall_s": limits.wall_s}
        )
        child = self._slots.get()
        try:
            if child is None or child.process.poll() is not None:
                self._drop(child)
                child = None  # so that the slot stays free where no child can be started
                child = _Child()
                self._children.add(child)
            answer = child.ask(header, raw, limits)
        except _Ended as ended:
            self._drop(child)
            child = None
            raise Unreadable(
                ended.reason,
                f"the program that reads such files {ended}. It may take {limits.cpu_s:.0f} s of CPU, "
                f"{limits.wall_s:.0f} s in all, and {MAX_RESIDENT_BYTES >> 20:,} MiB of memory. "
                "The file is broken, or larger than it looks.",
            ) from None
        finally:
            # What one large file took, the allocator keeps; the next file must not pay for it.
            if child is not None and child.resident_bytes > MAX_RESIDENT_BYTES // 2:
                self._drop(child)
                child = None
            self._slots.put(child)
        if "reason" in answer:
            raise Unreadable(answer["reason"], answer["message"])
        return answer["value"]

    def close(self) -> None:
        """End all children."""
        for child in list(self._children):
            self._drop(child)

    def let_go(self) -> None:
        """Leave the children to the process that started them."""
        for child in self._children:
            child.let_go()
            child.process.returncode = 0  # nobody is to wait for another process's child

    def _drop(self, child: _Child | None) -> None:
        if child is not None:
            self._children.discard(child)
            child.close()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Work until the parent closes the pipe, which also happens when it is killed."""
    _limit(resource.RLIMIT_DATA, _MAX_DATA_BYTES)
    # A crash would write its memory to the disk, with the document in it.
    _limit(resource.RLIMIT_CORE, 0)
    _write(answers, b"{}")
    while True:
        try:
            header, raw = orjson.loads(_read(requests)), _read(requests)
        except EOFError:
            return
        # The kernel's own limits: they hold in a library that never returns to Python, and when the parent is gone.
        # The one on CPU counts from the start of the process, so it moves up with each file.
        _limit(resource.RLIMIT_CPU, int(time.process_time() + header["cpu_s"]) + 1)
        signal.setitimer(signal.ITIMER_REAL, header["wall_s"] + 5)
        answer = _answer(header["function"], raw, header["arguments"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(answers, answer)


def _answer(function: str, raw: bytes, arguments: dict[str, Any]) -> bytes:
    module, _, name = function.partition(":")
    try:
        value = getattr(importlib.import_module(module), name)(raw, **arguments)
        return orjson.dumps({"value": value})
    except Unreadable as error:
        if not isinstance(error.__context__, MemoryError):
            return orjson.dumps({"reason": error.reason, "message": str(error)})
    except MemoryError:
        pass
    except Exception as error:  # noqa: BLE001 - a parser's own failure is this document's, whatever it raises
        # Its text may hold the document's.
        message = f"it cannot be parsed ({type(error).__name__})"
        return orjson.dumps({"reason": "unreadable", "message": message})
    os._exit(_OUT_OF_MEMORY)  # what was half made is not worth keeping


def _limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # macOS has no limit on memory
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    rest = memoryview(data)
    while rest:
        rest = rest[pipe.write(rest) :]  # an unbuffered pipe takes what fits


def _read(pipe: IO[bytes]) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return _exactly(pipe, length)


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


_pool = _Pool()


def close() -> None:
    """End all children of this process; the next file starts new ones."""
    _pool.close()


atexit.register(close)


def _forked() -> None:
    global _pool
    _pool.let_go()
    _pool = _Pool()


os.register_at_fork(after_in_child=_forked)

if __name__ == "__main__":
    # Whatever a library prints must not stand between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, answers)
