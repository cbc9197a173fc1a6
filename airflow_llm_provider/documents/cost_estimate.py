"""What requests that are not sent yet would take: tokens, price and time, added up one request at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from airflow_llm_provider.documents.formats import resolve
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.engine.ceiling import factors, highest_micro_usd
from airflow_llm_provider.engine.checks import judge_request
from airflow_llm_provider.engine.engine import MOST_TOKENS
from airflow_llm_provider.engine.request import FRAME_TOKENS, Request
from airflow_llm_provider.engine.retry import policies
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger.queries import PastCall
from airflow_llm_provider.pricing import Prices, RateCard, Usage
from airflow_llm_provider.validators import Judge

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


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingRequest:
    """A request that would be sent.

    Attributes:
        model: the id of the model that it goes to.
        bytes: its text in bytes, and the highest tokens of its images and pages.
        ceiling_tokens: an upper bound of its input tokens.
        shared_bytes: of the prefix that prompt caching may keep.
        is_certain: whether it is sent for certain; the merge of parts depends on their answers.
        cache_ttl: how long its prefix is cached.
    """

    model: str
    bytes: int
    ceiling_tokens: int
    shared_bytes: int
    is_certain: bool
    cache_ttl: str = "5m"


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestSizes:
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
    async def of(cls, run: Run, sample: Sequence[Request], history: History | None) -> Self:
        """Let the API count a sample of requests, which is free.

        Where it cannot, low and high are bounds that always hold, and likely comes from the history, if there is one.

        Args:
            run: whose prompt all requests share.
            sample: the requests to count; none: nothing is counted.
            history: what earlier calls took.
        """
        shared = run.prompt.request(None)
        size = shared.text_bytes
        fewest = 1 / _MOST_BYTES_PER_TOKEN
        usual = max(fewest, history.tokens_per_byte) if history else 1 / _BYTES_PER_TOKEN
        # A token has at least one byte, so this high is a bound.
        uncounted = Range(low=fewest, likely=usual, high=1.0)
        if not sample:
            return cls(base_bytes=size, base=uncounted * size, per_byte=uncounted)
        client = run.engine.endpoint.client
        try:
            # The shared part is counted once by itself, so that what is left is the documents' own.
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
        known = [(tokens, length) for tokens, length in known if length > 0 and tokens > 0]
        if not known:
            return cls(base_bytes=size, base=uncounted * size, per_byte=uncounted)
        shares = [tokens / length for tokens, length in known]
        per_byte = Range(
            low=min(shares) * (1 - _COUNT_MARGIN),
            likely=sum(tokens for tokens, _ in known) / sum(length for _, length in known),
            high=max(shares) * (1 + _COUNT_MARGIN),
        )
        around = Range(low=base * (1 - _COUNT_MARGIN), likely=base, high=base * (1 + _COUNT_MARGIN))
        return cls(base_bytes=size, base=around, per_byte=per_byte, counted=len(counts))

    def tokens(self, item: PendingRequest) -> Range:
        """Return the input tokens of one request."""
        return (self.base + self.per_byte * max(0, item.bytes - self.base_bytes)).at_most(item.ceiling_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What the newest calls of the same task, model and schema took.

    Attributes:
        answers: how many first answers there are.
        tokens_per_byte: of their requests, in the mean.
        output: the tokens of the shortest, the mean and the longest answer.
        prefix_tokens: of the shared prefix that prompt caching kept; 0 where it kept none.
        latency_s: of one answer, in the mean.
        extras: repairs, escalations and verdicts per answer.
        extra_micro_usd: the mean price of one; `extra_input` and `extra_output`: its mean tokens.
    """

    answers: int
    tokens_per_byte: float
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
        lengths = [max(1, call.ceiling_tokens - FRAME_TOKENS) for call in answers]
        cached = [call.usage.cache_read_tokens + call.usage.cache_write_tokens for call in answers]
        count = len(answers)
        # Few answers tell little about the shortest and the longest that are possible.
        margin = _ANSWER_MARGIN + 1 / count
        # Counts vary by their square root; of what was never seen in n answers, there may still be 3/n.
        spread = 3 * len(extras) ** 0.5
        typical = extras or answers
        return cls(
            answers=count,
            tokens_per_byte=min(1.0, sum(call.usage.input_tokens for call in answers) / sum(lengths)),
            output=Range(
                low=min(outputs) * max(0.0, 1 - margin),
                likely=statistics.fmean(outputs),
                high=max(outputs) * (1 + margin),
            ),
            # Where fewer than half of the calls used the cache, it cannot be counted on.
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
class WorstCase:
    """The most that can follow from one request.

    Attributes:
        sends: how often it, its repairs, escalations, fallbacks and verdicts are sent.
        output_tokens: of the longest answer.
        more_input_tokens: of a repair or a verdict, besides those of the request.
        models: all models that may be asked, each with the prices of its connection and the further fields of its
            requests, some of which decide about the price.
        fields: those of the requests about documents.
        judges: who gives a verdict on each answer, with the request that asks for it and the judge's rates.
    """

    sends: int
    output_tokens: int
    more_input_tokens: int
    models: Sequence[tuple[str, Prices, Mapping[str, Any]]]
    fields: Mapping[str, Any]
    judges: Sequence[tuple[Judge, Request, RateCard | None]]

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return the worst case of a run's requests."""
        options, endpoint = run.prompt.options, run.engine.endpoint
        fields = options.request.extra
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
            (each, judge_request(each, "", "", framing="document"), endpoint.prices.card(each.model))
            for each in run.validators
            if isinstance(each, Judge)
        ]
        longest = min(options.request.max_tokens * 2**doublings, MOST_TOKENS)
        verdicts = [verdict for _, verdict, _ in judges]
        return cls(
            # Each model of the route can use up all its attempts, each attempt can go to every fallback, and every
            # answer is judged.
            sends=len(options.models) * times * (1 + len(fallbacks)) * (1 + len(judges)),
            output_tokens=max([longest, *(verdict.max_tokens for verdict in verdicts)]),
            more_input_tokens=times * (longest + _COMPLAINT_TOKENS)
            + sum(verdict.input_ceiling_tokens for verdict in verdicts),
            models=[
                *((endpoint.model(name), endpoint.prices, fields) for name in options.models),
                *((*run.engine.fallback(name, options), fields) for name in fallbacks),
                *((judge.model, endpoint.prices, verdict.extra) for judge, verdict, _ in judges),
            ],
            fields=fields,
            judges=judges,
        )

    def input_tokens(self, item: PendingRequest) -> int:
        """Return the most input tokens of all that can follow from a request."""
        more = self.more_input_tokens if self.sends > 1 else 0
        return self.sends * (item.ceiling_tokens + more)

    def micro_usd(self, item: PendingRequest) -> int | None:
        """Return the most that all that can follow from a request can cost; None where that has no bound."""
        tokens = -(-self.input_tokens(item) // self.sends)
        each = [
            highest_micro_usd(
                model, prices, input_tokens=tokens, output_tokens=self.output_tokens, fields=fields
            )
            for model, prices, fields in self.models
        ]
        known = [most for most in each if most is not None]
        return self.sends * max(known) if len(known) == len(each) else None


@dataclass(kw_only=True)
class Costs:
    """Tokens and price of requests that would be sent, added up one by one.

    Without a history, high is a bound that holds: every byte is a token, every answer has `max_tokens`, and every
    request is repaired and escalated as often as possible. With a history, high is what was seen, with a margin.

    Attributes:
        long_prompts: how many of the prompts are probably so long that every token costs more.
    """

    run: Run
    size: RequestSizes
    history: History | None
    worst: WorstCase
    calls: int = 0
    long_prompts: int = 0
    input_tokens: Range = field(default_factory=Range)
    output_tokens: Range = field(default_factory=Range)
    _cost: Range = field(default_factory=Range)
    _is_priced: bool = True

    def __post_init__(self) -> None:
        schema = self.run.prompt.output.schema
        most = self.run.prompt.options.request.max_tokens
        usual = Range(low=1, likely=usual_answer_tokens(schema), high=most)
        self._output = (self.history.output if self.history else usual).at_most(most)

    @property
    def cost_micro_usd(self) -> Range | None:
        """The price of all calls; None where one of them has no known price."""
        return self._cost if self._is_priced else None

    def add(self, item: PendingRequest) -> None:
        """Add a request, and what probably follows from it."""
        self.calls += 1
        history, worst, answer = self.history, self.worst, self._output
        tokens, output = self.size.tokens(item), answer
        extras = history.extras if history and worst.sends > 1 else Range()
        verdicts = [] if history else self._verdicts(tokens.likely)
        if history:
            tokens += extras * history.extra_input
            output += extras * history.extra_output
        tokens += Range(likely=sum(usage.input_tokens for usage, _ in verdicts))
        output += Range(likely=sum(usage.output_tokens for usage, _ in verdicts))
        self.input_tokens += self._bounded(tokens, worst.input_tokens(item), item)
        self.output_tokens += self._bounded(output, worst.sends * worst.output_tokens, item)
        cost = self._cost_of(item, extras, verdicts)
        if cost is None:
            self._is_priced = False
        else:
            self._cost += cost

    def duration(self, max_in_flight: int) -> tuple[float, str]:
        """Return the likely seconds, and what sets them."""
        # Calls of one round run side by side, so a round takes about as long as one call.
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
        # The limits hold at the same time, so the tightest one sets the pace.
        slowest = max(seconds, key=lambda name: seconds[name])
        return seconds[slowest], slowest

    def _verdicts(self, source_tokens: float) -> list[tuple[Usage, RateCard | None]]:
        """Return the usual usage of each verdict on one answer, and the judge's rates."""
        return [
            (
                Usage(
                    uncached_tokens=round(
                        verdict.text_bytes / _BYTES_PER_TOKEN
                        + self._output.likely
                        + (source_tokens if judge.reads_source else 0)
                    ),
                    output_tokens=_VERDICT_TOKENS,
                ),
                card,
            )
            for judge, verdict, card in self.worst.judges
        ]

    def _cost_of(
        self, item: PendingRequest, extras: Range, verdicts: Sequence[tuple[Usage, RateCard | None]]
    ) -> Range | None:
        """Return the price of a request and of what probably follows from it; None where it has no known bound."""
        card, most = self.run.engine.endpoint.prices.card(item.model), self.worst.micro_usd(item)
        if card is None or most is None or (by := factors(card, self.worst.fields)) is None:
            return None
        if card.price_step is not None and self.size.tokens(item).likely > card.price_step:
            self.long_prompts += 1
        stated, highest = map(float, by)
        one = self._price(item, card)
        cost = Range(low=one.low * stated, likely=one.likely * stated, high=one.high * highest)
        cost += extras * (self.history.extra_micro_usd if self.history else 0)
        cost += Range(likely=sum(judge.price_micro_usd(usage) for usage, judge in verdicts if judge))
        return self._bounded(cost, most, item)

    def _bounded(self, figure: Range, bound: float, item: PendingRequest) -> Range:
        """Return the figure of one request, with a high that holds where there is no history."""
        figure = figure.at_most(bound)
        low = figure.low if item.is_certain else 0.0
        return dataclasses.replace(figure, low=low, high=figure.high if self.history else bound)

    def _price(self, item: PendingRequest, card: RateCard) -> Range:
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
        written = _price(card, tokens.likely, prefix, output.likely, written_for=item.cache_ttl)
        likely = _price(card, tokens.likely, prefix, output.likely)
        high = float(_price(card, tokens.high, prefix, output.high))
        if prefix:
            # The first call writes the prefix to the cache, which costs more than sending it. Later ones read it, with
            # few misses.
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
    written_for: str | None = None,
) -> int:
    """Return the price of one call whose prefix is read from the prompt cache, or written to it for `5m` or `1h`."""
    prefix = int(min(prefix_tokens, input_tokens))
    kind = f"cache_write_{written_for}_tokens" if written_for else "cache_read_tokens"
    usage = {
        "uncached_tokens": int(input_tokens) - prefix,
        kind: prefix,
        "output_tokens": round(output_tokens),
    }
    return card.price_micro_usd(Usage(**usage))


def usual_answer_tokens(schema: Mapping[str, Any] | None) -> float:
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
