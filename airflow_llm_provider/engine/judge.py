"""A judge's request, and what its verdict says."""

from __future__ import annotations

from airflow_llm_provider.engine.framing import Framing, text_block
from airflow_llm_provider.engine.reply import Message, require_complete
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.validate import OutputType
from airflow_llm_provider.errors import AnswerError, InvalidOutput
from airflow_llm_provider.validators import Judge

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
                        "why": {
                            "type": "string"
                        },  # before the verdict, so that it is given before it is known
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


def judging(judge: Judge, answer: str, source: str | None, *, framing: Framing, family: str = "") -> Request:
    """Return the request that asks for a verdict on an answer.

    source: the text it is about; None only where the judge does not read it.
    family: of the request that it answers.
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


def require_met(judge: Judge, message: Message) -> None:
    """Raise InvalidOutput with the judge's reasons unless it finds every criterion met.

    Raises another AnswerError where its reply is no verdict.
    """
    require_complete(message)
    try:
        findings = _VERDICT.parse(message.text)["findings"]
    except InvalidOutput as error:
        raise AnswerError(f"It is no verdict: {error}") from error
    reasons: list[str] = []
    judged = {found["criterion"] for found in findings}
    for number, criterion in enumerate(judge.criteria, start=1):
        if number not in judged:
            raise AnswerError(f"It says nothing of criterion {number}.")
        unmet = [found["why"] for found in findings if found["criterion"] == number and not found["is_met"]]
        reasons += [why.strip() or f"Not met: {criterion}" for why in unmet]
    if reasons:
        raise InvalidOutput("\n".join(reasons))
