"""Conversations with tools: what the model calls is run and told it, within bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_llm_provider.engine.calls import Call
from airflow_llm_provider.engine.reply import Message
from airflow_llm_provider.engine.request import Request, ceiling_micro_usd
from airflow_llm_provider.engine.tool_calls import APPROVED, ApprovalNeeded, Caller, ToolCall, Verdict
from airflow_llm_provider.errors import ToolLimit
from airflow_llm_provider.ledger.effects import Outcome
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.pricing import Prices, usd
from airflow_llm_provider.tools import Tool

Block = Mapping[str, Any]
Buy = Callable[[Request], Awaitable[Call]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolbox:
    """The tools of a question, and the bounds of the conversation they are used in.

    tools: by name.
    max_turns: how many replies of a model may call tools.
    max_s: how long a conversation may take. A turn in flight then is not cut off, nor is an irreversible tool.
    max_micro_usd: what the whole answer may cost, the next turn counted at the most it can cost; None: no bound.
    verdict: looks up what was said of calls that need approval; None while nobody has said anything.
    """

    tools: Mapping[str, Tool]
    max_turns: int = 10
    max_s: float = 600.0
    max_micro_usd: int | None = None
    verdict: Callable[[ApprovalNeeded], Awaitable[Verdict | None]] | None = None

    def conversation(
        self,
        *,
        ledger: Ledger,
        scope: CallScope,
        item_id: str | None,
        sleep: Callable[[float], Awaitable[None]],
        buy: Buy,
        spent: Sequence[Call],
        prices: Prices,
    ) -> Conversation:
        """Begin a conversation; its time runs from here.

        buy: obtains the next turn; spent: all that was bought for the answer, what `buy` buys included.
        """
        caller = Caller(
            tools=self.tools,
            verdict=self.verdict,
            ledger=ledger,
            scope=scope,
            item_id=item_id,
            until_s=time.monotonic() + self.max_s,
            sleep=sleep,
        )
        return Conversation(toolbox=self, caller=caller, buy=buy, spent=spent, prices=prices)

    def require_price(self, request: Request, prices: Prices) -> None:
        """Raise ToolLimit where the bound on money could not be kept."""
        if self.max_micro_usd is not None and prices.card(request.model) is None:
            raise ToolLimit(
                f"max_tool_usd can't be kept: {request.model} has no known price. Nothing was sent; take a model "
                "with a price, or leave max_tool_usd away and bound the turns."
            )


@dataclass(kw_only=True)
class Conversation:
    """One model's conversation with tools, from the question to its answer, repairs included."""

    toolbox: Toolbox
    caller: Caller
    buy: Buy
    spent: Sequence[Call]
    prices: Prices
    turns: int = 0

    async def finish(self, request: Request, bought: Call) -> tuple[Request, Call]:
        """Run what replies call and tell the model, until a reply calls nothing; return it with its request.

        Every turn is a request like any other and every tool call is in the ledger, so that a retry goes through
        it all again and pays, and does, nothing twice. Raises ToolLimit, EffectUnknown, ApprovalNeeded.
        """
        while blocks := _tool_blocks(bought.message):
            self._require_turns(blocks)
            results = await self._results(blocks, bought.attempt_id)
            request = request.followed_by(
                {"role": "assistant", "content": bought.message.content},
                {"role": "user", "content": results},
            )
            bought = await self.buy(request)
        return request, bought

    # -- bounds --------------------------------------------------------------------------------------

    def _require_turns(self, blocks: Sequence[Block]) -> None:
        if self.turns >= self.toolbox.max_turns:
            raise ToolLimit(
                f"The model still calls tools ({', '.join(sorted({block['name'] for block in blocks}))}) after "
                f"{self.turns} turns with them. Raise max_tool_turns, or say in the prompt when it is done. {_KEPT}"
            )
        self.turns += 1
        if self._left_s <= 0:
            raise self._out_of_time("before it could run the tools that the model calls")

    def require_money(self, request: Request) -> None:
        """Raise ToolLimit where the next request of the conversation could cost more than there is left."""
        bound = self.toolbox.max_micro_usd
        if bound is None:
            return
        ceiling = ceiling_micro_usd(request, self.prices)
        costs = [ceiling, *(purchase.cost_micro_usd for purchase in self.spent)]
        known = [cost for cost in costs if cost is not None]
        if ceiling is None or len(known) < len(costs):
            raise ToolLimit(f"max_tool_usd can't be kept: some of what was asked has no known price. {_KEPT}")
        if sum(known) > bound:
            raise ToolLimit(
                f"${usd(sum(known) - ceiling)} is spent, and the next turn can cost up to ${usd(ceiling)}: more than "
                f"max_tool_usd, ${usd(bound)}. Raise it. {_KEPT}"
            )

    @property
    def _left_s(self) -> float:
        return self.caller.until_s - time.monotonic()

    def _out_of_time(self, when: str) -> ToolLimit:
        return ToolLimit(
            f"The conversation has taken {self.toolbox.max_s:g} s {when}. Raise max_tool_s. {_KEPT}"
        )

    # -- tool calls ----------------------------------------------------------------------------------

    async def _results(self, blocks: Sequence[Block], call_id: str) -> list[Block]:
        """Return the results of one reply's calls: those that can be repeated at once, then the others in turn."""
        read = {block["id"]: self.caller.read(block, call_id) for block in blocks}
        outcomes = {id_: told for id_, told in read.items() if isinstance(told, Outcome)}
        calls = {id_: call for id_, call in read.items() if isinstance(call, ToolCall)}
        careful = {id_: call for id_, call in calls.items() if call.is_careful}
        outcomes |= await self._at_once({id_: call for id_, call in calls.items() if id_ not in careful})
        verdict = await self.caller.approve(list(careful.values()))
        for id_, call in careful.items():
            if call.tool.irreversible:
                outcomes[id_] = await self.caller.outcome(call, verdict)
            else:
                outcomes |= await self._at_once({id_: call}, verdict)
        return [_result_block(block["id"], outcomes[block["id"]]) for block in blocks]

    async def _at_once(
        self, calls: Mapping[str, ToolCall], verdict: Verdict = APPROVED
    ) -> dict[str, Outcome]:
        made = [self.caller.outcome(call, verdict) for call in calls.values()]
        try:
            async with asyncio.timeout(self._left_s):
                done = await asyncio.gather(*made, return_exceptions=True)
        except TimeoutError:
            raise self._out_of_time(f"while {', '.join(map(str, calls.values()))} ran") from None
        outcomes: dict[str, Outcome] = {}
        for id_, outcome in zip(calls, done, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes[id_] = outcome
        return outcomes


_KEPT = "What was paid and done is in the ledger: clear the task, and it goes on from there."


def _tool_blocks(message: Message) -> list[Block]:
    """Return the calls that a reply waits for."""
    if message.stop_reason != "tool_use":
        return []
    return [block for block in message.content if block["type"] == "tool_use"]


def _result_block(tool_use_id: str, outcome: Outcome) -> Block:
    error = {"is_error": True} if outcome.is_error else {}
    return {"type": "tool_result", "tool_use_id": tool_use_id, "content": outcome.content, **error}
