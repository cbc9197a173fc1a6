"""PDFs read in a process beside this one: what a file does to PDFium ends there, and not the task."""

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
"""Address space of the process. PDFium takes twenty times what a page unpacks to, and aborts when it gets no more."""
MAX_CPU_S = 60
"""For one PDF."""

_LENGTH = struct.Struct("!Q")


def pdf_parts_beside(raw: bytes, mode: PdfMode) -> tuple[tuple[Part, ...], int]:
    """Return what `pdf_parts` does; Unreadable also for a PDF that crashes PDFium or goes over the limits."""
    return _reader.read(raw, mode)


class _Reader:
    """One process, started at the first PDF and again after one that it did not survive; one PDF at a time."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def read(self, raw: bytes, mode: PdfMode) -> tuple[tuple[Part, ...], int]:
        with self._turn:
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
                    f"PDFium did not survive this PDF (status {process.returncode}): it is broken, or needs over "
                    f"{MAX_MEMORY_BYTES >> 20:,} MiB or {MAX_CPU_S} s of CPU",
                ) from None
        # JSON, which can do nothing here whatever has become of the other side.
        told = json.loads(reply)
        if "reason" in told:
            raise Unreadable(told["reason"], told["message"])
        return tuple(Part(**part) for part in told["parts"]), told["pages"]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner != os.getpid():
            self._process = None  # the parent's: we were forked from it
        if self._process is None or self._process.poll() is not None:
            self.close()
            # -P: a file of the working folder must not stand in for a module.
            command = [sys.executable, "-P", "-m", __name__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._owner = os.getpid()
        return self._process

    def close(self) -> None:
        """End the process, if there is one of ours."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # what was still to be written
                pipe.close()


def _serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Read PDFs until nobody asks any more, which is also when the asking process has been killed."""
    _limit(resource.RLIMIT_AS, MAX_MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    while True:
        try:
            mode, raw = _read(source).decode(), _read(source)
        except EOFError:
            return
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + MAX_CPU_S)
        told: dict[str, object]
        try:
            parts, pages = pdf_parts(raw, mode)  # type: ignore[arg-type]  # checked where it was asked for
            told = {"parts": [dataclasses.asdict(part) for part in parts], "pages": pages}
        except Unreadable as error:
            told = {"reason": error.reason, "message": str(error)}
        _write(sink, json.dumps(told).encode())


def _limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # macOS has no limit of memory
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
