"""Warnings of budgets that run out: into the task's log, and to the notifiers of the task."""

from __future__ import annotations

import asyncio
import copy
import logging
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.pricing import usd

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.ledger.accounts import BudgetWarning

log = logging.getLogger(__name__)


class BudgetAlarm:
    """Tells of the warnings that the ledger gives while a task runs; make it in the task's event loop.

    The notifiers are called as Airflow calls a callback, with the context and in it
    `budget_warning`: a dict of `message`, `budget`, `of`, `percent`, `spent_usd` and `cap_usd`.
    """

    def __init__(self, context: Context | None, notifiers: Any = ()) -> None:
        self._context: Any = context or {}
        self._notifiers = [notifiers] if callable(notifiers) else notifiers
        self._loop = asyncio.get_running_loop()
        self._telling: list[asyncio.Future[None]] = []

    def ring(self, warning: BudgetWarning) -> None:
        """Tell of a warning; called in the ledger's thread, which waits for nobody."""
        log.warning("%s", warning)
        if self._notifiers:
            self._loop.call_soon_threadsafe(self._tell, warning)

    async def told(self) -> None:
        """Wait until all notifiers have been called."""
        await asyncio.gather(*self._telling)

    def _tell(self, warning: BudgetWarning) -> None:
        told = {
            "message": str(warning),
            "budget": warning.budget.name,
            "of": warning.label,
            "percent": warning.percent,
            "spent_usd": usd(warning.settled_micro_usd),
            "cap_usd": usd(warning.budget.cap_micro_usd),
        }
        for notifier in self._notifiers:
            self._telling.append(self._loop.run_in_executor(None, self._notify, notifier, told))

    def _notify(self, notifier: Any, told: dict[str, Any]) -> None:
        try:
            # A copy: Airflow renders its templates in place, and the next warning has other values.
            copy.copy(notifier)({**self._context, "budget_warning": told})
        except Exception:
            log.exception("A notifier failed to tell of a budget; the task goes on.")
