"""What calls that are still to be made will take, added up one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from airflow_llm_provider.documents.answers import answer_tokens
from airflow_llm_provider.documents.experience import Experience
from airflow_llm_provider.documents.span import Span
from airflow_llm_provider.engine.checks import judge_request
from airflow_llm_provider.engine.request import BYTES_PER_TOKEN, Request
from airflow_llm_provider.pricing import RateCard, Usage
from airflow_llm_provider.validators import Judge

_DENSEST = 16  # bytes a token, of the text that takes fewest
_CACHED_FROM = 1_024  # tokens: below, no model caches a prefix
_COMPLAINT_TOKENS = 1_000  # what a repair says on top of the answer it sends back
_USUAL_VERDICT_TOKENS = 100
_RARE_MISS = 0.1  # of calls that may find the cached prefix gone
_FIRST_TOKEN_S, _TOKENS_A_SECOND = 1.0, 60.0  # where nothing is known of a model's latency
_MANY = 1_000  # an answer's price is taken as a thousandth of a thousand answers': means are no whole tokens

Cards = Callable[[str], RateCard | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How often one request may be sent on, at worst.

    models: the first one, then those that are escalated to.
    instead: the rate cards of fallbacks, which replace one; None for what has no known price.
    times: how often each may be asked, repairs included. longest: the longest answer, in tokens.
    judges: asked about every answer.
    """

    models: Sequence[str]
    instead: Sequence[RateCard | None] = ()
    times: int = 1
    longest: int = 0
    judges: Sequence[Judge] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Send:
    """A request that may be sent: the rate cards of those who may answer it, of whom one will, and its tokens."""

    cards: Sequence[RateCard | None]
    input: int
    output: int

    @property
    def usual_micro_usd(self) -> int:
        usage = Usage(uncached_tokens=self.input, output_tokens=self.output)
        return max(card.price_micro_usd(usage) for card in self.cards if card)

    @property
    def ceiling_micro_usd(self) -> int:
        tokens = {"input_tokens": self.input, "output_tokens": self.output}
        return max(card.ceiling_micro_usd(**tokens) for card in self.cards if card)


@dataclass(kw_only=True)
class Forecast:
    """Calls to come: how many, their tokens, their price.

    past: what such calls took before; None where there were none.
    cards: the rate card of a model, by its id.

    Without a past the bounds are hard: a token is at least one byte, an answer at most `max_tokens`, and every
    document is repaired and escalated as often as may be. With one they are statistical, and never wider.
    """

    past: Experience | None
    cards: Cards
    asking: Asking
    calls: int = 0
    unpriced: int = 0
    _input: Span = field(default_factory=Span)
    _output: Span = field(default_factory=Span)
    _cost: Span = field(default_factory=Span)
    _foretold: float = 0.0
    _ceilings: int = 0
    _input_cost: float = 0.0
    _output_cost: float = 0.0
    _miss_cost: float = 0.0  # what it costs more to write the prefix once than to read it

    def add(self, request: Request) -> None:
        """Count a request that will be sent."""
        self.calls += 1
        self._ceilings += request.input_ceiling_tokens
        bounds, answers = _input_bounds(request), answer_tokens(request)
        verdicts = list(self._verdicts(round(bounds.likely), round(answers.likely), at_most=False))
        sends = list(self._sends(request, max(round(answers.high), self.asking.longest)))
        self._input += Span(
            low=bounds.low,
            likely=bounds.likely + sum(verdict.input for verdict in verdicts),
            high=sum(send.input for send in sends),
        )
        self._output += Span(
            low=answers.low,
            likely=answers.likely + sum(verdict.output for verdict in verdicts),
            high=sum(send.output for send in sends),
        )
        if self.past is not None:
            self._foretold += self.past.input_tokens(request)
        card = self.cards(request.model)
        if card is None or request.is_boundless or any(None in send.cards for send in sends):
            self.unpriced += 1
            return
        ceiling = sum(send.ceiling_micro_usd for send in sends)
        if self.past is None:
            likely = self._likely(request, card, bounds, answers)
            likely += sum(verdict.usual_micro_usd for verdict in verdicts)
            self._cost += Span(low=_least(request, card, bounds, answers), likely=likely, high=ceiling)
        else:
            self._cost += Span(high=ceiling)
            self._add_from_past(request, card, self.past)

    @property
    def input_tokens(self) -> Span:
        """All input tokens, cached ones and those of repairs and verdicts included."""
        if self.past is None or not self.calls:
            return self._input
        doubt = self.past.input_doubt(self._ceilings / self.calls)
        told = _with_doubt(self._foretold, doubt, self._extras, self.past.extra_input)
        return told.within(0, self._input.high)

    @property
    def output_tokens(self) -> Span:
        """All output tokens, those of repairs and verdicts included."""
        if self.past is None or not self.calls:
            return self._output
        past = self.past
        foretold, doubt = past.output * self.calls, past.output_doubt(self.calls)
        told = _with_doubt(foretold, doubt, self._extras, past.extra_output)
        return told.within(0, self._output.high)

    @property
    def cost_micro_usd(self) -> Span | None:
        """The price of all calls; None where one of them has no known price."""
        if self.unpriced:
            return None
        if self.past is None or not self.calls:
            return self._cost
        past = self.past
        input_doubt, output_doubt = (
            past.input_doubt(self._ceilings / self.calls),
            past.output_doubt(self.calls),
        )
        extra = past.extra_micro_usd or 1.5 * past.cost_micro_usd  # a repair reads the answer too
        likely = self._input_cost + self._output_cost
        misses = self._miss_cost * (1 + _RARE_MISS * self.calls)
        return Span(
            low=max(0.0, self._input_cost * (1 - input_doubt) - self._miss_cost)
            + self._output_cost * max(0.0, 1 - output_doubt)
            + self._extras.low * extra,
            likely=likely + self._extras.likely * extra,
            high=self._input_cost * (1 + input_doubt)
            + self._output_cost * (1 + output_doubt)
            + self._extras.high * extra
            + misses,
        ).within(0, self._cost.high)

    @property
    def latency_s(self) -> float:
        """How long one call takes."""
        if self.past is not None:
            return self.past.latency_s
        return _FIRST_TOKEN_S + self._output.likely / max(self.calls, 1) / _TOKENS_A_SECOND

    @property
    def _extras(self) -> Span:
        """How many repairs, escalations and verdicts there will be."""
        is_alone = self.asking.times == 1 and len(self.asking.models) == 1 and not self.asking.judges
        if self.past is None or is_alone:
            return Span()
        return self.past.extras_of(self.calls)

    def _add_from_past(self, request: Request, card: RateCard, past: Experience) -> None:
        tokens = round(past.input_tokens(request))
        prefix = min(past.prefix, tokens)
        read = Usage(uncached_tokens=tokens - prefix, cache_read_tokens=prefix)
        written = Usage(uncached_tokens=tokens - prefix, cache_write_5m_tokens=prefix)
        self._miss_cost = card.price_micro_usd(written) - card.price_micro_usd(read)
        self._input_cost += card.price_micro_usd(read if self.calls > 1 else written)
        self._output_cost += _output_price(card, tokens, past.output)

    def _likely(self, request: Request, card: RateCard, bounds: Span, answers: Span) -> float:
        """Return what a request and its answer will probably cost, where there is no past."""
        shared = request.shared_bytes
        prefix = shared // BYTES_PER_TOKEN if shared >= _CACHED_FROM * BYTES_PER_TOKEN else 0
        rest = max(0, round(bounds.likely) - prefix)
        cached = {"cache_read_tokens" if self.calls > 1 else "cache_write_5m_tokens": prefix}
        prompt = card.price_micro_usd(Usage(uncached_tokens=rest, **cached))
        return prompt + _output_price(card, prefix + rest, answers.likely)

    def _sends(self, request: Request, longest: int) -> Iterator[_Send]:
        """Yield the most that a request can lead to, itself first.

        longest: the tokens of the longest answer.
        """
        for model in (request.model, *self.asking.models[1:]):
            cards = [self.cards(model), *self.asking.instead]
            for time in range(self.asking.times):
                tokens = request.input_ceiling_tokens + time * (longest + _COMPLAINT_TOKENS)
                # A model may fail after invalid answers; its fallback begins anew. Only one has the last word.
                for asked in [cards] if time + 1 == self.asking.times else [[card] for card in cards]:
                    yield _Send(cards=asked, input=tokens, output=longest)
                    yield from self._verdicts(request.input_ceiling_tokens, longest, at_most=True)

    def _verdicts(self, source_tokens: int, answer_tokens: int, *, at_most: bool) -> Iterator[_Send]:
        """Yield what judges are asked about one answer: what they usually take, or the most they can."""
        for judge in self.asking.judges:
            asked = judge_request(judge, "", "", framing="document")
            read = answer_tokens + (source_tokens if judge.reads_source else 0)
            yield _Send(
                cards=[self.cards(judge.model)],
                input=read + (asked.input_ceiling_tokens if at_most else asked.text_bytes // BYTES_PER_TOKEN),
                output=asked.max_tokens if at_most else _USUAL_VERDICT_TOKENS,
            )


def _input_bounds(request: Request) -> Span:
    """Return the input tokens of a request of which nothing is known but its bytes."""
    ceiling = request.input_ceiling_tokens
    text = request.text_bytes
    return Span(
        low=text / _DENSEST,
        likely=text / BYTES_PER_TOKEN + request.input_ceiling / BYTES_PER_TOKEN,
        high=ceiling,
    ).within(1, ceiling)


def _least(request: Request, card: RateCard, bounds: Span, answers: Span) -> int:
    """Return the least that a request can cost."""
    cheapest = "cache_read_tokens" if request.shared_bytes >= _CACHED_FROM else "uncached_tokens"
    return card.price_micro_usd(Usage(**{cheapest: int(bounds.low)}, output_tokens=int(answers.low)))


def _output_price(card: RateCard, input_tokens: int, output_tokens: float) -> float:
    """Return what an answer adds to the price of a prompt of this length; output tokens may be a mean."""
    prompt = Usage(uncached_tokens=input_tokens)
    many = Usage(uncached_tokens=input_tokens, output_tokens=round(output_tokens * _MANY))
    return (card.price_micro_usd(many) - card.price_micro_usd(prompt)) / _MANY


def _with_doubt(foretold: float, doubt: float, extras: Span, extra: float) -> Span:
    return Span(
        low=foretold * max(0.0, 1 - doubt) + extras.low * extra,
        likely=foretold + extras.likely * extra,
        high=foretold * (1 + doubt) + extras.high * extra,
    )
