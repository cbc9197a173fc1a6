"""The rehearsal of a run: the same run, on an engine that notes what it would buy, and buys nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.forecast import Forecast
from airflow_llm_provider.documents.output import RowWriter
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.engine.calls import Call
from airflow_llm_provider.engine.concurrency import for_each
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.errors import AnswerError
from airflow_llm_provider.pricing import Usage


class _NotBought(Exception):
    """A request that would be sent now; not an LLMError, so that nothing falls back or escalates on it."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request


@dataclass(kw_only=True)
class Rehearsal(Engine):
    """An engine that answers from the ledger, and notes what it would have to buy."""

    forecast: Forecast
    paid_for: set[str]

    @classmethod
    def of(cls, engine: Engine, forecast: Forecast, paid_for: set[str]) -> Self:
        """Return an engine with the parts of another."""
        parts = {part.name: getattr(engine, part.name) for part in dataclasses.fields(engine) if part.init}
        return cls(**parts, forecast=forecast, paid_for=paid_for)

    async def ask(self, request: Request, terms: Terms) -> Reply:
        """Return the ledger's answer; else note the first request that it lacks, and return a reply that is none."""
        try:
            return await super().ask(request, terms)
        except _NotBought as wanted:
            return self._bought(wanted.request, terms)
        except AnswerError as error:
            if not (terms.retry_dead and error.reused):
                raise
            return self._bought(request, terms)

    async def recall(self, sighting: str, terms: Terms, *, final: bool) -> Reply | None:
        """Return what an unchanged document got, or will have got by then."""
        if terms.scope.claim(sighting, terms.options.reuse) in self.paid_for:
            return _reply(terms, sends=0)
        return await super().recall(sighting, terms, final=final)

    def sight(self, sighting: str, request: Request) -> None:
        """Write nothing: RehearsedRun remembers."""
        del sighting, request

    async def obtain(self, request: Request, *, purpose: str = "answer", **asked: Any) -> Call:
        """Return what is in the ledger; raises _NotBought."""
        answer = await self.ledger.find_reply(request.fingerprint, asked["scope"], asked["reuse"])
        if answer is None:
            raise _NotBought(request)
        return Call.from_ledger(answer, purpose=purpose)

    def _bought(self, request: Request, terms: Terms) -> Reply:
        key = terms.scope.claim(request.fingerprint, terms.options.reuse)
        if key in self.paid_for:
            return _reply(terms, sends=0)
        self.paid_for.add(key)
        self.forecast.add(request)
        return _reply(terms, sends=1)


class RehearsedRun(Run):
    """A run whose answers go nowhere.

    repeated: how many documents among the reused would get what another one pays for.
    """

    repeated = 0

    async def rehearse(self, documents: Iterable[Document | Rejected]) -> None:
        """Count what would become of the documents."""
        output = _AnyAnswer(self.prompt.output.output_type)
        self.terms = dataclasses.replace(self.terms, output=output)
        await for_each(self._taken(documents), partial(self._one, _Nowhere()), limit=self.max_in_flight)

    def _add_row(self, sink: RowWriter, index: int, document: Document, reply: Reply) -> None:
        del sink, index
        self.outcomes["pending" if reply.attempts else "reused"] += 1
        if reply.attempt_id:
            return  # the ledger's
        self.repeated += not reply.attempts
        if sighting := self.prompt.sighting(document):
            assert isinstance(self.engine, Rehearsal)
            self.engine.paid_for.add(self.scope.claim(sighting, self.prompt.options.reuse))


class _Nowhere(RowWriter):
    """A sink that keeps nothing: dead letters are counted, rows there are none."""

    def __init__(self) -> None:
        """Open no file."""

    def add_dead_letter(self, index: int, letter: Mapping[str, Any]) -> None:
        del index, letter


_UNKNOWN = object()  # what an answer says that nobody has given yet


class _AnyAnswer(OutputType):
    """An output type to which an unknown answer may belong, for the long inputs that are put together of several."""

    def dump(self, value: Any) -> Any:
        return None if value is _UNKNOWN else super().dump(value)


def _reply(terms: Terms, *, sends: int) -> Reply:
    return Reply(
        value=[] if terms.output.is_list else _UNKNOWN,
        text="",
        model="",
        stop_reason="end_turn",
        usage=Usage(),
        cost_micro_usd=0,
        reused=not sends,
        attempts=sends,
        repairs=0,
        latency_s=0.0,
        trace_id="",
        attempt_id="",
    )
