"""Airflow's retries: as late as the API, or a budget, asked for."""

from __future__ import annotations

import datetime as dt
import random
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

from airflow_llm_provider.errors import BudgetWaits, RetryableError

if TYPE_CHECKING:
    from airflow.sdk import Context

_SPREAD = 0.1  # of the wait: tasks that were told the same should not come back together


class ClaudeRetryPolicy(RetryPolicy):
    """Wait before Airflow's next try for as long as the API's Retry-After said, or till a budget's next day or month.

    Else as the task says.

    What no retry can mend never gets here: the hook raises AirflowFailException for it.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Choose the delay before the next try."""
        del try_number, max_tries, context  # Airflow counts the tries
        error: BaseException | None = exception
        while error is not None:
            if isinstance(error, RetryableError) and error.retry_after_s:
                delay_s = error.retry_after_s * (1 + random.random() * _SPREAD)
                who = "its budget" if isinstance(error, BudgetWaits) else "the API"
                reason = f"{error.kind}: {who} asked for {error.retry_after_s:g} s"
                return RetryDecision.retry(delay=dt.timedelta(seconds=delay_s), reason=reason)
            error = error.__cause__
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return nothing: the policy has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> ClaudeRetryPolicy:
        """Return the policy."""
        del data
        return cls()
