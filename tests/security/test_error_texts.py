"""Whatever a server, a proxy or a database says, no error, log or repr of ours repeats a secret."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.testing.exchanges import SCRUBBED, Recording
from airflow_llm_provider.testing.standin import StandIn

KEY = "sk-ant-planted-Quaggakey0001"
WORD = "planted-Proxyword"
QUESTION = Request(model="claude-haiku-5-5", max_tokens=50, messages=[{"role": "user", "content": "Hello?"}])


def of_the_api(request: bytes) -> bytes:
    return json.dumps({"type": "error", "error": {"type": "api_error", "message": request.decode()}}).encode()


def of_another_shape(request: bytes) -> bytes:
    return json.dumps({"headers": request.decode(), "error": request.decode()}).encode()


def a_page(request: bytes) -> bytes:
    return b"<html><pre>" + request + b"</pre></html>"


@asynccontextmanager
async def echoing(status: int, body: Callable[[bytes], bytes], headers: bool) -> AsyncIterator[str]:
    """Serve `status` for everything, with what was asked in the body, and in a header."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = body(await reader.readuntil(b"\r\n\r\n"))
        extra = f"request-id: {KEY}\r\nx-request-id: {KEY}\r\n" if headers else ""
        head = f"HTTP/1.1 {status} {KEY}\r\ncontent-type: application/json\r\n{extra}connection: close\r\n"
        writer.write(f"{head}content-length: {len(said)}\r\n\r\n".encode() + said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def chain(error: BaseException | None) -> str:
    """Return all that a traceback of the error would print of it and its causes."""
    said = ""
    while error is not None:
        said += f"{error!r} {error} {vars(error)}\n"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return said


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("body", [of_the_api, of_another_shape, a_page])
@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 413, 429, 500, 502, 529])
async def test_a_server_that_repeats_the_key_is_not_repeated(
    status: int, body: Callable[[bytes], bytes], headers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # The SDK's transport logs status lines at INFO, which Connection.engine turns off.
    caplog.set_level(logging.WARNING)
    async with echoing(status, body, headers) as url:
        client = AnthropicClient(api_key=KEY, base_url=url)
        said = ""
        try:
            for ask in (
                client.models,
                lambda: client.send(QUESTION, timeout_s=5, on_first_byte=int, on_headers=lambda _: None),
            ):
                try:
                    await ask()
                except LLMError as error:
                    said += chain(error)
        finally:
            await client.close()
    assert said or status == 200
    assert KEY not in said + caplog.text


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", [407, 502])
async def test_a_proxy_that_refuses_is_named_without_its_password(status: int, scheme: str) -> None:
    async with echoing(status, a_page, headers=False) as url:
        proxy = url.replace("http://", f"http://someone:{WORD}@")
        client = AnthropicClient(api_key=KEY, base_url=f"{scheme}://api.example", proxy=proxy)
        try:
            with pytest.raises(LLMError) as refused:
                await client.send(QUESTION, timeout_s=5, on_first_byte=int, on_headers=lambda _: None)
        finally:
            await client.close()
    assert WORD not in chain(refused.value)
    assert WORD not in repr(client)
    assert KEY not in repr(client)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://someone:{WORD}@127.0.0.1:1/ledger",
        f"postgresql://someone@127.0.0.1:1/ledger?password={WORD}",
        f"postgresql://someone@127.0.0.1:1/ledger?sslpassword={WORD}&sslmode=disable",
        f"postgresql://someone:{WORD}@127.0.0.1:1/ledger?no_such_option=1",
        f"postgresql://someone:{WORD}@127.0.0.1:no_port/ledger",
        f"mysql://someone:{WORD}@127.0.0.1/ledger",
        f"{WORD}",
    ],
)
def test_a_ledger_that_can_not_be_used_is_named_without_its_password(url: str) -> None:
    with pytest.raises(LLMError) as refused:
        Ledger(url, deadline_s=0.1)
    said = f"{refused.value} {vars(refused.value)}"
    assert WORD not in said
    assert refused.value.args


def test_the_url_that_is_shown_has_neither_password_nor_options() -> None:
    database = Database(
        f"postgresql://someone:{quote(WORD)}@db.example/ledger?password={WORD}&sslmode=require"
    )
    assert database.shown_url == "postgresql+psycopg://someone:***@db.example/ledger"


async def test_a_recorded_exchange_has_no_key_in_it(tmp_path: Path) -> None:
    async with StandIn() as upstream:
        recording = Recording(tmp_path / "exchanges.jsonl", upstream=upstream.url)
        async with StandIn(exchanges=recording) as server:
            client = AnthropicClient(api_key=KEY, base_url=server.url)
            asked = Request(
                model="claude-haiku-5-5",
                max_tokens=50,
                messages=[{"role": "user", "content": f"My key is {KEY}"}],
            )
            await client.send(asked, timeout_s=5, on_first_byte=int, on_headers=lambda _: None)
            await client.close()
    recorded = (tmp_path / "exchanges.jsonl").read_text()
    assert KEY not in recorded
    assert SCRUBBED in recorded


def test_a_field_of_a_connection_that_is_not_valid_is_named_and_not_repeated() -> None:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowFailException

    from airflow_llm_provider.hooks import connection as connections

    def read(**fields: Any) -> connections.Connection:
        extra = {"ledger_url": f"postgresql://x:{WORD}@db/ledger", **fields.pop("extra", {})}
        connection = {"conn_id": "claude_default", "conn_type": "claude", "password": KEY, **fields}
        return connections.Connection.of(Connection(**connection, extra=json.dumps(extra)), "claude_default")

    for proxy in (
        f"someone:{WORD}@proxy:3128",
        f"ftp://someone:{WORD}@proxy:3128",
        f"http://someone:{WORD}#x@proxy:3128",
        f"http://someone:{WORD}@[proxy",
        f"http://someone:{WORD}@proxy:port",
    ):
        with pytest.raises(AirflowFailException, match="its proxy should be") as wrong:
            read(extra={"proxy": proxy})
        assert WORD not in chain(wrong.value)
    for host in (f"http://someone:{WORD}@gateway.example", f"http://someone:{WORD}@[gateway"):
        with pytest.raises((AirflowFailException, ValueError)) as wrong_host:
            read(host=host)
        assert WORD not in chain(wrong_host.value)
    sound = read(extra={"proxy": f"http://someone:{WORD}@proxy:3128"})
    assert WORD not in repr(sound)
    assert KEY not in repr(sound)
