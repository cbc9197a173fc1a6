"""One run over many documents: from what there is, through the model, to rows and dead letters."""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.documents.content import Content, Unreadable
from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.formats import RowDoesNotFit
from airflow_llm_provider.documents.question import Question
from airflow_llm_provider.documents.reader import read
from airflow_llm_provider.engine.flow import calm_collector, for_each
from airflow_llm_provider.engine.long import LongInput, ask_about
from airflow_llm_provider.errors import (
    AnswerError,
    AuthenticationFailed,
    BadRequest,
    BudgetExceeded,
    BudgetWaits,
    BusinessError,
    InvalidOutput,
    LedgerUnavailable,
    LedgerUnusable,
    LLMError,
    Refused,
    RetryableError,
    SpendLimitReached,
    TooLong,
    Truncated,
    UnknownModel,
    UnknownPrice,
)
from airflow_llm_provider.ledger.records import Saving
from airflow_llm_provider.pricing import usd

if TYPE_CHECKING:
    from airflow_llm_provider.documents.output import RowWriter
    from airflow_llm_provider.engine.reply import Reply
    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.ledger.records import CallScope, Reuse

OUTCOMES = ("answered", "reused", "repaired", "dead_letter", "pending")

_A_LONG_RUN = 100  # documents from which calming the garbage collector pays

# What fails one document here would fail them all, so the run stops and keeps what it has.
_HOPELESS = (
    AuthenticationFailed,
    SpendLimitReached,
    UnknownModel,
    UnknownPrice,
    LedgerUnavailable,
    LedgerUnusable,
)
_REASONS: dict[type[LLMError], str] = {
    Refused: "refused",
    Truncated: "truncated",
    InvalidOutput: "invalid_output",
    BusinessError: "rejected",
    TooLong: "too_long",
}


@dataclass(kw_only=True)
class Run:
    """One task's work over its documents.

    retry_dead: ask dead letters of earlier runs anew.
    limit: ask about so many documents at most; the rest are `pending`.
    long: what to do with a text that can't be read at once.
    terms: further terms of the engine's: `validators`, `max_repairs`, `policies`, `route`.
    """

    engine: Engine
    scope: CallScope
    question: Question
    reuse: Reuse = "always"
    retry_dead: bool = False
    max_in_flight: int = 256
    limit: int | None = None
    long: LongInput = field(default_factory=LongInput)
    terms: Mapping[str, Any] = field(default_factory=dict)
    log: Any = field(default_factory=lambda: logging.getLogger(__name__))
    log_every_s: float = 5.0

    def __post_init__(self) -> None:
        self.outcomes = collections.Counter(dict.fromkeys(OUTCOMES, 0))
        self.reasons: collections.Counter[str] = collections.Counter()
        self.saved_micro_usd = 0
        self.routed_micro_usd = 0
        self.may_heal: Exception | None = None  # why some dead letter may come to life by itself
        self.over_budget: LLMError | None = None  # why some document was not asked about
        self.found = 0
        self._listed_all = False
        self._failures_in_a_row = 0
        self._started = time.monotonic()
        self._terms: dict[str, Any] = {
            "scope": self.scope,
            "reuse": self.reuse,
            "output": self.question.output,
            "framing": self.question.framing,
            **self.terms,
        }
        route = self.terms.get("route")
        # What the ledger holds of a dead document is final where nothing else would be asked.
        self._is_final = not (
            self.retry_dead
            or self.terms.get("max_repairs")
            or self.terms.get("policies")
            or (route and route.escalate)
        )
        self.cascade: collections.Counter[str] = collections.Counter()

    async def run(self, documents: Iterable[Document | Rejected], sink: RowWriter) -> dict[str, Any]:
        """Ask about every document, hand rows and dead letters to the sink, and return the counts.

        Raises when what went wrong would go wrong for every document; what was paid stays in the ledger.
        """
        progress = asyncio.create_task(self._log_progress())
        try:
            await for_each(self._taken(documents), partial(self._one, sink), limit=self.max_in_flight)
        finally:
            progress.cancel()
        saved = Saving(
            scope=self.scope,
            model=self.question.model,
            version=self.question.version,
            reused=self.outcomes["reused"],
            reused_micro_usd=self.saved_micro_usd,
            routed_micro_usd=self.routed_micro_usd,
        )
        self.engine.ledger.record_later(saved)
        self.log.info("%s", self._progress())
        if self.cascade:
            self.log.info(
                "%(stayed_cheap)d of %(answers)d answers stayed with the first model: $%(cost_usd)s in all, about "
                "$%(strong_alone_usd_about)s with the last alone",
                self._cascaded(),
            )
        return self.counts()

    async def _read(self, document: Document) -> Content:
        question = self.question
        try:
            return await asyncio.to_thread(
                read, document, pdf=question.pdf, max_bytes=question.max_bytes, encoding=question.encoding
            )
        except (Unreadable, OSError):
            raise
        except Exception as error:  # a parser's own failure is this document's, not the run's
            raise Unreadable("unreadable", f"it can't be parsed: {type(error).__name__}: {error}") from error

    def counts(self) -> dict[str, Any]:
        """Return what became of the documents, and what was paid for it in this run."""
        tally = self.engine.tally
        return {
            "documents": self.found,
            "outcomes": dict(self.outcomes),
            "dead_letter_reasons": dict(self.reasons.most_common(20)),
            "model": self.question.model,
            "requests_paid": tally.requests,
            "input_tokens": tally.input_tokens,
            "output_tokens": tally.output_tokens,
            "cache_read_tokens": tally.cache_read_tokens,
            "cache_write_tokens": tally.cache_write_tokens,
            "cost_usd": None if tally.unpriced else usd(tally.paid_micro_usd),
            "saved_usd": usd(self.saved_micro_usd),
            "unproven_calls": tally.unproven,
            "seconds": round(time.monotonic() - self._started, 3),
            "trace_id": self.scope.trace_id,
            **({"cascade": self._cascaded()} if self.cascade else {}),
        }

    def _cascaded(self) -> dict[str, Any]:
        """Return how many answers the cheap model gave, what all cost, and about what the strong one alone would."""
        return {
            "answers": self.cascade["answers"],
            "stayed_cheap": self.cascade["stayed_cheap"],
            "cost_usd": usd(self.cascade["cost_micro_usd"]),
            "strong_alone_usd_about": usd(self.cascade["strong_alone_micro_usd"]),
        }

    def _taken(self, documents: Iterable[Document | Rejected]) -> Iterator[tuple[int, Document | Rejected]]:
        taken = 0
        for document in documents:
            self.found += 1
            if self.limit is not None and taken >= self.limit:
                self.outcomes["pending"] += 1
                continue
            yield taken, document
            taken += 1
        self._listed_all = True

    async def _one(self, sink: RowWriter, numbered: tuple[int, Document | Rejected]) -> None:
        index, document = numbered
        try:
            if isinstance(document, Rejected):
                raise Unreadable(document.reason, document.message)
            if not _is_text(document.id) or not _is_text(document.uri or ""):
                raise Unreadable("unreadable", "its name is not UTF-8: rename it")
            reply = await self._answer(document)
        except Unreadable as error:
            self._bury(sink, index, document, error.reason, error)
        except OSError as error:
            self._bury(sink, index, document, "unreadable", error)
        except (BudgetExceeded, BudgetWaits) as error:
            # The others go on: what is paid is landed, and a smaller one may fit still.
            self.outcomes["pending"] += 1
            self.over_budget = self.over_budget or error
        except LLMError as error:
            self._give_up_if_hopeless(error)
            self._bury(sink, index, document, reason_of(error), error)
        else:
            self._failures_in_a_row = 0
            try:
                self._land(sink, index, document, reply)
            except (RowDoesNotFit, InvalidOutput) as error:
                self._bury(sink, index, document, "invalid_output", error)

    async def _answer(self, document: Document) -> Reply:
        question = self.question
        sighting = question.sighting(document)
        if sighting is not None:
            known = await self.engine.recall(sighting, final=self._is_final, **self._terms)
            if known is not None:
                return known
        content = await self._read(document)
        request = question.request(content)
        if sighting is not None:
            self.engine.sight(sighting, request)
        # Without all of its text there is nothing to check a quote against.
        source = content.text if all(part.kind == "text" for part in content.parts) else None
        terms = {**self._terms, "item_id": document.id, "retry_dead": self.retry_dead}
        # One text can be cut or read in parts; pages and images go as they are.
        text = content.text if len(content.parts) == 1 else None
        if text is None or self.long.surely_fits(request):
            return await self.engine.ask(request, source=source, **terms)
        return await ask_about(
            self.engine, text, lambda part: question.request(content.with_text(part)), long=self.long, **terms
        )

    def _land(self, sink: RowWriter, index: int, document: Document, reply: Reply) -> None:
        outcome = "reused" if reply.reused else "repaired" if reply.repairs else "answered"
        data = self.question.output.dump(reply.value)
        row = {"document_id": document.id, "outcome": outcome, "data": data, **reply.usage_record()}
        if self.question.output.is_list:
            sink.add(index, [{**row, "item": number, "data": item} for number, item in enumerate(data)])
        else:
            sink.add(index, row)
        self.outcomes[outcome] += 1
        if reply.reused:
            self.saved_micro_usd += reply.cost_micro_usd or 0
        if reply.strong_alone_micro_usd is not None:
            self.cascade["answers"] += 1
            self.cascade["stayed_cheap"] += not reply.escalations
            self.cascade["cost_micro_usd"] += reply.cost_micro_usd or 0
            self.cascade["strong_alone_micro_usd"] += reply.strong_alone_micro_usd
            if not reply.reused:
                self.routed_micro_usd += reply.strong_alone_micro_usd - (reply.cost_micro_usd or 0)
        if self.outcomes.total() == _A_LONG_RUN:
            calm_collector()

    def _bury(
        self, sink: RowWriter, index: int, document: Document | Rejected, reason: str, error: Exception
    ) -> None:
        self.outcomes["dead_letter"] += 1
        self.reasons[reason] += 1
        if isinstance(error, (RetryableError, OSError)):
            self.may_heal = _later(self.may_heal, error)
        letter: dict[str, Any] = {
            "document_id": _as_text(document.id),
            "uri": _as_text(document.uri) if document.uri else None,
            "reason": reason,
            "error": type(error).__name__,
            "message": str(error),
        }
        if isinstance(error, AnswerError):
            letter |= {
                "reply": error.reply_text,
                "fingerprints": list(error.fingerprints),
                "complaints": list(error.complaints),
            }
        sink.add_dead_letter(index, letter)

    def _give_up_if_hopeless(self, error: LLMError) -> None:
        """Raise `error` when the documents that follow would fail alike."""
        if isinstance(error, _HOPELESS):
            raise error
        # A server that is down, or takes no request of this kind, fails every document: as many in a row as are
        # in flight, with not one success between them, and the rest is better left alone.
        is_general = isinstance(error, (RetryableError, BadRequest))
        self._failures_in_a_row = self._failures_in_a_row + 1 if is_general else 0
        if self._failures_in_a_row >= max(self.max_in_flight, 8):
            raise error

    async def _log_progress(self) -> None:
        while True:
            await asyncio.sleep(self.log_every_s)
            self.log.info("%s", self._progress())

    def _progress(self) -> str:
        """Write where the run stands, in one line."""
        done = self.outcomes.total() - self.outcomes["pending"]
        elapsed = time.monotonic() - self._started
        rate = done / elapsed if elapsed else 0.0
        counts = ", ".join(f"{name} {self.outcomes[name]}" for name in OUTCOMES if self.outcomes[name])
        waiting = self.found - self.outcomes.total()
        eta = f", about {waiting / rate:.0f} s left" if self._listed_all and waiting and rate else ""
        total = f"{self.found}" if self._listed_all else f"{self.found}+"
        cost = usd(self.engine.tally.paid_micro_usd)
        return f"{done}/{total} documents at {rate:.1f}/s: {counts or 'none yet'}; ${cost} paid{eta}"


def _is_text(name: str) -> bool:
    return _as_text(name) == name


def _as_text(name: str) -> str:
    """Return a name with what is not UTF-8 in it spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _later(one: Exception | None, other: Exception) -> Exception:
    """Return the error that asks for the longer wait."""
    return one if one is not None and _asked_wait_s(one) >= _asked_wait_s(other) else other


def _asked_wait_s(error: Exception) -> float:
    return (error.retry_after_s or 0.0) if isinstance(error, RetryableError) else 0.0


def reason_of(error: LLMError) -> str:
    """Return the `reason` of a dead letter."""
    return _REASONS.get(type(error), "error")
