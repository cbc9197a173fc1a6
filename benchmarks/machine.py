"""What a benchmark says of the machine it ran on, and the stand-in it runs against."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def machine(disk: Path) -> dict[str, Any]:
    """Return CPU, cores, Python and how long an fsync takes on the disk of `disk`."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.+)", info)
    return {
        "cpu": name.group(1) if name else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "fsync_ms": round(fsync_ms(disk), 3),
    }


def fsync_ms(folder: Path, times: int = 50) -> float:
    """Return the median milliseconds of writing 4 KiB and syncing it."""
    path = folder / f".fsync-{os.getpid()}"
    took = []
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(times):
                started = time.perf_counter()
                file.write(b"x" * 4096)
                os.fsync(file.fileno())
                took.append(time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)
    return statistics.median(took) * 1000


@contextlib.contextmanager
def stand_in(*, latency_s: float = 0.0, arguments: tuple[str, ...] = ()) -> Iterator[str]:
    """Run the stand-in in a process of its own; yields its URL."""
    command = [sys.executable, "-m", "airflow_llm_provider.testing.standin", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--latency", str(latency_s), *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found.group(0)
                return
        raise RuntimeError("the stand-in did not start")
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class Peak:
    """The most that was seen at once, in MB."""

    mb: float = 0.0


@contextlib.contextmanager
def peak_pss_mb(pids: Callable[[], Collection[int]], every_s: float = 0.5) -> Iterator[Peak]:
    """Watch the memory that processes hold together; pages shared by several are shared out among them."""
    peak, over = Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            peak.mb = max(peak.mb, sum(map(_pss_mb, pids())))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _pss_mb(pid: int) -> float:
    with contextlib.suppress(OSError):  # it has ended
        if found := re.search(
            r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE
        ):
            return int(found.group(1)) / 1024
    return 0.0
