"""A request of the Messages API, parsed: its blocks in prompt order, its document and its schema."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from airflow_llm_provider.testing.schema_rules import check_schemas
from airflow_llm_provider.testing.tool_rules import check_tools
from airflow_llm_provider.testing.wire import ApiError

# How tokens are counted, so that tests can count too. A text block has ceil(characters / 4) tokens. A tool and an
# output schema: the same of their JSON. A tool call: the same of its name and of its input's JSON. A tool's result:
# the sum of its blocks. An image and a PDF page: a fixed number, which covers a page's usual text; a PDF with more text
# than that: a quarter of its characters.
CHARS_PER_TOKEN = 4
IMAGE_TOKENS = 1_500
PDF_PAGE_TOKENS = 2_000

_MAX_BREAKPOINTS = 4
_DECODER = json.JSONDecoder()
_TAGGED = re.compile(r"<([\w.:-]*document[\w.:-]*)(?:\s[^<>]*)?>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_PDF_STREAM = re.compile(rb"stream\r?\n(.*?)endstream", re.DOTALL)
_PDF_SHOWN = re.compile(rb"\(([^()\\]*)\)\s*Tj")
_PDF_PAGE = re.compile(rb"/Type\s*/Page(?![a-zA-Z])")


def count_tokens(text: str) -> int:
    """Count the tokens of a text: a quarter of its characters, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def tool_use_tokens(name: str, tool_input: Any) -> int:
    """Count the tokens of a call of a tool: of its name and of its input's JSON."""
    return count_tokens(name) + _json_tokens(tool_input)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One block of the prompt, in the order in which the cache reads it."""

    # "schema", "tool", "system", "text", "document", "pdf", "image", "tool_use", "tool_result" or "other"
    kind: str
    text: str
    tokens: int
    ttl: str | None  # of its cache_control: "5m" or "1h"
    raw: Any
    role: str = "user"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One parsed request to /v1/messages.

    Attributes:
        body: the JSON of the request.
        blocks: the blocks of the prompt, in the order in which the cache reads them.
        key_last4: the last four characters of the API key; empty for a short key.
    """

    body: dict[str, Any]
    blocks: tuple[Block, ...]
    key_last4: str = ""

    @property
    def model(self) -> str:
        """Return the id of the model."""
        return str(self.body["model"])

    @property
    def max_tokens(self) -> int:
        """Return the highest number of tokens of the answer."""
        return int(self.body.get("max_tokens", 0))

    @property
    def stream(self) -> bool:
        """Tell whether the answer is streamed as server-sent events."""
        return bool(self.body.get("stream"))

    @property
    def tokens(self) -> int:
        """Count the input tokens, cached or not."""
        return max(1, sum(block.tokens for block in self.blocks))

    @property
    def schema(self) -> dict[str, Any] | None:
        """Return the JSON schema of the answer, if the request has one."""
        return _schema(self.body)

    @cached_property
    def described_schema(self) -> dict[str, Any] | None:
        """Return the JSON schema that the instructions describe, which nothing enforces."""
        for found in re.finditer(r"\{\s*\"", self.prompt):
            try:
                schema, _ = _DECODER.raw_decode(self.prompt, found.start())
            except ValueError:
                continue
            if schema.keys() & {"type", "properties", "$ref", "anyOf"}:
                return dict(schema)
        return None

    @property
    def tool_names(self) -> list[str]:
        """Return the names of the tools that the answer may call; none if `tool_choice` forbids calls."""
        if self.tool_choice.get("type") == "none":
            return []
        return [tool["name"] for tool in self.body.get("tools") or ()]

    @property
    def tool_choice(self) -> dict[str, Any]:
        """Return the request's `tool_choice`; empty if it has none."""
        return self.body.get("tool_choice") or {}

    @property
    def tool_results(self) -> list[str]:
        """Return the texts of the tool results so far."""
        return [block.text for block in self.blocks if block.kind == "tool_result"]

    @property
    def turn(self) -> int:
        """Count the earlier answers of the conversation."""
        return sum(message["role"] == "assistant" for message in self.body["messages"])

    @cached_property
    def text(self) -> str:
        """Join all texts and titles of the request; `matching=` of faults and replies searches them."""
        titles = [
            str(block.raw.get("title") or "") for block in self.blocks if block.kind in ("document", "pdf")
        ]
        return "\n".join([*filter(None, titles), *(block.text for block in self.blocks if block.text)])

    @cached_property
    def document(self) -> str:
        """Return the text of all documents."""
        return "\n\n".join(self.documents)

    @cached_property
    def documents(self) -> list[str]:
        """Return the texts of the documents.

        They are the document blocks; without any, the text inside `<…document…>` tags of the user's text; without
        any, all of the user's text.
        """
        if documents := [block.text for block in self.blocks if block.kind == "document"]:
            return documents
        texts = [block.text for block in self.blocks if block.kind == "text" and block.role == "user"]
        tagged = [match[2] for text in texts for match in _TAGGED.finditer(text)]
        return tagged or ["\n\n".join(texts)]

    @cached_property
    def prompt(self) -> str:
        """Return the instructions: the system's and the user's text without the documents."""
        texts = [
            block.text
            for block in self.blocks
            if block.kind in ("system", "text") and block.role != "assistant"
        ]
        return "\n".join(_TAGGED.sub(" ", text) if "ocument" in text else text for text in texts)


def read_question(body: Any, *, key: str = "", count_only: bool = False) -> Question:
    """Parse a request; raise ApiError 400 where the API would."""
    if not isinstance(body, dict):
        raise ApiError(400, "The request body is not a JSON object.")
    for name, kind in (("model", str), ("messages", list), *(() if count_only else (("max_tokens", int),))):
        if name not in body:
            raise ApiError(400, f"{name}: Field required")
        if not isinstance(body[name], kind) or isinstance(body[name], bool):
            raise ApiError(400, f"{name}: Input should be a valid {kind.__name__}")
    if not body["messages"]:
        raise ApiError(400, "messages: at least one message is required")
    blocks = list(_blocks(body))
    _check_texts(body)
    check_tools(body)
    if not count_only:  # the API counts tokens without compiling anything
        check_schemas(body)
    if (
        marked := sum(block.ttl is not None for block in blocks) + ("cache_control" in body)
    ) > _MAX_BREAKPOINTS:
        raise ApiError(
            400, f"A maximum of {_MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {marked}."
        )
    if ttl := _ttl(body):
        # Automatic caching: `cache_control` of the request applies to its last block.
        last = blocks[-1]
        blocks[-1] = Block(
            kind=last.kind,
            text=last.text,
            tokens=last.tokens,
            ttl=last.ttl or ttl,
            raw=last.raw,
            role=last.role,
        )
    return Question(body=body, blocks=tuple(blocks), key_last4=key[-4:] if len(key) > 8 else "")


def _check_texts(body: dict[str, Any]) -> None:
    """Raise ApiError 400 for a message, a system prompt or a block without text, with the API's own words."""
    for block in _content(body.get("system") or (), "system"):
        _check_text(block, "system")
    for position, turn in enumerate(body["messages"]):
        content = _content(turn["content"], f"messages.{position}.content")
        # Only the last turn may be an empty beginning of the answer.
        if not content and not (turn["role"] == "assistant" and position == len(body["messages"]) - 1):
            raise ApiError(
                400,
                f"messages.{position}: all messages must have non-empty content except for the optional final "
                "assistant message",
            )
        for at, block in enumerate(content):
            _check_text(block, "messages", f"messages.{position}.content.{at}")


def _check_text(block: dict[str, Any], where: str, place: str = "") -> None:
    source = block.get("source")
    if block.get("type") == "document" and isinstance(source, dict) and source.get("type") == "text":
        if not str(source.get("data", "")).strip():
            raise ApiError(400, f"{place}.document.source: text documents must be non-empty")
    elif block.get("type") == "text" and not block["text"].strip():
        if not block["text"] and _ttl(block):
            raise ApiError(400, f"{place or where}.text: cache_control cannot be set for empty text blocks")
        need = "must contain non-whitespace text" if block["text"] else "must be non-empty"
        raise ApiError(400, f"{where}: text content blocks {need}")


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    form = (body.get("output_config") or {}).get("format") or {}
    schema = form.get("schema") if form.get("type") == "json_schema" else None
    return schema if isinstance(schema, dict) else None


def _blocks(body: dict[str, Any]) -> Iterator[Block]:
    if schema := _schema(body):
        # Its tokens count, but `matching=` and answers do not search it.
        yield Block(kind="schema", text="", tokens=_json_tokens(schema), ttl=None, raw=schema)
    for tool in body.get("tools") or ():
        yield Block(kind="tool", text="", tokens=_json_tokens(tool), ttl=_ttl(tool), raw=tool)
    for block in _content(body.get("system") or (), "system"):
        yield _text_block(block, "system", "system")
    for position, turn in enumerate(body["messages"]):
        if not isinstance(turn, dict) or turn.get("role") not in ("user", "assistant", "system"):
            raise ApiError(400, f"messages.{position}.role: Input should be 'user' or 'assistant'")
        for block in _content(turn.get("content"), f"messages.{position}.content"):
            yield _read_block(block, turn["role"], f"messages.{position}.content")


def _content(content: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list | tuple) and all(isinstance(block, dict) for block in content):
        return list(content)
    raise ApiError(400, f"{where}: Input should be a string or a list of content blocks")


def _read_block(block: dict[str, Any], role: str, where: str) -> Block:
    match block.get("type"):
        case "text":
            return _text_block(block, "text", role)
        case "image":
            return Block(kind="image", text="", tokens=IMAGE_TOKENS, ttl=_ttl(block), raw=block, role=role)
        case "document":
            return _document_block(block, role, where)
        case "tool_use":
            tokens = tool_use_tokens(str(block.get("name", "")), block.get("input"))
            return Block(kind="tool_use", text="", tokens=tokens, ttl=_ttl(block), raw=block, role=role)
        case "tool_result":
            parts = [_read_block(part, role, where) for part in _content(block.get("content") or (), where)]
            text, tokens = "\n".join(part.text for part in parts), sum(part.tokens for part in parts)
            return Block(kind="tool_result", text=text, tokens=tokens, ttl=_ttl(block), raw=block, role=role)
        case None:
            raise ApiError(400, f"{where}: a content block needs a type")
        case _:
            return Block(
                kind="other", text="", tokens=_json_tokens(block), ttl=_ttl(block), raw=block, role=role
            )


def _text_block(block: dict[str, Any], kind: str, role: str) -> Block:
    text = block.get("text")
    if not isinstance(text, str):
        raise ApiError(400, f"{kind}: a text block needs its text")
    return Block(kind=kind, text=text, tokens=count_tokens(text), ttl=_ttl(block), raw=block, role=role)


def _document_block(block: dict[str, Any], role: str, where: str) -> Block:
    source = block.get("source") or {}
    extra = count_tokens(str(block.get("title") or "") + str(block.get("context") or ""))
    kind, text, tokens = "document", "", 0
    match source.get("type"):
        case "text":
            text = str(source.get("data", ""))
            tokens = count_tokens(text)
        case "content":
            parts = _content(source.get("content") or (), where)
            text = "\n".join(str(part.get("text", "")) for part in parts)
            tokens = sum(
                IMAGE_TOKENS if part.get("type") == "image" else count_tokens(str(part.get("text", "")))
                for part in parts
            )
        case "base64":
            kind, tokens = "pdf", _pdf_tokens(source.get("data"), where)
        case _:
            kind, tokens = "pdf", PDF_PAGE_TOKENS
    return Block(kind=kind, text=text, tokens=tokens + extra, ttl=_ttl(block), raw=block, role=role)


def _pdf_tokens(data: Any, where: str) -> int:
    try:
        content = base64.b64decode(str(data), validate=True)
    except binascii.Error as error:
        raise ApiError(400, f"{where}: document.source.base64: invalid base64 data") from error
    if not content.startswith(b"%PDF"):
        raise ApiError(400, f"{where}: document.source.base64: The PDF specified was not valid.")
    # This does not find pages inside compressed object streams; such a PDF counts as one page.
    pages = max(1, len(_PDF_PAGE.findall(content)))
    return max(PDF_PAGE_TOKENS * pages, -(-_shown_characters(content) // CHARS_PER_TOKEN))


def _shown_characters(content: bytes) -> int:
    """Count the characters that the streams of a PDF show on pages, where each has one byte."""
    shown = 0
    for stream in _PDF_STREAM.findall(content):
        with contextlib.suppress(zlib.error):
            stream = zlib.decompressobj().decompress(stream)
        shown += sum(map(len, _PDF_SHOWN.findall(stream)))
    return shown


def _ttl(holder: Any) -> str | None:
    control = holder.get("cache_control") if isinstance(holder, dict) else None
    if not isinstance(control, dict):
        return None
    return "1h" if control.get("ttl") == "1h" else "5m"


def _json_tokens(value: Any) -> int:
    return -(-len(orjson.dumps(value)) // CHARS_PER_TOKEN)
