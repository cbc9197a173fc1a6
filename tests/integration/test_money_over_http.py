"""What the ledger books is what the stand-in charges: geography, speed, fees, fallbacks and iterations over HTTP."""

import base64
from pathlib import Path
from typing import Any

import pytest
from fpdf import FPDF

from airflow_llm_provider.documents.reader import ceiling_of_blocks
from airflow_llm_provider.engine.ceiling import ceiling_micro_usd
from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import BadRequest
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.testing.standin import StandIn
from airflow_llm_provider.testing.wire import Reply, ServerSteps
from tests.support.books import balance
from tests.support.terms import make_terms

SCOPE = CallScope(dag_id="nightly", run_id="run-1", task_id="ask", trace_id="0" * 32)
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
FETCH = {"type": "web_fetch_20250910", "name": "web_fetch", "max_uses": 2}
ADVISOR = {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-5-5"}
ADVISOR |= {"max_uses": 2, "max_tokens": 2_048}
COMPACT = {"context_management": {"edits": [{"type": "compact_20260112"}]}}
LONG = 25_000  # above this a reply is streamed

CASES: dict[str, tuple[str, dict[str, Any], ServerSteps, str]] = {
    "plain": ("claude-sonnet-5-5", {}, ServerSteps(), "global"),
    "us, stated": ("claude-sonnet-5-5", {"inference_geo": "us"}, ServerSteps(), "global"),
    "us, by the workspace": ("claude-haiku-5-5", {}, ServerSteps(), "us"),
    "global in a us workspace": ("claude-haiku-5-5", {"inference_geo": "global"}, ServerSteps(), "us"),
    "an old model in a us workspace": ("claude-sonnet-4-5", {}, ServerSteps(), "us"),
    "fast": ("claude-opus-5-5", {"speed": "fast"}, ServerSteps(), "global"),
    "fast in the us": ("claude-opus-5-5", {"speed": "fast"}, ServerSteps(), "us"),
    "web": ("claude-sonnet-5-5", {"tools": [SEARCH, FETCH]}, ServerSteps(searches=3, fetches=1), "us"),
    "a fallback answers": (
        "claude-opus-5-5", {"fallbacks": [{"model": "claude-haiku-5-5"}]}, ServerSteps(fallbacks=1), "global",
    ),
    "the second fallback answers": (
        "claude-opus-5-5",
        {"fallbacks": [{"model": "claude-haiku-5-5"}, {"model": "claude-sonnet-5-5"}]},
        ServerSteps(fallbacks=2),
        "us",
    ),
    "a fast model declines": (
        "claude-opus-5-5",
        {"speed": "fast", "fallbacks": [{"model": "claude-haiku-5-5"}]},
        ServerSteps(fallbacks=1),
        "global",
    ),
    "an advisor": ("claude-haiku-5-5", {"tools": [ADVISOR]}, ServerSteps(advice_tokens=(700, 2_048)), "us"),
    "a compaction": ("claude-sonnet-5-5", COMPACT, ServerSteps(summary_tokens=3_500), "global"),
    "all at once": (
        "claude-opus-5-5",
        {"speed": "fast", "tools": [SEARCH, FETCH, ADVISOR], **COMPACT},
        ServerSteps(searches=2, fetches=2, advice_tokens=(50,), summary_tokens=900),
        "us",
    ),
}  # fmt: skip


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def engine_for(server: StandIn, ledger_url: str) -> Engine:
    client = AnthropicClient(api_key="sk-test", base_url=server.url)
    endpoint = Endpoint(client=client, address=client.endpoint, connection_id="claude")
    return Engine(endpoint=endpoint, ledger=Ledger(ledger_url))


@pytest.mark.parametrize("max_tokens", [1_000, LONG], ids=["json", "stream"])
@pytest.mark.parametrize("case", CASES)
async def test_what_is_booked_is_on_the_invoice_and_was_reserved(
    ledger_url: str, case: str, max_tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, fields, steps, workspace = CASES[case]
    request = Request(
        model=model,
        messages=[{"role": "user", "content": "What was agreed? " * 50}],
        max_tokens=max_tokens,
        extra=fields,
    )
    async with StandIn(workspace_geo=workspace) as server:
        server.reply(call=lambda _: Reply(text="It was agreed to pay in May.", steps=steps))
        engine = engine_for(server, ledger_url)
        try:
            reply = await engine.ask(request, make_terms(SCOPE))
        finally:
            await engine.close()
        books = balance(ledger_url, server.invoice)
    [line] = server.invoice.lines
    assert (books.paid, books.unproven) == (1, 0)
    assert reply.cost_micro_usd == books.cost_micro_usd == line.cost_micro_usd
    assert (reply.cost_micro_usd or 0) <= (ceiling_micro_usd(request) or 0)
    assert "reserved" not in caplog.text
    assert "known price" not in caplog.text


@pytest.mark.parametrize(
    ("steps", "fields"),
    [
        (ServerSteps(searches=4), {"tools": [SEARCH]}),
        (ServerSteps(fallbacks=1), {}),
        (ServerSteps(advice_tokens=(1,)), {}),
        (ServerSteps(summary_tokens=1), {}),
        (ServerSteps(), {"inference_geo": "eu"}),
        (ServerSteps(), {"speed": "fast"}),
    ],
)
async def test_the_stand_in_refuses_what_the_request_does_not_allow(
    ledger_url: str, steps: ServerSteps, fields: dict[str, Any]
) -> None:
    request = Request(model="claude-haiku-5-5", messages=[{"role": "user", "content": "?"}], extra=fields)
    async with StandIn() as server:
        server.reply(call=lambda _: Reply(text="Fine.", steps=steps))
        engine = engine_for(server, ledger_url)
        try:
            with pytest.raises(BadRequest):
                await engine.ask(request, make_terms(SCOPE))
        finally:
            await engine.close()
    assert server.invoice.paid == 0


async def test_a_page_full_of_text_was_reserved_as_such(ledger_url: str) -> None:
    pdf = FPDF()
    pdf.set_auto_page_break(False)
    pdf.add_page()
    pdf.set_font("helvetica", size=1)
    for _ in range(400):
        pdf.cell(text="word " * 500)
    data = base64.b64encode(pdf.output()).decode()
    block = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is agreed?"}, block]}]
    bound = ceiling_of_blocks(messages)
    request = Request(model="claude-opus-5-5", messages=messages, max_tokens=100, input_ceiling=bound)
    async with StandIn() as server:
        engine = engine_for(server, ledger_url)
        try:
            reply = await engine.ask(request, make_terms(SCOPE))
        finally:
            await engine.close()
        books = balance(ledger_url, server.invoice)
    [line] = server.invoice.lines
    assert line.input_tokens > 200_000
    assert line.input_tokens <= bound
    assert reply.cost_micro_usd == books.cost_micro_usd
    assert (reply.cost_micro_usd or 0) <= (ceiling_micro_usd(request) or 0)
