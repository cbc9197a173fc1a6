"""A message of the API, and the reply made of it: the value, and what it took."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import orjson
from typing_extensions import TypeVar

from airflow_llm_provider.billing import Billed
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import AnswerError, NetworkError, Refused, Truncated
from airflow_llm_provider.pricing import Usage, usd

# Above this a count is an error of the server. Sums of smaller ones fit the ledger's 64-bit columns.
_TOO_MANY_TOKENS = 2**31
_BLOCKED = "content_filter"  # the category of a reply that the content filter kept back; ours, not the API's
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


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
        refusal_category: The policy that a refusal names, such as `cyber`, from `stop_details`; None for none.
        is_damaged: Whether a part of it was not Unicode text, and U+FFFD stands in its place.
    """

    model: str
    stop_reason: str | None
    text: str
    content: list[Mapping[str, Any]]
    billed: Billed
    usage: Usage
    refusal_category: str | None = None
    is_damaged: bool = False

    @classmethod
    def parse(cls, raw: bytes) -> Message:
        """Read a reply of the Messages API; raises NetworkError if it is incomplete or something else."""
        try:
            body, is_damaged = _read_json(raw)
            if body["content"] is None and body["stop_reason"] == "refusal":
                body["content"] = []
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
                refusal_category=_category(body.get("stop_details")),
                is_damaged=is_damaged,
            )
            # Checked here, where a wrong value still becomes an error that books the call as perhaps billed.
            message._require_sound()
            return message
        # The server sent a whole response, so it may have charged for it: `billed` is true.
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
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


def json_of_reply(body: Mapping[str, Any]) -> bytes:
    """Return a message as JSON, with half of a surrogate pair as an escape: a model may have written that."""
    try:
        return orjson.dumps(body)
    except TypeError:
        return json.dumps(body, default=str).encode()


def blocked_reply(request: Request, *, is_free: bool) -> bytes:
    """Return the reply that stands for an answer which the content filter kept back.

    The API says so as an error. It is settled as a refusal, so that it is not asked again every night.

    Args:
        request: What was asked.
        is_free: Whether the API cannot have charged for it. Otherwise it is booked at the most it can have cost.
    """
    usage: dict[str, Any] = {"input_tokens": 0, "output_tokens": 0}
    if not is_free:
        # Writing the cache for an hour is the dearest kind of input.
        written = request.input_ceiling_tokens
        usage |= {"output_tokens": request.max_tokens, "cache_creation_input_tokens": written}
        usage["cache_creation"] = {"ephemeral_1h_input_tokens": written}
    return orjson.dumps(
        {
            "model": request.model,
            "content": [],
            "stop_reason": "refusal",
            "stop_details": {"type": "refusal", "category": _BLOCKED, "explanation": None},
            "usage": usage,
        }
    )


def _read_json(raw: bytes) -> tuple[Any, bool]:
    """Return JSON, and whether a part of it was not Unicode text; raises ValueError or RecursionError."""
    try:
        return orjson.loads(raw), False
    except orjson.JSONDecodeError:
        # Half of a surrogate pair, and bytes that are not UTF-8, are the only errors that are mended here. The answer
        # was paid for; its check complains of them.
        return _whole(json.loads(raw.decode("utf-8", "replace"), parse_constant=_refuse)), True


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")


def _whole(value: Any) -> Any:
    """Return JSON data with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _category(details: Any) -> str | None:
    """Return the category of `stop_details`. The explanation is a text of the model, so it is not shown."""
    category = details.get("category") if isinstance(details, Mapping) else None
    # Only what looks like a name of the API: it becomes part of error messages.
    return category if isinstance(category, str) and _NAME.fullmatch(category) else None


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
            raise Refused(_refusal(message.refusal_category), reply_text=message.text)
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


def _refusal(category: str | None) -> str:
    if category == _BLOCKED:
        return "The API's content filter kept the answer back (category content_filter)."
    return "The model refused to answer" + (f" (category {category})." if category else ".")
