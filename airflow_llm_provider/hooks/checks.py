"""Checks as a DAG author states them: judges by tier, and what is done when no repair has helped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.exceptions import AirflowSkipException

from airflow_llm_provider.errors import AnswerError, BusinessError, InvalidOutput, TerminalError
from airflow_llm_provider.hooks.storage import object_storage

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.engine.reply import Reply
    from airflow_llm_provider.engine.validate import OutputType
    from airflow_llm_provider.hooks.settings import Settings
    from airflow_llm_provider.validators import Judge, Validator

OnExhausted = Literal["fail", "skip", "default", "review", "dead_letter"]


def with_models(validators: Sequence[Validator | Judge], settings: Settings) -> list[Validator | Judge]:
    """Return the validators with the judges' tiers as models of the connection."""
    from airflow_llm_provider.validators import Judge

    return [
        dataclasses.replace(each, model=settings.model(each.model), endpoint=settings.client.endpoint)
        if isinstance(each, Judge)
        else each
        for each in validators
    ]


def checks_record(outcome: Reply | AnswerError) -> dict[str, Any]:
    """Return what the checks found, as XCom `llm_checks` says it."""
    if isinstance(outcome, AnswerError):
        repairs = outcome.usage.get("repairs", 0)
        return {"valid": False, "complaints": list(outcome.complaints), "repairs": repairs}
    return {"valid": True, "complaints": list(outcome.complaints), "repairs": outcome.repairs}


@dataclass(frozen=True, kw_only=True)
class Exhausted:
    """What is done with an answer that no repair has made valid; the fields are ClaudeOperator's arguments."""

    on_exhausted: OnExhausted = "fail"
    default: Any = None
    dead_letters: str | None = None

    def require_consistent(self) -> None:
        """Raise ValueError, when the DAG is parsed, for arguments that don't go together."""
        if self.default is not None and self.on_exhausted != "default":
            raise ValueError("default= goes with on_exhausted='default'.")
        if (self.dead_letters is not None) != (self.on_exhausted == "dead_letter"):
            raise ValueError("dead_letters= and on_exhausted='dead_letter' go together.")

    def require_fits(self, output: OutputType) -> None:
        """Raise TerminalError, before anything is paid, where the default is not what an answer must be."""
        if self.default is None:
            return
        try:
            output.parse(output.answer_text(self.default))
        except InvalidOutput as error:
            raise TerminalError(f"default= is not of the output type: {error}. Nothing was sent.") from error

    def instead(self, error: AnswerError, output: OutputType, context: Context) -> Any:
        """Return what takes the place of an answer; raises AirflowSkipException, or `error` where nothing does."""
        match self.on_exhausted:
            case "default":
                return None if self.default is None else output.parse(output.answer_text(self.default))
            case "review" if isinstance(error, (InvalidOutput, BusinessError)):
                return output.read_loosely(error.reply_text)
            case "skip":
                raise AirflowSkipException(f"There is no valid answer: {error}")
            case "dead_letter":
                raise AirflowSkipException(
                    f"There is no valid answer, see {self._written(error, context)}: {error}"
                )
            case _:  # an answer that was refused or cut off is nothing for a person to approve
                raise error

    def _written(self, error: AnswerError, context: Context) -> str:
        """Write why there is no answer as a dead letter of this task instance; return where.

        In a file of its own, so that a retry replaces it and mapped tasks don't write over each other.
        """
        from upath import UPath

        from airflow_llm_provider.engine.request import to_json

        folder = str(self.dead_letters)
        ti = context["ti"]
        shard = f".{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ""
        name = _as_file_name(f"{ti.dag_id}.{ti.run_id}.{ti.task_id}{shard}")
        path = (object_storage(folder) if "://" in folder else UPath(folder)) / f"{name}.dead_letters.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_json(_letter(error, name)) + b"\n")
        return str(path)


def _letter(error: AnswerError, name: str) -> Mapping[str, Any]:
    from airflow_llm_provider.documents.run import reason_of

    return {
        "document_id": name,
        "uri": None,
        "reason": reason_of(error),
        "error": type(error).__name__,
        "message": str(error),
        "reply": error.reply_text,
        "fingerprints": list(error.fingerprints),
        "complaints": list(error.complaints),
    }


def _as_file_name(text: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in text)
