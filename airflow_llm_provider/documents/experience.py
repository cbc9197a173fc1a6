"""What the calls of a task have taken so far, summed up so that the next ones can be foretold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from airflow_llm_provider.documents.span import Span
from airflow_llm_provider.engine.request import BYTES_PER_TOKEN, Request
from airflow_llm_provider.ledger.queries import PastCall

_DRIFT = 0.1  # how far tomorrow's documents may differ from yesterday's as a whole
_ENOUGH = 5  # calls from which on a line through them says more than a rule of thumb
_STEEPEST, _FLATTEST = 1.0, 1 / 16  # tokens a byte: of no text there is more or less


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """What first answers of one model took, and what came on top of them.

    answers: how many it rests on.
    per_byte, base: input tokens are `base + per_byte * ceiling`, the ceiling being a request's upper bound.
    shortest, longest: the ceilings of the requests seen.
    output, output_spread: mean and standard deviation of an answer's tokens.
    prefix: tokens of the shared prefix that prompt caching kept; 0 where it kept none.
    extras: repairs, escalations and verdicts; extra_micro_usd and the others: the mean of one.
    """

    answers: int
    per_byte: float
    base: float
    shortest: int
    longest: int
    output: float
    output_spread: float
    prefix: int
    latency_s: float
    cost_micro_usd: float
    extras: int
    extra_micro_usd: float
    extra_input: float
    extra_output: float

    @classmethod
    def of(cls, calls: Sequence[PastCall], model: str) -> Self | None:
        """Sum up calls of one family; None where `model` gave no answer among them."""
        answers = [call for call in calls if call.purpose == "answer" and call.model == model]
        if not answers:
            return None
        extras = [call for call in calls if call.purpose != "answer"]
        ceilings = [call.ceiling_tokens for call in answers]
        inputs = [call.usage.input_tokens for call in answers]
        outputs = [call.usage.output_tokens for call in answers]
        cached = [call.usage.cache_read_tokens + call.usage.cache_write_tokens for call in answers]
        per_byte = _slope(ceilings, inputs)
        mean_output = statistics.fmean(outputs)
        return cls(
            answers=len(answers),
            per_byte=per_byte,
            base=statistics.fmean(inputs) - per_byte * statistics.fmean(ceilings),
            shortest=min(ceilings),
            longest=max(ceilings),
            output=mean_output,
            output_spread=statistics.stdev(outputs) if len(outputs) > 1 else mean_output / 2,
            prefix=max(cached) if 2 * sum(map(bool, cached)) >= len(cached) else 0,
            latency_s=statistics.fmean(call.latency_ms for call in answers) / 1000,
            cost_micro_usd=statistics.fmean(call.cost_micro_usd or 0 for call in answers),
            extras=len(extras),
            extra_micro_usd=_mean([call.cost_micro_usd or 0 for call in extras]),
            extra_input=_mean([call.usage.input_tokens for call in extras]),
            extra_output=_mean([call.usage.output_tokens for call in extras]),
        )

    def input_tokens(self, request: Request) -> float:
        """Return how many tokens a request will probably have."""
        ceiling = request.input_ceiling_tokens
        return min(max(self.base + self.per_byte * ceiling, 1.0), ceiling)

    def input_doubt(self, mean_ceiling: float) -> float:
        """Return the share by which the input tokens of all may differ from what was foretold."""
        is_like_them = self.shortest / 2 <= mean_ceiling <= self.longest * 2
        return (_DRIFT if is_like_them else 3 * _DRIFT) + 0.3 / self.answers

    def output_doubt(self, calls: int) -> float:
        """Return the same of output tokens: three standard errors of a sum of so many, and some drift."""
        error = self.output_spread * math.sqrt(1 / calls + 1 / self.answers)
        return 3 * error / max(self.output, 1.0) + _DRIFT + 0.3 / self.answers

    def extras_of(self, calls: int) -> Span:
        """Return how many repairs and escalations so many answers will take.

        Three standard deviations of a count about what was seen; of what was not seen in n answers there may
        still be one in n/3, which is the rule of three.
        """
        spread = 3 * math.sqrt(self.extras)
        rate = Span(low=max(0.0, self.extras - spread), likely=self.extras, high=self.extras + spread + 3)
        share = calls / self.answers
        return Span(low=rate.low * share, likely=rate.likely * share, high=rate.high * share)


def _slope(ceilings: Sequence[int], inputs: Sequence[int]) -> float:
    """Return the input tokens a byte; where the requests were all of one size, the rule of thumb."""
    if len(ceilings) >= _ENOUGH and max(ceilings) > 1.1 * min(ceilings):
        slope: float = statistics.linear_regression(ceilings, inputs).slope
        if _FLATTEST <= slope <= _STEEPEST:
            return slope
    return 1 / BYTES_PER_TOKEN


def _mean(figures: Sequence[float]) -> float:
    return statistics.fmean(figures) if figures else 0.0
