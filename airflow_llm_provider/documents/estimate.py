"""The estimate of a run: what it would ask, and what that would take."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.experience import Experience
from airflow_llm_provider.documents.forecast import Asking, Forecast
from airflow_llm_provider.documents.rehearsal import Rehearsal, RehearsedRun
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.documents.span import Span
from airflow_llm_provider.engine.engine import MOST_TOKENS
from airflow_llm_provider.engine.retry import policies
from airflow_llm_provider.ledger.queries import past_calls
from airflow_llm_provider.ledger.rate_limits import Limits
from airflow_llm_provider.pricing import usd
from airflow_llm_provider.validators import Judge


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would ask, and what that would take.

    outcomes: documents by outcome as the run's manifest has them; those that would be asked are `pending`.
    repeated: documents among the reused ones whose answer another document, task or date of the same estimate
        would pay for.
    calls: requests that would be sent at least; repairs and escalations are in tokens and price only.
    cost_micro_usd: None where a price is unknown.
    seconds: probable duration, and what sets it: `latency`, or the limit of `requests`, `input` or `output`
        tokens a minute.
    answers_known: how many paid answers of the same task and schema it rests on; 0: on the schema and on bounds.
    """

    models: tuple[str, ...] = ()
    documents: int = 0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    repeated: int = 0
    calls: int = 0
    input_tokens: Span = field(default_factory=Span)
    output_tokens: Span = field(default_factory=Span)
    cost_micro_usd: Span | None = field(default_factory=Span)
    seconds: float = 0.0
    paced_by: str = "latency"
    answers_known: int = 0

    def __add__(self, other: Estimate) -> Self:
        """Return the estimate of both, one after the other."""
        costs = (self.cost_micro_usd, other.cost_micro_usd)
        longer = self if self.seconds >= other.seconds else other
        return type(self)(
            models=tuple(dict.fromkeys((*self.models, *other.models))),
            documents=self.documents + other.documents,
            outcomes=_added(self.outcomes, other.outcomes),
            reasons=_added(self.reasons, other.reasons),
            repeated=self.repeated + other.repeated,
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_micro_usd=None if costs[0] is None or costs[1] is None else costs[0] + costs[1],
            seconds=self.seconds + other.seconds,
            paced_by=longer.paced_by,
            answers_known=max(self.answers_known, other.answers_known),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON data; prices as decimal strings of dollars."""
        return {
            "dry_run": True,
            "documents": self.documents,
            "outcomes": dict(self.outcomes),
            "dead_letter_reasons": dict(self.reasons.most_common(20)),
            "repeated": self.repeated,
            "model": ", ".join(self.models),
            "calls": self.calls,
            "input_tokens": _whole(self.input_tokens),
            "output_tokens": _whole(self.output_tokens),
            "cost_usd": None
            if self.cost_micro_usd is None
            else {name: usd(figure) for name, figure in _whole(self.cost_micro_usd).items()},
            "seconds_about": round(self.seconds, 1),
            "paced_by": self.paced_by,
            "answers_known": self.answers_known,
        }

    def told(self) -> dict[str, str]:
        """Return it for a reader; tokens and price from low over likely to high."""
        cost = self.cost_micro_usd
        return {
            "documents": f"{self.documents:,}",
            "cached": f"{self.outcomes['reused']:,}",
            "to ask": f"{self.outcomes['pending']:,}",
            "tokens in": _spread(self.input_tokens, "{:,.0f}".format),
            "tokens out": _spread(self.output_tokens, "{:,.0f}".format),
            "price (USD)": "unknown" if cost is None else _spread(cost, _cents),
            "time": _time(self.seconds),
        }

    @property
    def basis(self) -> str:
        """What its figures rest on, in words."""
        if self.answers_known:
            return f"from {self.answers_known:,} answers of this task"
        return "with no answers of this task to go by: the high figure is the most it can cost"


async def estimate(
    run: Run,
    documents: Iterable[Document | Rejected],
    *,
    paid_for: set[str] | None = None,
) -> Estimate:
    """Return what `run` would do and take, sending nothing and changing nothing in the ledger.

    Reads what is not recognised, so that broken documents show before money is spent. Answers in the ledger
    are checked as the run would check them: one that would be repaired or escalated counts as a call.

    paid_for: what other estimates of the same range have counted already; this one's join it.
    """
    prompt = run.prompt
    past = await asyncio.to_thread(past_calls, run.engine.ledger.database, prompt.family)
    asking = _asking(run)
    # Of what judges take, a past without verdicts says nothing.
    is_telling = not asking.judges or any(call.purpose == "judge" for call in past)
    forecast = Forecast(
        past=Experience.of(past, prompt.model) if is_telling else None,
        cards=run.engine.endpoint.prices.card,
        asking=asking,
    )
    engine = Rehearsal.of(run.engine, forecast, set() if paid_for is None else paid_for)
    parts = {part.name: getattr(run, part.name) for part in dataclasses.fields(run)}
    rehearsed = RehearsedRun(**parts | {"engine": engine})
    await rehearsed.rehearse(documents)
    seconds, paced_by = _duration(forecast, run.engine.endpoint.limits, run.max_in_flight)
    return Estimate(
        models=(prompt.model,),
        documents=rehearsed.found,
        outcomes=rehearsed.outcomes,
        reasons=rehearsed.reasons,
        repeated=rehearsed.repeated,
        calls=forecast.calls,
        input_tokens=forecast.input_tokens,
        output_tokens=forecast.output_tokens,
        cost_micro_usd=forecast.cost_micro_usd,
        seconds=seconds,
        paced_by=paced_by,
        answers_known=forecast.past.answers if forecast.past else 0,
    )


def _asking(run: Run) -> Asking:
    """Return how often the run may ask about one document, at worst."""
    options, endpoint = run.prompt.options, run.engine.endpoint
    attempts = policies(options.route.retry)
    # A truncated answer is asked for again with twice the room.
    more_room = attempts["truncation"].attempts - 1
    again = sum(attempts[kind].attempts - 1 for kind in ("refusal", "business"))
    names = endpoint.fallbacks if options.route.fallbacks is None else options.route.fallbacks
    repairs = options.on_invalid.max_repairs
    if "invalid_output" in options.route.retry:
        repairs = attempts["invalid_output"].attempts - 1
    return Asking(
        models=[endpoint.model(name) for name in options.models],
        instead=[run.engine.fallback_card(name, options) for name in names],
        times=1 + repairs + more_room + again,
        longest=min(options.request.max_tokens * 2**more_room, MOST_TOKENS) if more_room else 0,
        judges=[each for each in run.validators if isinstance(each, Judge)],
    )


def _duration(forecast: Forecast, limits: Limits, max_in_flight: int) -> tuple[float, str]:
    """Return the probable seconds, and what sets them."""
    calls = forecast.calls
    rounds = -(-calls // max_in_flight)
    by = {"latency": forecast.latency_s * rounds}
    for name, amount, limit in (
        ("requests", calls, limits.rpm),
        ("input", forecast.input_tokens.likely, limits.itpm),
        ("output", forecast.output_tokens.likely, limits.otpm),
    ):
        if limit:
            by[name] = amount / limit * 60
    slowest = max(by, key=lambda name: by[name])
    return by[slowest], slowest


def _added(one: collections.Counter[str], other: collections.Counter[str]) -> collections.Counter[str]:
    """Add counts, keeping those that are 0."""
    both = collections.Counter(one)
    both.update(other)
    return both


def _whole(span: Span) -> dict[str, int]:
    return {"low": int(span.low), "likely": round(span.likely), "high": int(-(-span.high // 1))}


def _spread(span: Span, written: Callable[[float], str]) -> str:
    return " to ".join(written(figure) for figure in (span.low, span.likely, span.high))


def _cents(micro_usd: float) -> str:
    """Write a price to the cent, or to the micro-USD where it is less than one."""
    return f"{micro_usd / 1e6:,.2f}" if micro_usd >= 1e4 else str(usd(round(micro_usd)))


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
