"""Checks of an answer's content: validator functions, and judges, which are models."""

from __future__ import annotations

import inspect
from typing import Any

from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.reply import Message, require_complete
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.text_block import Framing, text_block
from airflow_llm_provider.errors import (
    AnswerError,
    BusinessError,
    InvalidOutput,
    LLMError,
    TerminalError,
    without_text,
)
from airflow_llm_provider.validators import Complaint, Judge, Validator

_PROMPT = """Judge whether an answer meets these criteria:

{criteria}

Judge each by what stands in the answer{and_source} alone, and give one finding for each, by its number. Say why in one
sentence; where a criterion is not met, say what has to be changed."""

_VERDICT = OutputType(
    {
        "type": "object",
        "properties": {
            "findings": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "criterion": {"type": "integer"},
                        # Before the verdict: a model writes the fields in order, and the reason should come first.
                        "why": {"type": "string"},
                        "is_met": {"type": "boolean"},
                    },
                    "required": ["criterion", "why", "is_met"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["findings"],
        "additionalProperties": False,
    }
)


def judge_request(
    judge: Judge, answer: str, source: str | None, *, framing: Framing, family: str = ""
) -> Request:
    """Return the request that asks a judge for its verdict on an answer.

    Args:
        judge: The model and its criteria.
        answer: The text of the answer.
        source: The text that the answer is about; None only if the judge does not read it.
        framing: How text is put into the request as data.
        family: The family of the request that was answered.
    """
    criteria = "\n".join(f"{number}. {text}" for number, text in enumerate(judge.criteria, start=1))
    and_source = " and in the document" if judge.reads_source else ""
    documents = [text_block(source or "", framing, title="document")] if judge.reads_source else []
    content = [
        {"type": "text", "text": _PROMPT.format(criteria=criteria, and_source=and_source)},
        *documents,
        text_block(answer, framing, title="answer"),
    ]
    return Request(
        model=judge.model,
        messages=[{"role": "user", "content": content}],
        schema=_VERDICT.schema,
        endpoint=judge.endpoint,
        family=family,
    )


def require_criteria_met(judge: Judge, message: Message) -> None:
    """Return if the judge finds every criterion met.

    Raises:
        InvalidOutput: A criterion is not met; the message is the judge's reasons.
        AnswerError: The reply is not a verdict.
    """
    require_complete(message)
    try:
        findings = _VERDICT.parse(message.text)["findings"]
    except InvalidOutput as error:
        raise AnswerError(f"The reply is not a verdict: {error}") from None
    reasons: list[str] = []
    judged = {found["criterion"] for found in findings}
    for number, criterion in enumerate(judge.criteria, start=1):
        # A criterion that the judge left out is not approved.
        if number not in judged:
            raise AnswerError(f"The reply has no finding for criterion {number}.")
        # Two findings about one criterion may contradict each other. Then it is not met.
        unmet = [found["why"] for found in findings if found["criterion"] == number and not found["is_met"]]
        reasons += [why.strip() or f"Not met: {criterion}" for why in unmet]
    if reasons:
        raise InvalidOutput(
            f"The judge finds {len(reasons)} of {len(judge.criteria)} criteria not met.",
            complaint="\n".join(reasons),
        )


def reads_source(validator: Validator | Judge) -> bool:
    """Tell whether a validator compares the answer with the text that was asked about.

    Raises:
        TerminalError: It is neither a function nor a Judge. This is checked before anything is paid.
    """
    if isinstance(validator, Judge):
        return validator.reads_source
    if not callable(validator):
        raise TerminalError(
            f"validators= has {validator!r}, which is neither a function nor a Judge. Nothing was sent."
        )
    try:
        return "source" in inspect.signature(validator).parameters
    except (TypeError, ValueError):  # some builtins
        return False


def run_validator(validator: Validator, value: Any, source: str | None) -> Complaint | None:
    """Return a validator's complaint about an answer, or None.

    Args:
        validator: A function of the answer, and of `source` if it has a parameter of that name.
        value: The validated answer.
        source: The text that the answer is about.

    Raises:
        BusinessError: The validator raised or returned something else. Other answers are not affected.
    """
    name = _name(validator)
    try:
        complaint = validator(value, source=source) if reads_source(validator) else validator(value)
    # An error that the author chose keeps its class, and with it the answer to "does a retry help?".
    except LLMError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever the author's function raises
        raise BusinessError(
            f"The validator {name} raised {without_text(error)}.",
            complaint=f"The validator {name} raised {type(error).__name__}: {error}",
        ) from None
    if isinstance(complaint, str):
        return (
            Complaint(complaint) if complaint.strip() else None
        )  # such as "; ".join(problems) without problems
    if callable(complaint):
        raise BusinessError(
            f"{name} makes a validator and is not one itself. Call it: validators=[{name}(…)]."
        )
    if complaint is not None and not isinstance(complaint, Complaint):
        raise BusinessError(
            f"The validator {name} returned a value of type {type(complaint).__name__}. "
            "Return None, a text or a Complaint."
        )
    return complaint


def require_no_complaint(
    validator: Validator, value: Any, source: str | None, output: OutputType, *, reply_text: str = ""
) -> None:
    """Return if a validator does not complain about an answer.

    Args:
        validator: As for `run_validator`.
        value: The validated answer.
        source: The text that the answer is about.
        output: The type of the answer, which knows the names of its fields.
        reply_text: The text of the answer.

    Raises:
        InvalidOutput: The validator complained; the message names it, and quotes nothing.
        BusinessError: As `run_validator`.
    """
    complaint = run_validator(validator, value, source)
    if complaint is None:
        return
    places = ", ".join(dict.fromkeys(map(output.known_place, complaint.fields))) or "the answer"
    raise InvalidOutput(
        f"The validator {_name(validator)} complained about {places} in {len(complaint.message)} characters.",
        complaint=complaint.message,
        reply_text=reply_text,
        fields=complaint.fields,
        needs_source=complaint.needs_source,
    )


def _name(validator: Validator) -> str:
    """Return the name of a validator; one that a function of `validators` made is named like that function."""
    return str(getattr(validator, "__qualname__", type(validator).__name__)).partition(".<locals>")[0]
