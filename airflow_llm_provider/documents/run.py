"""One run over many documents: from what there is, through the model, to rows and dead letters."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import dataclasses
import datetime as dt
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.documents.content import Content, Unreadable
from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.formats import RowDoesNotFit
from airflow_llm_provider.documents.prompt import DocumentPrompt
from airflow_llm_provider.documents.reader import read
from airflow_llm_provider.documents.sandbox import cores
from airflow_llm_provider.documents.stopping import LEDGER_GONE, StopRule
from airflow_llm_provider.engine.calls import NotSettled
from airflow_llm_provider.engine.chunking import ask_about, ask_about_pieces, surely_fits
from airflow_llm_provider.engine.concurrency import calm_collector, for_each
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.errors import (
    AnswerError,
    BudgetExceeded,
    BudgetWaits,
    BusinessError,
    InvalidOutput,
    LLMError,
    Refused,
    RetryableError,
    TooLong,
    Truncated,
    without_text,
)
from airflow_llm_provider.ledger.queries import missing_since_ms
from airflow_llm_provider.ledger.records import Saving, is_id, ms_of
from airflow_llm_provider.pricing import usd

if TYPE_CHECKING:
    from airflow_llm_provider.documents.output import RowWriter
    from airflow_llm_provider.engine.engine import Engine
    from airflow_llm_provider.engine.reply import Reply
    from airflow_llm_provider.engine.request import Request
    from airflow_llm_provider.ledger.records import CallScope
    from airflow_llm_provider.validators import Judge, Validator

OUTCOMES = ("answered", "reused", "repaired", "dead_letter", "pending")

_A_LONG_RUN = 100  # documents; from here, a calmer garbage collector is worth its one full pass

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

    Attributes:
        engine: asks.
        scope: the task instance; calls are booked on it.
        prompt: what is asked, and how.
        validators: what the answers must satisfy.
        retry_dead: ask again about the dead letters of earlier runs.
        max_in_flight: how many documents are asked about at once.
        limit: ask about so many documents at most; no more are listed.
        log: gets a line of progress every `log_every_s` seconds.
    """

    engine: Engine
    scope: CallScope
    prompt: DocumentPrompt
    validators: Sequence[Validator | Judge] = ()
    retry_dead: bool = False
    max_in_flight: int = 256
    limit: int | None = None
    log: Any = field(default_factory=lambda: logging.getLogger(__name__))
    log_every_s: float = 5.0

    def __post_init__(self) -> None:
        self.outcomes = collections.Counter(dict.fromkeys(OUTCOMES, 0))
        self.reasons: collections.Counter[str] = collections.Counter()
        self.skipped: collections.Counter[str] = collections.Counter()  # files that were not taken, by suffix
        # Threads of their own: those of the loop look into the ledger, and must not wait for a large PDF.
        self._readers = ThreadPoolExecutor(cores() + 4, thread_name_prefix="read")
        self.doubtful: collections.Counter[str] = collections.Counter()
        self.last_call = ""  # the newest call whose answer is in a row
        self.saved_micro_usd = 0
        self.routed_micro_usd = 0
        self.retryable: Exception | None = None  # an error after which a retry may still answer a dead letter
        self.over_budget: LLMError | None = None  # why a document was not asked about
        self.stopped: LLMError | None = None  # why no more documents are asked about
        self.found = 0
        self.has_more = False  # there are documents beyond the limit
        self._listed_all = False
        self._stop_rule = StopRule(
            endpoint=self.engine.endpoint,
            request=self.prompt.request(None),
            patience=max(self.max_in_flight, 8),
        )
        self._started = time.monotonic()
        options = self.prompt.options
        self.terms = Terms(
            scope=self.scope,
            options=options,
            output=self.prompt.output,
            validators=self.validators,
            framing=self.prompt.reading.framing,
            retry_dead=self.retry_dead,
        )
        # Where nothing else would be asked, what the ledger holds of a dead letter is final.
        self.is_final = not (
            self.retry_dead or options.on_invalid.max_repairs or options.route.retry or options.models[1:]
        )
        self.cascade: collections.Counter[str] = collections.Counter()

    async def run(self, documents: Iterable[Document | Rejected], sink: RowWriter) -> dict[str, Any]:
        """Ask about every document, write rows and dead letters, and return the counts.

        An error that would be the same for every document is kept in `stopped`. Nothing is sent after it: the documents
        that the ledger answers without being read get their rows, and the others are pending.
        """
        await self._warn_of_an_older_ledger(sink)
        progress = asyncio.create_task(self._log_progress())
        try:
            await for_each(self.taken(documents), partial(self._one, sink), limit=self.max_in_flight)
        finally:
            progress.cancel()
        saved = Saving(
            scope=self.scope,
            model=self.prompt.model,
            version=self.prompt.options.version,
            reused=self.outcomes["reused"],
            reused_micro_usd=self.saved_micro_usd,
            routed_micro_usd=self.routed_micro_usd,
        )
        self.engine.ledger.record_later(saved)
        self.log.info("%s", self._progress())
        if self.skipped:
            listed = ", ".join(f"{count} .{suffix}" for suffix, count in self.skipped.most_common(20))
            self.log.warning(
                "%d files were skipped, whose endings are of no known format: %s. `Reading(pattern=…)` takes them.",
                self.skipped.total(),
                listed,
            )
        if self.cascade:
            self.log.info(
                "%(stayed_cheap)d of %(answers)d answers stayed with the first model: $%(cost_usd)s in all, about "
                "$%(strong_alone_usd_about)s with the last alone",
                self._cascaded(),
            )
        return self.counts()

    async def _warn_of_an_older_ledger(self, sink: RowWriter) -> None:
        """Log a warning where the rows of an earlier run have an answer that the ledger does not have."""
        # In a thread: an object store may be asked.
        last_call = (await asyncio.to_thread(sink.published_manifest)).get("last_call")
        if not is_id(last_call):
            return
        since_ms = await self.engine.ledger.read(
            lambda connection, _: missing_since_ms(connection, last_call)
        )
        if since_ms is not None:
            self.log.warning(
                "The rows of the last run have an answer of %s, and this ledger lacks it. %s Answers since then are "
                "missing: it was put back from a backup, or it is another ledger. Each document whose answer is "
                "missing is asked and paid for again now, and budgets do not count what was paid in between. If there "
                "is a newer copy of the ledger (of SQLite with its -wal), stop this task, put the copy back or correct "
                "[llm] ledger_url, and clear the task.",
                _utc(ms_of(last_call)),
                f"Its newest call before that is of {_utc(since_ms)}."
                if since_ms
                else "It has no earlier call.",
            )

    def askable(self, document: Document | Rejected) -> Document:
        """Return a document that can be asked about; raises Unreadable for any other."""
        if isinstance(document, Rejected):
            raise Unreadable(document.reason, document.message)
        if not _is_text(document.id) or not _is_text(document.uri or ""):
            raise Unreadable("unreadable", "its name is not UTF-8: rename it")
        return document

    def terms_about(self, document: Document, content: Content) -> Terms:
        """Return the terms of the answer about one document."""
        # A quote cannot be checked unless all of the document is text.
        source = content.text if all(part.kind == "text" for part in content.parts) else None
        return dataclasses.replace(self.terms, source=source, item_id=document.id)

    async def read(self, document: Document) -> Content:
        """Read a document in a thread; raises Unreadable or OSError."""
        call = partial(contextvars.copy_context().run, read, document, self.prompt.reading)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, call)
        except (Unreadable, OSError):
            raise
        except Exception as error:  # noqa: BLE001  # a parser's own failure is this document's, not the run's
            raise Unreadable("unreadable", f"it cannot be parsed: {without_text(error)}") from None

    def counts(self) -> dict[str, Any]:
        """Return the outcomes of the documents, and what this run paid."""
        tally = self.engine.tally
        return {
            "documents": self.found,
            **({"limited": True} if self.has_more else {}),
            "outcomes": dict(self.outcomes),
            "dead_letter_reasons": dict(self.reasons.most_common(20)),
            **({"skipped": dict(self.skipped.most_common(20))} if self.skipped else {}),
            **({"reading": dict(self.doubtful.most_common(20))} if self.doubtful else {}),
            "model": self.prompt.model,
            "requests_paid": tally.requests,
            "input_tokens": tally.input_tokens,
            "output_tokens": tally.output_tokens,
            "cache_read_tokens": tally.cache_read_tokens,
            "cache_write_tokens": tally.cache_write_tokens,
            "cost_usd": None if tally.unpriced else usd(tally.paid_micro_usd),
            "saved_usd": usd(self.saved_micro_usd),
            "unproven_calls": tally.unproven,
            "unproven_usd_at_most": usd(tally.unproven_micro_usd),
            **({"last_call": self.last_call} if self.last_call else {}),
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

    def taken(self, documents: Iterable[Document | Rejected]) -> Iterator[tuple[int, Document | Rejected]]:
        """Yield the documents up to the limit, numbered from 0; no more than one is listed beyond it."""
        for number, document in enumerate(documents):
            if number == self.limit:
                self.has_more = True
                return
            self.found += 1
            yield number, document
        self._listed_all = True

    async def _one(self, sink: RowWriter, numbered: tuple[int, Document | Rejected]) -> None:
        index, document = numbered
        try:
            reply, warnings = await self._answer(self.askable(document))
        except Unreadable as error:
            self._add_dead_letter(sink, index, document, error.reason, error)
        except OSError as error:
            self._add_dead_letter(sink, index, document, "unreadable", error)
        except (BudgetExceeded, BudgetWaits) as error:
            # The other documents go on: what is paid is written, and a smaller one may still fit.
            self.outcomes["pending"] += 1
            self.over_budget = self.over_budget or error
        except (NotSettled, _NotAsked):
            self.outcomes["pending"] += 1
        except LLMError as error:
            if await self._is_for_all(error):
                self.outcomes["pending"] += 1
            else:
                self._add_dead_letter(sink, index, document, reason_of(error), error)
        else:
            self._stop_rule.count_answer()
            try:
                self._add_row(sink, index, document, reply, warnings)
            except (RowDoesNotFit, InvalidOutput) as error:
                self._add_dead_letter(sink, index, document, "invalid_output", error)

    async def _is_for_all(self, error: LLMError) -> bool:
        """Tell whether an error says nothing about its document; the first such error stops the run."""
        if self.stopped is not None:
            return isinstance(error, (RetryableError, type(self.stopped)))
        if not await self._stop_rule.stops(error):
            return False
        self.stopped = self.stopped or error  # another document may have failed meanwhile
        # What is known still gets its rows; what would be sent raises NotSettled.
        self.engine.is_read_only = True
        self.log.error("No more documents are asked about: %s", error)
        return True

    async def _answer(self, document: Document) -> tuple[Reply, Sequence[str]]:
        """Return the answer about a document, and why what was read of it cannot be trusted."""
        if isinstance(self.stopped, LEDGER_GONE):
            raise _NotAsked
        sighting = self.prompt.sighting(document, document.stamp)
        if sighting is not None:
            # Before the file is read: a file that has not changed since it was answered need not be opened.
            known = await self.engine.recall(sighting, self.terms, final=self.is_final)
            if known is not None:
                return known, ()
        # Reading takes time, and few documents that are not known by their stamp are in the ledger.
        if self.stopped is not None and document.path is not None:
            raise _NotAsked
        content = await self.read(document)
        request = self.prompt.request(content)
        # By the stamp of what was read: since it was listed, the file may have been replaced, and be put back later.
        # A document with warnings is read in each run, so that each run's row has them.
        if not content.warnings and (read := self.prompt.sighting(document, content.stamp)) is not None:
            # The next run finds the answer to this request by the file's stamp alone.
            self.engine.sight(read, request)
        return await self._asked(request, self.terms_about(document, content), content), content.warnings

    async def _asked(self, request: Request, terms: Terms, content: Content) -> Reply:
        text = content.sole_text
        if len(pieces := content.pieces) > 1:
            requests = [self.prompt.request(piece) for piece in pieces]
            return await ask_about_pieces(
                self.engine, requests, lambda part: self.prompt.request(content.with_text(part)), terms
            )
        if text is None or surely_fits(request, self.prompt.options.long_input, self.engine.endpoint.prices):
            return await self.engine.ask(request, terms)
        return await ask_about(
            self.engine, text, lambda part: self.prompt.request(content.with_text(part)), terms
        )

    def _add_row(
        self,
        sink: RowWriter,
        index: int,
        document: Document | Rejected,
        reply: Reply,
        warnings: Sequence[str],
    ) -> None:
        outcome = "reused" if reply.reused else "repaired" if reply.repairs else "answered"
        data = self.prompt.output.dump(reply.value)
        row = {
            "document_id": document.id,
            "outcome": outcome,
            "data": data,
            "reading": "; ".join(warnings) or None,
            **reply.usage_record(),
        }
        if self.prompt.output.is_list:
            sink.add(index, [{**row, "item": number, "data": item} for number, item in enumerate(data)])
        else:
            sink.add(index, row)
        # After the row was taken: a row that does not fit is counted as a dead letter instead.
        self.outcomes[outcome] += 1
        self.doubtful.update({warning.partition(":")[0] for warning in warnings})
        self.last_call = max(self.last_call, reply.attempt_id)  # ids sort by time
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

    def _add_dead_letter(
        self, sink: RowWriter, index: int, document: Document | Rejected, reason: str, error: Exception
    ) -> None:
        self.outcomes["dead_letter"] += 1
        self.reasons[reason] += 1
        # Any other dead letter would be the same at the next try of the task.
        if isinstance(error, (RetryableError, OSError)):
            self.retryable = _longer_wait(self.retryable, error)
        letter: dict[str, Any] = {
            "document_id": _as_text(document.id),
            "uri": _as_text(document.uri) if document.uri else None,
            "reason": reason,
            "error": type(error).__name__,
            "message": str(error),
        }
        if isinstance(error, AnswerError):
            letter |= {
                "message": error.complaint,
                "reply": error.reply_text,
                "fingerprints": list(error.fingerprints),
                "complaints": list(error.complaints),
            }
        sink.add_dead_letter(index, letter)

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
        # Documents are listed while others are asked about, so their number is known only at the end of the list.
        eta = f", about {waiting / rate:.0f} s left" if self._listed_all and waiting and rate else ""
        total = f"{self.found}" if self._listed_all else f"{self.found}+"
        cost = usd(self.engine.tally.paid_micro_usd)
        return f"{done}/{total} documents at {rate:.1f}/s: {counts or 'none yet'}; ${cost} paid{eta}"


class _NotAsked(Exception):
    """The run has stopped, and the document is not known by its stamp."""


def _is_text(name: str) -> bool:
    return _as_text(name) == name


def _as_text(name: str) -> str:
    """Return a name with each character that is not UTF-8 as an escape."""
    return name.encode("utf-8", "backslashreplace").decode()


def _longer_wait(one: Exception | None, other: Exception) -> Exception:
    """Return the error that asks for the longer wait."""
    return one if one is not None and _asked_wait_s(one) >= _asked_wait_s(other) else other


def _asked_wait_s(error: Exception) -> float:
    return (error.retry_after_s or 0.0) if isinstance(error, RetryableError) else 0.0


def reason_of(error: LLMError) -> str:
    """Return the `reason` of a dead letter."""
    return _REASONS.get(type(error), "error")


def _utc(ms: int) -> str:
    return f"{dt.datetime.fromtimestamp(ms / 1000, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
