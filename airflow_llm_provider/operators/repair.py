"""ValidationRepairOperator: an answer that is there already, checked and put right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.operators.claude import ClaudeOperator

if TYPE_CHECKING:
    from airflow_llm_provider.hooks.call import Call

_ASKED = "Say what is asked for, in the form that the schema gives."
_ANSWER, _SOURCE = "answer", "source"


class ValidationRepairOperator(ClaudeOperator):
    """Take an answer through format, validators and judges, and have it repaired until it passes.

    A valid answer costs nothing but its judges. Of an invalid one, only what the complaint needs is sent: the fields
    at fault with their part of the schema; and the source, the prompt and the whole answer only where something
    is missing or a validator says so. JSON among prose and broken punctuation are put right here, for nothing.

    answer: the answer, from an XCom or as a literal: text, or data; a path object (Path, ObjectStoragePath) is a
        file, read below `roots`. Without it, the operator asks `prompt` itself, as ClaudeOperator does.
    source: what the answer is about, for validators that read it and for repairs that need it: text, data, or a
        path object.
    prompt: what was asked, for repairs that need the source.

    output_type, validators, max_repairs, on_exhausted and all other arguments are those of ClaudeOperator, but for
    `deferrable` (validators are Python, so this runs in a worker), and `too_long` where there is an answer. Returns
    what ClaudeOperator returns.
    """

    starts_in_worker: ClassVar[bool] = True
    answer_comes_later: ClassVar[bool] = False

    def __init__(
        self,
        *,
        answer: Any = None,
        source: Any = None,
        prompt: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if answer is None and not prompt and not self.answer_comes_later:
            raise ValueError("ValidationRepairOperator needs answer=, or a prompt= to ask by itself.")
        self.require_sound({**kwargs, "inputs": inputs})
        # Among the inputs they are resolved, read where they are files, and kept out of Rendered Templates.
        own = {name: value for name, value in ((_ANSWER, answer), (_SOURCE, source)) if value is not None}
        if taken := {_ANSWER, _SOURCE} & (inputs or {}).keys():
            raise ValueError(f"{min(taken)!r} is an argument of its own, and no name of an input here.")
        super().__init__(prompt=prompt or _ASKED, inputs={**(inputs or {}), **own}, **kwargs)
        self._is_given = answer is not None

    @classmethod
    def require_sound(cls, arguments: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError, when the DAG is parsed, for arguments that can't be meant."""
        super().require_sound(arguments)
        if arguments.get("deferrable"):
            raise ValueError("ValidationRepairOperator runs in a worker: leave deferrable= away.")

    @property
    def answer(self) -> Any:
        """The answer to check; None where the operator asks by itself."""
        return self.inputs.get(_ANSWER)

    @answer.setter
    def answer(self, answer: Any) -> None:
        self.inputs = {**self.inputs, _ANSWER: answer}
        self._is_given = True

    def call(self, inputs: Mapping[str, Any]) -> Call:
        """Return the call: to check the answer, or to ask for one."""
        others = {name: value for name, value in inputs.items() if name != _ANSWER}
        call = super().call(others)
        if not self._is_given:
            return call
        if (answer := inputs.get(_ANSWER)) is None:
            raise AirflowFailException(
                f"{self.task_id}: there is no answer to check: what should give it gave nothing."
            )
        return dataclasses.replace(call, given=answer)
