"""Waiting in unit tests: for what another thread does, and never long; conftest.py fails a test that sleeps.

Importing this measures all sleep of the process: it must come before anything keeps `sleep` as a default.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

_slept: list[tuple[float, float]] = []  # from when until when, on the monotonic clock
_sleep, _asyncio_sleep = time.sleep, asyncio.sleep


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until `condition()` holds, which another thread or task brings about; an error after `timeout_s`.

    This is not measured as sleep: it ends as soon as it can, however slow the machine is.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():
            await _asyncio_sleep(0.002)


def forget_sleep() -> None:
    """Measure anew."""
    _slept.clear()


def slept_s() -> float:
    """Return for how many seconds somebody slept; sleeping side by side counts once."""
    total, ended = 0.0, float("-inf")
    for start, end in sorted(_slept):
        total += max(0.0, end - max(start, ended))
        ended = max(ended, end)
    return total


# What was asked for is measured, not what it took: a busy machine wakes a sleeper late. A sleep that was cancelled
# does not count either: it stands for something that never ends.


def _measured_sleep(seconds: float) -> None:
    started = time.monotonic()
    _sleep(seconds)
    _slept.append((started, started + seconds))


async def _measured_asyncio_sleep(delay: float, result: Any = None) -> Any:
    started = time.monotonic()
    answer = await _asyncio_sleep(delay, result)
    if not hasattr(asyncio.get_running_loop(), "simulated"):
        _slept.append((started, started + delay))
    return answer


time.sleep, asyncio.sleep = _measured_sleep, _measured_asyncio_sleep
