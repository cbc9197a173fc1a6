"""The shapes of the Messages API: messages, server-sent events, models, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

# Error types by status, as https://platform.claude.com/docs/en/api/errors lists them.
ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_EVENT_CHARS = 48  # about how much text one content_block_delta of the API carries


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the stand-in; its limits apply to requests, as the API's do.

    Attributes:
        takes_sampling: whether it takes temperature, top_p and top_k, which current models refuse.
    """

    id: str
    name: str
    line: str
    max_input_tokens: int = 1_000_000
    max_tokens: int = 64_000
    takes_sampling: bool = False
    deprecated_at: str | None = None
    retires_at: str | None = None
    has_geography: bool = True
    has_fast_mode: bool = False

    def to_api(self) -> dict[str, Any]:
        """Return the model as `GET /v1/models` shows it; its display name ends in "(stand-in)"."""
        return {
            "type": "model",
            "id": self.id,
            "display_name": f"{self.name} (stand-in)",
            # The API shows the epoch when a release date is unknown.
            "created_at": "1970-01-01T00:00:00Z",
            "lifecycle": "deprecated" if self.retires_at else "active",
            "line": self.line,
            "deprecated_at": self.deprecated_at,
            "retires_at": self.retires_at,
            "max_input_tokens": self.max_input_tokens,
            "max_tokens": self.max_tokens,
            "capabilities": None,
        }


MODELS: tuple[Model, ...] = (
    Model(id="claude-haiku-5-5", name="Claude Haiku 5.5", line="haiku"),
    Model(id="claude-sonnet-5-5", name="Claude Sonnet 5.5", line="sonnet"),
    Model(id="claude-opus-5-5", name="Claude Opus 5.5", line="opus", has_fast_mode=True),
    Model(
        id="claude-sonnet-4-5",
        name="Claude Sonnet 4.5",
        line="sonnet",
        max_input_tokens=200_000,
        takes_sampling=True,
        deprecated_at="2026-05-30T00:00:00Z",
        retires_at="2026-11-30T00:00:00Z",
        has_geography=False,
    ),
)


class ApiError(Exception):
    """The request gets an error status in the API's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str | None = None,
        error_code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type or ERROR_TYPES.get(
            status, "api_error" if status >= 500 else "invalid_request_error"
        )
        self.error_code = error_code
        self.retry_after = retry_after

    def body(self, request_id: str) -> bytes:
        """Return the error in the API's own shape."""
        error: dict[str, Any] = {"type": self.error_type, "message": self.message}
        if self.error_code:
            error["details"] = {"error_code": self.error_code}
        return orjson.dumps({"type": "error", "error": error, "request_id": request_id})

    def event(self, request_id: str) -> bytes:
        """Return the error as the last event of a stream that has begun."""
        return b"event: error\ndata: %s\n\n" % self.body(request_id)

    def headers(self) -> dict[str, str]:
        """Return the `retry-after` header, if the error has one."""
        return {} if self.retry_after is None else {"retry-after": f"{self.retry_after:g}"}


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one request by kind; `input_tokens` are neither read from nor written to the cache."""

    input_tokens: int
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0

    @property
    def cache_write_tokens(self) -> int:
        """Count the tokens written to the prompt cache, whatever their ttl."""
        return self.cache_write_5m_tokens + self.cache_write_1h_tokens

    def to_api(self) -> dict[str, Any]:
        """Return the tokens as a message carries them."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_creation_input_tokens": self.cache_write_tokens,
            "cache_read_input_tokens": self.cache_read_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.cache_write_5m_tokens,
                "ephemeral_1h_input_tokens": self.cache_write_1h_tokens,
            },
        }


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """A call of one of the caller's tools.

    Attributes:
        id: default: made from the message's id, so that it is never used twice.
    """

    name: str
    input: dict[str, Any] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class ServerSteps:
    """What the server does on its own before a reply is written, and charges for.

    The request has to allow it: by `fallbacks`, by tools that run on the server, or by `context_management`.

    Attributes:
        fallbacks: how many of the request's fallbacks are tried; the last of them answers.
        searches: uses of `web_search`.
        fetches: uses of `web_fetch`.
        advice_tokens: what the advisor writes, by consultation.
        summary_tokens: the length of the summary of a compaction; None: there is none.
    """

    fallbacks: int = 0
    searches: int = 0
    fetches: int = 0
    advice_tokens: tuple[int, ...] = ()
    summary_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to a request: text, tool calls, or text and then calls.

    Attributes:
        stop_reason: default: `tool_use` if it calls tools, else `end_turn`.
        steps: what the server does before, which is charged too.
    """

    text: str = ""
    tool_use: tuple[ToolUse, ...] = ()
    stop_reason: str = ""
    stop_sequence: str | None = None
    stop_details: dict[str, Any] | None = field(default=None)
    steps: ServerSteps = ServerSteps()

    def __post_init__(self) -> None:
        if not self.stop_reason:
            object.__setattr__(self, "stop_reason", "tool_use" if self.tool_use else "end_turn")

    def content(self, message_id: str) -> list[dict[str, Any]]:
        """Return the content blocks of the message of that id."""
        text: list[dict[str, Any]] = [{"type": "text", "text": self.text}] if self.text else []
        stem = message_id.removeprefix("msg_")
        return text + [
            {
                "type": "tool_use",
                "id": use.id or f"toolu_{stem}{number}",
                "name": use.name,
                "input": use.input,
                "caller": {"type": "direct"},
            }
            for number, use in enumerate(self.tool_use)
        ]


class Charged(Protocol):
    """What is charged for a reply, as far as the message tells it."""

    @property
    def model(self) -> str:
        """Return the model that answered."""

    @property
    def declined(self) -> str | None:
        """Return the model that declined before, if another one answered."""

    def to_api(self) -> dict[str, Any]:
        """Return the `usage` object."""


def message(reply: Reply, charge: Charged, *, message_id: str) -> dict[str, Any]:
    """Return `reply` as the Message object of a plain (not streamed) request."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": charge.model,
        "content": _content(reply, charge, message_id),
        "stop_reason": reply.stop_reason,
        "stop_sequence": reply.stop_sequence,
        "stop_details": reply.stop_details,
        "usage": charge.to_api(),
    }


def _content(reply: Reply, charge: Charged, message_id: str) -> list[dict[str, Any]]:
    if charge.declined is None:
        return reply.content(message_id)
    hop = {"type": "fallback", "from": {"model": charge.declined}, "to": {"model": charge.model}}
    return [hop, *reply.content(message_id)]


def events(reply: Reply, charge: Charged, *, message_id: str) -> Iterator[bytes]:
    """Yield `reply` as the server-sent events of a streamed request, in the API's order."""
    start = message(reply, charge, message_id=message_id)
    totals = start["usage"]
    # As on the API: the first event states the input tokens, and the last one all that was charged.
    known = totals | {"output_tokens": min(1, totals["output_tokens"]), "server_tool_use": None}
    known.pop("iterations", None)
    start |= {"content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None, "usage": known}
    yield _event({"type": "message_start", "message": start})
    for index, block in enumerate(_content(reply, charge, message_id)):
        empty: dict[str, Any]
        if block["type"] == "text":
            whole, empty, kind, key = block["text"], {"text": ""}, "text_delta", "text"
        elif block["type"] == "fallback":
            whole, empty, kind, key = "", {}, "", ""
        else:
            whole, empty = orjson.dumps(block["input"]).decode(), {"input": {}}
            kind, key = "input_json_delta", "partial_json"
        yield _event({"type": "content_block_start", "index": index, "content_block": block | empty})
        if index == 0:
            yield _event({"type": "ping"})
        for at in range(0, len(whole), _EVENT_CHARS):
            delta = {"type": kind, key: whole[at : at + _EVENT_CHARS]}
            yield _event({"type": "content_block_delta", "index": index, "delta": delta})
        yield _event({"type": "content_block_stop", "index": index})
    end = {
        "stop_reason": reply.stop_reason,
        "stop_sequence": reply.stop_sequence,
        "stop_details": reply.stop_details,
    }
    for name in ("cache_creation", "service_tier", "inference_geo", "speed"):
        del totals[name]
    yield _event({"type": "message_delta", "delta": end, "usage": totals})
    yield _event({"type": "message_stop"})


def _event(data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (data["type"].encode(), dumps(data))


def dumps(data: Any) -> bytes:
    """Return JSON; half of a surrogate pair, which a reply may be ordered to have, becomes an escape."""
    try:
        return orjson.dumps(data)
    except TypeError:
        return json.dumps(data).encode()
