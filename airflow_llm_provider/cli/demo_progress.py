"""The demo's progress bar: documents done, read from the ledger and from the task's log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console

_FOUND = re.compile(rb"(\d+) license files found")
_DONE = re.compile(rb"(\d+)/\d+\+? documents at")


class Progress:
    """Shows how far a run's asking task is, each time it is told to look.

    home: of the Airflow, with its logs and its ledger.
    dry: nothing is asked, so there is nothing to count.
    """

    def __init__(
        self, console: Console, home: Path, dag_id: str, run_id: str, task_id: str, *, dry: bool
    ) -> None:
        from rich import progress

        from airflow_llm_provider.ledger.database import Database

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("documents, {task.fields[paid]} paid answers"),
            progress.TimeElapsedColumn(),
            console=console,
        )
        what = "Weighing licenses" if dry else "Reading licenses"
        self._task = self._bar.add_task(what, total=None, paid=0)
        self._dag_id, self._run_id, self._dry = dag_id, run_id, dry
        self._log = (
            home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}" / "attempt=1.log"
        )
        self._ledger_file = home / "llm_ledger.db"
        self._database = Database(f"sqlite:///{self._ledger_file}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._database.close()

    def look(self, state: str) -> None:
        """Look at the ledger and the log, and move the bar; `state` is the run's."""
        log = self._log.read_bytes() if self._log.exists() else b""
        found, done = _FOUND.search(log), _DONE.findall(log)
        total = int(found[1]) if found else None
        paid = 0 if self._dry else self._paid()
        completed = max(paid, int(done[-1]) if done else 0)
        if state == "success" and total is not None:
            completed = total
        self._bar.update(self._task, total=total, completed=completed, paid=paid)

    def _paid(self) -> int:
        import sqlalchemy as sa

        from airflow_llm_provider.ledger.totals import totals

        if not self._ledger_file.exists():
            return 0
        try:
            found = totals(self._database, dag_id=self._dag_id, run_id=self._run_id)
        except sa.exc.OperationalError:  # its tables are being made
            return 0
        return sum(sums.calls for sums in found.values() if sums.is_paid)
