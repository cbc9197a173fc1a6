"""The engine over the real SDK and real HTTP: every class of fault, and books that balance after each."""

import asyncio
import contextlib
import datetime as dt
import email.utils
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pydantic
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from airflow_llm_provider.engine.client import AnthropicClient, Client, HeaderCallback
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import DEFAULT_POLICIES, RetryPolicy
from airflow_llm_provider.engine.tool_loop import Toolbox
from airflow_llm_provider.errors import (
    AuthenticationFailed,
    BadRequest,
    BudgetExceeded,
    LLMError,
    NetworkError,
    Overloaded,
    RateLimited,
    Refused,
    RetryableError,
    ServerError,
    SpendLimitReached,
    TooLong,
    Truncated,
    UnknownModel,
)
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.testing import wire
from airflow_llm_provider.testing.standin import StandIn
from airflow_llm_provider.tools import by_name
from tests.support.books import balance
from tests.support.forks import in_a_child
from tests.support.terms import make_terms

SCOPE = CallScope(dag_id="nightly", run_id="run-1", task_id="ask", trace_id="0" * 32)
QUICK = DEFAULT_POLICIES | {
    kind: RetryPolicy(attempts=3, first_wait_s=0.01, max_wait_s=0.02)
    for kind in ("network", "rate_limit", "overloaded", "server")
}


class Fact(pydantic.BaseModel):
    date: str = pydantic.Field(description="the date of the agreement")
    amount: str = pydantic.Field(description="the amount of money")


DOCUMENT = "This agreement of March 4, 2026 obliges the buyer to pay $1,250.00 to the seller, number {n}."


def about(n: int = 0, **fields: object) -> Request:
    block = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": DOCUMENT.format(n=n)},
    }
    asked = {"type": "text", "text": "What was agreed?"}
    return Request(
        **{
            "model": "claude-haiku-5-5",
            "messages": [{"role": "user", "content": [asked, block]}],
            "schema": OutputType(Fact).schema,
            "max_tokens": 500,
            **fields,
        }
    )


class Garbling:
    """Something between us and the API that writes `odd` into the first reply it sees."""

    def __init__(self, api: Client, odd: dict) -> None:
        self.api, self.odd = api, odd

    async def send(
        self,
        request: Request,
        *,
        timeout_s: float,
        on_first_byte: Callable[[], object],
        on_headers: HeaderCallback,
    ) -> bytes:
        raw = await self.api.send(
            request, timeout_s=timeout_s, on_first_byte=on_first_byte, on_headers=on_headers
        )
        reply = orjson.loads(raw)
        odd, self.odd = self.odd, {}
        return orjson.dumps(reply | odd | {"usage": reply["usage"] | odd.get("usage", {})})

    async def count_tokens(self, request: Request, *, timeout_s: float) -> int:
        return await self.api.count_tokens(request, timeout_s=timeout_s)

    async def close(self) -> None:
        await self.api.close()


@contextlib.asynccontextmanager
async def in_the_apis_place(engine: Engine, response: web.Response) -> AsyncIterator[list[web.Request]]:
    """Let a server that always says the same answer the engine; yields the requests it gets."""
    got: list[web.Request] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        got.append(request)
        return web.Response(status=response.status, body=response.body, headers=response.headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        engine.endpoint = replace(
            engine.endpoint, client=AnthropicClient(api_key="sk-x", base_url=str(server.make_url("")))
        )
        yield got
        await engine.endpoint.client.close()


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
async def engine(claude_server: StandIn, ledger_url: str) -> AsyncIterator[Engine]:
    client = AnthropicClient(api_key="sk-ant-planted-key", base_url=claude_server.url)
    engine = Engine(endpoint=Endpoint(client=client, timeout_s=5), ledger=Ledger(ledger_url), policies=QUICK)
    yield engine
    await engine.close()
    balance(ledger_url, claude_server.invoice)


async def test_a_structured_answer_comes_back_validated(engine: Engine) -> None:
    reply = await engine.ask(about(), make_terms(SCOPE, output=OutputType(Fact)))
    assert reply.value == Fact(date="March 4, 2026", amount="$1,250.00")


async def test_a_thousand_questions_are_each_paid_once(engine: Engine, claude_server: StandIn) -> None:
    claude_server.validate = False
    for _ in range(2):
        outcomes: list[object] = []
        await engine.map(
            (about(n) for n in range(1000)),
            lambda _, outcome, outcomes=outcomes: outcomes.append(outcome),
            make_terms(SCOPE, output=OutputType(Fact)),
            max_in_flight=128,
        )
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert claude_server.invoice.paid == 1000


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"status": 429, "retry_after": 0.01}, RateLimited),
        ({"status": 529}, Overloaded),
        ({"status": 500}, ServerError),
        ({"status": 504}, ServerError),
        ({"status": 400}, BadRequest),
        ({"status": 404}, UnknownModel),
        ({"status": 413}, TooLong),
        ({"status": 400, "message": "prompt is too long: 250000 tokens > 200000 maximum"}, TooLong),
        ({"status": 401}, AuthenticationFailed),
        ({"status": 403}, AuthenticationFailed),
        ({"status": 402}, SpendLimitReached),
        ({"status": 429, "error_code": "enforced_spend_limit_reached"}, SpendLimitReached),
        ({"kind": "drop"}, NetworkError),
        ({"kind": "refusal"}, Refused),
        ({"kind": "max_tokens"}, Truncated),
        ({"kind": "pause_turn"}, Truncated),
        ({"kind": "model_context_window_exceeded"}, Truncated),
    ],
)
async def test_every_fault_is_told_by_its_class(
    engine: Engine, claude_server: StandIn, fault: dict, error: type[LLMError]
) -> None:
    claude_server.fail(**fault)
    with pytest.raises(error) as caught:
        await engine.ask(about(), make_terms(SCOPE, output=OutputType(Fact)))
    assert "planted-key" not in str(caught.value)
    retried = issubclass(error, RetryableError)
    assert claude_server.seen == (QUICK[error.kind].attempts if retried else 1)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "retry_after": 0.01},
        {"status": 529},
        {"status": 500},
        {"kind": "drop"},
        {"kind": "slow"},
    ],
)
async def test_a_passing_fault_costs_nothing_but_time(
    engine: Engine, claude_server: StandIn, fault: dict
) -> None:
    claude_server.fail(times=2, **fault)
    reply = await engine.ask(about(), make_terms(SCOPE, output=OutputType(Fact)))
    assert reply.value.amount == "$1,250.00"


@pytest.mark.parametrize("kind", ["truncated_json", "wrong_shape"])
async def test_an_answer_of_the_wrong_shape_is_repaired(
    engine: Engine, claude_server: StandIn, kind: str
) -> None:
    claude_server.fail(kind=kind, times=1)
    reply = await engine.ask(about(), make_terms(SCOPE, output=OutputType(Fact), max_repairs=2))
    assert reply.repairs == 1
    assert claude_server.invoice.paid == 2


async def test_an_answer_among_prose_is_found_and_nothing_is_paid_for_that(
    engine: Engine, claude_server: StandIn
) -> None:
    claude_server.fail(kind="prose", times=1)
    reply = await engine.ask(about(), make_terms(SCOPE, output=OutputType(Fact), max_repairs=2))
    assert reply.value.amount == "$1,250.00"
    assert claude_server.invoice.paid == 1


async def test_a_server_that_hangs_is_left_after_the_time_out(engine: Engine, claude_server: StandIn) -> None:
    engine.endpoint = replace(engine.endpoint, timeout_s=0.3)
    claude_server.fail(kind="hang", times=1)
    reply = await engine.ask(about(), make_terms(SCOPE, output=OutputType(Fact)))
    assert reply.attempts == 2


async def test_a_server_that_is_not_there_is_named_and_nothing_is_booked(
    engine: Engine, claude_server: StandIn
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    engine.endpoint = replace(
        engine.endpoint, client=AnthropicClient(api_key="sk-ant-x", base_url=f"http://127.0.0.1:{port}")
    )
    with pytest.raises(NetworkError, match=f"127.0.0.1:{port}") as caught:
        await engine.ask(about(), make_terms(SCOPE, output=OutputType(Fact)))
    assert not caught.value.billed
    assert engine.tally.unproven == 0


async def test_cancelling_in_mid_call_leaves_books_that_balance(
    engine: Engine, claude_server: StandIn
) -> None:
    claude_server.latency_s = 0.5
    answered, tenth = [], asyncio.Event()

    def heard(*answer: object) -> None:
        answered.append(answer)
        if len(answered) == 10:
            tenth.set()

    asking = asyncio.create_task(
        engine.map((about(n) for n in range(40)), heard, make_terms(SCOPE), max_in_flight=10)
    )
    await tenth.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert 10 <= engine.tally.requests < 40


async def test_a_long_answer_streams_under_the_hood(engine: Engine, claude_server: StandIn) -> None:
    claude_server.reply(text="word " * 10_000)
    reply = await engine.ask(about(max_tokens=64_000, schema=None), make_terms(SCOPE))
    assert reply.value == "word " * 10_000
    assert claude_server.requests[-1]["stream"] is True


async def test_a_long_answer_that_breaks_off_is_asked_again(engine: Engine, claude_server: StandIn) -> None:
    claude_server.fail(kind="drop", times=1)
    reply = await engine.ask(about(max_tokens=64_000), make_terms(SCOPE, output=OutputType(Fact)))
    assert reply.attempts == 2


@pytest.mark.parametrize("max_tokens", [500, 64_000])
async def test_half_of_a_surrogate_pair_is_paid_once_and_repaired(
    engine: Engine, claude_server: StandIn, max_tokens: int
) -> None:
    claude_server.reply(text="a smile")
    claude_server.reply(text="half a smile: \ud83d", times=1)
    asked = about(max_tokens=max_tokens, schema=None)
    reply = await engine.ask(asked, make_terms(SCOPE, max_repairs=1))
    assert (reply.value, reply.repairs) == ("a smile", 1)
    assert claude_server.seen == claude_server.invoice.paid == 2


@pytest.mark.parametrize("max_tokens", [500, 64_000])
async def test_an_answer_that_the_content_filter_kept_back_is_not_asked_again(
    engine: Engine, claude_server: StandIn, max_tokens: int
) -> None:
    claude_server.fail(400, message="Output blocked by content filtering policy")
    for night in ("one", "two"):
        scope = replace(SCOPE, run_id=night)
        with pytest.raises(Refused, match="content filter"):
            await engine.ask(about(max_tokens=max_tokens), make_terms(scope, reuse="always"))
    assert claude_server.seen == 1
    claude_server.heal()
    asked_anew = make_terms(SCOPE, reuse="always", retry_dead=True, output=OutputType(Fact))
    assert (await engine.ask(about(max_tokens=max_tokens), asked_anew)).value.amount == "$1,250.00"


@pytest.mark.parametrize("max_tokens", [500, 64_000])
@pytest.mark.parametrize("status", [500, 502, 503, 520, 521, 522, 529])
async def test_what_a_gateway_hides_is_booked_and_stays_below_the_ceilings(
    engine: Engine, claude_server: StandIn, ledger_url: str, status: int, max_tokens: int
) -> None:
    claude_server.fail(status, kind="gateway", billed=True)
    with pytest.raises(RetryableError):
        await engine.ask(about(max_tokens=max_tokens), make_terms(SCOPE))
    assert claude_server.invoice.paid == 3
    books = balance(ledger_url, claude_server.invoice)
    assert (books.unproven, books.lost) == (3, 3)
    assert books.lost_micro_usd <= books.ceiling_micro_usd


async def test_a_gateway_that_bills_what_it_fails_cannot_spend_more_than_the_budget(
    engine: Engine, claude_server: StandIn
) -> None:
    cap_micro_usd = 12_000
    claude_server.fail(503, kind="gateway", billed=True)
    scope = replace(SCOPE, budget_micro_usd=cap_micro_usd)
    outcomes: list[object] = []
    await engine.map(
        (about(n) for n in range(40)),
        lambda _, outcome: outcomes.append(outcome),
        make_terms(scope, output=OutputType(Fact)),
        max_in_flight=4,
    )
    assert {type(outcome) for outcome in outcomes} == {ServerError, BudgetExceeded}
    assert 0 < sum(line.cost_micro_usd for line in claude_server.invoice.lines) <= cap_micro_usd


async def test_growth_that_is_too_fast_slows_down_and_fails_nothing(
    engine: Engine, claude_server: StandIn
) -> None:
    claude_server.fail(429, error_code="ramp_limit_exceeded", retry_after=0.05, times=6)
    engine.policies = QUICK | {"rate_limit": replace(QUICK["rate_limit"], attempts=50)}
    outcomes: list[object] = []
    await engine.map(
        (about(n) for n in range(20)),
        lambda _, outcome: outcomes.append(outcome),
        make_terms(SCOPE, output=OutputType(Fact)),
        max_in_flight=10,
    )
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert (claude_server.seen, claude_server.invoice.paid) == (26, 20)


async def test_a_blank_text_between_tool_calls_is_not_sent_back(
    engine: Engine, claude_server: StandIn
) -> None:
    def look_up(name: str) -> str:
        """Look up a name.

        Args:
            name: whose.
        """
        return ""

    use = (wire.ToolUse(name="look_up", input={"name": "ACME"}),)
    claude_server.reply(call=lambda _: wire.Reply(text="\n\n", tool_use=use), turn=0)
    claude_server.reply(text="Nothing is known.", turn=1)
    tools = by_name([look_up])
    asked = about(schema=None, tools=[tool.definition for tool in tools.values()])
    reply = await engine.ask(asked, make_terms(SCOPE, toolbox=Toolbox(tools=tools)))
    assert reply.value == "Nothing is known."
    assert [block["type"] for block in claude_server.requests[-1]["messages"][1]["content"]] == ["tool_use"]


async def test_another_endpoint_is_another_answer(engine: Engine, claude_server: StandIn) -> None:
    await engine.ask(about(endpoint="anthropic https://api.anthropic.com"), make_terms(SCOPE, reuse="always"))
    await engine.ask(about(endpoint=f"anthropic {claude_server.url}"), make_terms(SCOPE, reuse="always"))
    assert claude_server.invoice.paid == 2


async def test_the_shared_prefix_is_written_to_the_cache_once_and_read_by_the_rest(
    engine: Engine, claude_server: StandIn
) -> None:
    instructions = {"type": "text", "text": "Look for dates and amounts of money. " * 200}
    requests = [
        about(
            messages=[{"role": "user", "content": [instructions, {"type": "text", "text": f"{n}"}]}],
            shared_blocks=1,
        )
        for n in range(20)
    ]
    await engine.map(requests, lambda *_: None, make_terms(SCOPE), max_in_flight=20)
    lines = claude_server.invoice.lines
    assert sum(line.cache_write_5m_tokens > 0 for line in lines) == 1
    assert sum(line.cache_read_tokens > 0 for line in lines) == 19


async def test_what_can_not_be_sent_is_not_booked(engine: Engine, claude_server: StandIn) -> None:
    engine.endpoint = replace(
        engine.endpoint,
        client=AnthropicClient(api_key="sk-x", base_url=claude_server.url, ca_bundle="/no/such/file.pem"),
    )
    with pytest.raises(BadRequest, match=r"/no/such/file.pem"):
        await engine.ask(about(), make_terms(SCOPE, output=OutputType(Fact)))
    assert (claude_server.seen, engine.tally.unproven) == (0, 0)


async def test_a_dict_of_the_models_own_keys_is_refused_rather_than_always_empty(
    engine: Engine, claude_server: StandIn
) -> None:
    schema = OutputType(dict[str, int]).schema
    with pytest.raises(BadRequest, match=r"^output_type is a dict .* list of entries"):
        await engine.ask(about(schema=schema), make_terms(SCOPE, output=OutputType(dict[str, int])))
    assert claude_server.seen == 0


async def test_a_schema_with_several_types_in_one_place_can_be_asked_for(
    engine: Engine, claude_server: StandIn
) -> None:
    schema = {"type": "object", "properties": {"date": {"type": ["string", "null"]}}, "required": ["date"]}
    output = OutputType(schema | {"additionalProperties": False})
    assert (await engine.ask(about(schema=output.schema), make_terms(SCOPE, output=output))).value["date"]


async def test_a_key_that_a_server_repeats_goes_no_further(engine: Engine, claude_server: StandIn) -> None:
    claude_server.fail(400, message="bad token sk-ant-planted-key")
    with pytest.raises(BadRequest) as caught:
        await engine.ask(about(), make_terms(SCOPE))
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "odd",
    [
        {"usage": {"input_tokens": "ten"}},
        {"usage": {"input_tokens": 10.5}},
        {"usage": {"output_tokens": -10}},
        {"usage": {"cache_read_input_tokens": 2**63}},
        {"usage": {"cache_creation": {"ephemeral_1h_input_tokens": 10}}},
        {"stop_reason": {"type": "end_turn"}},
        {"model": None},
        {"content": [{"type": "tool_use", "id": 1, "name": "look_up", "input": {}}]},
    ],
    ids=str,
)
async def test_a_reply_that_can_not_be_counted_is_booked_and_costs_the_others_nothing(
    engine: Engine, claude_server: StandIn, ledger_url: str, odd: dict
) -> None:
    engine.endpoint = replace(engine.endpoint, client=Garbling(engine.endpoint.client, odd))
    outcomes: list[object] = []
    await engine.map(
        (about(n) for n in range(20)),
        lambda _, outcome: outcomes.append(outcome),
        make_terms(SCOPE, output=OutputType(Fact)),
        max_in_flight=20,
    )
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
    assert claude_server.invoice.paid == 21
    books = balance(ledger_url, claude_server.invoice)
    assert (books.paid, books.unproven, books.lost) == (20, 1, 1)


@pytest.mark.parametrize("asked", ["inf", "nan", "1e300", "86400", "soon"])
@pytest.mark.parametrize("status", [429, 503])
async def test_no_server_silences_a_connection_for_longer_than_an_hour(
    engine: Engine, status: int, asked: str
) -> None:
    async with in_the_apis_place(engine, web.Response(status=status, headers={"retry-after": asked})):
        for _ in range(2):  # told, and heard of
            with pytest.raises(RetryableError) as caught:
                await engine.ask(about(), make_terms(SCOPE))
            assert (caught.value.retry_after_s or 0) <= 3600


@pytest.mark.parametrize(("in_s", "waited_s"), [(120, 120), (86_400, 3600), (-60, 0)])
async def test_a_retry_after_may_be_a_date(engine: Engine, in_s: float, waited_s: float) -> None:
    engine.endpoint = replace(engine.endpoint, deadline_s=1)
    date = email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=in_s), usegmt=True)
    async with in_the_apis_place(engine, web.Response(status=529, headers={"retry-after": date})):
        with pytest.raises(Overloaded) as caught:
            await engine.ask(about(), make_terms(SCOPE))
    assert caught.value.retry_after_s == pytest.approx(waited_s, abs=3)


@pytest.mark.parametrize("max_tokens", [500, 64_000])
@pytest.mark.parametrize("status", [302, 307])
async def test_no_document_follows_a_redirect(
    engine: Engine, claude_server: StandIn, status: int, max_tokens: int
) -> None:
    elsewhere = web.Response(status=status, headers={"location": f"{claude_server.url}/v1/messages"})
    async with in_the_apis_place(engine, elsewhere) as got:
        with pytest.raises(BadRequest, match=rf"HTTP {status}: .*host, proxy and key") as caught:
            await engine.ask(about(max_tokens=max_tokens), make_terms(SCOPE))
    assert not isinstance(caught.value, UnknownModel)
    # What stands there is not the API, and nobody knows what it did with the document.
    assert (len(got), claude_server.seen, engine.tally.unproven) == (1, 0, 1)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (413, b"", "HTTP 413: no reason given"),
        (407, b"<html>", "HTTP 407: no reason given. Something between"),
        (400, b'{"error": {"type": 5, "message": {"odd": 1}}}', "HTTP 400: no reason given"),
        (400, b'{"message": "Input is too long for requested model."}', "HTTP 400: Input is too long"),
    ],
)
async def test_an_error_in_no_shape_of_the_apis_is_told_all_the_same(
    engine: Engine, status: int, body: bytes, said: str
) -> None:
    async with in_the_apis_place(engine, web.Response(status=status, body=body)):
        with pytest.raises(LLMError) as caught:
            await engine.ask(about(), make_terms(SCOPE))
    assert str(caught.value).startswith(said)


async def test_an_error_in_the_middle_of_a_stream_may_pass_and_may_be_charged(engine: Engine) -> None:
    said = b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "ClaimHeld"}}\n\n'
    stream = web.Response(body=said, headers={"content-type": "text/event-stream"})
    async with in_the_apis_place(engine, stream):
        with pytest.raises(Overloaded, match="overloaded_error: ClaimHeld") as caught:
            await engine.ask(about(max_tokens=64_000), make_terms(SCOPE))
    assert caught.value.billed


async def test_a_forked_child_shares_neither_ledger_nor_sockets_with_its_parent(
    claude_server: StandIn, tmp_path: Path
) -> None:
    client = AnthropicClient(api_key="sk-ant-any", base_url=claude_server.url)
    engine = Engine(endpoint=Endpoint(client=client), ledger=Ledger(f"sqlite:///{tmp_path / 'ledger.db'}"))
    await engine.ask(about(1), make_terms(SCOPE))

    async def send() -> bytes:
        return await client.send(
            about(2), timeout_s=20, on_first_byte=lambda: None, on_headers=lambda _: None
        )

    async def use_all() -> str:
        try:
            await engine.ask(about(3), make_terms(SCOPE))
        except LLMError as error:
            said = str(error)
        answered = b"end_turn" in await send()
        await client.close()
        return f"{answered} {said}"

    told = await asyncio.to_thread(in_a_child, lambda: asyncio.run(use_all()))
    assert told.startswith("True The ledger was opened in a process ")
    # The parent's connections and its ledger are as they were.
    await engine.ask(about(4), make_terms(SCOPE))
    assert b"end_turn" in await send()
    await engine.close()
