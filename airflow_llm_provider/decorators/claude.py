"""@task.claude: the function returns the prompt, the operator asks it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator

from airflow_llm_provider.decorators.function import FunctionTask, decorator
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.triggers.lane import NeedsWorker, encode_arguments, require_plain_end

if TYPE_CHECKING:
    from airflow.sdk import Context


class _ClaudeTask(FunctionTask, ClaudeOperator):
    custom_operator_name = "@task.claude"
    returns = "prompt"
    starts_in_worker = True  # the function is Python; only the call itself may wait in the triggerer
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(field for field in ClaudeOperator.template_fields if field != "prompt"),
    )

    def execute(self, context: Context) -> Any:
        """Call the function; then ask here, or defer to the triggerer, where the task ends."""
        if not self.deferrable:
            return super().execute(context)
        self.prompt = self.called(context)
        try:
            require_plain_end(self)
            arguments = encode_arguments({**self.arguments(), "inputs": dict(self.inputs)})
        except NeedsWorker as reason:
            self.log.warning("Runs in a worker although deferrable=True: %s.", reason)
            return ClaudeOperator.execute(self, context)
        from airflow_llm_provider.triggers.claude import ClaudeTrigger

        is_one = context["ti"].map_index in (None, -1)
        is_mapped_over = is_one and next(self.iter_mapped_dependants(), None) is not None
        call = {
            "arguments": arguments,
            "push": self.do_xcom_push,
            "scope": dataclasses.asdict(self.hook.scope(context, tuple(self.tags))),
            "is_mapped_over": is_mapped_over,
        }
        return self.defer(
            trigger=ClaudeTrigger(json.dumps(call)), method_name="resume", timeout=self.execution_timeout
        )

    def resume(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on where the trigger could not: what the function returned is no longer there."""
        if "needs_worker" in event:
            self.prompt = self.called(context)
        return super().resume(context, event)


def claude_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns a prompt; takes the arguments of ClaudeOperator."""
    return decorator(_ClaudeTask, python_callable, kwargs)
