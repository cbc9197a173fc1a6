"""Budget warnings: written to the task's log, and given to the notifiers of its budget."""

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
    """Passes on the ledger's warnings that a budget is nearly used up; make it in the task's event loop.

    Args:
        context: of the task, if there is one.
        notifiers: called as Airflow calls a callback, with the context and in it `budget_warning`: a dict of `message`,
            `budget`, `of`, `percent`, `paid_usd`, `unproven_usd_at_most` (calls that may have been billed without a
            reply, at their highest prices) and `cap_usd`. The percentage is of both amounts together.
    """

    def __init__(self, context: Context | None, notifiers: Any = ()) -> None:
        self._context: Any = context or {}
        self._notifiers = [notifiers] if callable(notifiers) else notifiers
        self._loop = asyncio.get_running_loop()
        self._calls: list[asyncio.Future[None]] = []

    def warn(self, warning: BudgetWarning) -> None:
        """Pass on a warning; called in the ledger's thread, which does not wait for notifiers."""
        log.warning("%s", warning)
        if self._notifiers:
            self._loop.call_soon_threadsafe(self._call_notifiers, warning)

    async def wait(self) -> None:
        """Wait until all notifiers have been called."""
        await asyncio.gather(*self._calls)

    def _call_notifiers(self, warning: BudgetWarning) -> None:
        values = {
            "message": str(warning),
            "budget": warning.budget.name,
            "of": warning.label,
            "percent": warning.percent,
            "paid_usd": usd(warning.settled_micro_usd - warning.unproven_micro_usd),
            "unproven_usd_at_most": usd(warning.unproven_micro_usd),
            "cap_usd": usd(warning.budget.cap_micro_usd),
        }
        for notifier in self._notifiers:
            # In a thread: a notifier may send an email, and the calls in flight need the event loop.
            self._calls.append(self._loop.run_in_executor(None, self._notify, notifier, values))

    def _notify(self, notifier: Any, values: dict[str, Any]) -> None:
        try:
            # A copy: Airflow renders its templates in place, and the next warning has other values.
            copy.copy(notifier)({**self._context, "budget_warning": values})
        except Exception:
            log.exception("A notifier failed; the task goes on.")
