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
    task: ids of the DAG, the run and the task.
    is_dry: nothing is asked, so there is nothing to count.
    limit: the task stops after so many documents.
    """

    def __init__(
        self, console: Console, home: Path, task: tuple[str, str, str], *, is_dry: bool, limit: int | None
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
        what = "Weighing licenses" if is_dry else "Reading licenses"
        self._line = self._bar.add_task(what, total=None, paid=0)
        self._dag_id, self._run_id, task_id = task
        self._is_dry, self._limit = is_dry, limit
        self._logs = (
            home / "logs" / f"dag_id={self._dag_id}" / f"run_id={self._run_id}" / f"task_id={task_id}"
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
        log = b"".join(file.read_bytes() for file in sorted(self._logs.glob("attempt=*.log")))
        found, done = _FOUND.search(log), _DONE.findall(log)
        total = min(int(found[1]), self._limit or int(found[1])) if found else None
        paid = 0 if self._is_dry else self._paid()
        completed = max(paid, int(done[-1]) if done else 0)
        if state == "success" and total is not None:
            completed = total
        self._bar.update(self._line, total=total, completed=completed, paid=paid)

    def _paid(self) -> int:
        import sqlalchemy as sa

        from airflow_llm_provider.ledger.reports import totals_by_state

        if not self._ledger_file.exists():
            return 0
        try:
            found = totals_by_state(self._database, dag_id=self._dag_id, run_id=self._run_id)
        except sa.exc.OperationalError:  # its tables are being made
            return 0
        return sum(sums.calls for sums in found.values() if sums.is_paid)
