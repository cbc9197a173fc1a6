"""A request to a model, and the fingerprint by which two requests are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import orjson

from airflow_llm_provider.errors import BadRequest

MessageParam = Mapping[str, Any]

BYTES_PER_TOKEN = 4  # of English text; a first estimate
# Upper bound of the tokens that the API adds to a request, for schemas and tools.
FRAME_TOKENS = 2_000
# Fields of the body that say who asks and how fast. They do not shape the answer, so the fingerprint leaves them out.
_HINTS = frozenset({"metadata", "service_tier"})
# Budgets, prices and the reading of the reply rely on these, so `extra` may not replace them.
_OWN_FIELDS = frozenset({"model", "max_tokens", "messages", "stream"})
MAX_CACHE_MARKS = 4  # https://platform.claude.com/docs/en/build-with-claude/prompt-caching


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a model.

    Attributes:
        model: The model id, such as claude-haiku-5-5.
        messages: The conversation in the form of the Messages API; content is a list of blocks or a string.
        system: The system prompt.
        max_tokens: The most tokens that the answer may have. The API rejects more than the model's own limit.
        schema: The JSON schema that the answer must fit; None for free text.
        tools: The tools that the model may call, in the form of the Messages API.
        effort: `low` to `max`, for models that support it.
        extra: Further fields of the request body, such as `thinking`. They win over the others.
        endpoint: Platform and base URL, so that the answers of one server are never taken for those of another.
        version: The author's label. Changing it asks everything again.
        sample: 0, 1, 2 … where several independent answers to the same question are wanted.
        shared_blocks: How many leading content blocks of the first message are the same in other requests of the
            run. They and the system prompt are marked for prompt caching. Not in the fingerprint.
        cache_first: Whether the whole first message is marked for prompt caching, so that further requests of the
            conversation read it at a tenth of the price. Not in the fingerprint.
        cache_ttl: How long the API keeps what is marked: `5m` or `1h`. A hint, not in the fingerprint.
        input_ceiling: Upper bound of the input tokens of content that is not text (pages, images).
        family: A hash shared with requests that use about as many tokens. Estimates are made from the paid requests
            of the same family. Not in the fingerprint.
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
    cache_ttl: str = "5m"
    input_ceiling: int = 0
    family: str = ""

    def __post_init__(self) -> None:
        if wrong := sorted(_OWN_FIELDS & self.extra.keys()):
            raise BadRequest(
                f"extra_body has {wrong[0]!r}. It would differ from what is reserved, priced and read. Give it as an "
                "argument of its own, if there is one, or remove it. Nothing was sent."
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that shapes the answer, as 64 hex digits.

        The order of keys does not matter, nor whether a number is written 1 or 1.0. The order of a schema's
        properties does matter, because a model fills them in that order.
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
            # Sorting the keys below loses this order.
            "property_order": _property_order(self.schema),
            "effort": self.effort,
            "extra": {name: value for name, value in self.extra.items() if name not in _HINTS},
        }
        if self.tools:
            shapes_the_answer["tools"] = self.tools
        return hashlib.sha256(to_json(_canonical(shapes_the_answer), sort_keys=True)).hexdigest()

    def body(self, api_schema: Mapping[str, Any] | None) -> bytes:
        """Return the request body as JSON; `api_schema` is the schema in the API's dialect."""
        return to_json(self.fields(api_schema))

    def fields(self, api_schema: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the fields of the request body.

        Raises:
            BadRequest: A message has no text, or the author has marked more blocks for prompt caching than the API
                takes.
        """
        _require_content(self.messages)
        body = self._fields(api_schema, marked=True)
        if _cache_marks(body) <= MAX_CACHE_MARKS:
            return body
        # The author's own marks are wanted; ours are hints.
        body = self._fields(api_schema, marked=False)
        if (found := _cache_marks(body)) > MAX_CACHE_MARKS:
            raise BadRequest(
                f"{found} blocks are marked with cache_control, and the API takes {MAX_CACHE_MARKS} at the most. "
                "Remove marks from messages, tools and extra_body. Nothing was sent."
            )
        return body

    def _fields(self, api_schema: Mapping[str, Any] | None, *, marked: bool) -> dict[str, Any]:
        """Return the fields of the body, with or without our own marks for prompt caching."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "messages": _without_blanks(self._marked() if marked else self.messages),
        }
        # The API rejects a system prompt without text, and none is meant by it.
        if self.system and not self.system.isspace():
            # The cache holds everything before a mark. A mark after the shared blocks includes the system prompt.
            mark = self._mark(last=marked and not self.shared_blocks)
            body["system"] = [{"type": "text", "text": self.system, **mark}]
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
        """Hash of the part that prompt caching may share with other requests; empty if there is none."""
        if not self.shared_blocks:
            return ""
        blocks = self.messages[0]["content"][: self.shared_blocks]
        # Everything that the API puts before the shared blocks is part of what it caches.
        shared = [self.endpoint, self.model, self.system, self.schema, self.tools, self.effort, blocks]
        return hashlib.sha256(to_json(shared)).hexdigest()

    @property
    def shared_characters(self) -> int:
        """Characters of the shared prefix, to judge whether caching it can save money."""
        if not self.shared_blocks:
            return 0
        blocks = self.messages[0]["content"][: self.shared_blocks]
        return len(self.system or "") + sum(len(block.get("text", "")) for block in blocks)

    @property
    def shared_bytes(self) -> int:
        """Bytes of everything that prompt caching may keep. Schema and tools come before the shared blocks."""
        if not self.shared_blocks:
            return 0
        blocks = self.messages[0]["content"][: self.shared_blocks]
        return _text_bytes([self.system, self.schema, self.tools, blocks])

    @cached_property
    def input_ceiling_tokens(self) -> int:
        """Upper bound of the input tokens; a token is at least one byte of text."""
        return self.text_bytes + self.input_ceiling + FRAME_TOKENS

    @cached_property
    def text_bytes(self) -> int:
        """Bytes of everything that is text."""
        return _text_bytes([self.system, self.messages, self.schema, self.tools, self.extra])

    def followed_by(self, *messages: MessageParam) -> Self:
        """Return the request with messages added to the conversation."""
        return dataclasses.replace(self, messages=[*self.messages, *messages])

    def with_block(self, block: Mapping[str, Any]) -> Self:
        """Return the request with one block added to its last message."""
        *before, last = self.messages
        return dataclasses.replace(self, messages=[*before, {**last, "content": [*last["content"], block]}])

    def _mark(self, *, last: bool) -> dict[str, Any]:
        return {"cache_control": self._cache_control} if last and self.system else {}

    @property
    def _cache_control(self) -> dict[str, str]:
        ttl = {} if self.cache_ttl == "5m" else {"ttl": self.cache_ttl}  # five minutes are the API's default
        return {"type": "ephemeral", **ttl}

    def _marked(self) -> Sequence[MessageParam]:
        """Return the messages with cache breakpoints after the shared blocks and after the first message."""
        first, *rest = self.messages
        if isinstance(first["content"], str):
            return self.messages
        blocks = list(first["content"])
        marked = {self.shared_blocks - 1} if self.shared_blocks else set()
        marked |= {len(blocks) - 1} if self.cache_first else set()
        for at in marked:
            blocks[at] = {**blocks[at], "cache_control": self._cache_control}
        return [{**first, "content": blocks}, *rest] if marked else self.messages


def _is_blank(block: Any) -> bool:
    """Tell a text block without text, which the API rejects."""
    if not isinstance(block, Mapping) or block.get("type") != "text":
        return False
    text = block.get("text")
    return isinstance(text, str) and (not text or text.isspace())


def _without_blanks(messages: Sequence[MessageParam]) -> Sequence[MessageParam]:
    """Return the messages without blank text blocks: a model may write some between its tool calls."""

    def without(message: MessageParam) -> MessageParam:
        content = message["content"]
        if isinstance(content, str) or not any(map(_is_blank, content)):
            return message
        return {**message, "content": [block for block in content if not _is_blank(block)]}

    return [without(message) for message in messages]


def _require_content(messages: Sequence[MessageParam]) -> None:
    """Raise BadRequest for a message or a document without text, which the API rejects."""
    for number, message in enumerate(messages):
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if all(map(_is_blank, content)):
            raise BadRequest(f"messages[{number}] has no text and nothing else. Nothing was sent.")
        for block in content:
            source = block.get("source") if isinstance(block, Mapping) else None
            if isinstance(source, Mapping) and _is_blank(
                {"type": source.get("type"), "text": source.get("data")}
            ):
                raise BadRequest(f"messages[{number}] has a document without text. Nothing was sent.")


def _cache_marks(body: Mapping[str, Any]) -> int:
    """Count what is marked for prompt caching: blocks, tools, and the request itself."""
    marks = "cache_control" in body
    contents = [body.get("system"), body.get("tools"), *(message["content"] for message in body["messages"])]
    blocks = (block for content in contents if isinstance(content, (list, tuple)) for block in content)
    return marks + sum(isinstance(block, Mapping) and bool(block.get("cache_control")) for block in blocks)


def to_json(value: object, *, sort_keys: bool = False) -> bytes:
    """Return a value as JSON bytes; raises BadRequest if JSON can't express it."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else 0)
    except TypeError as error:  # orjson's JSONEncodeError is a TypeError
        if "64-bit" in str(error) and (written := _with_long_numbers(value, sort_keys=sort_keys)):
            return written
        raise BadRequest(f"The request can't be written as JSON: {error}. Nothing was sent.") from error


def _with_long_numbers(value: object, *, sort_keys: bool) -> bytes | None:
    """Return JSON with integers of any length, which orjson refuses; None if something else is no JSON."""
    try:
        return json.dumps(
            value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except (TypeError, ValueError):
        return None


def _canonical(value: Any) -> Any:
    """Write equal numbers in the same way and leave everything else as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRequest(f"JSON has no number {value}. Nothing was sent.")
        # Above 2**53 a float does not stand for one integer only, so the two are not known to be equal.
        return int(value) if value.is_integer() and abs(value) <= 2**53 else value
    return value


def _property_order(schema: Any) -> list[list[str]]:
    """Return the names in every `properties` object of a schema, in order."""
    if isinstance(schema, Mapping):
        here = [list(schema["properties"])] if isinstance(schema.get("properties"), Mapping) else []
        return here + [names for key in sorted(schema) for names in _property_order(schema[key])]
    if isinstance(schema, (list, tuple)):
        return [names for item in schema for names in _property_order(item)]
    return []


def _text_bytes(value: Any) -> int:
    if isinstance(value, str):
        # A lone surrogate is an error when the request is written as JSON. Counting bytes is not the place for it.
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        if value.get("type") == "base64":  # `input_ceiling` bounds pages and images
            return 100
        # An upper bound includes JSON's own characters: four quotes, a colon and a comma.
        return sum(len(str(key)) + _text_bytes(item) + 6 for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return sum(_text_bytes(item) + 1 for item in value)
    return 0 if value is None else len(str(value))
