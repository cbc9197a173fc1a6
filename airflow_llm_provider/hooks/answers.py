"""What happens after an answer, wherever it was asked for: savings, log lines, XComs, output."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from airflow.sdk.exceptions import AirflowSkipException

from airflow_llm_provider.errors import AnswerError, BusinessError, InvalidOutput, LLMError, TerminalError
from airflow_llm_provider.hooks.files import object_storage, write
from airflow_llm_provider.ledger.budgets import scope_budgets
from airflow_llm_provider.ledger.records import Saving
from airflow_llm_provider.ledger.reports import cost_of_run
from airflow_llm_provider.ledger.schema import account
from airflow_llm_provider.pricing import paid_and_unproven, usd

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.engine.calls import Calls
    from airflow_llm_provider.engine.engine import Engine
    from airflow_llm_provider.engine.output_type import OutputType
    from airflow_llm_provider.engine.reply import Reply
    from airflow_llm_provider.hooks.question import Question
    from airflow_llm_provider.ledger.records import CallScope
    from airflow_llm_provider.options import OnInvalid, Options

log = logging.getLogger(__name__)

MAX_XCOM_BYTES = 1_000_000
"""XComs are rows of Airflow's database, and each page that shows one reads it whole."""

USAGE, CHECKS = "llm_usage", "llm_checks"
"""The XComs that say what an answer took, and what was wrong with the answers before it."""

_BUDGET_NAMES = {"budget.task_usd": "the task's budget", "budget.run_usd": "the run's budget"}


async def record_saving_and_log_cost(
    engine: Engine, scope: CallScope, outcome: Reply | AnswerError, options: Options
) -> None:
    """Keep what an answer saved, and log what it cost; for an engine that did nothing but this task's work."""
    if not isinstance(outcome, AnswerError):
        if outcome.strong_alone_micro_usd is not None:
            log.info(
                "%s answered: $%s in all, about $%s with the last model alone.",
                outcome.model,
                usd(outcome.cost_micro_usd or 0),
                usd(outcome.strong_alone_micro_usd),
            )
        # Later, with the next group of commits: a saving is worth no transaction of its own.
        engine.ledger.record_later(saving_of(outcome, scope, options))
    log.info("%s", await cost_line(engine, scope))


def saving_of(reply: Reply, scope: CallScope, options: Options) -> Saving:
    """Return what an answer saved: all of its cost where it came from the ledger, else what routing saved."""
    alone, cost = reply.strong_alone_micro_usd, reply.cost_micro_usd or 0
    return Saving(
        scope=scope,
        model=reply.model,
        version=options.version,
        reused=int(reply.reused),
        reused_micro_usd=cost if reply.reused else 0,
        routed_micro_usd=0 if reply.reused or alone is None else alone - cost,
    )


async def keep_savings(engine: Engine, replies: Sequence[Reply], scope: CallScope, options: Options) -> None:
    """Keep what several answers saved."""
    for reply in replies:
        engine.ledger.record_later(saving_of(reply, scope, options))


async def cost_line(engine: Calls, scope: CallScope) -> str:
    """Return the line that says what this attempt paid, what its DAG run has cost, and what its budgets have left.

    For an engine that has done nothing but the work of this attempt. Without the ledger, it says what the attempt paid.
    """
    tally = engine.tally
    remarks = f", {tally.unpriced} of them without a known price" if tally.unpriced else ""
    remarks += str(engine.cost_booking)
    line = (
        f"It cost ${usd(tally.paid_micro_usd)} in {tally.requests} call{'s' * (tally.requests != 1)}{remarks}"
    )
    if tally.unproven:
        most = usd(tally.unproven_micro_usd)
        line += f"; {tally.unproven} more may have been billed without a reply, at most ${most}"
    try:
        run, left = await engine.ledger.read(lambda connection, now_ms: _run_cost(connection, now_ms, scope))
    # The answer is there. That the ledger cannot be read for a log line is no reason to fail the task.
    except LLMError:
        return f"{line}."
    rest = "".join(f"; ${usd(amount)} of {name} left" for name, amount in left.items())
    return f"{line}; the run has cost {run} so far{rest}."


def _run_cost(connection: sa.Connection, now_ms: int, scope: CallScope) -> tuple[str, dict[str, int]]:
    """Return what the run has cost, in words, and what is left of each budget of the operator, in micro-USD."""
    left: dict[str, int] = {}
    for budget in scope_budgets(scope):
        meter = budget.meter(scope, now_ms)
        # What is reserved for calls in flight cannot be spent by another one, so it is not left.
        taken = sa.select(account.c.settled_micro_usd + account.c.reserved_micro_usd)
        booked = connection.scalar(taken.where(account.c.id == meter.id)) if meter else None
        left[_BUDGET_NAMES[budget.name]] = max(0, budget.cap_micro_usd - int(booked or 0))
    return paid_and_unproven(*cost_of_run(connection, scope.dag_id, scope.run_id)), left


def xcoms(outcome: Reply | AnswerError) -> dict[str, Any]:
    """Return the XComs that describe an answer: `llm_usage`, and `llm_checks` where something was wrong."""
    if isinstance(outcome, AnswerError):
        usage, repairs = outcome.usage, outcome.usage.get("repairs", 0)
    else:
        usage, repairs = outcome.usage_record(), outcome.repairs
    made: dict[str, Any] = {USAGE: usage} if usage else {}
    if outcome.complaints:
        is_valid = not isinstance(outcome, AnswerError)
        made[CHECKS] = {"valid": is_valid, "complaints": list(outcome.complaints), "repairs": repairs}
    return made


def returned(reply: Reply, question: Question, options: Options) -> Any:
    """Return what the task returns for an answer: the value, or the path that it was written to.

    A pydantic model stays one where the class can be imported elsewhere. A model that a DAG file defines becomes a
    dict: its name holds the path of the file, which other machines do not share.
    """
    return _put(reply.value, question.output.dump(reply.value), question.output, options.output)


def instead(error: AnswerError, question: Question, options: Options, context: Context) -> Any:
    """Return what the task returns in place of an answer that stayed invalid.

    Raises:
        AirflowSkipException: where `then` skips the task.
        AnswerError: where `then` is `fail`, and for a refused or truncated answer with `return`.
    """
    output, on_invalid = question.output, options.on_invalid
    match on_invalid.then:
        case "default":
            if on_invalid.default is None:
                return _put(None, None, output, options.output)
            # Read like an answer, so that downstream gets a value of the same type.
            value = output.parse(output.answer_text(on_invalid.default))
            return _put(value, output.dump(value), output, options.output)
        case "return" if isinstance(error, (InvalidOutput, BusinessError)):
            value = output.read_loosely(error.reply_text)
            return _put(value, value, output, options.output)
        case "skip":
            raise AirflowSkipException(f"There is no valid answer: {error}")
        case "dead_letter":
            where = _write_dead_letter(error, on_invalid, context)
            raise AirflowSkipException(f"There is no valid answer, see {where}: {error}")
        case _:  # a person can approve an invalid answer, but not one that was refused or cut off
            raise error


def _put(value: Any, plain: Any, output: OutputType, location: str | None) -> Any:
    """Write `plain` to a location, where there is one, else return the value as an XCom can hold it."""
    from airflow_llm_provider.engine.request import to_json

    if location:
        return write(location, plain)
    if (size := len(to_json(plain))) > MAX_XCOM_BYTES:
        raise TerminalError(
            f"The answer has {size:,} bytes, too many for an XCom ({MAX_XCOM_BYTES:,}). Give the task output= a path "
            "or URL to write it to, and clear the task: the answer is kept and is not paid for again."
        )
    return value if output.is_importable else plain


def _write_dead_letter(error: AnswerError, on_invalid: OnInvalid, context: Context) -> str:
    """Write why there is no answer as a dead letter of this task instance; return the path.

    Each task instance has a file of its own, so that a retry replaces it and mapped tasks do not overwrite each other.
    """
    from upath import UPath

    from airflow_llm_provider.engine.json_repair import writable
    from airflow_llm_provider.engine.request import to_json

    folder = str(on_invalid.dead_letters)
    ti = context["ti"]
    shard = f".{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ""
    name = _as_file_name(f"{ti.dag_id}.{ti.run_id}.{ti.task_id}{shard}")
    path = (object_storage(folder) if "://" in folder else UPath(folder)) / f"{name}.dead_letters.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_json(writable(_dead_letter(error, name))) + b"\n")
    return str(path)


def _dead_letter(error: AnswerError, name: str) -> Mapping[str, Any]:
    from airflow_llm_provider.documents.run import reason_of

    return {
        "document_id": name,
        "uri": None,
        "reason": reason_of(error),
        "error": type(error).__name__,
        "message": error.complaint,
        "reply": error.reply_text,
        "fingerprints": list(error.fingerprints),
        "complaints": list(error.complaints),
    }


def _as_file_name(text: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in text)
