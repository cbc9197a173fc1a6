"""What calls that are still to be made will take, added up one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from airflow_llm_provider.documents.answers import answer_tokens
from airflow_llm_provider.documents.experience import Experience
from airflow_llm_provider.documents.span import Span
from airflow_llm_provider.engine.judge import judging
from airflow_llm_provider.engine.pace import BYTES_A_TOKEN
from airflow_llm_provider.engine.request import Request
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

    models: the first one, then those that are escalated to. instead: fallbacks, which replace one.
    times: how often each may be asked, repairs included. longest: the longest answer, in tokens.
    judges: asked about every answer.
    """

    models: Sequence[str]
    instead: Sequence[str] = ()
    times: int = 1
    longest: int = 0
    judges: Sequence[Judge] = ()


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
        bounds = _input_bounds(request)
        answers = answer_tokens(request)
        self._input += bounds
        self._output += answers
        if self.past is not None:
            self._foretold += self.past.input_tokens(request)
        card = self.cards(request.model)
        if card is None or not all(self.cards(judge.model) for judge in self.asking.judges):
            self.unpriced += 1
            return
        if self.past is None:
            self._cost += self._without_past(request, card, bounds, answers)
        else:
            self._cost += Span(high=self._at_most(request))
            self._add_from_past(request, card, self.past)

    @property
    def input_tokens(self) -> Span:
        """All input tokens, cached ones and repairs included."""
        if self.past is None or not self.calls:
            return self._input
        doubt = self.past.input_doubt(self._ceilings / self.calls)
        return _with_doubt(self._foretold, doubt, self._extras, self.past.extra_input)

    @property
    def output_tokens(self) -> Span:
        """All output tokens."""
        if self.past is None or not self.calls:
            return self._output
        past = self.past
        return _with_doubt(
            past.output * self.calls, past.output_doubt(self.calls), self._extras, past.extra_output
        )

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
            high=min(
                self._cost.high,
                self._input_cost * (1 + input_doubt)
                + self._output_cost * (1 + output_doubt)
                + self._extras.high * extra
                + misses,
            ),
        )

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

    def _without_past(self, request: Request, card: RateCard, bounds: Span, answers: Span) -> Span:
        shared_bytes = request.shared_bytes
        cheapest = "cache_read_tokens" if shared_bytes >= _CACHED_FROM else "uncached_tokens"
        prefix = shared_bytes // BYTES_A_TOKEN if shared_bytes >= _CACHED_FROM * BYTES_A_TOKEN else 0
        rest = max(0, round(bounds.likely) - prefix)
        cached = {"cache_read_tokens" if self.calls > 1 else "cache_write_5m_tokens": prefix}
        return Span(
            low=card.price_micro_usd(Usage(**{cheapest: int(bounds.low)}, output_tokens=int(answers.low))),
            likely=card.price_micro_usd(Usage(uncached_tokens=rest, **cached))
            + _output_price(card, prefix + rest, answers.likely)
            + self._verdicts(round(bounds.likely), round(answers.likely), _USUAL_VERDICT_TOKENS),
            high=self._at_most(request, longest=round(answers.high)),
        )

    def _at_most(self, request: Request, longest: int = 0) -> float:
        """Return the most that a request can cost with all that may follow from it."""
        longest = max(longest or request.max_tokens, self.asking.longest)
        cost = 0
        for model in (request.model, *self.asking.models[1:]):
            cards = [card for name in (model, *self.asking.instead) if (card := self.cards(name))]
            for time in range(self.asking.times):
                tokens = request.input_ceiling_tokens + time * (longest + _COMPLAINT_TOKENS)
                cost += max(
                    (card.ceiling_micro_usd(input_tokens=tokens, output_tokens=longest) for card in cards),
                    default=0,
                )
                cost += self._verdicts(request.input_ceiling_tokens, longest)
        return cost

    def _verdicts(self, source_tokens: int, answer_tokens: int, output_tokens: int | None = None) -> int:
        """Return what the judges cost for one answer; at the most, unless their verdicts have `output_tokens`."""
        cost = 0
        for judge in self.asking.judges:
            asked, card = judging(judge, "", "", framing="document"), self.cards(judge.model)
            read = answer_tokens + (source_tokens if judge.reads_source else 0)
            if card is not None and output_tokens is None:
                read += asked.input_ceiling_tokens
                cost += card.ceiling_micro_usd(input_tokens=read, output_tokens=asked.max_tokens)
            elif card is not None:
                read += asked.text_bytes // BYTES_A_TOKEN
                cost += card.price_micro_usd(Usage(uncached_tokens=read, output_tokens=output_tokens or 0))
        return cost


def _input_bounds(request: Request) -> Span:
    """Return the input tokens of a request of which nothing is known but its bytes."""
    ceiling = request.input_ceiling_tokens
    text = request.text_bytes
    return Span(
        low=text / _DENSEST, likely=text / BYTES_A_TOKEN + request.input_ceiling / BYTES_A_TOKEN, high=ceiling
    ).within(1, ceiling)


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
