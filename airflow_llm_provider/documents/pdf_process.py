"""PDFs read in a child process with limits, so that a PDF that crashes PDFium does not end the task."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import resource
import struct
import subprocess
import sys
import threading
import time
from typing import IO

from airflow_llm_provider.documents.content import Part, Unreadable
from airflow_llm_provider.documents.pdf import PdfMode, pdf_parts

MAX_MEMORY_BYTES = 1024 * 1024 * 1024
"""Address space of the child process. PDFium takes twenty times the size of an unpacked page, and aborts without it."""
MAX_CPU_S = 60
"""The CPU time for one PDF."""

_LENGTH = struct.Struct("!Q")


def pdf_parts_in_child(raw: bytes, mode: PdfMode) -> tuple[tuple[Part, ...], int]:
    """Return what `pdf_parts` returns, read in the child process.

    Raises:
        Unreadable: as `pdf_parts`, and for a PDF that crashes PDFium or exceeds the limits.
    """
    return _reader.read(raw, mode)


class _Reader:
    """The child process: it is started at the first PDF and after each crash, and reads one PDF at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def read(self, raw: bytes, mode: PdfMode) -> tuple[tuple[Part, ...], int]:
        # One PDF at a time: question and answer go over one pair of pipes.
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                _write(process.stdin, mode.encode())
                _write(process.stdin, raw)
                reply = _read(process.stdout)
            except (OSError, EOFError):
                self.close()
                raise Unreadable(
                    "unreadable",
                    f"PDFium crashed on this PDF (exit status {process.returncode}): it is broken, or needs more than "
                    f"{MAX_MEMORY_BYTES >> 20:,} MiB or {MAX_CPU_S} s of CPU",
                ) from None
        # JSON and not pickle: a PDF may have taken over the child process, and JSON runs no code here.
        answer = json.loads(reply)
        if "reason" in answer:
            raise Unreadable(answer["reason"], answer["message"])
        return tuple(Part(**part) for part in answer["parts"]), answer["pages"]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner != os.getpid():
            self._process = None  # it belongs to the process that this one was forked from
        if self._process is None or self._process.poll() is not None:
            self.close()
            # -P: a file in the working folder must not replace a module.
            command = [sys.executable, "-P", "-m", __name__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._owner = os.getpid()
        return self._process

    def close(self) -> None:
        """End the child process, if this process has started one."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        # Else the killed child stays as a zombie until the task ends.
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # the child ended before it read everything
                pipe.close()


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Read PDFs until the parent process closes the pipe, which also happens when it is killed."""
    _limit(resource.RLIMIT_AS, MAX_MEMORY_BYTES)
    # A crash would write up to a gigabyte of memory to the disk, with the document in it.
    _limit(resource.RLIMIT_CORE, 0)
    while True:
        try:
            mode, raw = _read(requests).decode(), _read(requests)
        except EOFError:
            return
        # The limit counts from the start of the process, so it moves up with each PDF.
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + MAX_CPU_S)
        answer: dict[str, object]
        try:
            parts, pages = pdf_parts(raw, mode)  # type: ignore[arg-type]  # the parent has checked the mode
            answer = {"parts": [dataclasses.asdict(part) for part in parts], "pages": pages}
        except Unreadable as error:
            answer = {"reason": error.reason, "message": str(error)}
        _write(answers, json.dumps(answer).encode())


def _limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # macOS has no limit on memory
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return _exactly(pipe, length)


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


_reader = _Reader()
atexit.register(_reader.close)

if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
