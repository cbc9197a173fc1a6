"""A request: what is asked, and the fingerprint that makes two of them the same."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import orjson

from airflow_llm_provider.errors import BadRequest
from airflow_llm_provider.pricing import LIST_PRICES, Prices

MessageParam = Mapping[str, Any]

BYTES_PER_TOKEN = 4  # of English text; an estimate that the first replies correct
# What the API adds around a request (its frame for schemas and tools), in tokens, generously.
FRAME_TOKENS = 2_000
# What budgets, prices and the reading of the reply go by, so that `extra` may not say otherwise.
_OWN_FIELDS = frozenset({"model", "max_tokens", "messages", "stream"})


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a model.

    model: model id, such as claude-haiku-5-5.
    messages: as the Messages API takes them; content is a list of blocks or a string.
    system: system prompt.
    max_tokens: the most tokens the answer may have; what is above the model's own limit is refused by it.
    schema: JSON schema the answer must fit; None for free text.
    tools: what the model may call, as the Messages API takes them.
    effort: `low` to `max`, for models that take it.
    extra: further fields of the request body, such as `thinking`; they win over the others.
    endpoint: platform and base URL: one server's words are never taken for another's.
    version: a label of the author's; changing it asks everything anew.
    sample: 0, 1, 2 … where several independent answers to the same question are wanted.
    shared_blocks: how many leading content blocks of the first message are the same in other requests of
        the run: they, and the system prompt, are marked for prompt caching. A hint, not in the fingerprint.
    cache_first: whether the whole first message is marked for prompt caching, too: a further request of the same
        conversation then reads it at a tenth of the price. A hint, not in the fingerprint.
    input_ceiling: upper bound of input tokens for content that is not text (pages, images).
    family: what it has in common with requests that take about as much, so that those to come can be estimated
        from those that were paid; not in the fingerprint.
    """

    model: str
    messages: Sequence[MessageParam]
    system: str | None = None
    max_tokens: int = 4096
    schema: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    effort: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    endpoint: str = ""
    version: str = ""
    sample: int = 0
    shared_blocks: int = 0
    cache_first: bool = False
    input_ceiling: int = 0
    family: str = ""

    def __post_init__(self) -> None:
        if wrong := sorted(_OWN_FIELDS & self.extra.keys()):
            raise BadRequest(
                f"extra_body has {wrong[0]!r}, which would not be what is reserved, priced and read: give it as the "
                "argument of its own where there is one, or leave it away. Nothing was sent."
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that shapes the answer, as 64 hex digits.

        Two requests have the same fingerprint when they mean the same: whatever the order of their keys,
        and whether a number is written 1 or 1.0. The order of a schema's properties does count, since a
        model fills them in that order.
        """
        shapes_the_answer = {
            "endpoint": self.endpoint,
            "version": self.version,
            "sample": self.sample,
            "model": self.model,
            "system": self.system,
            "messages": self.messages,
            "max_tokens": self.max_tokens,
            "schema": self.schema,
            "property_order": _property_order(self.schema),
            "effort": self.effort,
            "extra": {name: value for name, value in self.extra.items() if name != "metadata"},
        }
        if self.tools:
            shapes_the_answer["tools"] = self.tools
        return hashlib.sha256(to_json(_canonical(shapes_the_answer), sort_keys=True)).hexdigest()

    def body(self, api_schema: Mapping[str, Any] | None) -> bytes:
        """Write the request body; `api_schema` is the schema as the API takes it."""
        return to_json(self.fields(api_schema))

    def fields(self, api_schema: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the fields of the request body."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "messages": self._marked(),
        }
        if self.system:
            body["system"] = [
                {"type": "text", "text": self.system, **self._mark(last=not self.shared_blocks)}
            ]
        if self.tools:
            body["tools"] = self.tools
        output_config: dict[str, Any] = {}
        if api_schema is not None:
            output_config["format"] = {"type": "json_schema", "schema": api_schema}
        if self.effort:
            output_config["effort"] = self.effort
        if output_config:
            body["output_config"] = output_config
        return {**body, **self.extra}

    @cached_property
    def shared_prefix(self) -> str:
        """Hash of what prompt caching may share with other requests; empty when there is nothing."""
        if not self.shared_blocks:
            return ""
        blocks = self.messages[0]["content"][: self.shared_blocks]
        shared = [self.endpoint, self.model, self.system, self.schema, self.tools, self.effort, blocks]
        return hashlib.sha256(to_json(shared)).hexdigest()

    @property
    def shared_characters(self) -> int:
        """Size of the shared prefix, to judge whether caching it can pay."""
        if not self.shared_blocks:
            return 0
        blocks = self.messages[0]["content"][: self.shared_blocks]
        return len(self.system or "") + sum(len(block.get("text", "")) for block in blocks)

    @property
    def is_boundless(self) -> bool:
        """Say whether the server runs tools of its own, such as a search: what they read and charge has no bound."""
        return bool(self.extra.keys() & {"tools", "mcp_servers"})

    @property
    def shared_bytes(self) -> int:
        """Size of all that prompt caching may keep: schema and tools go before the shared blocks."""
        if not self.shared_blocks:
            return 0
        blocks = self.messages[0]["content"][: self.shared_blocks]
        return _text_bytes([self.system, self.schema, self.tools, blocks])

    @cached_property
    def input_ceiling_tokens(self) -> int:
        """Upper bound of the input tokens: a token is at least one byte of text."""
        return self.text_bytes + self.input_ceiling + FRAME_TOKENS

    @cached_property
    def text_bytes(self) -> int:
        """Bytes of all that is text."""
        return _text_bytes([self.system, self.messages, self.schema, self.tools, self.extra])

    def followed_by(self, *messages: MessageParam) -> Self:
        """Return the same question with the conversation continued."""
        return dataclasses.replace(self, messages=[*self.messages, *messages])

    def with_block(self, block: Mapping[str, Any]) -> Self:
        """Return the same question with one more block of content at its end."""
        *before, last = self.messages
        return dataclasses.replace(self, messages=[*before, {**last, "content": [*last["content"], block]}])

    def _mark(self, *, last: bool) -> dict[str, Any]:
        return {"cache_control": {"type": "ephemeral"}} if last and self.system else {}

    def _marked(self) -> Sequence[MessageParam]:
        """Return the messages with a cache breakpoint behind the shared blocks, and one behind the first message."""
        first, *rest = self.messages
        if isinstance(first["content"], str):
            return self.messages
        blocks = list(first["content"])
        marked = {self.shared_blocks - 1} if self.shared_blocks else set()
        marked |= {len(blocks) - 1} if self.cache_first else set()
        for at in marked:
            blocks[at] = {**blocks[at], "cache_control": {"type": "ephemeral"}}
        return [{**first, "content": blocks}, *rest] if marked else self.messages


def ceiling_micro_usd(request: Request, prices: Prices = LIST_PRICES) -> int | None:
    """Return the most one send of `request` can cost in micro-USD; None when that is not known.

    It is not where the model has no known price, nor where the request is boundless.
    """
    card = prices.card(request.model)
    if card is None or request.is_boundless:
        return None
    return card.ceiling_micro_usd(input_tokens=request.input_ceiling_tokens, output_tokens=request.max_tokens)


def to_json(value: object, *, sort_keys: bool = False) -> bytes:
    """Serialise to JSON bytes; raises BadRequest for what JSON can't hold."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else 0)
    except TypeError as error:  # orjson's JSONEncodeError is a TypeError
        raise BadRequest(f"This request can't be written as JSON: {error}") from error


def _canonical(value: Any) -> Any:
    """Give equal numbers one spelling; drop nothing else."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRequest(f"{value} is not a number that JSON can hold.")
        return int(value) if value.is_integer() and abs(value) <= 2**53 else value
    return value


def _property_order(schema: Any) -> list[list[str]]:
    """List the names of every `properties` object of a schema, in order."""
    if isinstance(schema, Mapping):
        here = [list(schema["properties"])] if isinstance(schema.get("properties"), Mapping) else []
        return here + [names for key in sorted(schema) for names in _property_order(schema[key])]
    if isinstance(schema, (list, tuple)):
        return [names for item in schema for names in _property_order(item)]
    return []


def _text_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        if value.get("type") == "base64":  # pages and images are bounded by `input_ceiling`
            return 100
        return sum(len(str(key)) + _text_bytes(item) + 6 for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return sum(_text_bytes(item) + 1 for item in value)
    return 0 if value is None else len(str(value))
