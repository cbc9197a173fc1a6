"""ValidationRepairOperator: an answer that exists already, checked and repaired."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.operators.claude import ClaudeOperator

if TYPE_CHECKING:
    from airflow_llm_provider.hooks.question import Question

_PROMPT = "Say what is asked for, in the form that the schema gives."
_ANSWER, _SOURCE = "answer", "source"


class ValidationRepairOperator(ClaudeOperator):
    """Check an answer by its type, validators and judges, and have it repaired until it passes.

    A valid answer costs nothing but its judges. For an invalid one, only what the complaint needs is sent: the wrong
    fields with their part of the schema. The source, the prompt and the whole answer are sent only where something is
    missing or a validator asks for them. JSON within prose and broken punctuation are repaired locally, without a call.

    The other arguments are those of ClaudeOperator, except `deferrable` (validators are Python, so this runs in a
    worker) and `long_input` where an answer is given. The task returns what ClaudeOperator returns.

    Args:
        answer: the answer, from an XCom or as a literal: text, or data; a path object (Path, ObjectStoragePath) is a
            file, read below `roots`. Without it, the operator asks `prompt` itself, as ClaudeOperator does.
        source: the text that the answer is about, for validators that read it and for repairs that need it: text, data,
            or a path object.
        prompt: what was asked, for repairs that need the source.
        inputs: as for ClaudeOperator; `answer` and `source` are not names of inputs here.
    """

    runs_in_worker: ClassVar[bool] = True
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
        self.require_arguments({**kwargs, "inputs": inputs})
        # Among the inputs they are resolved, read where they are files, and kept out of Rendered Templates.
        own = {name: value for name, value in ((_ANSWER, answer), (_SOURCE, source)) if value is not None}
        if taken := {_ANSWER, _SOURCE} & (inputs or {}).keys():
            raise ValueError(
                f"inputs= has {min(taken)!r}, which is an argument of its own: give {min(taken)}=."
            )
        super().__init__(prompt=prompt or _PROMPT, inputs={**(inputs or {}), **own}, **kwargs)
        self._is_given = answer is not None

    @classmethod
    def require_arguments(cls, arguments: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError, when the DAG is parsed, for arguments that are not valid."""
        super().require_arguments(arguments)
        if arguments.get("deferrable"):
            raise ValueError("ValidationRepairOperator runs in a worker: it takes no deferrable=True.")

    @property
    def answer(self) -> Any:
        """The answer to check; None where the operator asks by itself."""
        return self.inputs.get(_ANSWER)

    @answer.setter
    def answer(self, answer: Any) -> None:
        self.inputs = {**self.inputs, _ANSWER: answer}
        self._is_given = True

    @property
    def question(self) -> Question:
        """The answer to check, or the question to ask."""
        question = super().question
        # The answer is what is checked. As an input it would be sent whole with every repair.
        others = {name: value for name, value in question.inputs.items() if name != _ANSWER}
        if self._is_given and question.inputs.get(_ANSWER) is None:
            raise AirflowFailException(
                f"{self.task_id}: there is no answer to check: the task that should give it returned None."
            )
        return dataclasses.replace(question, inputs=others, given=question.inputs.get(_ANSWER))
