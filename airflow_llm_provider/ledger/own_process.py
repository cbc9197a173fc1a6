"""The process that opened a ledger: a child that is forked since must not use its sockets, threads and locks."""

from __future__ import annotations

import os

from airflow_llm_provider.errors import LedgerUnusable


class OwnProcess:
    """Remembers the process in which it is made."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_this(self) -> bool:
        """Whether this is still that process, and no child of it."""
        return self._pid == os.getpid()

    def require(self) -> None:
        """Raise LedgerUnusable in a child.

        Two processes that write to one socket mix their statements, threads do not survive a fork, and SQLite's
        connections must not be used after one.
        """
        if not self.is_this:
            raise LedgerUnusable(
                "The ledger was opened in a process from which this one was forked since. Nothing was sent or "
                "written. Open a hook, an engine or a ledger in the process that uses it: after the fork, or start the "
                "process by spawn."
            )
