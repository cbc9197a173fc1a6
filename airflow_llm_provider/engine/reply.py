"""A message of the API, and the reply made of it: the value, and what it took."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import orjson
from typing_extensions import TypeVar

from airflow_llm_provider.billing import Billed
from airflow_llm_provider.errors import AnswerError, NetworkError, Refused, Truncated
from airflow_llm_provider.pricing import Usage, usd

# Above this a count is an error of the server. Sums of smaller ones fit the ledger's 64-bit columns.
_TOO_MANY_TOKENS = 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message of the API, from the network or the ledger.

    Attributes:
        model: The model that answered, which a fallback on the server makes another than the one that was asked.
        stop_reason: Why it stopped.
        text: All its text.
        content: Its content blocks.
        billed: What the API says that it bills.
        usage: All tokens that are billed, of all models together.
    """

    model: str
    stop_reason: str | None
    text: str
    content: list[Mapping[str, Any]]
    billed: Billed
    usage: Usage

    @classmethod
    def parse(cls, raw: bytes) -> Message:
        """Read a reply of the Messages API; raises NetworkError if it is incomplete or something else."""
        try:
            body = orjson.loads(raw)
            content = body["content"]
            billed = Billed.from_api(body)
            _require_counts(billed)
            message = cls(
                model=body["model"],
                stop_reason=body["stop_reason"],
                # A reply may have several text blocks, with thinking and tool calls between them.
                text="".join(block["text"] for block in content if block["type"] == "text"),
                content=content,
                billed=billed,
                usage=billed.usage,
            )
            # Checked here, where a wrong value still becomes an error that books the call as perhaps billed.
            message._require_sound()
            return message
        # The server sent a whole response, so it may have charged for it: `billed` is true.
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise NetworkError(
                f"The server's answer is not a Messages API reply ({type(error).__name__}: {error}). "
                "Is the connection's host an Anthropic-compatible endpoint?",
                billed=True,
            ) from None

    def _require_sound(self) -> None:
        """Raise TypeError for values of a compatible server that can't be booked or continued with."""
        if not isinstance(self.model, str) or not isinstance(self.stop_reason, str | None):
            raise TypeError("its model and stop_reason should be text")
        for call in (block for block in self.content if block["type"] == "tool_use"):
            if (
                not isinstance(call.get("id"), str)
                or not isinstance(call.get("name"), str)
                or "input" not in call
            ):
                raise TypeError("it calls a tool without an id, a name or an input")


def _require_counts(billed: Billed) -> None:
    """Raise TypeError for a count in a usage that is not one, before it is added to others."""
    for kind, count in billed.counts():
        # Not isinstance(): for Python, JSON's true is an int, too.
        if type(count) is not int or not 0 <= count < _TOO_MANY_TOKENS:
            raise TypeError(f"{kind} in its usage should be a number")


T = TypeVar("T", default=Any)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply(Generic[T]):
    """An answer that passed its checks, and what it took.

    Attributes:
        value: The text, or the data validated against the output type.
        text: The text of the model's last message.
        model: The model that answered.
        stop_reason: Why it stopped.
        usage: Tokens of all calls together.
        cost_micro_usd: What all calls cost when they were paid, repairs included; None if a price is unknown.
        reused: Whether everything came from the ledger and nothing was sent.
        attempts: Requests sent for it now.
        repairs: How many of its calls were repairs.
        latency_s: Seconds that the API took, added up over the calls.
        trace_id: The trace id of the DAG run.
        attempt_id: The ledger's id of the call that answered.
        complaints: What was wrong with the answers before it.
        escalations: How many stronger models were asked after the first.
        strong_alone_micro_usd: About what the strongest model of the route would have cost alone: the first call's
            tokens at its rates. None without a route or a price.
    """

    value: T
    text: str
    model: str
    stop_reason: str
    usage: Usage
    cost_micro_usd: int | None
    reused: bool
    attempts: int
    repairs: int
    latency_s: float
    trace_id: str
    attempt_id: str
    complaints: tuple[str, ...] = ()
    escalations: int = 0
    strong_alone_micro_usd: int | None = None

    @classmethod
    def of_parts(cls, parts: Sequence[Reply], value: Any) -> Reply[Any]:
        """Return one reply with the value given and the sums of several replies."""
        costs = [part.cost_micro_usd for part in parts]
        known = [cost for cost in costs if cost is not None]
        return dataclasses.replace(
            parts[-1],
            value=value,
            usage=Usage.total(part.usage for part in parts),
            # One unknown price makes the sum unknown. The sum of the others would look like the whole cost.
            cost_micro_usd=sum(known) if len(known) == len(costs) else None,
            reused=all(part.reused for part in parts),
            attempts=sum(part.attempts for part in parts),
            repairs=sum(part.repairs for part in parts),
            latency_s=sum(part.latency_s for part in parts),
            complaints=tuple(complaint for part in parts for complaint in part.complaints),
        )

    def usage_record(self) -> dict[str, Any]:
        """Return the facts of a call as they stand in the XCom `llm_usage` and in every row."""
        return {
            "model": self.model,
            "stop_reason": self.stop_reason,
            "input_tokens": self.usage.input_tokens,
            "output_tokens": self.usage.output_tokens,
            "cache_read_tokens": self.usage.cache_read_tokens,
            "cache_write_tokens": self.usage.cache_write_tokens,
            "cost_usd": usd(self.cost_micro_usd),
            "reused": self.reused,
            "attempts": self.attempts,
            "repairs": self.repairs,
            "latency_s": round(self.latency_s, 3),
            "trace_id": self.trace_id,
        }


def require_complete(message: Message) -> None:
    """Raise unless the model finished its message.

    Only end_turn, stop_sequence and tool_use can be a success. Text with another stop reason may look like an answer
    and is not one.

    Raises:
        Refused: The model declined.
        Truncated: The message was cut off.
        AnswerError: The stop reason is unknown.
    """
    match message.stop_reason:
        case "end_turn" | "stop_sequence" | "tool_use":
            return
        case "refusal":
            raise Refused("The model refused to answer.", reply_text=message.text)
        case "max_tokens":
            raise Truncated(
                f"The answer was cut off after {message.usage.output_tokens} tokens. Raise max_tokens.",
                reply_text=message.text,
            )
        case "model_context_window_exceeded":
            raise Truncated(
                "The answer was cut off because the model's context window is full. Send less text.",
                reply_text=message.text,
            )
        case "pause_turn":
            raise Truncated("The model paused before it had finished.", reply_text=message.text)
        case other:
            raise AnswerError(
                f"The model stopped for an unknown reason, a text of {len(other or '')} characters.",
                reply_text=message.text,
                complaint=f"The model stopped for an unknown reason, {other!r}.",
            )
