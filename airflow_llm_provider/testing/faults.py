"""Faults and scripted replies: which request gets which, how often, and what it looks like."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar, get_args

import orjson

from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.wire import ApiError, Reply, ToolUse

FaultKind = Literal[
    "error",  # an error status in the API's shape
    "stream_error",  # the same as an event in the middle of a stream; without a stream, an "error"
    "gateway",  # an error status of something in front of the API: HTML, without a request id
    "hang",  # accepted, never answered; ends when the client or the server does
    "drop",  # the connection is closed in the middle of the body
    "slow",  # the body arrives in small pieces over `duration_s`
    "truncated_json",  # the answer's JSON stops halfway, with end_turn
    "wrong_shape",  # the answer is JSON that does not fit the schema
    "prose",  # the answer's JSON is in a fenced block between sentences
    "refusal",  # stop_reason refusal
    "max_tokens",  # half an answer, stop_reason max_tokens
    "pause_turn",  # half an answer, stop_reason pause_turn
    "model_context_window_exceeded",  # half an answer, that stop_reason
]

_STATUSES = {"error": 400, "stream_error": 400, "gateway": 300}  # the lowest status of each

Matching = str | Callable[[Question], bool] | None

_MESSAGES = {
    400: "stand-in: this request was ordered to be invalid",
    401: "invalid x-api-key",
    402: "stand-in: billing was ordered to fail",
    403: "Your API key does not have permission to use the specified resource.",
    404: "model: one that the stand-in was ordered not to know",
    429: "This request would exceed your organization's rate limit.",
    500: "Internal server error",
    529: "Overloaded",
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One order: what matching requests get instead of their answer, or what happens to it.

    Attributes:
        kind: see `FaultKind`.
        status: HTTP status of an "error" or a "gateway"; a "stream_error" has the type that belongs to it.
        error_type: default: the API's type for `status`.
        error_code: `error.details.error_code`, such as `enforced_spend_limit_reached`.
        message: the error's message; default: the API's own for `status`.
        retry_after: seconds, sent as the `retry-after` header.
        matching: text that the request contains, or a function of the question; default: every request.
        model: only requests to this model.
        after: how many matching requests are answered first.
        times: how many requests it hits; default: no limit.
        share: part of the matching requests, from 0 to 1, drawn from `seed`.
        seed: of the draws.
        sticky: draw by the request's content, so that a repeated request gets the same fault again.
        billed: whether the invoice has the request. Default: a request is billed when a reply was generated for
            it, even if the reply is lost or useless; "error", "gateway" and "hang" are not billed. A "gateway" and
            an "error" from 500 on may be ordered to be.
        duration_s: seconds that a "slow" body takes.
    """

    kind: FaultKind = "error"
    status: int = 529
    error_type: str | None = None
    error_code: str | None = None
    message: str | None = None
    retry_after: float | None = None
    matching: Matching = None
    model: str | None = None
    after: int = 0
    times: int | None = None
    share: float | None = None
    seed: int = 0
    sticky: bool = False
    billed: bool | None = None
    duration_s: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"kind={self.kind!r} is not a fault; there are {', '.join(get_args(FaultKind))}")
        if self.kind in _STATUSES and not _STATUSES[self.kind] <= self.status <= 599:
            raise ValueError(f"status={self.status}: give a status from {_STATUSES[self.kind]} to 599")
        if self.kind == "error" and self.billed and (self.status < 500 or self.status == 529):
            raise ValueError("billed=True: a request that the API refuses is never billed")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: give a number from 0 to 1")

    @property
    def is_billed(self) -> bool:
        """Tell whether the invoice has a request that gets this fault."""
        return self.kind not in ("error", "gateway", "hang") if self.billed is None else self.billed

    def error(self) -> ApiError:
        """Return the error to answer with."""
        return ApiError(
            self.status,
            self.message or _MESSAGES.get(self.status, f"stand-in: status {self.status} was ordered"),
            error_type=self.error_type,
            error_code=self.error_code,
            retry_after=self.retry_after,
        )

    def spoil(self, reply: Reply) -> Reply:
        """Return `reply` as this fault changes it, without tool calls; faults of the connection do not change it."""
        half = reply.text[: max(1, len(reply.text) // 2)]
        return replace(self._spoiled(reply, half), steps=reply.steps)

    def _spoiled(self, reply: Reply, half: str) -> Reply:
        match self.kind:
            case "truncated_json":
                return Reply(text=half)
            case "wrong_shape":
                return Reply(text='{"stand_in_wrong_shape": [{"not": "what was asked for"}]}')
            case "prose":
                return Reply(
                    text=f"Here is what I found:\n\n```json\n{reply.text}\n```\n\nAsk me if you need more."
                )
            case "refusal":
                details = {"type": "refusal", "category": None, "explanation": None}
                return Reply(text="I can't help with that.", stop_reason="refusal", stop_details=details)
            case "max_tokens" | "pause_turn" | "model_context_window_exceeded":
                return Reply(text=half, stop_reason=self.kind)
            case _:
                return reply


@dataclass(frozen=True, kw_only=True)
class ScriptedReply:
    """One order: the reply to matching requests.

    Attributes:
        text: the answer as text.
        data: the answer as a value, sent as JSON.
        call: the answer as a function of the question, which returns text, a value or a whole `Reply`.
        tool_use: the tool calls of the reply, after its text: `[{"name": …, "input": {…}}, …]`.
        stop_reason: default: `tool_use` with calls, else `end_turn`.
        matching: as for `Fault`.
        model: as for `Fault`.
        turn: only requests of a conversation with so many earlier answers; 0 for the first request.
        after: as for `Fault`.
        times: as for `Fault`.
        share: always None: replies are not given by chance.
    """

    text: str | None = None
    data: Any = None
    call: Callable[[Question], Any] | None = None
    tool_use: Sequence[Mapping[str, Any]] = ()
    stop_reason: str = ""
    matching: Matching = None
    model: str | None = None
    turn: int | None = None
    after: int = 0
    times: int | None = None
    share: None = None

    def __post_init__(self) -> None:
        self._calls()

    def reply(self, question: Question) -> Reply:
        """Return the scripted reply to `question`."""
        answer = self.call(question) if self.call else self.data if self.text is None else self.text
        if isinstance(answer, Reply):
            return answer
        if answer is None and self.tool_use:
            answer = ""
        text = answer if isinstance(answer, str) else orjson.dumps(answer).decode()
        return Reply(text=text, tool_use=self._calls(), stop_reason=self.stop_reason)

    def _calls(self) -> tuple[ToolUse, ...]:
        return tuple(ToolUse(**use) for use in self.tool_use)


Order = TypeVar("Order", bound=Fault | ScriptedReply)


@dataclass(kw_only=True)
class _Placed(Generic[Order]):
    order: Order
    draws: random.Random = field(default_factory=random.Random)
    seen: int = 0
    hits: int = 0


class Orders(Generic[Order]):
    """The orders of one kind; the latest that matches a request is used. Safe to use from any thread."""

    def __init__(self) -> None:
        self._placed: tuple[_Placed[Order], ...] = ()
        self._lock = threading.Lock()

    def add(self, order: Order) -> None:
        """Place an order, before the older ones."""
        seed = order.seed if isinstance(order, Fault) else 0
        with self._lock:
            # A new tuple, so that `take` may look without the lock whether there are any orders.
            self._placed = (_Placed(order=order, draws=random.Random(seed)), *self._placed)

    def clear(self) -> None:
        """Cancel all orders."""
        with self._lock:
            self._placed = ()

    def take(self, question: Question) -> Order | None:
        """Return the order that applies to `question`, and count the hit."""
        if not self._placed:
            return None
        with self._lock:
            for placed in self._placed:
                if _applies(placed, question):
                    placed.hits += 1
                    return placed.order
        return None


def _applies(placed: _Placed[Order], question: Question) -> bool:
    order = placed.order
    if order.times is not None and placed.hits >= order.times:
        return False
    if order.model is not None and order.model != question.model:
        return False
    if isinstance(order, ScriptedReply) and order.turn not in (None, question.turn):
        return False
    if isinstance(order.matching, str):
        if order.matching not in question.text:
            return False
    elif order.matching is not None and not order.matching(question):
        return False
    # Counted after the match: `after` counts matching requests only.
    placed.seen += 1
    if placed.seen <= order.after:
        return False
    # Drawn last, and only for requests that match: other requests do not change the order of the draws.
    if isinstance(order, Fault) and order.share is not None:
        return _draw(order, placed.draws, question) < order.share
    return True


def _draw(fault: Fault, draws: random.Random, question: Question) -> float:
    if not fault.sticky:
        return draws.random()
    digest = hashlib.blake2b(
        f"{fault.seed}\0{question.text}".encode("utf-8", "replace"), digest_size=8
    ).digest()
    return int.from_bytes(digest) / 2**64
