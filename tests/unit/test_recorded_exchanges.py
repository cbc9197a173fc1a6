"""What our client reads from the API's real replies is what the SDK reads from the same bytes."""

import json
import lzma
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from genai_prices import Usage as GenaiUsage
from genai_prices import calc_price

from airflow_llm_provider import errors
from airflow_llm_provider.billing import Asked, price_of
from airflow_llm_provider.engine.client import MAX_UNSTREAMED_TOKENS, AnthropicClient
from airflow_llm_provider.engine.reply import Message
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.pricing import LIST_PRICES, Usage

RECORDED = Path(__file__).parents[3] / "shared/data/wire/anthropic_recorded.jsonl.xz"
MESSAGES = [{"role": "user", "content": "hello"}]
FIELDS = ("type", "text", "id", "name", "input", "thinking", "signature", "tool_use_id")
ERRORS = {  # the SDK's class -> ours
    "BadRequestError": "BadRequest",
    "AuthenticationError": "AuthenticationFailed",
    "PermissionDeniedError": "AuthenticationFailed",
    "NotFoundError": "UnknownModel",
    "ContentTooLargeError": "TooLong",
    "RateLimitError": "RateLimited",
    "InternalServerError": "ServerError",
    "ServiceUnavailableError": "ServerError",
    "OverloadedError": "Overloaded",
    "DeadlineExceededError": "ServerError",
}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One reply of the API: its status, headers and body."""

    name: str
    body: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_stream(self) -> bool:
        return self.body.lstrip().startswith(("event:", "data:", ":"))


def recorded(path: str = "/v1/messages") -> list[Exchange]:
    """Return every recorded reply of a path, or skip the test."""
    if not RECORDED.exists():
        pytest.skip(f"{RECORDED} is missing: the shared folder is not beside the checkout")
    found = []
    with lzma.open(RECORDED, "rt") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            if row["uri"].split("?")[0].endswith(path):
                body = row["response"] if isinstance(row["response"], str) else json.dumps(row["response"])
                headers = {name: value for name, value in row["headers"].items() if name != "content-type"}
                name = f"line {number + 1}, {row['file']}"
                found.append(Exchange(name=name, body=body, status=row["status"], headers=headers))
    return found


def events(*data: Mapping[str, Any]) -> str:
    return "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in data)


def message(content: list[Mapping[str, Any]], stop_reason: str | None, **usage: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 1, **usage},
    }


def error_body(kind: str, text: str) -> str:
    return json.dumps(
        {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_0123456789"}
    )


CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Zürich"}}
OWN = [
    Exchange(name="text", body=json.dumps(message([{"type": "text", "text": "hé 🎈"}], "end_turn"))),
    Exchange(name="nothing", body=json.dumps(message([], "refusal"))),
    Exchange(
        name="two lifetimes of cache",
        body=json.dumps(
            message(
                [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "max_tokens",
                cache_read_input_tokens=30,
                cache_creation_input_tokens=50,
                cache_creation={"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
            )
        ),
    ),
    Exchange(
        name="nulls in the usage",
        body=json.dumps(
            message([CALL], "tool_use", cache_read_input_tokens=None, cache_creation_input_tokens=None)
        ),
    ),
    Exchange(
        name="a stream with a ping, a tool's input in pieces, and usage at its end",
        body=events(
            {"type": "message_start", "message": message([], None, cache_read_input_tokens=3)},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "He"}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "llo"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": {**CALL, "input": {}}},
            *(
                {
                    "type": "content_block_delta",
                    "index": 1,
                    "delta": {"type": "input_json_delta", "partial_json": part},
                }
                for part in ("", '{"ci', 'ty": "Zür', 'ich"}')
            ),
            {"type": "content_block_stop", "index": 1},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "tool_use", "stop_sequence": None},
                "usage": {"output_tokens": 21},
            },
            {"type": "message_stop"},
        ),
    ),
    Exchange(name="400", status=400, body=error_body("invalid_request_error", "max_tokens: too many")),
    Exchange(name="401", status=401, body=error_body("authentication_error", "invalid x-api-key")),
    Exchange(name="403", status=403, body=error_body("permission_error", "not for this key")),
    Exchange(name="404", status=404, body=error_body("not_found_error", "model: claude-sonet")),
    Exchange(name="413", status=413, body=error_body("request_too_large", "too large")),
    Exchange(
        name="429",
        status=429,
        body=error_body("rate_limit_error", "slower"),
        headers={"retry-after": "7"},
    ),
    Exchange(name="500", status=500, body=error_body("api_error", "internal")),
    Exchange(name="503, not from the API", status=503, body="<html>away</html>"),
    Exchange(name="529", status=529, body=error_body("overloaded_error", "busy")),
]


class Server:
    """A server on loopback that gives one reply to every request."""

    reply: Exchange
    url: str

    async def handle(self, request: web.Request) -> web.Response:
        kind = "text/event-stream" if self.reply.is_stream else "application/json"
        return web.Response(
            text=self.reply.body,
            status=self.reply.status,
            content_type=kind,
            headers={"request-id": "req_0123456789", **self.reply.headers},
        )


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server, app = Server(), web.Application()
    app.router.add_post("/v1/messages", server.handle)
    app.router.add_post("/v1/messages/count_tokens", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    [(_, port)] = runner.addresses
    server.url = f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


async def ours(client: AnthropicClient, exchange: Exchange, seen: list[Mapping[str, str]]) -> dict[str, Any]:
    """Return what our client reads."""
    most = MAX_UNSTREAMED_TOKENS + 1 if exchange.is_stream else 100
    try:
        raw = await client.send(
            Request(model="claude-haiku-5-5", messages=MESSAGES, max_tokens=most),
            timeout_s=5,
            on_first_byte=int,
            on_headers=seen.append,
        )
    except LLMError as error:
        return {"error": type(error).__name__}
    read = Message.parse(raw)
    blocks = [{name: block.get(name) for name in FIELDS} for block in read.content]
    return {
        "model": read.model,
        "stop": read.stop_reason,
        "text": read.text,
        "blocks": blocks,
        "usage": read.usage,
        "micro_usd": price_of(
            read.billed, LIST_PRICES, asked=Asked(model=read.model), answered=read.model
        ).micro_usd,
    }


async def the_sdks(sdk: Any, exchange: Exchange) -> dict[str, Any]:
    """Return what the SDK reads; of a stream, its single events."""
    import anthropic

    asked = {"model": "claude-haiku-5-5", "messages": MESSAGES, "max_tokens": 100}
    try:
        if exchange.is_stream:
            return added_up([event async for event in await sdk.messages.create(**asked, stream=True)])
        read = await sdk.messages.create(**asked)
    except anthropic.APIStatusError as error:
        return {"error": ERRORS[type(error).__name__]}
    blocks = [block_of(block) for block in read.content]
    return summary(read, blocks, read.stop_reason, read.usage.to_dict(), getattr(read, "container", None))


def summary(
    read: Any, blocks: list[Any], stop: str | None, usage: Mapping[str, Any], container: Any
) -> dict[str, Any]:
    return {
        "model": read.model,
        "stop": stop,
        "text": "".join(block["text"] for block in blocks if block["type"] == "text"),
        "blocks": blocks,
        "usage": billed(usage),
        "micro_usd": None if container else priced(read.model, usage),
    }


def priced(model: str, usage: Mapping[str, Any]) -> int:
    """Price a reply by genai-prices alone, in micro-USD; what is billed by time (code) has no price."""
    assert usage.get("inference_geo") in (None, "global", "not_available"), "others cost more"
    total = Decimal("0.01") * ((usage.get("server_tool_use") or {}).get("web_search_requests") or 0)
    for entry in usage.get("iterations") or [usage]:
        read, wrote = (entry.get(f"cache_{name}_input_tokens") or 0 for name in ("read", "creation"))
        total += calc_price(
            GenaiUsage(
                input_tokens=entry["input_tokens"] + read + wrote,
                output_tokens=entry["output_tokens"],
                cache_read_tokens=read,
                cache_write_tokens=wrote,
                cache_write_1h_tokens=(entry.get("cache_creation") or {}).get("ephemeral_1h_input_tokens", 0),
            ),
            entry.get("model") or model,
            provider_id="anthropic",
        ).total_price
    return int((total * 1_000_000).to_integral_value(ROUND_CEILING))


def billed(usage: Mapping[str, Any]) -> Usage:
    """Add up what is billed: with iterations, they are all of it, the answer's and those of other models."""
    return Usage.total(map(Usage.from_api, usage.get("iterations") or [usage]))


def block_of(block: Any) -> dict[str, Any]:
    return {name: getattr(block, name, None) for name in FIELDS}


def added_up(events: list[Any]) -> dict[str, Any]:
    """Add up the events of a stream, by the rules of the API's documentation."""
    blocks: dict[int, dict[str, Any]] = {}
    container = None
    for event in events:
        match event.type:
            case "message_start":
                start, usage = event.message, event.message.usage.to_dict()
            case "content_block_start":
                blocks[event.index] = block_of(event.content_block)
            case "content_block_delta":
                block, delta = blocks[event.index], event.delta
                match delta.type:
                    case "text_delta":
                        block["text"] += delta.text
                    case "thinking_delta":
                        block["thinking"] += delta.thinking
                    case "signature_delta":
                        block["signature"] = delta.signature
                    case "input_json_delta":
                        block["json"] = block.get("json", "") + delta.partial_json
            case "content_block_stop":
                if written := blocks[event.index].pop("json", ""):
                    blocks[event.index]["input"] = json.loads(written)
            case "message_delta":
                stop = event.delta.stop_reason
                container = container or getattr(event.delta, "container", None)
                usage |= {name: n for name, n in event.usage.to_dict().items() if n is not None}
    return summary(start, [blocks[index] for index in sorted(blocks)], stop, usage, container)


async def disagreements(exchanges: list[Exchange]) -> dict[str, Any]:
    """Replay exchanges to our client and to the SDK; return where they differ."""
    import anthropic

    differ: dict[str, Any] = {}
    async with serving() as server:
        direct = {"proxy": "http://127.0.0.1:9", "no_proxy": ("127.0.0.1",)}
        client = AnthropicClient(api_key="sk-test", base_url=server.url, **direct)
        sdk = anthropic.AsyncAnthropic(
            api_key="sk-test",
            base_url=server.url,
            max_retries=0,
            http_client=anthropic.DefaultAioHttpClient(trust_env=False),
        )
        try:
            for exchange in exchanges:
                server.reply = exchange
                seen: list[Mapping[str, str]] = []
                mine, theirs = await ours(client, exchange, seen), await the_sdks(sdk, exchange)
                if mine != theirs:
                    differ[exchange.name] = {
                        name: (mine.get(name), theirs.get(name))
                        for name in mine.keys() | theirs.keys()
                        if mine.get(name) != theirs.get(name)
                    }
                heard = {name.lower(): value for name, value in seen[0].items()} if seen else {}
                if not exchange.headers.items() <= heard.items():
                    differ[f"headers of {exchange.name}"] = heard
        finally:
            await client.close()
            await sdk.close()
    return differ


async def test_every_recorded_reply_is_read_and_priced_as_the_sdk_and_genai_prices_do() -> None:
    exchanges = recorded()
    assert (len(exchanges), sum(exchange.is_stream for exchange in exchanges)) == (129, 26)
    assert await disagreements(exchanges) == {}


async def test_every_recorded_count_of_tokens_is_read() -> None:
    exchanges = recorded("/v1/messages/count_tokens")
    assert len(exchanges) == 4
    async with serving() as server:
        client = AnthropicClient(api_key="sk-test", base_url=server.url, proxy="http://x:9", no_proxy=("*",))
        for exchange in exchanges:
            server.reply = exchange
            counted = await client.count_tokens(Request(model="m", messages=MESSAGES), timeout_s=5)
            assert counted == json.loads(exchange.body)["input_tokens"]
        await client.close()


async def test_replies_and_errors_written_by_hand_are_read_as_the_sdk_reads_them() -> None:
    assert await disagreements(OWN) == {}


@pytest.mark.parametrize(
    ("status", "ours"),
    [
        (status, ours)
        for status, ours in [(402, "SpendLimitReached"), (408, "ServerError"), (504, "ServerError")]
    ],
)
async def test_statuses_that_the_sdk_has_no_class_for_have_one_of_ours(status: int, ours: str) -> None:
    async with serving() as server:
        server.reply = Exchange(name="", status=status, body=error_body("api_error", "no"))
        client = AnthropicClient(api_key="sk-test", base_url=server.url, proxy="http://x:9", no_proxy=("*",))
        asked = Request(model="m", messages=MESSAGES)
        with pytest.raises(getattr(errors, ours)):
            await client.send(asked, timeout_s=5, on_first_byte=int, on_headers=lambda _: None)
        await client.close()


@pytest.mark.parametrize("kept", [1, 3, 6])
async def test_a_stream_that_breaks_off_is_an_error_that_may_be_billed(kept: int) -> None:
    whole = next(exchange for exchange in OWN if exchange.is_stream).body.split("\n\n")
    async with serving() as server:
        server.reply = Exchange(name="", body="\n\n".join(whole[:kept]) + "\n\n")
        client = AnthropicClient(api_key="sk-test", base_url=server.url, proxy="http://x:9", no_proxy=("*",))
        asked = Request(model="m", messages=MESSAGES, max_tokens=MAX_UNSTREAMED_TOKENS + 1)
        with pytest.raises(errors.NetworkError) as caught:
            await client.send(asked, timeout_s=5, on_first_byte=int, on_headers=lambda _: None)
        assert caught.value.billed
        await client.close()
