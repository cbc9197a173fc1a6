"""The estimate of a run: what it would ask, and how many tokens, how much money and time that would take."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.formats import resolve
from airflow_llm_provider.documents.run import Run, reason_of
from airflow_llm_provider.engine.calls import NotSettled
from airflow_llm_provider.engine.concurrency import for_each
from airflow_llm_provider.engine.engine import MOST_TOKENS
from airflow_llm_provider.engine.checks import judging
from airflow_llm_provider.engine.chunking import ask_about, surely_fits, texts_to_read
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import policies
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.errors import AnswerError, LLMError
from airflow_llm_provider.ledger.queries import PastCall, past_calls
from airflow_llm_provider.pricing import RateCard, Usage, usd
from airflow_llm_provider.validators import Judge

SAMPLE_REQUESTS = 16
"""How many requests are counted by the API, which is free; the others are estimated from them by their size."""

_COUNT_TIMEOUT_S = 30.0
_COUNT_MARGIN = 0.1  # the API calls its counts estimates, and the documents that were not counted may differ
_BYTES_PER_TOKEN = 4  # of English text, where nothing was counted
_MOST_BYTES_PER_TOKEN = 16
_CACHED_FROM_TOKENS = 1_024  # no model caches a shorter prefix
_RARE_CACHE_MISSES = 0.1  # the share of calls that may find the cached prefix gone
_ANSWER_MARGIN = 0.25  # how far answers may lie outside the range of those seen, once there are many
_COMPLAINT_TOKENS = 1_000  # of a repair, besides the answer that it sends back
_VERDICT_TOKENS = 100  # of a judge's usual verdict
_TEXT_TOKENS = 300  # of a usual answer in prose
_JSON_CHARACTERS_PER_TOKEN = 3.5  # JSON has more tokens per character than prose
_MAX_SCHEMA_DEPTH = 8  # a schema that refers to itself has no end
_FIRST_TOKEN_S, _TOKENS_PER_S = 1.0, 60.0  # of a model whose latency is not known


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A figure that is not known yet: `low` <= `likely` <= `high`."""

    low: float = 0.0
    likely: float = 0.0
    high: float = 0.0

    def __add__(self, other: Range) -> Self:
        return type(self)(
            low=self.low + other.low, likely=self.likely + other.likely, high=self.high + other.high
        )

    def __mul__(self, factor: float) -> Self:
        return type(self)(low=self.low * factor, likely=self.likely * factor, high=self.high * factor)

    def at_most(self, bound: float) -> Self:
        """Return the range cut off at a bound."""
        return type(self)(
            low=min(self.low, bound), likely=min(self.likely, bound), high=min(self.high, bound)
        )

    def rounded(self) -> dict[str, int]:
        """Return the range in whole numbers, low rounded down and high rounded up."""
        return {"low": int(self.low), "likely": round(self.likely), "high": int(-(-self.high // 1))}


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
        if self.requests_counted:
            return f"{answers}; input tokens by the API's own count of {self.requests_counted} requests"
        return f"{answers}; input tokens from bytes, because the API could not count them"


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
    worst = _WorstCase.of(run)
    # Earlier answers without verdicts tell nothing about the cost of judges.
    is_telling = not worst.judges or any(call.purpose == "judge" for call in calls)
    history = _History.of(calls, prompt.model) if is_telling else None
    size = await _Size.of(run, plan.sample)
    figures = _Figures(run=run, size=size, history=history, worst=worst)
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
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """A request that would be sent.

    Attributes:
        model: the id of the model that it goes to.
        bytes: its text in bytes, and the highest tokens of its images and pages.
        ceiling_tokens: an upper bound of its input tokens.
        shared_bytes: of the prefix that prompt caching may keep.
        has_bound: whether its price has an upper bound.
        is_certain: whether it is sent for certain; the merge of parts depends on their answers.
    """

    model: str
    bytes: int
    ceiling_tokens: int
    shared_bytes: int
    has_bound: bool
    is_certain: bool


class _Plan:
    """One pass over the documents: what the ledger answers, and the requests that would be sent.

    Attributes:
        items: the requests that would be sent.
        sample: some of them, each as probable as any other, to be counted by the API.
        repeated: how many documents share the answer that another one would pay for.
    """

    def __init__(self, run: Run, paid_for: set[str]) -> None:
        self.items: list[_Item] = []
        self.sample: list[Request] = []
        self.repeated = 0
        self._run = run
        self._paid_for = paid_for
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
            run.end_if_fatal(error)
            outcome = "dead_letter"
            run.reasons[reason_of(error)] += 1
        if outcome == "repeated":
            self.repeated += 1
            outcome = "reused"
        run.outcomes[outcome] += 1

    async def _outcome(self, document: Document) -> Literal["reused", "repeated", "pending", "dead_letter"]:
        run = self._run
        sighting = run.prompt.sighting(document)
        if sighting is not None:
            if self._claim(sighting) in self._paid_for:
                return "repeated"
            if await self._engine.recall(sighting, run.terms, final=run.is_final) is not None:
                return "reused"
        content = await run.read(document)
        terms = dataclasses.replace(run.terms_about(document, content), retry_dead=False)

        def about(text: str) -> Request:
            return run.prompt.request(content.with_text(text))

        request, text = run.prompt.request(content), content.sole_text
        if text is None or surely_fits(request, terms.options.long_input):
            outcomes = [await self._one(request, terms)]
        else:
            texts = texts_to_read(text, about, terms.options.long_input)
            # Each part is checked against its own text, as the run does.
            outcomes = [
                await self._one(about(part), dataclasses.replace(terms, source=part)) for part in texts
            ]
            if len(texts) > 1:
                outcomes.append(await self._merge(text, about, terms, outcomes))
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
        self, text: str, about: Callable[[str], Request], terms: Terms, parts: Sequence[str]
    ) -> Literal["reused", "repeated", "pending"]:
        """Look up, or count, the request that merges the answers about the parts of a long text."""
        if "pending" not in parts:
            try:
                if "repeated" not in parts:
                    await ask_about(self._engine, text, about, terms)
            except NotSettled as missing:
                return self._count(missing.request)
            return "reused"
        if not terms.output.is_list:  # lists are joined, which costs nothing
            answer = " " * round(len(parts) * _usual_answer_tokens(self._run.prompt.output.schema) * 4)
            self._count(about(answer), is_certain=False)
        return "reused"

    def _count(self, request: Request, *, is_certain: bool = True) -> Literal["repeated", "pending"]:
        key = self._claim(request.fingerprint)
        if key in self._paid_for:
            return "repeated"
        self._paid_for.add(key)
        item = _Item(
            model=request.model,
            bytes=request.text_bytes + request.input_ceiling,
            ceiling_tokens=request.input_ceiling_tokens,
            shared_bytes=request.shared_bytes,
            has_bound=not request.is_boundless,
            is_certain=is_certain,
        )
        self.items.append(item)
        # Reservoir sampling: each request is in the sample with the same probability, and few are kept in memory.
        if len(self.sample) < SAMPLE_REQUESTS:
            self.sample.append(request)
        elif (place := self._random.randrange(len(self.items))) < SAMPLE_REQUESTS:
            self.sample[place] = request
        return "pending"

    def _claim(self, key: str) -> str:
        return self._run.scope.claim(key, self._run.prompt.options.reuse)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Size:
    """How many tokens a request of so many bytes has.

    Attributes:
        base_bytes: of the part that all requests share.
        base: its tokens.
        per_byte: tokens per byte of the rest.
        counted: how many requests the API has counted; 0: all is estimated from bytes.
    """

    base_bytes: int
    base: Range
    per_byte: Range
    counted: int = 0

    @classmethod
    async def of(cls, run: Run, sample: Sequence[Request]) -> Self:
        """Let the API count a sample, which is free; where it cannot, take bounds that always hold."""
        shared = run.prompt.request(None)
        size = shared.text_bytes
        uncounted = Range(low=1 / _MOST_BYTES_PER_TOKEN, likely=1 / _BYTES_PER_TOKEN, high=1.0)
        if not sample:
            return cls(base_bytes=size, base=uncounted * size, per_byte=uncounted)
        client = run.engine.endpoint.client
        try:
            base = await client.count_tokens(shared, timeout_s=_COUNT_TIMEOUT_S)
            counts = await asyncio.gather(
                *(client.count_tokens(request, timeout_s=_COUNT_TIMEOUT_S) for request in sample)
            )
        except LLMError as error:
            run.log.info("The API could not count tokens, so they are estimated from bytes: %s", error)
            return cls(base_bytes=size, base=uncounted * size, per_byte=uncounted)
        known = [
            (count - base, request.text_bytes + request.input_ceiling - size)
            for count, request in zip(counts, sample, strict=True)
        ]
        known = [(tokens, length) for tokens, length in known if length > 0 and tokens > 0] or [(1, 1)]
        shares = [tokens / length for tokens, length in known]
        per_byte = Range(
            low=min(shares) * (1 - _COUNT_MARGIN),
            likely=sum(tokens for tokens, _ in known) / sum(length for _, length in known),
            high=max(shares) * (1 + _COUNT_MARGIN),
        )
        around = Range(low=base * (1 - _COUNT_MARGIN), likely=base, high=base * (1 + _COUNT_MARGIN))
        return cls(base_bytes=size, base=around, per_byte=per_byte, counted=len(counts))

    def tokens(self, item: _Item) -> Range:
        """Return the input tokens of one request."""
        return (self.base + self.per_byte * max(0, item.bytes - self.base_bytes)).at_most(item.ceiling_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class _History:
    """What the newest calls of the same task, model and schema took.

    Attributes:
        answers: how many first answers there are.
        output: the tokens of the shortest, the mean and the longest answer.
        prefix_tokens: of the shared prefix that prompt caching kept; 0 where it kept none.
        latency_s: of one answer, in the mean.
        extras: repairs, escalations and verdicts per answer.
        extra_micro_usd: the mean price of one; `extra_input` and `extra_output`: its mean tokens.
    """

    answers: int
    output: Range
    prefix_tokens: int
    latency_s: float
    extras: Range
    extra_micro_usd: float
    extra_input: float
    extra_output: float

    @classmethod
    def of(cls, calls: Sequence[PastCall], model: str) -> Self | None:
        """Sum up calls; None where the model has given no answer among them."""
        answers = [call for call in calls if call.purpose == "answer" and call.model == model]
        if not answers:
            return None
        extras = [call for call in calls if call.purpose != "answer"]
        outputs = [call.usage.output_tokens for call in answers]
        cached = [call.usage.cache_read_tokens + call.usage.cache_write_tokens for call in answers]
        count = len(answers)
        # Few answers tell little about the shortest and the longest that are possible.
        margin = _ANSWER_MARGIN + 1 / count
        # Counts vary by their square root; of what was never seen in n answers, there may still be 3/n.
        spread = 3 * len(extras) ** 0.5
        typical = extras or answers
        return cls(
            answers=count,
            output=Range(
                low=min(outputs) * max(0.0, 1 - margin),
                likely=statistics.fmean(outputs),
                high=max(outputs) * (1 + margin),
            ),
            prefix_tokens=max(cached) if 2 * sum(map(bool, cached)) >= count else 0,
            latency_s=statistics.fmean(call.latency_ms for call in answers) / 1000,
            extras=Range(
                low=max(0.0, len(extras) - spread), likely=len(extras), high=len(extras) + spread + 3
            )
            * (1 / count),
            extra_micro_usd=statistics.fmean(call.cost_micro_usd or 0 for call in typical),
            extra_input=statistics.fmean(call.usage.input_tokens for call in typical),
            extra_output=statistics.fmean(call.usage.output_tokens for call in typical),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _WorstCase:
    """The most that can follow from one request.

    Attributes:
        sends: how often it, its repairs, escalations, fallbacks and verdicts are sent.
        output_tokens: of the longest answer.
        more_input_tokens: of a repair or a verdict, besides those of the request.
        cards: the rates of all models that may be asked; None for one whose price is unknown.
        judges: who gives a verdict on each answer, with the request that asks for it and the judge's rates.
    """

    sends: int
    output_tokens: int
    more_input_tokens: int
    cards: Sequence[RateCard | None]
    judges: Sequence[tuple[Judge, Request, RateCard | None]]

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return the worst case of a run's requests."""
        options, endpoint = run.prompt.options, run.engine.endpoint
        attempts = policies(options.route.retry)
        # A truncated answer is asked for again with twice the tokens.
        doublings = attempts["truncation"].attempts - 1
        again = sum(attempts[kind].attempts - 1 for kind in ("refusal", "business"))
        repairs = options.on_invalid.max_repairs
        if "invalid_output" in options.route.retry:
            repairs = attempts["invalid_output"].attempts - 1
        times = 1 + repairs + doublings + again
        fallbacks = endpoint.fallbacks if options.route.fallbacks is None else options.route.fallbacks
        judges = [
            (each, judging(each, "", "", framing="document"), endpoint.prices.card(each.model))
            for each in run.validators
            if isinstance(each, Judge)
        ]
        longest = min(options.request.max_tokens * 2**doublings, MOST_TOKENS)
        verdicts = [verdict for _, verdict, _ in judges]
        return cls(
            sends=len(options.models) * times * (1 + len(fallbacks)) * (1 + len(judges)),
            output_tokens=max([longest, *(verdict.max_tokens for verdict in verdicts)]),
            more_input_tokens=times * (longest + _COMPLAINT_TOKENS)
            + sum(verdict.input_ceiling_tokens for verdict in verdicts),
            cards=[
                *(endpoint.prices.card(endpoint.model(name)) for name in options.models),
                *(run.engine.fallback_card(name, options) for name in fallbacks),
                *(card for _, _, card in judges),
            ],
            judges=judges,
        )

    @property
    def is_priced(self) -> bool:
        """Whether all models that may be asked have a known price."""
        return None not in self.cards

    def input_tokens(self, item: _Item) -> int:
        """Return the most input tokens of all that can follow from a request."""
        more = self.more_input_tokens if self.sends > 1 else 0
        return self.sends * (item.ceiling_tokens + more)

    def micro_usd(self, item: _Item) -> int:
        """Return the most that all that can follow from a request can cost."""
        tokens = -(-self.input_tokens(item) // self.sends)
        return self.sends * max(
            card.ceiling_micro_usd(input_tokens=tokens, output_tokens=self.output_tokens)
            for card in self.cards
            if card
        )


@dataclass(kw_only=True)
class _Figures:
    """Tokens and price of requests that would be sent, added up one by one.

    Without a history, high is a bound that holds: every byte is a token, every answer has `max_tokens`, and every
    request is repaired and escalated as often as possible. With a history, high is what was seen, with a margin.
    """

    run: Run
    size: _Size
    history: _History | None
    worst: _WorstCase
    calls: int = 0
    input_tokens: Range = field(default_factory=Range)
    output_tokens: Range = field(default_factory=Range)
    _cost: Range = field(default_factory=Range)
    _is_priced: bool = True

    def __post_init__(self) -> None:
        schema = self.run.prompt.output.schema
        most = self.run.prompt.options.request.max_tokens
        usual = Range(low=1, likely=_usual_answer_tokens(schema), high=most)
        self._output = (self.history.output if self.history else usual).at_most(most)

    @property
    def cost_micro_usd(self) -> Range | None:
        """The price of all calls; None where one of them has no known price."""
        return self._cost if self._is_priced else None

    def add(self, item: _Item) -> None:
        """Add a request, and what probably follows from it."""
        self.calls += 1
        history, worst, answer = self.history, self.worst, self._output
        tokens, output = self.size.tokens(item), answer
        extras = history.extras if history and worst.sends > 1 else Range()
        if history:
            tokens += extras * history.extra_input
            output += extras * history.extra_output
        else:
            read = {judge: tokens.likely if judge.reads_source else 0 for judge, _, _ in worst.judges}
            asked = [verdict.text_bytes / _BYTES_PER_TOKEN for _, verdict, _ in worst.judges]
            tokens += Range(likely=sum(read.values()) + sum(asked) + len(asked) * answer.likely)
            output += Range(likely=len(asked) * _VERDICT_TOKENS)
        self.input_tokens += self._bounded(tokens, worst.input_tokens(item), item)
        self.output_tokens += self._bounded(output, worst.sends * worst.output_tokens, item)
        card = self.run.engine.endpoint.prices.card(item.model)
        if card is None or not item.has_bound or not worst.is_priced:
            self._is_priced = False
        if self._is_priced and card is not None:
            cost = self._price(item, card) + extras * (history.extra_micro_usd if history else 0)
            self._cost += self._bounded(cost, worst.micro_usd(item), item)

    def duration(self, max_in_flight: int) -> tuple[float, str]:
        """Return the likely seconds, and what sets them."""
        rounds = -(-self.calls // max_in_flight)
        latency_s = _FIRST_TOKEN_S + self._output.likely / _TOKENS_PER_S
        limits = self.run.engine.endpoint.limits
        seconds = {"latency": rounds * (self.history.latency_s if self.history else latency_s)}
        for name, amount, per_minute in (
            ("requests", self.calls, limits.rpm),
            ("input", self.input_tokens.likely, limits.itpm),
            ("output", self.output_tokens.likely, limits.otpm),
        ):
            if per_minute:
                seconds[name] = amount / per_minute * 60
        slowest = max(seconds, key=lambda name: seconds[name])
        return seconds[slowest], slowest

    def _bounded(self, figure: Range, bound: float, item: _Item) -> Range:
        """Return the figure of one request, with a high that holds where there is no history."""
        figure = figure.at_most(bound)
        low = figure.low if item.is_certain else 0.0
        return dataclasses.replace(figure, low=low, high=figure.high if self.history else bound)

    def _price(self, item: _Item, card: RateCard) -> Range:
        """Return the price of one request and its answer, in micro-USD."""
        tokens, output = self.size.tokens(item), self._output
        if self.history:
            prefix = self.history.prefix_tokens
        else:
            prefix = round(self.size.base.likely) if self.size.base.likely >= _CACHED_FROM_TOKENS else 0
        if not item.shared_bytes:
            prefix = 0
        # The cheapest: the prefix is read from the cache. Without a history, it may be longer than estimated.
        may_cache = not self.history and item.shared_bytes >= _CACHED_FROM_TOKENS
        cheapest = tokens.low if may_cache else prefix
        written = _price(card, tokens.likely, prefix, output.likely, is_written=True)
        likely = _price(card, tokens.likely, prefix, output.likely)
        high = float(_price(card, tokens.high, prefix, output.high))
        if prefix:
            high += (written - likely) * (1 if self.calls == 1 else _RARE_CACHE_MISSES)
        return Range(
            low=_price(card, tokens.low, cheapest, output.low),
            likely=written if prefix and self.calls == 1 else likely,
            high=high,
        )


def _price(
    card: RateCard,
    input_tokens: float,
    prefix_tokens: float,
    output_tokens: float,
    *,
    is_written: bool = False,
) -> int:
    """Return the price of one call whose prefix is read from the prompt cache, or written to it."""
    prefix = int(min(prefix_tokens, input_tokens))
    kind = "cache_write_5m_tokens" if is_written else "cache_read_tokens"
    usage = {
        "uncached_tokens": int(input_tokens) - prefix,
        kind: prefix,
        "output_tokens": round(output_tokens),
    }
    return card.price_micro_usd(Usage(**usage))


def _usual_answer_tokens(schema: Mapping[str, Any] | None) -> float:
    """Return about how many tokens an answer has, judged from its JSON schema; None is text."""
    if schema is None:
        return _TEXT_TOKENS
    return max(1.0, _usual_characters(schema, schema, 0) / _JSON_CHARACTERS_PER_TOKEN)


def _usual_characters(part: Any, whole: Mapping[str, Any], depth: int) -> float:
    """Return about how many characters a JSON value of a schema has."""
    if not isinstance(part, Mapping) or depth > _MAX_SCHEMA_DEPTH:
        return 20
    part = resolve(part, whole)
    if options := part.get("enum") or ([part["const"]] if "const" in part else None):
        return statistics.fmean(len(str(option)) + 2 for option in options)
    if properties := part.get("properties"):
        return 2 + sum(
            len(name) + 6 + _usual_characters(inner, whole, depth + 1) for name, inner in properties.items()
        )
    match part.get("type"):
        case "array":
            items = int(max(part.get("minItems", 0), min(3, part.get("maxItems", 3))))
            return 2 + items * (2 + _usual_characters(part.get("items"), whole, depth + 1))
        case "string":
            usual = 12 if part.get("format") == "date" else 60
            return 2 + int(max(part.get("minLength", 0), min(usual, part.get("maxLength", usual))))
        case "integer" | "number" | "boolean" | "null":
            return 5
        case _:
            return 20


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
