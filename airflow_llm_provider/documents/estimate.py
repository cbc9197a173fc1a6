"""The estimate of a run: what it would ask, and how many tokens, how much money and time that would take."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.cost_estimate import (
    Costs,
    History,
    PendingRequest,
    Range,
    RequestSizes,
    WorstCase,
    usual_answer_tokens,
)
from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.run import Run, reason_of
from airflow_llm_provider.documents.stopping import SAME_FOR_ALL
from airflow_llm_provider.engine.calls import NotSettled
from airflow_llm_provider.engine.chunking import (
    ask_about,
    ask_about_pieces,
    pieces_to_read,
    surely_fits,
    texts_to_read,
)
from airflow_llm_provider.engine.concurrency import for_each
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.errors import AnswerError, LLMError
from airflow_llm_provider.ledger.queries import past_calls
from airflow_llm_provider.pricing import usd

SAMPLE_REQUESTS = 16
"""How many requests are counted by the API, which is free; the others are estimated from them by their size."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would ask, and what that would take.

    Attributes:
        models: the ids of the models that are asked first.
        documents: how many were found.
        outcomes: documents by outcome, as in the run's manifest; those that would be asked about are `pending`.
        reasons: dead letters by reason.
        repeated: how many of the reused documents share the answer that another document, task or date of the same
            estimate would pay for.
        calls: how many requests would be sent, without repairs and escalations, which are in tokens and price only.
        input_tokens: of all calls, including cached tokens.
        output_tokens: of all calls.
        cost_micro_usd: None where a model that may be asked has no known price.
        seconds: the likely duration.
        paced_by: what sets the duration: `latency`, or the limit of `requests`, `input` or `output` tokens per minute.
        answers_known: how many paid answers of the same task and schema it rests on.
        requests_counted: for how many requests the API counted the input tokens; 0: they are estimated from bytes.
        long_prompts: how many of the calls probably have a prompt so long that every one of its tokens costs more.
    """

    models: tuple[str, ...] = ()
    documents: int = 0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    repeated: int = 0
    calls: int = 0
    input_tokens: Range = field(default_factory=Range)
    output_tokens: Range = field(default_factory=Range)
    cost_micro_usd: Range | None = field(default_factory=Range)
    seconds: float = 0.0
    paced_by: str = "latency"
    answers_known: int = 0
    requests_counted: int = 0
    long_prompts: int = 0

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
            requests_counted=self.requests_counted + other.requests_counted,
            long_prompts=self.long_prompts + other.long_prompts,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON data; prices are decimal strings of dollars."""
        cost = self.cost_micro_usd
        return {
            "dry_run": True,
            "documents": self.documents,
            "outcomes": dict(self.outcomes),
            "dead_letter_reasons": dict(self.reasons.most_common(20)),
            "repeated": self.repeated,
            "model": ", ".join(self.models),
            "calls": self.calls,
            "input_tokens": self.input_tokens.rounded(),
            "output_tokens": self.output_tokens.rounded(),
            "cost_usd": cost and {name: usd(figure) for name, figure in cost.rounded().items()},
            "seconds_about": round(self.seconds, 1),
            "paced_by": self.paced_by,
            "answers_known": self.answers_known,
            "requests_counted": self.requests_counted,
            "long_prompts": self.long_prompts,
        }

    def as_text(self) -> dict[str, str]:
        """Return it for a reader, by heading; tokens and price as low, likely and high."""
        cost = self.cost_micro_usd
        return {
            "documents": f"{self.documents:,}",
            "cached": f"{self.outcomes['reused']:,}",
            "to ask": f"{self.outcomes['pending']:,}",
            "tokens in": _in_words(self.input_tokens, "{:,.0f}".format),
            "tokens out": _in_words(self.output_tokens, "{:,.0f}".format),
            "price (USD)": "unknown" if cost is None else _in_words(cost, _dollars),
            "time": _duration_text(self.seconds),
        }

    @property
    def basis(self) -> str:
        """What the figures rest on, in words."""
        if self.answers_known:
            answers = f"from {self.answers_known:,} answers of this task"
        else:
            answers = "without earlier answers of this task: the high figure is the most it can cost"
        if not self.calls:
            return answers
        long = (
            f"; {self.long_prompts:,} prompts are so long that every token costs more: see "
            "LongInput(max_input_tokens='price_step')"
            if self.long_prompts
            else ""
        )
        if self.requests_counted:
            return f"{answers}; input tokens by the API's own count of {self.requests_counted} requests{long}"
        return f"{answers}; input tokens from bytes, because the API could not count them{long}"


async def estimate(
    run: Run, documents: Iterable[Document | Rejected], *, paid_for: set[str] | None = None
) -> Estimate:
    """Return what a run would do and take. Nothing is asked or paid for, and the ledger stays as it is.

    Documents that the ledger does not know are read, so broken ones show before money is spent. Answers in the ledger
    are checked as the run would check them: one that would be repaired or escalated counts as a call.

    Args:
        run: the run, which must not have begun; its outcomes are counted on it.
        documents: what it would be given.
        paid_for: what other estimates of the same range count already; what this one counts is added to it.
    """
    prompt = run.prompt
    plan = _Plan(run, set() if paid_for is None else paid_for)
    await for_each(run.taken(documents), plan.add, limit=run.max_in_flight)
    calls = await asyncio.to_thread(past_calls, run.engine.ledger.database, prompt.family)
    worst = WorstCase.of(run)
    # Earlier answers without verdicts tell nothing about the cost of judges.
    is_telling = not worst.judges or any(call.purpose == "judge" for call in calls)
    history = History.of(calls, prompt.model) if is_telling else None
    size = await RequestSizes.of(run, plan.sample, history)
    figures = Costs(run=run, size=size, history=history, worst=worst)
    for item in plan.items:
        figures.add(item)
    seconds, paced_by = figures.duration(run.max_in_flight)
    return Estimate(
        models=(prompt.model,),
        documents=run.found,
        outcomes=run.outcomes,
        reasons=run.reasons,
        repeated=plan.repeated,
        calls=figures.calls,
        input_tokens=figures.input_tokens,
        output_tokens=figures.output_tokens,
        cost_micro_usd=figures.cost_micro_usd,
        seconds=seconds,
        paced_by=paced_by,
        answers_known=history.answers if history else 0,
        requests_counted=size.counted,
        long_prompts=figures.long_prompts,
    )


class _Plan:
    """One pass over the documents: what the ledger answers, and the requests that would be sent.

    Attributes:
        items: the requests that would be sent.
        sample: some of them, each as probable as any other, to be counted by the API.
        repeated: how many documents share the answer that another one would pay for.
    """

    def __init__(self, run: Run, paid_for: set[str]) -> None:
        self.items: list[PendingRequest] = []
        self.sample: list[Request] = []
        self.repeated = 0
        self._run = run
        self._paid_for = paid_for
        # Read-only: the engine raises NotSettled where it would send a request, which says what would be paid for.
        self._engine = dataclasses.replace(run.engine, is_read_only=True)
        self._random = random.Random(0)  # the same sample for the same documents

    async def add(self, numbered: tuple[int, Document | Rejected]) -> None:
        """Count what would become of one document."""
        run = self._run
        try:
            outcome = await self._outcome(run.askable(numbered[1]))
        except (Unreadable, OSError) as error:
            outcome = "dead_letter"
            run.reasons[error.reason if isinstance(error, Unreadable) else "unreadable"] += 1
        except LLMError as error:
            if isinstance(error, SAME_FOR_ALL):
                raise
            outcome = "dead_letter"
            run.reasons[reason_of(error)] += 1
        if outcome == "repeated":
            self.repeated += 1
            outcome = "reused"
        run.outcomes[outcome] += 1

    async def _outcome(self, document: Document) -> Literal["reused", "repeated", "pending", "dead_letter"]:
        run = self._run
        sighting = run.prompt.sighting(document, document.stamp)
        if sighting is not None:
            if self._claim(sighting) in self._paid_for:
                return "repeated"
            if await self._engine.recall(sighting, run.terms, final=run.is_final) is not None:
                return "reused"
        content = await run.read(document)
        # With retry_dead the engine would ask again about each dead letter; `_one` counts those itself.
        terms = dataclasses.replace(run.terms_about(document, content), retry_dead=False)

        def about(text: str) -> Request:
            return run.prompt.request(content.with_text(text))

        request, text, pieces = run.prompt.request(content), content.sole_text, content.pieces
        if len(pieces) > 1:
            requests = pieces_to_read(
                [run.prompt.request(piece) for piece in pieces], terms.options.long_input
            )
            outcomes = [await self._one(piece, terms) for piece in requests]
            if len(requests) > 1:
                whole = partial(ask_about_pieces, self._engine, requests, about, terms)
                outcomes.append(await self._merge(whole, about, terms, outcomes))
        elif text is None or surely_fits(request, terms.options.long_input, run.engine.endpoint.prices):
            outcomes = [await self._one(request, terms)]
        else:
            texts = texts_to_read(text, about, terms.options.long_input, run.engine.endpoint.prices)
            # Each part is checked against its own text, as the run does.
            outcomes = [
                await self._one(about(part), dataclasses.replace(terms, source=part)) for part in texts
            ]
            if len(texts) > 1:
                whole = partial(ask_about, self._engine, text, about, terms)
                outcomes.append(await self._merge(whole, about, terms, outcomes))
        # The next estimate of the same range then finds the answer that this document is going to have.
        if sighting is not None and set(outcomes) != {"reused"}:
            self._paid_for.add(self._claim(sighting))
        return next(each for each in ("pending", "repeated", "reused") if each in outcomes)

    async def _one(self, request: Request, terms: Terms) -> Literal["reused", "repeated", "pending"]:
        """Look one request up in the ledger with its repairs; count the first of them that is missing."""
        try:
            await self._engine.ask(request, terms)
        except NotSettled as missing:
            return self._count(missing.request)
        except AnswerError as error:
            if not (self._run.retry_dead and error.reused):
                raise
            return self._count(request)
        return "reused"

    async def _merge(
        self,
        whole: Callable[[], Awaitable[object]],
        about: Callable[[str], Request],
        terms: Terms,
        parts: Sequence[str],
    ) -> Literal["reused", "repeated", "pending"]:
        """Look up, or count, the request that merges the answers about the parts of a long document.

        Args:
            whole: asks about the document as the run does.
            about: makes the request about a text.
            terms: of the answer.
            parts: what became of the parts.
        """
        if "pending" not in parts:
            try:
                if "repeated" not in parts:
                    await whole()
            except NotSettled as missing:
                return self._count(missing.request)
            return "reused"
        if not terms.output.is_list:  # lists are joined, which costs nothing
            # Four bytes are about one token.
            answer = "-" * round(len(parts) * usual_answer_tokens(self._run.prompt.output.schema) * 4)
            self._count(about(answer), merged=len(parts))
        return "reused"

    def _count(self, request: Request, *, merged: int = 0) -> Literal["repeated", "pending"]:
        """Count a request that would be sent, unless another document has it already.

        Args:
            request: what would be sent.
            merged: how many answers it merges. They do not exist yet, so the request is a stand-in of the usual size.
        """
        key = self._claim(request.fingerprint)
        if key in self._paid_for:
            return "repeated"
        self._paid_for.add(key)
        item = PendingRequest(
            model=request.model,
            bytes=request.text_bytes + request.input_ceiling,
            # The answers that are merged are written with indentation, so each token may become two.
            ceiling_tokens=request.input_ceiling_tokens + 2 * merged * request.max_tokens,
            shared_bytes=request.shared_bytes,
            is_certain=not merged,
            cache_ttl=request.cache_ttl,
        )
        self.items.append(item)
        if merged:
            return "pending"
        # Reservoir sampling: each request is in the sample with the same probability, and few are kept in memory.
        if len(self.sample) < SAMPLE_REQUESTS:
            self.sample.append(request)
        elif (slot := self._random.randrange(len(self.items))) < SAMPLE_REQUESTS:
            self.sample[slot] = request
        return "pending"

    def _claim(self, key: str) -> str:
        return self._run.scope.claim(key, self._run.prompt.options.reuse)


def _added(one: collections.Counter[str], other: collections.Counter[str]) -> collections.Counter[str]:
    """Add counts, keeping those that are 0."""
    both = collections.Counter(one)
    both.update(other)
    return both


def _in_words(figure: Range, text_of: Callable[[float], str]) -> str:
    return " to ".join(text_of(each) for each in (figure.low, figure.likely, figure.high))


def _dollars(micro_usd: float) -> str:
    """Write a price to the cent, or to the micro-USD where it is less than one cent."""
    return f"{micro_usd / 1e6:,.2f}" if micro_usd >= 1e4 else str(usd(round(micro_usd)))


def _duration_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
