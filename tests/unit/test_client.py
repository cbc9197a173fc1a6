"""The HTTP client takes its key, host and proxy from the connection alone, and logs no content."""

import asyncio
import dataclasses
import json
import logging
import re
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiohttp import web
from conftest import message
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from airflow_llm_provider.engine.client import MAX_UNSTREAMED_TOKENS, AnthropicClient
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import AuthenticationFailed, BadRequest, LLMError, NetworkError

KEY, WORDS, ANSWER = "sk-ant-secret-key", "what-the-document-says", "what-the-model-says"
ASKED = Request(model="claude-haiku-5-5", messages=[{"role": "user", "content": WORDS}])
Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]
NOWHERE = "http://127.0.0.1:9"  # nothing listens there
ENVIRONMENT = {
    "ANTHROPIC_API_KEY": "sk-of-the-environment",
    "ANTHROPIC_AUTH_TOKEN": "token-of-the-environment",
    "ANTHROPIC_BASE_URL": NOWHERE,
    "ANTHROPIC_BEDROCK_BASE_URL": NOWHERE,
    "ANTHROPIC_CUSTOM_HEADERS": "X-Planted: yes\nanthropic-beta: planted-beta\nx-api-key: planted-key",
    "ANTHROPIC_PROFILE": "planted",
    "ANTHROPIC_CONFIG_DIR": "/nonexistent",
    "ANTHROPIC_IDENTITY_TOKEN": "planted",
    "ANTHROPIC_FEDERATION_RULE_ID": "planted",
    "ANTHROPIC_ORGANIZATION_ID": "planted",
    "ANTHROPIC_WORKSPACE_ID": "planted",
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": "planted",
    "ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE": "content",
    "ANTHROPIC_LOG": "debug",
    "AWS_REGION": "planted",
    "AWS_ACCESS_KEY_ID": "planted",
    "GOOGLE_APPLICATION_CREDENTIALS": "/nonexistent",
    "AZURE_CLIENT_SECRET": "planted",
    "OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE,
    "OTEL_PROPAGATORS": "planted",
    "OTEL_PYTHON_TRACER_PROVIDER": "planted",
}


class Server:
    """A Messages API on loopback that keeps what it is sent; to a proxy's requests it answers, too."""

    def __init__(self) -> None:
        self.heard: list[web.BaseRequest] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, request: web.BaseRequest) -> web.Response:
        self.heard.append(request)
        asked = json.loads(await request.read())
        if asked.get("stream"):
            return web.Response(text=STREAM, content_type="text/event-stream")
        return web.Response(body=message(ANSWER), content_type="application/json")


STREAM = "".join(
    f"event: {each['type']}\ndata: {json.dumps(each)}\n\n"
    for each in (
        {"type": "message_start", "message": {**json.loads(message("")), "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ANSWER}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    )
)


@asynccontextmanager
async def serving(handle: Handler | None = None) -> AsyncIterator[Server]:
    server = Server()
    runner = web.ServerRunner(web.Server(handle or server.handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    [(_, server.port)] = runner.addresses
    try:
        yield server
    finally:
        await runner.cleanup()


@contextmanager
def served_in_a_thread() -> Iterator[Server]:
    """The same for the SDK's synchronous client."""
    ready, ended, found = threading.Event(), asyncio.Event(), []

    async def serve() -> None:
        async with serving() as server:
            found.extend([server, asyncio.get_running_loop()])
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait(5)
    try:
        yield found[0]
    finally:
        found[1].call_soon_threadsafe(ended.set)
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def key_of(heard: web.BaseRequest) -> str | None:
    """Return the one key that a request carries, in the header that this version of the SDK uses."""
    keys = [heard.headers.get("x-api-key"), heard.headers.get("authorization")]
    [key] = [key for key in keys if key]
    return key.removeprefix("Bearer ")


async def send(client: AnthropicClient, request: Request = ASKED) -> bytes:
    try:
        return await client.send(request, timeout_s=5, on_first_byte=int, on_headers=lambda _: None)
    finally:
        await client.close()


async def test_nothing_of_the_environment_reaches_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    async with serving() as server:
        await send(AnthropicClient(api_key=KEY, base_url=server.url))
    [heard] = server.heard
    assert key_of(heard) == KEY
    sent = str(dict(heard.headers)).lower()
    assert "planted" not in sent
    assert "of-the-environment" not in sent
    assert "traceparent" not in sent


def test_the_sdks_own_client_has_the_facts_of_the_connection_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with served_in_a_thread() as server:
        client = AnthropicClient(api_key=KEY, base_url=server.url, proxy=NOWHERE, no_proxy=("127.0.0.1",))
        with client.sdk_client(timeout_s=7) as sdk:
            reply = sdk.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
            assert (sdk.timeout, sdk.max_retries, sdk.webhook_key) == (7, 2, "")
            assert sdk.open_telemetry["traces"]["enabled"] is False
    assert reply.content[0].text == ANSWER
    [heard] = server.heard
    assert key_of(heard) == KEY
    assert "planted" not in str(dict(heard.headers))


async def test_without_a_key_nothing_is_sent_whatever_the_environment_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-of-the-environment")
    client = AnthropicClient(api_key="")
    with pytest.raises(AuthenticationFailed, match="no API key"):
        await send(client)
    with pytest.raises(AuthenticationFailed, match="no API key"):
        client.sdk_client()


# The SDK's own traces.


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What a global tracer provider exports, as Airflow's traces set one, with the SDK told to export content."""
    monkeypatch.setenv("ANTHROPIC_OPEN_TELEMETRY", "true")
    monkeypatch.setenv("ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE", "content")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    exporter = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):  # a process has one for ever
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@contextmanager
def task_span() -> Iterator[None]:
    """A span around what a task does, whose trace the SDK would continue."""
    with trace.get_tracer("airflow").start_as_current_span("task"):
        yield


async def test_the_sdk_makes_spans_and_sends_the_trace_where_it_is_left_alone(
    spans: InMemorySpanExporter,
) -> None:
    import anthropic

    async with serving() as server:
        with task_span():
            async with anthropic.AsyncAnthropic(api_key=KEY, base_url=server.url) as sdk:
                await sdk.messages.create(
                    model="m", max_tokens=9, messages=[{"role": "user", "content": WORDS}]
                )
    [heard] = server.heard
    assert heard.headers["traceparent"]
    assert WORDS in str([dict(span.attributes or {}) for span in spans.get_finished_spans()])


@pytest.mark.parametrize("max_tokens", [50, MAX_UNSTREAMED_TOKENS + 1])
async def test_our_client_makes_no_span_and_sends_no_trace(
    spans: InMemorySpanExporter, max_tokens: int
) -> None:
    async with serving() as server:
        with task_span():
            await send(
                AnthropicClient(api_key=KEY, base_url=server.url),
                dataclasses.replace(ASKED, max_tokens=max_tokens),
            )
    [heard] = server.heard
    assert {"traceparent", "tracestate", "baggage"} & {name.lower() for name in heard.headers} == set()
    assert [span.name for span in spans.get_finished_spans()] == ["task"]


def test_the_sdks_own_client_makes_no_span_either(spans: InMemorySpanExporter) -> None:
    with served_in_a_thread() as server, task_span():
        client = AnthropicClient(api_key=KEY, base_url=server.url)
        with client.sdk_client(timeout_s=7) as sdk:
            sdk.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": WORDS}])
    [heard] = server.heard
    assert "traceparent" not in heard.headers
    assert [span.name for span in spans.get_finished_spans()] == ["task"]


# Which way a request takes.


async def test_requests_go_through_the_connections_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as proxy:
        monkeypatch.setenv("NO_PROXY", "*")  # it counts only without a proxy of the connection
        monkeypatch.setenv("HTTP_PROXY", NOWHERE)
        await send(AnthropicClient(api_key=KEY, base_url="http://api.example", proxy=proxy.url))
    [heard] = proxy.heard
    assert str(heard.url) == "http://api.example/v1/messages"


async def test_a_host_in_no_proxy_is_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    async with serving() as server:
        await send(
            AnthropicClient(
                api_key=KEY, base_url=server.url, proxy=NOWHERE, no_proxy=("x.example", "127.0.0.0/8")
            )
        )
    assert len(server.heard) == 1


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
async def test_without_a_proxy_of_the_connection_the_environments_counts(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with serving() as proxy:
        monkeypatch.setenv(name, proxy.url.removeprefix("http://"))
        await send(AnthropicClient(api_key=KEY, base_url="http://api.example"))
        monkeypatch.setenv("NO_PROXY", "other.example,.example")
        with pytest.raises(NetworkError) as caught:
            await send(AnthropicClient(api_key=KEY, base_url="http://api.example:9"))
    assert not caught.value.billed
    assert len(proxy.heard) == 1


@pytest.mark.parametrize(
    ("host", "no_proxy", "is_direct"),
    [
        ("http://api.example", "api.example", True),
        ("http://API.example", "api.EXAMPLE", True),
        ("http://api.example", "example", True),
        ("http://api.example", ".example", True),
        ("http://api.example", "*.example", True),
        ("http://api.example", "*", True),
        ("http://api.example", "pi.example", False),
        ("http://api.example", "", False),
        ("http://api.example", "nonsense:/x:y", False),
        ("http://api.example:8080", "api.example:8080", True),
        ("http://api.example:8080", "api.example:9090", False),
        ("http://10.1.2.3", "10.0.0.0/8", True),
        ("http://10.1.2.3", "10.1.2.3", True),
        ("http://10.1.2.3", "11.0.0.0/8", False),
        ("http://10.1.2.3", "1.2.3", False),
        ("http://[::1]:8080", "::1", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("http://[::1]:8080", "[::1]:9090", False),
        ("http://[fd00::7]", "fd00::/8", True),
    ],
)
def test_no_proxy_holds_names_addresses_networks_and_ports(host: str, no_proxy: str, is_direct: bool) -> None:
    entries = tuple(no_proxy.split(","))
    client = AnthropicClient(api_key=KEY, base_url=host, proxy="http://proxy:3128", no_proxy=entries)
    assert (client._route() is None) == is_direct


# What is logged, and what errors say.


@pytest.mark.parametrize("most", [100, MAX_UNSTREAMED_TOKENS + 1])
async def test_no_library_logs_bodies_or_headers_at_any_level(
    caplog: pytest.LogCaptureFixture, most: int
) -> None:
    names = ("", "anthropic", "anthropic._base_client", "httpx2", "httpcore2", "httpx", "aiohttp.client")
    levels = {name: logging.getLogger(name).level for name in names}
    caplog.set_level(1)
    try:
        for name in names:
            logging.getLogger(name).setLevel(1)
        async with serving() as server:
            client = AnthropicClient(api_key=KEY, base_url=server.url)
            asked = Request(model="m", messages=ASKED.messages, max_tokens=most)
            assert ANSWER.encode() in await send(client, asked)
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    libraries = [
        record
        for record in caplog.records
        if record.name.split(".")[0] in ("anthropic", "httpx2", "httpcore2")
    ]
    assert libraries == []
    for secret in (KEY, WORDS, ANSWER):
        assert secret not in caplog.text


def test_the_synchronous_client_logs_no_bodies_or_headers_either(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)
    with (
        served_in_a_thread() as server,
        AnthropicClient(api_key=KEY, base_url=server.url).sdk_client() as sdk,
    ):
        logging.getLogger("httpcore2").setLevel(1)
        sdk.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": WORDS}])
    for secret in (KEY, WORDS, ANSWER):
        assert secret not in caplog.text


async def test_a_redirect_is_an_error_and_is_not_followed() -> None:
    async with serving() as elsewhere:

        async def redirect(request: web.BaseRequest) -> web.Response:
            await request.read()
            return web.Response(status=307, headers={"location": f"{elsewhere.url}/v1/messages"})

        async with serving(redirect) as server:
            with pytest.raises(BadRequest, match="redirects are not followed"):
                await send(AnthropicClient(api_key=KEY, base_url=server.url))
    assert elsewhere.heard == []


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("1e9", 3600.0),
        ("nan", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
    ],
)
async def test_retry_after_is_read_in_seconds_or_as_a_date_and_bounded(
    header: str, seconds: float | None
) -> None:
    async def refuse(request: web.BaseRequest) -> web.Response:
        await request.read()
        body = {"type": "error", "error": {"type": "rate_limit_error", "message": f"not so fast, {KEY}"}}
        return web.json_response(body, status=429, headers={"retry-after": header})

    seen: list[Any] = []
    async with serving(refuse) as server:
        client = AnthropicClient(api_key=KEY, base_url=server.url)
        with pytest.raises(LLMError, match="not so fast, ") as caught:
            await client.send(ASKED, timeout_s=5, on_first_byte=int, on_headers=seen.append)
        await client.close()
    assert caught.value.retry_after_s == seconds  # type: ignore[attr-defined]
    assert KEY not in str(caught.value)
    assert seen[0]["retry-after"] == header


# What a server says is shown, and what it repeats is not.


def refusing(body: bytes, status: int = 400) -> Handler:
    async def handle(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(status=status, body=body, content_type="application/json")

    return handle


async def test_what_a_server_repeats_of_the_request_is_not_shown() -> None:
    text = "The tenant owes twelve months of rent to plantedword."
    said = (
        f"messages.0: could not read The tenant owes twelve months of rent to plantedword. after {'x' * 30}"
    )
    body = json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": said}})
    asked = Request(model="claude-haiku-5-5", messages=[{"role": "user", "content": f"{text} {'x' * 30}"}])
    async with serving(refusing(body.encode())) as server:
        with pytest.raises(BadRequest) as caught:
            await send(AnthropicClient(api_key=KEY, base_url=server.url), asked)
    shown = "messages.0: could not read (53 characters of the request) after (30 characters of the request)"
    assert shown in str(caught.value)
    assert "plantedword" not in "".join(traceback.format_exception(caught.value))


async def test_what_a_server_says_by_itself_is_shown_whole() -> None:
    said = "max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens for claude-haiku-5-5"
    body = json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": said}})
    async with serving(refusing(body.encode())) as server:
        with pytest.raises(BadRequest, match=re.escape(said)):
            await send(AnthropicClient(api_key=KEY, base_url=server.url))


@pytest.mark.parametrize(
    "reply",
    [
        b"plantedword is no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nplantedword\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: plantedword\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nplantedword\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 11\r\n\r\nplantedword",
        b"HTTP/1.1 407 plantedword\r\ncontent-length: 0\r\n\r\n",
    ],
    ids=ascii,
)
async def test_what_is_no_http_is_not_quoted(reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(LLMError) as caught:
            await send(AnthropicClient(api_key=KEY, base_url=url))
    assert "plantedword" not in "".join(traceback.format_exception(caught.value))
