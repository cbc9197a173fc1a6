"""What was bought: settled replies, chains of them, and their sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from airflow_llm_provider.engine.reply import Message, Reply
from airflow_llm_provider.ledger.records import SettledReply
from airflow_llm_provider.pricing import Usage


@dataclass(kw_only=True, slots=True)
class Tally:
    """What an engine has bought since it was made.

    paid_micro_usd counts what has a known price; `unpriced` how many calls have none.
    unproven: calls that may have been billed without a reply.
    """

    requests: int = 0
    paid_micro_usd: int = 0
    unpriced: int = 0
    unproven: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    def add(self, usage: Usage, cost_micro_usd: int | None) -> None:
        """Count one call."""
        self.requests += 1
        self.paid_micro_usd += cost_micro_usd or 0
        self.unpriced += cost_micro_usd is None
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cache_read_tokens += usage.cache_read_tokens
        self.cache_write_tokens += usage.cache_write_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Purchase:
    """A settled reply and how it was come by.

    purpose: `answer`, `repair` (asked again, otherwise), `escalation` (of a cheaper model's answer), `tool_turn`,
        `judge` (of an answer), or `given` (an answer that was there before, and cost nothing here).
    complaint: what was wrong with it.
    """

    purpose: str
    message: Message
    attempt_id: str
    cost_micro_usd: int | None
    latency_s: float
    sends: int  # 0: it came from the ledger
    complaint: str | None = None

    @classmethod
    def from_ledger(cls, answer: SettledReply, *, purpose: str) -> Self:
        """Take what was bought before."""
        return cls(
            purpose=purpose,
            message=Message.parse(answer.reply),
            attempt_id=answer.attempt_id,
            cost_micro_usd=answer.cost_micro_usd,
            latency_s=answer.latency_ms / 1000,
            sends=0,
        )

    @classmethod
    def given(cls, text: str) -> Self:
        """Take an answer that comes from elsewhere."""
        message = Message(model="", stop_reason="end_turn", text=text, content=[], usage=Usage())
        return cls(purpose="given", message=message, attempt_id="", cost_micro_usd=0, latency_s=0.0, sends=0)

    def saying(self, text: str) -> Self:
        """Return it with the whole answer in the place of the part that was asked for."""
        return dataclasses.replace(self, message=dataclasses.replace(self.message, text=text))


def last_answer(chain: Sequence[Purchase]) -> Purchase | None:
    """Return the last of a chain that is no verdict on another."""
    return next((purchase for purchase in reversed(chain) if purchase.purpose != "judge"), None)


def add_up(value: Any, chain: Sequence[Purchase], *, trace_id: str) -> Reply:
    """Add up a chain of calls: the first answer and its repairs."""
    last = last_answer(chain)
    assert last is not None, "nothing is added up before something was bought"
    usages = [purchase.message.usage for purchase in chain]
    costs = [purchase.cost_micro_usd for purchase in chain]
    known = [cost for cost in costs if cost is not None]
    return Reply(
        value=value,
        text=last.message.text,
        model=last.message.model,
        stop_reason=last.message.stop_reason or "",
        usage=usages[0] if len(usages) == 1 else Usage.total(usages),
        cost_micro_usd=sum(known) if len(known) == len(costs) else None,
        reused=not any(purchase.sends for purchase in chain),
        attempts=sum(purchase.sends for purchase in chain),
        repairs=sum(purchase.purpose == "repair" for purchase in chain),
        latency_s=sum(purchase.latency_s for purchase in chain),
        trace_id=trace_id,
        attempt_id=last.attempt_id,
        complaints=tuple(purchase.complaint for purchase in chain if purchase.complaint),
    )
