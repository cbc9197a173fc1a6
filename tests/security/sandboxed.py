"""What children of the sandbox call in tests: it is found through PYTHONPATH, as an author's module would be."""

from __future__ import annotations

import os
import time


def use_memory(raw: bytes) -> int:
    """Take memory step by step, as a parser does; it ends with MemoryError at the latest."""
    held = []
    while True:
        held.append(b"x" * 10_000_000)


def use_cpu(raw: bytes) -> int:
    while True:
        pass


def wait(raw: bytes) -> int:
    time.sleep(600)
    return 0


def die(raw: bytes) -> int:
    os.abort()


def say_pid(raw: bytes) -> int:
    print("what a library prints")
    os.write(1, b"and what it writes")
    return os.getpid()
