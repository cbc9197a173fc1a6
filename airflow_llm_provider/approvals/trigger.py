"""A trigger that finds the answer to a question whose task has failed after it was shown."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_llm_provider import _airflow

ANSWER = "llm_answer"
"""The XCom that the answer is put into: the payload of an event is logged, and an edit may be part of the answer."""

IS_ANSWERED = "is_answered"
"""The key in the event that says whether the answer was there."""

RESUME = "resume"
"""The key in the event that names the method in which the task goes on."""

LONGEST_LOOK = dt.timedelta(minutes=5)
"""After this long the attempt fails, for there is no triggerer."""

# Measured with LocalExecutor on a busy machine: up to 5.7 seconds.
_PAUSE_S = 10.0  # the scheduler may read the end of the deferring process as late as this


class AnswerTrigger(BaseTrigger):
    """Look for the answer, wait until the scheduler has seen the worker end, and let the task go on.

    Args:
        ti_id: of the task instance.
        resume: the name of the method in which the task goes on.
    """

    def __init__(self, ti_id: str, resume: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's base class
        self._resume = resume
        self._ti_id = ti_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow makes the trigger from."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            "ti_id": self._ti_id,
            "resume": self._resume,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look once, and tell."""
        await asyncio.sleep(_PAUSE_S)
        answer = await _airflow.find_answer(self._ti_id)
        if answer is not None:
            await _airflow.push_xcom(self.task_instance, ANSWER, answer)
        event = {IS_ANSWERED: answer is not None, RESUME: self._resume}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]  # as above
