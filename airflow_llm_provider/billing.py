"""What a reply says that the API bills for it, and the price of that at a connection's prices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Self

from airflow_llm_provider.pricing import FEES_MICRO_USD, Prices, RateCard, Usage, rounded_up

_WORDS = ("inference_geo", "speed", "service_tier")
# Entries of `usage.iterations` whose tokens are those of the answer itself; the others' come on top.
_ANSWERING = frozenset({"message", "fallback_message"})
_SAME_MODEL = frozenset({"message", "compaction"})  # entries that may leave out their model
_DATE = re.compile(r"(?:[-@]\d{8}|-latest)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """One pass of a model over a prompt, which is billed at that model's rates.

    Attributes:
        model: The model; empty where the reply leaves it out, because it is the one that was asked or that answered.
        usage: Its tokens.
        has_lifetimes: Whether the reply says for how long tokens were written to the cache.
    """

    model: str
    usage: Usage
    has_lifetimes: bool = True

    @classmethod
    def from_api(cls, usage: Mapping[str, Any], model: str = "") -> Self:
        """Read an entry of `usage.iterations`, or a whole usage."""
        return cls(
            model=model, usage=Usage.from_api(usage), has_lifetimes=usage.get("cache_creation") is not None
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Billed:
    """What a reply says that the API bills for it.

    Attributes:
        samplings: The passes of models, at least one: the answer's, and those of a compaction, an advisor or a model
            that declined before a fallback (https://platform.claude.com/docs/en/api/messages, `usage.iterations`).
        words: Values of `inference_geo`, `speed` and `service_tier` by field, where the reply has them. One that is
            not text is an empty text here, which has no price.
        tool_uses: Uses of tools that run on the server, by name, where there were any.
        fell_back: Whether another model than the one that was asked took over on the server.
        has_container: Whether code was executed on the server; its fee is by time and is in no usage.
    """

    samplings: tuple[Sampling, ...]
    words: Mapping[str, str]
    tool_uses: Mapping[str, int]
    fell_back: bool = False
    has_container: bool = False

    @classmethod
    def nothing(cls) -> Self:
        """Return what is billed for an answer that was not asked for."""
        return cls(samplings=(Sampling(model="", usage=Usage()),), words={}, tool_uses={})

    @classmethod
    def from_api(cls, message: Mapping[str, Any]) -> Self:
        """Read a message of the Messages API; raises TypeError, KeyError or AttributeError for another shape."""
        usage = message["usage"]
        iterations = usage.get("iterations") or ()
        samplings = [Sampling.from_api(iteration, _model(iteration)) for iteration in iterations]
        whole = Sampling.from_api(usage)
        # The top has the tokens of the answer alone. More of them than its entries have are billed as well.
        of_answer = Usage.total(
            sampling.usage
            for iteration, sampling in zip(iterations, samplings, strict=True)
            if iteration["type"] in _ANSWERING
        )
        if not iterations:
            samplings = [whole]
        elif rest := whole.usage.beyond(of_answer):
            samplings.append(replace(whole, usage=rest))
        uses = (usage.get("server_tool_use") or {}).items()
        return cls(
            samplings=tuple(samplings),
            words={
                field: word if isinstance(word, str) else ""
                for field in _WORDS
                if (word := usage.get(field)) not in (None, "")
            },
            tool_uses={name: count for name, count in uses if count},
            fell_back=any(iteration["type"] == "fallback_message" for iteration in iterations)
            or any(block["type"] == "fallback" for block in message["content"]),
            has_container=bool(message.get("container")),
        )

    @property
    def usage(self) -> Usage:
        """Return all tokens, of all models together."""
        if len(self.samplings) == 1:
            return self.samplings[0].usage
        return Usage.total(sampling.usage for sampling in self.samplings)

    def counts(self) -> Iterator[tuple[str, object]]:
        """Yield every count with its name, so that a reader can check them before they are added up."""
        for sampling in self.samplings:
            for kind in Usage.__dataclass_fields__:
                yield kind, getattr(sampling.usage, kind)
        yield from self.tool_uses.items()


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """The price of a reply.

    Attributes:
        micro_usd: Rounded up; None where something that was billed has no known price.
        unknown: What has no known price, in words.
        price_step: The tokens of a prompt above which all its tokens cost more, where that was the case; else None.
    """

    micro_usd: int | None
    unknown: str = ""
    price_step: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a request asks for and a reply does not repeat, as far as it decides about the price.

    Attributes:
        model: The model.
        cache_ttl: How long it asks the API to keep what it marks, `5m` or `1h`.
        is_fast: Whether it asks for fast mode.
        runs_code_free: Whether it has a tool that makes the execution of code free.
    """

    model: str
    cache_ttl: str = "5m"
    is_fast: bool = False
    runs_code_free: bool = False


def price_of(billed: Billed, prices: Prices, *, asked: Asked, answered: str) -> Price:
    """Return the price of a reply.

    A part that has no known price makes the whole unknown: what is known of it would look like the whole.

    Args:
        billed: What the reply says.
        prices: Of the connection.
        asked: What the request asked for.
        answered: The model in the reply, which may be another name of the one that was asked.
    """
    exact = Fraction(0)
    step: int | None = None
    for sampling in billed.samplings:
        known: list[tuple[Fraction, RateCard]] = []
        for model in _candidates(sampling, billed, asked=asked.model, answered=answered):
            card = prices.card(_named(model, billed, prices, asked=asked.model, answered=answered))
            # A server that is not known to have this model may charge what it likes, whatever model it names.
            if card is None or not (billed.fell_back or prices.card(asked.model)):
                return Price(micro_usd=None, unknown="the model")
            words = _words_of(billed, card, asked, is_other=model != answered)
            factor = card.factor(words.values())
            if factor is None:
                return Price(micro_usd=None, unknown=_unknown_word(words, card))
            known.append((card.exact(_as_written(sampling, asked)) * factor, card))
        price, card = max(known, key=_first)
        exact += price
        if card.price_step is not None and sampling.usage.input_tokens > card.price_step:
            step = card.price_step
    for name, count in billed.tool_uses.items():
        if name not in FEES_MICRO_USD:
            return Price(micro_usd=None, unknown="a tool in usage.server_tool_use")
        exact += fee(name, count, prices)
    if billed.has_container and not asked.runs_code_free:
        return Price(micro_usd=None, unknown="code that was executed on the server, which is billed by time")
    return Price(micro_usd=rounded_up(exact), price_step=step)


def fee(name: str, count: int, prices: Prices) -> Fraction:
    """Return the fee for uses of a tool that runs on the server, in millionths of a micro-USD."""
    return count * FEES_MICRO_USD[name] * 1_000_000 * Fraction(prices.factor)


def _first(known: tuple[Fraction, RateCard]) -> Fraction:
    return known[0]


def _model(iteration: Mapping[str, Any]) -> str:
    """Return the model of an entry of `usage.iterations`; empty where it may be left out."""
    model = iteration.get("model")
    if model is None and iteration["type"] in _SAME_MODEL:
        return ""
    # The model of an advisor, a fallback, or an entry of a kind that is not known here: no price without its name.
    return model if isinstance(model, str) and model else "?"


def _candidates(sampling: Sampling, billed: Billed, *, asked: str, answered: str) -> Sequence[str]:
    """Return the models that may have done a sampling; the most expensive of them counts."""
    if sampling.model and sampling.model != answered:
        return (sampling.model,)
    if sampling.model or not billed.fell_back or len(billed.samplings) == 1:
        return (answered,)
    return (asked, answered)


def _named(model: str, billed: Billed, prices: Prices, *, asked: str, answered: str) -> str:
    """Return the name under which a model has its price."""
    if model in prices.own:
        return model
    # The same model under a dated name, or whatever a gateway calls the model whose price the connection states.
    is_asked = _DATE.sub("", model) == _DATE.sub("", asked)
    is_renamed = asked in prices.own and model == answered and not billed.fell_back
    return asked if is_asked or is_renamed else model


def _as_written(sampling: Sampling, asked: Asked) -> Usage:
    """Return the tokens with those that the cache keeps for an hour, where only the request says so."""
    usage = sampling.usage
    if sampling.has_lifetimes or asked.cache_ttl != "1h":
        return usage
    return replace(usage, cache_write_5m_tokens=0, cache_write_1h_tokens=usage.cache_write_tokens)


def _words_of(billed: Billed, card: RateCard, asked: Asked, *, is_other: bool) -> Mapping[str, str]:
    """Return the words that apply to a sampling, by field."""
    if not is_other:
        return billed.words
    # The reply states the speed of the model that answered. Another model of the same reply was fast only where it can
    # be, and where it can be, it may have been.
    was_fast = (asked.is_fast or billed.words.get("speed") == "fast") and "fast" in card.factors
    return {**billed.words, "speed": "fast" if was_fast else "standard"}


def _unknown_word(words: Mapping[str, str], card: RateCard) -> str:
    """Name the field whose word has no factor, without the word: it came from the server."""
    field, word = next((f, w) for f, w in words.items() if card.factor((w,)) is None)
    return f"usage.{field}, a word of {len(word)} characters"
