"""Free or not: a send that fails is booked as billed exactly where its bytes left and no refusal of the API came.

Each way is tried over real sockets. What the server has counted is the truth.
"""

import asyncio
import contextlib
import json
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_llm_provider.engine.ceiling import ceiling_micro_usd
from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import DEFAULT_POLICIES, RetryPolicy
from airflow_llm_provider.errors import (
    AuthenticationFailed,
    BadRequest,
    LLMError,
    NetworkError,
    Overloaded,
    RampLimited,
    RateLimited,
    Refused,
    ServerError,
    SpendLimitReached,
    TooLong,
    UnknownModel,
)
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope, Saving
from airflow_llm_provider.ledger.schema import FAILED, UNPROVEN, call
from tests.support.terms import make_terms

SCOPE = CallScope(dag_id="nightly", run_id="run-1", task_id="ask", trace_id="0" * 32)
TIMEOUT_S = 0.25
QUICK = {
    kind: replace(policy, first_wait_s=0.001, max_wait_s=0.002) for kind, policy in DEFAULT_POLICIES.items()
}
ONCE = {kind: replace(policy, attempts=1) for kind, policy in QUICK.items()}
HTML = b"<html><body><h1>away</h1></body></html>"


def asked(**fields: object) -> Request:
    return Request(
        **{"model": "claude-haiku-5-5", "messages": [{"role": "user", "content": "What is owed?"}], **fields}
    )


@pytest.fixture(scope="module")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated ledger without rows, to be copied: making the tables takes longer than a test."""
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    Ledger(f"sqlite:///{path}").close()
    return path


@pytest.fixture
async def engine(tmp_path: Path, empty_ledger: Path) -> AsyncIterator[Engine]:
    """An engine without an address; `reach` gives it one."""
    ledger = Ledger(f"sqlite:///{shutil.copy(empty_ledger, tmp_path / 'ledger.db')}")
    client = AnthropicClient(api_key="sk-test", base_url="http://127.0.0.1:9")
    engine = Engine(endpoint=Endpoint(client=client, timeout_s=TIMEOUT_S), ledger=ledger, policies=ONCE)
    yield engine
    await engine.close()


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """Load the SDK, which takes longer than the timeouts here."""
    AnthropicClient(api_key="sk-test").sdk_client().close()


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def reach(engine: Engine, url: str, **how: object) -> None:
    engine.endpoint = replace(
        engine.endpoint, client=AnthropicClient(**{"api_key": "sk-test", "base_url": url, **how})
    )


async def booked(engine: Engine) -> dict[str, int]:
    """Return how many attempts the ledger has in each state; those without a reply have a cost only if unproven."""
    # A cancelled call is written down later; what is awaited here is written down after it.
    await engine.ledger.record(Saving(scope=SCOPE, model=""))
    columns = (call.c.state, call.c.cost_micro_usd, call.c.ceiling_micro_usd)
    rows = await engine.ledger.read(lambda connection, _: connection.execute(sa.select(*columns)).all())
    for state, cost, ceiling in rows:
        assert cost == (ceiling if state == UNPROVEN else None)
    return {state: sum(row.state == state for row in rows) for state in {row.state for row in rows}}


# The servers.


@dataclass
class Peer:
    """A server on loopback that does one thing with each connection, and counts what reached it."""

    behave: Callable[["Connection"], Awaitable[None]]
    port: int = 0
    began: int = 0  # requests of which at least one byte of the body came
    whole: int = 0  # requests that came whole, which is what a server can charge for
    came: asyncio.Event = field(default_factory=asyncio.Event)  # the first one came whole
    connections: list["Connection"] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self.connections.append(connection)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self.behave(connection)


@dataclass
class Connection:
    peer: Peer
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> int:
        """Read the headers; return the length of the body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        return int(head.split("content-length:")[1].split("\r\n")[0])

    async def body(self, length: int) -> None:
        await self.reader.readexactly(1)
        self.peer.began += 1
        await self.reader.readexactly(length - 1)
        self.peer.whole += 1
        self.peer.came.set()

    async def request(self) -> None:
        await self.body(await self.head())

    def reset(self) -> None:
        """Close the connection with a reset instead of an end."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        lines = {"content-length": str(len(body)), "content-type": "application/json", **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)
        await self.writer.drain()


@contextlib.asynccontextmanager
async def serving(behave: Callable[[Connection], Awaitable[None]]) -> AsyncIterator[Peer]:
    peer = Peer(behave)
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        server.close()
        for connection in peer.connections:
            connection.writer.transport.abort()


async def never_answer(connection: Connection) -> None:
    await connection.request()
    await asyncio.sleep(60)


async def reset_in_the_body(connection: Connection) -> None:
    length = await connection.head()
    await connection.reader.readexactly(length // 2)
    connection.peer.began += 1
    connection.reset()


async def reset_after_the_body(connection: Connection) -> None:
    await connection.request()
    connection.reset()


async def close_after_the_body(connection: Connection) -> None:
    await connection.request()
    connection.writer.close()


async def break_off_the_headers(connection: Connection) -> None:
    await connection.request()
    connection.writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
    await connection.writer.drain()
    connection.writer.close()


async def break_off_the_reply(connection: Connection) -> None:
    await connection.request()
    connection.writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{"model": "cl')
    await connection.writer.drain()
    connection.writer.close()


async def answer_slowly(connection: Connection) -> None:
    await connection.request()
    connection.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n")
    while True:
        connection.writer.write(b" ")
        await asyncio.sleep(0.03)


async def speak_another_protocol(connection: Connection) -> None:
    await connection.request()
    connection.writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await connection.writer.drain()


AFTER_THE_BYTES_LEFT = [
    never_answer,
    reset_in_the_body,
    reset_after_the_body,
    close_after_the_body,
    break_off_the_headers,
    break_off_the_reply,
    answer_slowly,
    speak_another_protocol,
]


# Nothing has left.


@contextlib.contextmanager
def a_port_that_refuses() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def a_full_listen_queue() -> Iterator[str]:
    """A black hole: the kernel drops what asks for a connection, because nobody accepts those before it."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.contextmanager
def a_name_that_does_not_resolve() -> Iterator[str]:
    yield "http://nowhere.invalid"


@pytest.mark.parametrize("max_tokens", [100, 64_000], ids=["plain", "stream"])
@pytest.mark.parametrize("place", [a_port_that_refuses, a_full_listen_queue, a_name_that_does_not_resolve])
async def test_a_connection_that_never_stood_is_free(
    engine: Engine, place: Callable[[], contextlib.AbstractContextManager[str]], max_tokens: int
) -> None:
    with place() as url:
        reach(engine, url)
        with pytest.raises(NetworkError, match="Nothing was sent") as caught:
            # A stream has as long as its tokens take: the black hole would hold it for 53 minutes.
            async with asyncio.timeout(5):
                await engine.ask(asked(max_tokens=max_tokens), make_terms(SCOPE))
    assert not caught.value.billed
    assert await booked(engine) == {FAILED: 1}


async def test_tls_that_never_stood_is_free(engine: Engine) -> None:
    async def speak_plainly(connection: Connection) -> None:
        await connection.reader.read(1)
        connection.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await connection.writer.drain()

    async with serving(speak_plainly) as peer:
        reach(engine, peer.url.replace("http:", "https:"))
        with pytest.raises(NetworkError, match="Nothing was sent"):
            await engine.ask(asked(), make_terms(SCOPE))
    assert await booked(engine) == {FAILED: 1}


@pytest.mark.parametrize("answer", [b"HTTP/1.1 403 Forbidden\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b""])
async def test_a_proxy_that_makes_no_tunnel_is_free(engine: Engine, answer: bytes) -> None:
    """It refuses to connect, says that it connects and does not, or goes away."""

    async def refuse(connection: Connection) -> None:
        assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"CONNECT ")
        connection.writer.write(answer)
        await connection.writer.drain()
        connection.writer.close()

    async with serving(refuse) as proxy:
        reach(engine, "https://api.example", proxy=proxy.url)
        with pytest.raises(NetworkError, match="Nothing was sent"):
            await engine.ask(asked(), make_terms(SCOPE))
    assert await booked(engine) == {FAILED: 1}


async def test_of_three_calls_over_one_socket_the_one_that_was_sent_is_booked(engine: Engine) -> None:
    """The first has the socket, one waits for it until its time is up, and one is cancelled while it waits."""
    async with serving(never_answer) as peer:
        reach(engine, peer.url, max_connections=1)
        engine.endpoint = replace(engine.endpoint, timeout_s=30)
        sent, cancelled = (
            asyncio.create_task(engine.ask(asked(sample=n), make_terms(SCOPE))) for n in range(2)
        )
        await peer.came.wait()
        engine.endpoint = replace(engine.endpoint, timeout_s=TIMEOUT_S)
        with pytest.raises(NetworkError, match="Nothing was sent"):
            await engine.ask(asked(sample=2), make_terms(SCOPE))
        for task in (cancelled, sent):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert (peer.whole, engine.tally.unproven) == (1, 1)
    assert await booked(engine) == {UNPROVEN: 1, FAILED: 2}


# The bytes have left.


@pytest.mark.parametrize("max_tokens", [100, 64_000], ids=["plain", "stream"])
@pytest.mark.parametrize("behave", AFTER_THE_BYTES_LEFT)
async def test_what_was_sent_and_not_answered_is_booked_and_sent_three_times_at_the_most(
    engine: Engine, behave: Callable[[Connection], Awaitable[None]], max_tokens: int
) -> None:
    engine.policies = QUICK
    long = "word " * 400_000 if behave is reset_in_the_body else "word"  # more than the kernel's buffers hold
    async with serving(behave) as peer:
        reach(engine, peer.url)
        request = asked(max_tokens=max_tokens, messages=[{"role": "user", "content": long}])
        asking = asyncio.create_task(engine.ask(request, make_terms(SCOPE)))
        if max_tokens > 100 and behave is answer_slowly:
            # A stream may take an hour, as long as something comes; this one is stopped.
            await peer.came.wait()
            asking.cancel()
        with pytest.raises((NetworkError, asyncio.CancelledError)) as caught:
            await asking
    assert await booked(engine) == {UNPROVEN: peer.began}
    assert peer.began == (3 if caught.type is NetworkError else 1)


async def test_a_connection_that_nobody_accepts_has_taken_the_bytes(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        reach(engine, f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(NetworkError, match="may have charged"):
            await engine.ask(asked(), make_terms(SCOPE))
        peer, _ = listening.accept()
        with peer:
            assert b"What is owed?" in peer.recv(100_000)
    assert await booked(engine) == {UNPROVEN: 1}


async def test_a_reset_before_the_body_is_booked_exactly_if_bytes_had_left(engine: Engine) -> None:
    """The client finds out when it writes or when it reads; it may be told too late that nobody listens."""

    async def reset(connection: Connection) -> None:
        connection.reset()

    async with serving(reset) as peer:
        reach(engine, peer.url)
        for sample in range(20):
            with pytest.raises(NetworkError) as caught:
                await engine.ask(asked(sample=sample), make_terms(SCOPE))
            meaning = "may have charged" if caught.value.billed else "Nothing was sent"
            assert meaning in str(caught.value)
    assert peer.began == 0
    assert sum((await booked(engine)).values()) == 20


# Every answer that is not a reply.


def of_the_api(kind: str, message: str = "no", code: str = "", request_id: str = "req_011") -> bytes:
    error = {"type": kind, "message": message} | ({"details": {"error_code": code}} if code else {})
    body = {"type": "error", "error": error} | ({"request_id": request_id} if request_id else {})
    return json.dumps(body).encode()


async def outcome_of(
    engine: Engine, status: int, body: bytes, *, sample: int = 0, run_id: str = "run-1", **headers: str
) -> tuple[LLMError, Peer]:
    async def answer(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.say(
                status, body, {name.replace("_", "-"): text for name, text in headers.items()}
            )

    async with serving(answer) as peer:
        reach(engine, peer.url)
        terms = make_terms(replace(SCOPE, run_id=run_id), reuse="always")
        with pytest.raises(LLMError) as caught:
            await engine.ask(asked(sample=sample), terms)
        await engine.endpoint.client.close()
    return caught.value, peer


GATEWAY_STATUSES = [301, 307, 400, 401, 402, 403, 404, 405, 407, 408, 409, 413, 422, 499]
GATEWAY_STATUSES += [500, 501, 502, 503, 504, 505, 520, 521, 522, 523, 524, 525, 526, 529, 530, 598, 599]
GATEWAY_STATUSES += [429]  # the last: it slows down what follows


@pytest.mark.parametrize(
    "body",
    [HTML, b"", b'{"message": "away"}', b'{"error": {"type": "overloaded_error", "message": "away"}}'],
    ids=["page", "nothing", "another shape", "half the shape"],
)
async def test_whatever_a_gateway_says_the_api_may_have_run_the_request(engine: Engine, body: bytes) -> None:
    engine.policies = QUICK
    wrong = []
    for status in GATEWAY_STATUSES:
        before = (await booked(engine)).get(UNPROVEN, 0)
        error, peer = await outcome_of(
            engine, status, body, sample=status, request_id="req_of_the_gateway", location="/"
        )
        now = await booked(engine)
        if not (error.billed and 1 <= peer.whole <= 3 and now == {UNPROVEN: before + peer.whole}):
            wrong.append((status, error, peer.whole, now))
    assert wrong == []


@pytest.mark.parametrize("status", [400, 429, 500, 503, 529])
async def test_the_apis_shape_without_a_request_id_proves_nothing(engine: Engine, status: int) -> None:
    error, _ = await outcome_of(engine, status, of_the_api("api_error", request_id=""))
    assert error.billed


@pytest.mark.parametrize(
    ("status", "kind", "message", "code", "expected"),
    [
        (400, "invalid_request_error", "max_tokens: Field required", "", BadRequest),
        (401, "authentication_error", "invalid x-api-key", "", AuthenticationFailed),
        (402, "billing_error", "", "", SpendLimitReached),
        (403, "permission_error", "not for this key", "", AuthenticationFailed),
        (404, "not_found_error", "model: claude-sonet-4-5", "", UnknownModel),
        (404, "not_found_error", "File not found: file_011", "", BadRequest),
        (409, "conflict_error", "again", "", ServerError),
        (413, "request_too_large", "Request exceeds the maximum size", "", TooLong),
        (422, "invalid_request_error", "no", "", BadRequest),
        (429, "rate_limit_error", "Number of requests has exceeded your rate limit", "", RateLimited),
        (429, "rate_limit_error", "Usage grows too fast", "ramp_limit_exceeded", RampLimited),
        (429, "rate_limit_error", "", "enforced_spend_limit_reached", SpendLimitReached),
        (429, "rate_limit_error", "", "contract_spend_limit_reached", SpendLimitReached),
        (529, "overloaded_error", "Overloaded", "", Overloaded),
        (
            400,
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
            "",
            SpendLimitReached,
        ),
        (
            400,
            "invalid_request_error",
            "You have reached your specified API usage limits. You will regain access on 2026-04-01 at 00:00 UTC.",
            "",
            SpendLimitReached,
        ),
        (
            400,
            "invalid_request_error",
            "You have reached your specified workspace API usage limits. You will regain access on 2026-04-01.",
            "",
            SpendLimitReached,
        ),
        (400, "invalid_request_error", "This organization has been disabled.", "", AuthenticationFailed),
        (403, "permission_error", "", "organization_on_hold", AuthenticationFailed),
        (400, "invalid_request_error", "prompt is too long: 250000 tokens > 200000 maximum", "", TooLong),
        (
            400,
            "invalid_request_error",
            "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000, decrease input length",
            "",
            TooLong,
        ),
        (400, "invalid_request_error", "Input is too long for requested model.", "", TooLong),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_refusal_of_the_api_is_free_and_has_its_class(
    engine: Engine, status: int, kind: str, message: str, code: str, expected: type[LLMError]
) -> None:
    # Recorded replies have the id in the body, in the header, or in both.
    where = "header" if status in (401, 429) else "body"
    body = of_the_api(kind, message, code, request_id="req_011" if where == "body" else "")
    error, peer = await outcome_of(
        engine, status, body, **({"request_id": "req_011"} if where == "header" else {})
    )
    assert type(error) is expected
    assert "req_011" in str(error)
    assert not error.billed
    assert peer.whole == 1
    assert await booked(engine) == {FAILED: 1}


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (500, "api_error", ServerError),
        (504, "timeout_error", ServerError),
        (500, "overloaded_error", Overloaded),
        (499, "invalid_request_error", ServerError),
    ],
)
async def test_an_error_on_the_apis_own_side_may_have_been_billed(
    engine: Engine, status: int, kind: str, expected: type[LLMError]
) -> None:
    engine.policies = QUICK
    error, peer = await outcome_of(engine, status, of_the_api(kind))
    assert type(error) is expected
    assert peer.whole == 3
    assert await booked(engine) == {UNPROVEN: 3}


async def test_an_overloaded_api_is_asked_as_often_as_its_policy_says(engine: Engine) -> None:
    engine.policies = QUICK
    _, peer = await outcome_of(engine, 529, of_the_api("overloaded_error"))
    assert peer.whole == DEFAULT_POLICIES["overloaded"].attempts
    assert await booked(engine) == {FAILED: peer.whole}


@pytest.mark.parametrize("body", [b"", b"{}", HTML, b"null", b'{"type": "message"}', b"[]"])
async def test_a_200_that_is_no_reply_is_booked_and_sent_three_times_at_the_most(
    engine: Engine, body: bytes
) -> None:
    engine.policies = QUICK
    error, peer = await outcome_of(engine, 200, body)
    assert type(error) is NetworkError
    assert peer.whole == 3
    assert await booked(engine) == {UNPROVEN: 3}


async def test_how_often_an_unproven_call_is_sent_can_be_set(engine: Engine) -> None:
    engine.policies = QUICK | {"server": RetryPolicy(attempts=9, billed_attempts=5, first_wait_s=0)}
    _, peer = await outcome_of(engine, 500, HTML)
    assert peer.whole == 5


# Error events inside a stream.


def event(data: dict) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 1},
    },
}


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        ("overloaded_error", "", Overloaded),
        ("rate_limit_error", "", RateLimited),
        ("rate_limit_error", "ramp_limit_exceeded", RampLimited),
        ("api_error", "", ServerError),
        ("timeout_error", "", ServerError),
        ("invalid_request_error", "", BadRequest),
        ("something_new", "", ServerError),
    ],
)
async def test_an_error_event_inside_a_stream_keeps_its_class_and_may_have_been_billed(
    engine: Engine, kind: str, code: str, expected: type[LLMError], begun: bool
) -> None:
    body = (event(START) if begun else b"") + b"event: error\ndata: " + of_the_api(kind, code=code) + b"\n\n"
    error, peer = await outcome_of(engine, 200, body, content_type="text/event-stream", request_id="req_011")
    assert type(error) is expected
    assert await booked(engine) == {UNPROVEN: peer.whole} == {UNPROVEN: 1}


async def test_a_filter_that_stops_a_stream_is_booked_at_the_most_and_not_asked_again(engine: Engine) -> None:
    blocked = of_the_api("invalid_request_error", "Output blocked by content filtering policy")
    body = event(START) + b"event: error\ndata: " + blocked + b"\n\n"
    for night in ("one", "two"):
        error, peer = await outcome_of(engine, 200, body, run_id=night, content_type="text/event-stream")
        assert isinstance(error, Refused)
        assert peer.whole == (1 if night == "one" else 0)
    # A ceiling also counts the dearest geography.
    most = ceiling_micro_usd(asked())
    assert most is not None
    assert 0.9 * most <= engine.tally.paid_micro_usd <= most


# Servers that stream, or do not, whatever they are asked.


def streamed(text: str) -> bytes:
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
    stop = [{"type": "content_block_stop", "index": 0}, end, {"type": "message_stop"}]
    return b"".join(map(event, [START, block, delta, *stop]))


def plain(text: str) -> bytes:
    content = [{"type": "text", "text": text}]
    return json.dumps(START["message"] | {"content": content, "stop_reason": "end_turn"}).encode()


@pytest.mark.parametrize("max_tokens", [100, 64_000], ids=["asked for JSON", "asked for a stream"])
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (streamed("Forty."), "text/event-stream; charset=utf-8"),
        (streamed("Forty."), "application/json"),
        (streamed("Forty."), "text/plain"),
        (plain("Forty."), "application/json"),
        (plain("Forty."), "text/plain"),
    ],
    ids=lambda value: (
        "streams" if value == streamed("Forty.") else "JSON" if value == plain("Forty.") else value
    ),
)
async def test_a_reply_is_taken_whether_it_is_streamed_or_not(
    engine: Engine, max_tokens: int, kind: str, body: bytes
) -> None:
    async def answer(connection: Connection) -> None:
        await connection.request()
        await connection.say(200, body, {"content-type": kind})

    async with serving(answer) as peer:
        reach(engine, peer.url)
        reply = await engine.ask(asked(max_tokens=max_tokens), make_terms(SCOPE))
    assert (reply.value, peer.whole) == ("Forty.", 1)
