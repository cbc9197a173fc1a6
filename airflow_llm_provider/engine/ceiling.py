"""The highest price of a request: what its fields allow the API to bill, at the most expensive it can be."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self, TypeGuard

from airflow_llm_provider.billing import Asked, fee
from airflow_llm_provider.engine.request import FRAME_TOKENS, Request
from airflow_llm_provider.pricing import LARGEST_WINDOW, LIST_PRICES, Prices, RateCard, rounded_up

MOST_OUTPUT_TOKENS = 128_000
"""Tokens that no model of the list writes more of: https://platform.claude.com/docs/en/about-claude/models/overview."""
_LOOP_TURNS = 10
"""How often the API samples in one request with tools of its own, before it replies `pause_turn`:
https://platform.claude.com/docs/en/agents-and-tools/tool-use/server-tools."""
# https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview: the API's own tools that the caller runs.
_CLIENT_TOOL = re.compile(r"(bash|text_editor|memory|computer)_\d{8}$")
_WEB_TOOL = re.compile(r"^web_(search|fetch)_(\d{8})$")
_FREE_CODE_SINCE = "20260209"  # these and later web tools make the execution of code free
_NOT_GEOGRAPHIES = frozenset({"standard", "fast", "priority", "batch"})  # words of speed and service tier


def ceiling_micro_usd(request: Request, prices: Prices = LIST_PRICES) -> int | None:
    """Return the most that sending a request once can cost, in micro-USD.

    None if a model that may answer has no known price, or the request allows something without a bound.
    """
    return highest_micro_usd(
        request.model,
        prices,
        input_tokens=request.input_ceiling_tokens,
        output_tokens=request.max_tokens,
        fields=request.extra,
    )


def highest_micro_usd(
    model: str, prices: Prices, *, input_tokens: int, output_tokens: int, fields: Mapping[str, Any]
) -> int | None:
    """Return the highest price of a request that is known by its size, in micro-USD; None as `ceiling_micro_usd`.

    Args:
        model: The model id.
        prices: Of the connection.
        input_tokens: An upper bound of the prompt.
        output_tokens: The request's `max_tokens`.
        fields: Further fields of the body, of which some decide about the price: `inference_geo`, `speed`,
            `service_tier`, `fallbacks`, `tools`, `mcp_servers`, `container`, `context_management`, `compaction`.
    """
    hops, tools = _hops(model, output_tokens, fields), _ServerTools.of(fields)
    if hops is None or tools is None:
        return None
    exact = tools.fees(prices)
    prompt = input_tokens
    for hop in hops:
        card = prices.card(hop.model)
        factor = _factor(card, fields, hop)
        if card is None or factor is None:
            return None
        turn = _turn(card, prompt, hop.max_tokens, tools)
        exact += factor * tools.turns * card.exact_ceiling(input_tokens=turn, output_tokens=hop.max_tokens)
        if _compacts(fields):
            summary = card.exact_ceiling(input_tokens=turn, output_tokens=MOST_OUTPUT_TOKENS)
            exact += factor * tools.turns * summary
        for advisor in tools.advisors:
            card = prices.card(advisor.model)
            factor = _factor(card, fields, dataclasses.replace(hop, is_first=False))
            if card is None or factor is None:
                return None
            read = _window(card, turn + FRAME_TOKENS)
            advice = card.exact_ceiling(input_tokens=read, output_tokens=advisor.max_tokens)
            exact += factor * advisor.uses * advice
        # What a model wrote before it declined is part of the prompt of the next one.
        prompt += tools.turns * hop.max_tokens
    return rounded_up(exact)


def asked_of(request: Request) -> Asked:
    """Return what decides about the price of a reply and is in the request alone."""
    found = (_WEB_TOOL.match(str(tool.get("type"))) for tool in _tools(request.extra) or ())
    return Asked(
        model=request.model,
        cache_ttl=request.cache_ttl,
        is_fast=request.extra.get("speed") == "fast",
        runs_code_free=any(tool is not None and tool[2] >= _FREE_CODE_SINCE for tool in found),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Hop:
    """A model that may be asked for the answer: the request's own, and those of its `fallbacks`."""

    model: str
    max_tokens: int
    speed: object
    is_first: bool = False


def _hops(model: str, max_tokens: int, fields: Mapping[str, Any]) -> list[_Hop] | None:
    """Return the models that may be asked in turn, each of which can be billed; None if they are not all named."""
    speed = fields.get("speed")
    hops = [_Hop(model=model, max_tokens=max_tokens, speed=speed, is_first=True)]
    fallbacks = fields.get("fallbacks") or ()
    # `default` leaves the choice to the server.
    if isinstance(fallbacks, str | Mapping) or not isinstance(fallbacks, Iterable):
        return None
    for fallback in fallbacks:
        if not isinstance(fallback, Mapping) or not isinstance(fallback.get("model"), str):
            return None
        most = fallback.get("max_tokens") or max_tokens
        if not _is_count(most):
            return None
        hops.append(_Hop(model=fallback["model"], max_tokens=most, speed=fallback.get("speed", speed)))
    return hops


@dataclass(frozen=True, kw_only=True, slots=True)
class _Advisor:
    """A stronger model that the answering one may consult: `advisor_…` tools."""

    model: str
    uses: int
    max_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _ServerTools:
    """The tools of a request that run on the server, and how often they may.

    Attributes:
        turns: How often a model may be sampled for one answer.
        uses: By the names in `usage.server_tool_use`.
        advisors: Models that may be consulted.
    """

    turns: int
    uses: Mapping[str, int]
    advisors: tuple[_Advisor, ...]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self | None:
        """Read the fields of a request; None if a tool may run without a bound, or its price is not known."""
        tools = _tools(fields)
        # What an MCP server returns has no bound, and code is billed by the time that it runs.
        if tools is None or fields.get("mcp_servers") or fields.get("container"):
            return None
        uses: dict[str, int] = {}
        advisors: list[_Advisor] = []
        for tool in tools:
            kind, most = str(tool.get("type") or "custom"), tool.get("max_uses")
            # It runs at the caller's, and another request follows.
            if kind == "custom" or _CLIENT_TOOL.match(kind):
                continue
            if not _is_count(most):
                return None
            if web := _WEB_TOOL.match(kind):
                name = f"web_{web[1]}_requests"
                uses[name] = uses.get(name, 0) + most
            elif kind.startswith("advisor_") and isinstance(tool.get("model"), str):
                bound = tool.get("max_tokens") or MOST_OUTPUT_TOKENS
                if not _is_count(bound):
                    return None
                advisors.append(_Advisor(model=tool["model"], uses=most, max_tokens=bound))
            else:
                return None
        most_uses = sum(uses.values()) + sum(advisor.uses for advisor in advisors)
        # A use above `max_uses` is refused to the model, which is sampled again.
        turns = max(_LOOP_TURNS, most_uses + 1) if most_uses else 1
        return cls(turns=turns, uses=uses, advisors=tuple(advisors))

    def fees(self, prices: Prices) -> Fraction:
        """Return the fees of all uses, in millionths of a micro-USD."""
        return sum((fee(name, most, prices) for name, most in self.uses.items()), Fraction(0))

    @property
    def reads_the_web(self) -> bool:
        """Whether a prompt may grow by what is found, which nothing bounds but the model's window."""
        return any(self.uses.values())


def _tools(fields: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Return the tools that the further fields of a body have; None if they are not in the API's form."""
    tools = fields.get("tools") or ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        return None
    return list(tools)


def _turn(card: RateCard, prompt: int, max_tokens: int, tools: _ServerTools) -> int:
    """Return the most input tokens of one sampling."""
    if tools.reads_the_web:
        return max(prompt, card.context_window or LARGEST_WINDOW)
    if tools.advisors:
        advice = sum(advisor.uses * advisor.max_tokens for advisor in tools.advisors)
        prompt += tools.turns * max_tokens + advice
    return _window(card, prompt)


def _window(card: RateCard, tokens: int) -> int:
    """Return a bound of a prompt, or what the model reads at most, where that is known and less."""
    if card.context_window is None:
        return tokens
    # The list states the window of a model without its betas, which go up to the largest.
    return min(tokens, max(card.context_window, LARGEST_WINDOW))


def _compacts(fields: Mapping[str, Any]) -> bool:
    """Tell whether the server may summarise the conversation, which is a sampling of its own."""
    # Whatever shape it has: a request that the API refuses costs nothing.
    return bool(fields.get("compaction")) or "compact" in str(fields.get("context_management"))


def _factor(card: RateCard | None, fields: Mapping[str, Any], hop: _Hop) -> Fraction | None:
    """Return the highest factor on a model's rates; None if the price or a factor is unknown."""
    if card is None:
        return None
    # Another model inherits the speed where it has it, and runs at standard speed where it does not.
    if not hop.is_first and "fast" not in card.factors:
        hop = dataclasses.replace(hop, speed=None)
    factors = _factors(card, fields, speed=hop.speed)
    return factors and factors[1]


def factors(card: RateCard, fields: Mapping[str, Any]) -> tuple[Fraction, Fraction] | None:
    """Return what the fields of a request multiply a model's rates with: as stated, and at the most.

    None if one of their words has no known factor.
    """
    return _factors(card, fields, speed=fields.get("speed"))


def _factors(card: RateCard, fields: Mapping[str, Any], *, speed: object) -> tuple[Fraction, Fraction] | None:
    geography = fields.get("inference_geo")
    stated = card.factor(str(word) for word in (geography, speed) if word is not None)
    if stated is None:
        return None
    most = stated
    if geography is None:
        # The workspace may have a default, which only the reply tells.
        most *= max([Fraction(1), *(f for word, f in card.factors.items() if word not in _NOT_GEOGRAPHIES)])
    if fields.get("service_tier") != "standard_only":
        most *= max(Fraction(1), card.factors.get("priority", Fraction(1)))
    return stated, most


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
