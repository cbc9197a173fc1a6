"""The stand-in through the real SDK over HTTP: the SDK can't tell, and the invoice knows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import anthropic
import pytest
import pytest_asyncio
from pydantic import BaseModel, Field

from airflow_llm_provider.testing.answers import fill
from airflow_llm_provider.testing.exchanges import Recording, Replay
from airflow_llm_provider.testing.invoice import Invoice as Bill
from airflow_llm_provider.testing.question import count_tokens
from airflow_llm_provider.testing.standin import StandIn
from airflow_llm_provider.testing.text import Text

pytestmark = pytest.mark.asyncio

KEY = "sk-ant-api03-not-a-real-key-wxyz"
HAIKU = "claude-haiku-5-5"
LETTER = "Vendor: ACME GmbH\nTotal: $1,190.00\nDue: 2026-04-12\nThis invoice is unpaid.\n"


class Letter(BaseModel):
    vendor: str
    total: float
    due: date | None
    status: Literal["paid", "unpaid"]
    disputed: bool = Field(description="true when it says 'in dispute'")


def ask(text: str = LETTER, **more: Any) -> dict[str, Any]:
    return {"model": HAIKU, "max_tokens": 500, "messages": [{"role": "user", "content": text}], **more}


def structured(text: str = LETTER) -> dict[str, Any]:
    form = {"type": "json_schema", "schema": anthropic.transform_schema(Letter)}
    return ask(text, output_config={"format": form, "effort": "low"})


def cached(text: str, tail: str, ttl: str = "5m", **more: Any) -> dict[str, Any]:
    system = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": ttl}}]
    return ask(tail, system=system, **more)


@pytest_asyncio.fixture
async def client(claude_server: StandIn) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with client_of(claude_server) as client:
        yield client


def client_of(server: StandIn, key: str = KEY, **more: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=server.url, api_key=key, max_retries=0, **more)


# What the API offers.


async def test_a_message_is_answered_from_the_document_and_counted(client, claude_server):
    document = {"type": "text", "media_type": "text/plain", "data": LETTER}
    content = [{"type": "document", "source": document}, {"type": "text", "text": "Is it unpaid?"}]
    reply = await client.messages.create(**ask() | {"messages": [{"role": "user", "content": content}]})
    assert reply.content[0].text in LETTER
    assert (reply.stop_reason, reply.model, reply.role) == ("end_turn", HAIKU, "assistant")
    assert reply.usage.input_tokens == count_tokens(LETTER) + count_tokens("Is it unpaid?")
    assert reply.usage.output_tokens == count_tokens(reply.content[0].text)
    assert reply._request_id.startswith("req_")
    assert claude_server.requests[0]["messages"][0]["content"][0]["source"]["data"] == LETTER


async def test_structured_output_is_parsed_by_the_sdk(client):
    reply = await client.messages.parse(**ask(), output_format=Letter)
    assert reply.parsed_output == Letter(
        vendor="ACME GmbH", total=1190.0, due=date(2026, 4, 12), status="unpaid", disputed=False
    )


async def test_the_sdks_rewritten_schema_gets_the_same_answer_as_the_original():
    text = Text(LETTER)
    assert fill(anthropic.transform_schema(Letter), text) == fill(Letter.model_json_schema(), text)


async def test_a_stream_has_the_events_of_the_api_in_order(client):
    plain = await client.messages.create(**structured())
    async with client.messages.stream(**structured()) as stream:
        kinds = [event.type async for event in stream if event.type != "text"]
        streamed = await stream.get_final_message()
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-2]) == {"content_block_delta", "content_block_stop"}
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert streamed.content[0].text == plain.content[0].text
    assert streamed.stop_reason == "end_turn"
    assert (streamed.usage.input_tokens, streamed.usage.output_tokens) == (
        plain.usage.input_tokens,
        plain.usage.output_tokens,
    )


async def test_tokens_are_counted_free_of_charge(client, claude_server):
    counted = await client.messages.count_tokens(model=HAIKU, messages=[{"role": "user", "content": LETTER}])
    reply = await client.messages.create(**ask())
    assert counted.input_tokens == reply.usage.input_tokens
    assert claude_server.invoice.paid == 1


async def test_models_are_listed_with_their_retirement_and_say_that_they_are_a_stand_ins(client):
    models = {model.id: model async for model in await client.models.list(limit=2)}
    assert set(models) == {HAIKU, "claude-sonnet-5-5", "claude-opus-5-5", "claude-sonnet-4-5"}
    assert models["claude-sonnet-4-5"].retires_at == datetime(2026, 11, 30, tzinfo=UTC)
    one = await client.models.retrieve(HAIKU)
    assert one.max_input_tokens == 1_000_000
    assert one.max_tokens == 64_000
    assert one.retires_at is None
    assert "stand-in" in one.display_name
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("claude-2")


async def test_an_answer_longer_than_max_tokens_is_cut_and_says_so(client):
    reply = await client.messages.create(**structured() | {"max_tokens": 3})
    assert (reply.stop_reason, reply.usage.output_tokens, len(reply.content[0].text)) == ("max_tokens", 3, 12)
    warm = await client.messages.create(**ask() | {"max_tokens": 0})
    assert (warm.content, warm.usage.output_tokens) == ([], 0)


async def test_a_stop_sequence_ends_the_answer(client, claude_server):
    claude_server.reply(text="one, two, three")
    reply = await client.messages.create(**ask(stop_sequences=["two"]))
    assert (reply.content[0].text, reply.stop_reason, reply.stop_sequence) == (
        "one, ",
        "stop_sequence",
        "two",
    )


# What the API refuses.


async def test_a_wrong_or_missing_key_is_let_in_nowhere():
    with StandIn(api_key=KEY) as server:
        async with client_of(server, "sk-ant-api03-another-key") as client:
            for refused in (client.messages.create(**ask()), client.models.retrieve(HAIKU)):
                with pytest.raises(anthropic.AuthenticationError) as error:
                    await refused
                assert error.value.type == "authentication_error"
                assert "sk-ant" not in str(error.value)
        with pytest.raises(HTTPError, match="401"):  # the SDK itself sends nothing without a key
            steer(server.url, "/v1/messages", ask())
        async with client_of(server) as client:
            await client.messages.create(**ask())
        assert (server.seen, server.invoice.paid, server.invoice.lines[0].key_last4) == (3, 1, "wxyz")


async def test_what_is_refused_has_the_apis_error_shape_and_is_not_billed(client, claude_server):
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await client.messages.create(**ask() | {"model": "claude-nope"})
    assert unknown.value.type == "not_found_error"
    assert unknown.value.request_id == unknown.value.body["request_id"]
    with pytest.raises(anthropic.BadRequestError, match="'temper' was unexpected"):
        await client.messages.create(**ask(), extra_body={"temper": 1})
    with pytest.raises(anthropic.BadRequestError, match="maximum allowed"):
        await client.messages.create(**ask() | {"max_tokens": 64_001}, timeout=5)
    marked = [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}] * 5
    with pytest.raises(anthropic.BadRequestError, match="maximum of 4"):
        await client.messages.create(**ask(system=marked))
    with (
        pytest.raises(anthropic.BadRequestError, match="prompt is too long"),
        pytest.warns(DeprecationWarning, match="2026"),
    ):
        await client.messages.create(**ask("x" * 900_000) | {"model": "claude-sonnet-4-5"})
    with pytest.raises(anthropic.NotFoundError):
        await client.get("/v1/nothing", cast_to=object)
    assert claude_server.invoice.paid == 0


# The prompt cache.


async def test_a_marked_prefix_is_written_once_and_read_after(client, claude_server):
    prefix = "Rules of the house. " * 400  # 2,000 tokens
    first = (await client.messages.create(**cached(prefix, "one?"))).usage
    second = (await client.messages.create(**cached(prefix, "two?"))).usage
    assert (first.cache_creation_input_tokens, first.cache_read_input_tokens, first.input_tokens) == (
        2_000,
        0,
        1,
    )
    assert (second.cache_creation_input_tokens, second.cache_read_input_tokens, second.input_tokens) == (
        0,
        2_000,
        1,
    )
    assert first.cache_creation.ephemeral_5m_input_tokens == 2_000
    other = (await client.messages.create(**cached(prefix, "one?") | {"model": "claude-opus-5-5"})).usage
    assert other.cache_read_input_tokens == 0  # a prefix belongs to its model


async def test_a_lifetime_of_an_hour_is_counted_apart_and_dearer(client, claude_server):
    await client.messages.create(**cached("Rules of the house. " * 400, "one?", ttl="1h"))
    await client.messages.create(**cached("House of the rules. " * 400, "one?", ttl="5m"))
    hour, minutes = claude_server.invoice.lines
    assert (hour.cache_write_1h_tokens, hour.cache_write_5m_tokens) == (2_000, 0)
    assert hour.cost_micro_usd > minutes.cost_micro_usd


async def test_a_short_prefix_is_not_cached_and_a_request_can_be_marked_as_a_whole(client):
    for _ in range(2):
        usage = (await client.messages.create(**cached("Too short. ", "one?"))).usage
        assert (usage.cache_creation_input_tokens, usage.cache_read_input_tokens) == (0, 0)
    whole = ask("Much text. " * 1_000, cache_control={"type": "ephemeral"})
    written = (await client.messages.create(**whole)).usage
    read = (await client.messages.create(**whole)).usage
    assert written.cache_creation_input_tokens == read.cache_read_input_tokens == 2_750
    assert read.input_tokens == 0


async def test_a_prefix_is_readable_only_once_its_response_has_begun(client, claude_server):
    claude_server.latency_s = 0.2
    prefix = "Rules of the house. " * 400
    crowd = await asyncio.gather(*(client.messages.create(**cached(prefix, f"{n}?")) for n in range(3)))
    assert [reply.usage.cache_creation_input_tokens for reply in crowd] == [2_000] * 3
    claude_server.latency_s = 0
    late = await client.messages.create(**cached(prefix, "late?"))
    assert late.usage.cache_read_input_tokens == 2_000


async def test_a_prefix_ends_with_its_lifetime():
    from airflow_llm_provider.testing.prompt_cache import PromptCache
    from airflow_llm_provider.testing.question import read_question

    now = [0.0]
    cache = PromptCache(clock=lambda: now[0])
    question = read_question(cached("Rules of the house. " * 400, "?"))
    cache.begin(cache.look(question))
    for at, read in ((299, 2_000), (598, 2_000), (899, 0)):  # each reading renews it
        now[0] = at
        assert cache.look(question).usage.cache_read_tokens == read


# Limits and latency.


async def test_a_bucket_that_is_empty_answers_429_and_says_when_to_come_back(client, claude_server):
    claude_server.limit({"rpm": 60, "burst": 2})
    for left in ("1", "0"):
        raw = await client.messages.with_raw_response.create(**ask())
        assert raw.headers["anthropic-ratelimit-requests-limit"] == "60"
        assert raw.headers["anthropic-ratelimit-requests-remaining"] == left
        assert datetime.fromisoformat(raw.headers["anthropic-ratelimit-requests-reset"]) > datetime(
            2026, 1, 1, tzinfo=UTC
        )
    with pytest.raises(anthropic.RateLimitError) as refused:
        await client.messages.create(**ask())
    assert refused.value.type == "rate_limit_error"
    await asyncio.sleep(float(refused.value.response.headers["retry-after"]))
    await client.messages.create(**ask())
    assert claude_server.invoice.paid == 3


async def test_tokens_have_buckets_too():
    from airflow_llm_provider.testing.limits import Limits
    from airflow_llm_provider.testing.wire import ApiError

    now = [0.0]
    limits = Limits({"itpm": 6_000, "otpm": 600}, clock=lambda: now[0])
    limits.admit(5_900)
    with pytest.raises(ApiError) as refused:
        limits.admit(200)
    assert (refused.value.status, refused.value.retry_after) == (429, 1)
    now[0] = 1
    limits.admit(200)
    limits.spend(700)  # a debt of about a hundred output tokens, at ten a second
    with pytest.raises(ApiError) as refused:
        limits.admit(0)
    assert refused.value.retry_after == 11
    now[0] = 12
    limits.admit(0)
    now[0] = 120
    limits.admit(100_000)  # more than the bucket holds: let through when it is full, then waited for


async def test_latency_is_a_wait_that_requests_spend_side_by_side(client, claude_server):
    claude_server.latency_s = 0.25
    began = time.perf_counter()
    await asyncio.gather(*(client.messages.create(**ask(f"letter {n}")) for n in range(8)))
    assert 0.25 <= time.perf_counter() - began < 1.5
    assert (claude_server.max_in_flight, claude_server.in_flight) == (8, 0)


# Faults.


@pytest.mark.parametrize(
    ("order", "error", "kind"),
    [
        ({"status": 400}, anthropic.BadRequestError, "invalid_request_error"),
        ({"status": 401}, anthropic.AuthenticationError, "authentication_error"),
        ({"status": 403}, anthropic.PermissionDeniedError, "permission_error"),
        ({"status": 429, "retry_after": 7}, anthropic.RateLimitError, "rate_limit_error"),
        (
            {"status": 429, "error_code": "enforced_spend_limit_reached"},
            anthropic.EnforcedSpendLimitReachedError,
            "rate_limit_error",
        ),
        ({"status": 400, "error_type": "billing_error"}, anthropic.BadRequestError, "billing_error"),
        ({"status": 500}, anthropic.InternalServerError, "api_error"),
        ({"status": 529}, anthropic.OverloadedError, "overloaded_error"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_an_error_ordered_is_the_sdks_error_and_is_not_billed(
    client, claude_server, order, error, kind
):
    claude_server.fail(**order, times=1)
    with pytest.raises(error) as failed:
        await client.messages.create(**ask())
    assert failed.value.type == kind
    assert failed.value.error_code == order.get("error_code")
    assert failed.value.response.headers.get("retry-after") == ("7" if "retry_after" in order else None)
    assert claude_server.invoice.paid == 0
    await client.messages.create(**ask())


async def test_a_fault_picks_its_requests_by_text_count_and_share(client, claude_server):
    async def failed(count: int) -> list[int]:
        replies = await asyncio.gather(
            *(client.messages.create(**ask(f"letter-{n:03}.")) for n in range(count)), return_exceptions=True
        )
        return [n for n, reply in enumerate(replies) if isinstance(reply, Exception)]

    claude_server.fail(matching="letter-007.")
    assert await failed(10) == [7]
    claude_server.heal()
    claude_server.fail(500, after=2, times=3)
    assert len(await failed(10)) == 3
    claude_server.heal()
    claude_server.fail(share=0.3, seed=4, sticky=True)
    first = await failed(40)
    assert 4 <= len(first) <= 20
    assert await failed(40) == first
    claude_server.heal()
    assert await failed(40) == []


async def test_a_reply_lost_on_the_way_is_billed(client, claude_server):
    claude_server.fail(kind="drop", times=2)
    with pytest.raises(anthropic.APIConnectionError):
        await client.messages.create(**ask())
    with pytest.raises(Exception):  # noqa: B017,PT011 - what the SDK raises in a stream depends on its HTTP library
        async with client.messages.stream(**ask()) as stream:
            await stream.get_final_message()
    assert [line.fault for line in claude_server.invoice.lines] == ["drop", "drop"]


async def test_a_request_whose_caller_has_gone_is_still_billed(client, claude_server):
    claude_server.latency_s = 0.3
    with pytest.raises(anthropic.APITimeoutError):
        await client.messages.create(**ask(), timeout=0.1)
    await asyncio.sleep(0.4)
    assert claude_server.invoice.paid == 1


@pytest.mark.parametrize("billed", [None, True])
async def test_a_request_that_hangs_is_billed_only_when_so_ordered(client, claude_server, billed):
    claude_server.fail(kind="hang", times=1, billed=billed)
    with pytest.raises(anthropic.APITimeoutError):
        await client.messages.create(**ask(), timeout=0.2)
    assert claude_server.invoice.paid == (1 if billed else 0)
    assert (await client.messages.create(**ask())).stop_reason == "end_turn"


async def test_useless_replies_are_billed_and_say_why_they_are_useless(client, claude_server):
    whole = (await client.messages.create(**structured())).content[0].text
    replies = {}
    for kind in [
        "truncated_json",
        "wrong_shape",
        "prose",
        "refusal",
        "max_tokens",
        "pause_turn",
        "model_context_window_exceeded",
    ]:
        claude_server.fail(kind=kind, times=1)
        reply = await client.messages.create(**structured())
        replies[kind] = (reply.stop_reason, reply.content[0].text)
    half = whole[: len(whole) // 2]
    assert replies["truncated_json"] == ("end_turn", half)
    assert replies["wrong_shape"][0] == "end_turn"
    assert not set(json.loads(replies["wrong_shape"][1])) & set(json.loads(whole))
    assert f"```json\n{whole}\n```" in replies["prose"][1]
    assert replies["refusal"][0] == "refusal"
    for kind in ("max_tokens", "pause_turn", "model_context_window_exceeded"):
        assert replies[kind] == (kind, half)
    assert claude_server.invoice.paid == 8


async def test_a_slow_reply_dribbles_in_and_is_whole(client, claude_server):
    claude_server.fail(kind="slow", times=2, duration_s=0.4)
    began = time.perf_counter()
    reply = await client.messages.create(**structured())
    assert time.perf_counter() - began >= 0.4
    async with client.messages.stream(**structured()) as stream:
        assert (await stream.get_final_message()).content[0].text == reply.content[0].text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"messages": [{"role": "user", "content": ""}]}, "text content blocks must be non-empty"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "must contain non-whitespace text"),
        ({"messages": [{"role": "user", "content": []}]}, "must have non-empty content"),
        ({"system": "  "}, "system: text content blocks must contain non-whitespace text"),
        ({"system": [{"type": "text", "text": ""}]}, "system: text content blocks must be non-empty"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "", "cache_control": {"type": "ephemeral"}},
                            {"type": "text", "text": "What?"},
                        ],
                    }
                ]
            },
            "cache_control cannot be set for empty text blocks",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": f"{n}", "cache_control": {"type": "ephemeral"}}
                            for n in range(5)
                        ],
                    }
                ]
            },
            "A maximum of 4 blocks with cache_control",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_requests_without_text_or_with_too_many_marks_are_refused_as_the_api_refuses_them(
    client, claude_server, changed, said
):
    claude_server.validate = False  # its own words, not those of the API's description
    with pytest.raises(anthropic.BadRequestError, match=said) as refused:
        await client.messages.create(**ask() | changed)
    assert refused.value.request_id.startswith("req_")
    assert refused.value.body["request_id"] == refused.value.request_id
    assert claude_server.invoice.paid == 0


async def test_a_gateway_answers_in_no_shape_of_the_api(client, claude_server):
    claude_server.fail(503, kind="gateway", times=1)
    claude_server.fail(502, kind="gateway", times=1, billed=True)
    for status in (502, 503):
        with pytest.raises(anthropic.InternalServerError) as refused:
            await client.messages.create(**ask())
        assert (refused.value.status_code, refused.value.type, refused.value.request_id) == (
            status,
            None,
            None,
        )
        assert "<html>" in refused.value.body
    assert [line.fault for line in claude_server.invoice.lines] == ["gateway"]


async def test_an_error_comes_in_the_middle_of_a_stream(client, claude_server):
    claude_server.fail(529, kind="stream_error")
    with pytest.raises(anthropic.APIStatusError) as failed:
        async with client.messages.stream(**ask()) as stream:
            await stream.get_final_message()
    assert (failed.value.status_code, failed.value.type) == (200, "overloaded_error")
    assert claude_server.invoice.paid == 1
    with pytest.raises(anthropic.OverloadedError):  # without a stream it is an ordinary error
        await client.messages.create(**ask())
    assert claude_server.invoice.paid == 1


async def test_a_fault_that_is_none_is_refused(claude_server):
    with pytest.raises(ValueError, match="not a fault"):
        claude_server.fail(kind="gremlins")
    for refused in (400, 429, 529):
        with pytest.raises(ValueError, match="never billed"):
            claude_server.fail(refused, billed=True)


# Scripted replies.


async def test_replies_can_be_scripted_as_text_data_or_a_function(client, claude_server):
    claude_server.reply(text="always")
    claude_server.reply(data={"vendor": "Scripted"}, matching="ACME", times=1)
    claude_server.reply(call=lambda question: question.document.upper(), model="claude-opus-5-5")

    async def said(**more: Any) -> str:
        return (await client.messages.create(**ask() | more)).content[0].text

    assert json.loads(await said()) == {"vendor": "Scripted"}
    assert await said() == "always"
    assert await said(model="claude-opus-5-5") == LETTER.upper()


# Tools.

BALANCE = {
    "name": "balance",
    "description": "Look up what an account owes.",
    "input_schema": {
        "type": "object",
        "properties": {"vendor": {"type": "string"}, "due": {"type": "string", "format": "date"}},
        "required": ["vendor"],
    },
}
REMIND = {"name": "remind", "description": "Send a reminder.", "input_schema": {"type": "object"}}


def with_tools(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = ask(tools=[BALANCE, REMIND], **more)
    return body | {"messages": [*body["messages"], *turns]}


def called(*ids: str, name: str = "balance") -> dict[str, Any]:
    content = [{"type": "tool_use", "id": use, "name": name, "input": {"vendor": "ACME"}} for use in ids]
    return {"role": "assistant", "content": content}


def returned(*ids: str, content: Any = "ACME owes $7.") -> dict[str, Any]:
    results = [{"type": "tool_result", "tool_use_id": use, "content": content} for use in ids]
    return {"role": "user", "content": results}


async def test_a_conversation_calls_several_tools_and_then_answers(client, claude_server):
    calls = [{"name": "balance", "input": {"vendor": "ACME"}}, {"name": "remind", "input": {}}]
    claude_server.reply(text="I look it up.", tool_use=calls, turn=0)
    claude_server.reply(text="They owe $7.", turn=1)
    first = await client.messages.create(**with_tools())
    said, *uses = first.content
    assert (first.stop_reason, said.text) == ("tool_use", "I look it up.")
    assert [(use.name, use.input) for use in uses] == [("balance", {"vendor": "ACME"}), ("remind", {})]
    assert len({use.id for use in uses}) == 2
    history = {"role": "assistant", "content": first.content}
    second = await client.messages.create(**with_tools(history, returned(*(use.id for use in uses))))
    assert (second.stop_reason, second.content[0].text) == ("end_turn", "They owe $7.")
    assert claude_server.invoice.paid == 2
    assert [line.stop_reason for line in claude_server.invoice.lines] == ["tool_use", "end_turn"]


async def test_calls_are_streamed_with_the_events_of_the_api(client, claude_server):
    claude_server.reply(text="Look.", tool_use=[{"name": "balance", "input": {"vendor": "A" * 100}}])
    async with client.messages.stream(**with_tools()) as stream:
        kinds = [event.delta.type async for event in stream if event.type == "content_block_delta"]
        streamed = await stream.get_final_message()
    plain = await client.messages.create(**with_tools())
    assert set(kinds) == {"text_delta", "input_json_delta"}
    assert streamed.stop_reason == plain.stop_reason == "tool_use"
    assert [(block.type, getattr(block, "input", None)) for block in streamed.content] == [
        ("text", None),
        ("tool_use", {"vendor": "A" * 100}),
    ]
    assert streamed.usage.output_tokens == plain.usage.output_tokens


async def test_unscripted_no_tool_is_called_unless_tool_choice_says_so(client):
    for free in ({}, {"tool_choice": {"type": "auto"}}, {"tool_choice": {"type": "none"}}):
        reply = await client.messages.create(**with_tools(**free))
        assert (reply.stop_reason, reply.content[0].type) == ("end_turn", "text")
    for choice in ({"type": "tool", "name": "balance"}, {"type": "any"}):
        reply = await client.messages.create(**with_tools(tool_choice=choice))
        (use,) = reply.content
        assert (reply.stop_reason, use.name) == ("tool_use", "balance")
        assert use.input == {"vendor": "ACME GmbH", "due": "2026-04-12"}


async def test_unscripted_an_answer_comes_from_what_the_tools_returned(client):
    reply = await client.messages.create(**with_tools(called("toolu_1"), returned("toolu_1")))
    assert reply.content[0].text == "ACME owes $7."
    form = {"type": "json_schema", "schema": anthropic.transform_schema(Letter)}
    output = {"output_config": {"format": form}}
    reply = await client.messages.create(
        **with_tools(called("toolu_1"), returned("toolu_1", content="Total: $7.00"), **output)
    )
    filled = Letter.model_validate_json(reply.content[0].text)
    assert (filled.total, filled.due) == (7.0, date(2026, 4, 12))


async def test_tools_calls_and_results_are_counted_as_input_and_calls_as_output(client, claude_server):
    def quarter(value: Any) -> int:
        return count_tokens(json.dumps(value, separators=(",", ":")))

    plain = (await client.messages.create(**ask())).usage.input_tokens
    tools = (await client.messages.create(**with_tools())).usage.input_tokens - plain
    assert tools == quarter(BALANCE) + quarter(REMIND)
    talk = with_tools(called("toolu_1"), returned("toolu_1"))
    counted = await client.messages.count_tokens(model=HAIKU, messages=talk["messages"], tools=talk["tools"])
    call = count_tokens("balance") + quarter({"vendor": "ACME"})
    assert counted.input_tokens == plain + tools + call + count_tokens("ACME owes $7.")
    claude_server.reply(text="Look.", tool_use=[{"name": "balance", "input": {"vendor": "ACME"}}])
    reply = await client.messages.create(**with_tools())
    assert reply.usage.output_tokens == count_tokens("Look.") + call
    assert claude_server.invoice.lines[-1].output_tokens == reply.usage.output_tokens


async def test_a_call_cut_by_max_tokens_says_so_and_parallel_calls_can_be_forbidden(client, claude_server):
    long = {"name": "balance", "input": {"vendor": "A" * 100}}
    claude_server.reply(tool_use=[REMIND_CALL, long, REMIND_CALL])
    cut = await client.messages.create(**with_tools() | {"max_tokens": 10})
    assert cut.stop_reason == "max_tokens"
    assert [(use.name, use.input) for use in cut.content] == [("remind", {}), ("balance", {})]
    assert cut.usage.output_tokens <= 10
    one = {"type": "auto", "disable_parallel_tool_use": True}
    assert len((await client.messages.create(**with_tools(tool_choice=one))).content) == 1


async def test_a_call_scripted_for_a_request_without_tools_is_refused_out_loud(client, claude_server):
    claude_server.reply(tool_use=[REMIND_CALL])
    for request in (ask(), with_tools(tool_choice={"type": "none"})):
        with pytest.raises(anthropic.BadRequestError, match="has no tools"):
            await client.messages.create(**request)
    with pytest.raises(TypeError, match="arguments"):
        claude_server.reply(tool_use=[{"name": "remind", "arguments": {}}])
    assert claude_server.invoice.paid == 0


REMIND_CALL = {"name": "remind", "input": {}}
TEXT = {"type": "text", "text": "And then?"}
BROKEN_TALK = {
    "a call without a result": (with_tools(called("t1"), {"role": "user", "content": [TEXT]}), "without"),
    "one of two results": (with_tools(called("t1", "t2"), returned("t1")), "immediately after: t2"),
    "text before the result": (
        with_tools(called("t1"), {"role": "user", "content": [TEXT, *returned("t1")["content"]]}),
        "without `tool_result`",
    ),
    "a call that ends the talk": (with_tools(called("t1")), "without `tool_result`"),
    "a result of no call": (with_tools(called("t1"), returned("t1", "t9")), "unexpected `tool_use_id`"),
    "a result that comes first": (ask(tools=[REMIND]) | {"messages": [returned("t1")]}, "unexpected"),
    "a result given twice": (with_tools(called("t1"), returned("t1", "t1")), "single result"),
    "an id used twice": (with_tools(called("t1", "t1"), returned("t1")), "must be unique"),
    "an id used again": (
        with_tools(called("t1"), returned("t1"), called("t1"), returned("t1")),
        "must be unique",
    ),
    "a call by the user": (with_tools({"role": "user", "content": called("t1")["content"]}), "only be in"),
    "no tools any more": (
        ask() | {"messages": [*ask()["messages"], called("t1"), returned("t1")]},
        "must define tools",
    ),
    "an input that is no object": (
        with_tools(
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "b", "input": "x"}]},
            returned("t1"),
        ),
        "is not of type 'object'",
    ),
    "two tools of one name": (ask(tools=[REMIND, REMIND]), "names must be unique"),
    "a tool without a schema": (ask(tools=[{"name": "remind"}]), "tools.0"),
    "a schema of a list": (ask(tools=[REMIND | {"input_schema": {"type": "array"}}]), "tools.0"),
    "a schema that is none": (
        ask(tools=[REMIND | {"input_schema": {"type": "object", "properties": {"a": {"type": "strong"}}}}]),
        "draft 2020-12",
    ),
    "a name with a space": (ask(tools=[REMIND | {"name": "re mind"}]), "tools.0"),
    "a choice without tools": (ask(tool_choice={"type": "any"}), "while providing `tools`"),
    "a choice of no tool": (with_tools(tool_choice={"type": "tool", "name": "fly"}), "'fly' not found"),
}


@pytest.mark.parametrize("broken", BROKEN_TALK)
async def test_a_talk_with_tools_that_breaks_the_apis_rules_is_refused(client, claude_server, broken):
    request, reason = BROKEN_TALK[broken]
    with pytest.raises(anthropic.BadRequestError, match=reason):
        await client.messages.create(**request)
    assert claude_server.invoice.paid == 0


# The invoice.


async def test_the_invoice_has_every_paid_request_to_the_token_and_the_micro_usd(client, claude_server):
    prefix = "Rules of the house. " * 400
    replies = [await client.messages.create(**cached(prefix, f"Letter {n}. {LETTER}")) for n in range(3)]
    lines = claude_server.invoice.lines
    assert [line.request_id for line in lines] == [reply._request_id for reply in replies]
    for line, reply in zip(lines, replies, strict=True):
        usage = reply.usage
        assert (line.input_tokens, line.output_tokens) == (usage.input_tokens, usage.output_tokens)
        assert line.cache_read_tokens == usage.cache_read_input_tokens
        assert line.cache_write_5m_tokens == usage.cache_creation_input_tokens
        assert line.key_last4 == "wxyz"
    assert lines[1].item == f"Letter 1. {LETTER}"[:200]
    # Prices of genai-prices, in micro-USD a token: 0.1 in, 0.125 written, 0.01 read, 0.5 out.
    first, second = lines[0], lines[1]
    assert first.cost_micro_usd == -(
        -(100 * first.input_tokens + 125 * 2_000 + 500 * first.output_tokens) // 1_000
    )
    assert second.cost_micro_usd == -(
        -(100 * second.input_tokens + 10 * 2_000 + 500 * second.output_tokens) // 1_000
    )
    assert claude_server.invoice.cost_micro_usd == sum(line.cost_micro_usd for line in lines)


async def test_a_model_without_a_price_is_counted_as_unpriced(tmp_path):
    from airflow_llm_provider.testing.wire import Model

    house = Model(id="claude-in-house", name="In house", line="haiku")
    with StandIn(models=[house], invoice=tmp_path / "invoice.jsonl", identify=lambda _: "mine") as server:
        async with client_of(server) as client:
            await client.messages.create(**ask() | {"model": house.id})
        assert (server.invoice.paid, server.invoice.unpriced, server.invoice.cost_micro_usd) == (1, 1, 0)
        assert server.invoice.lines[0].item == "mine"
    assert Bill.read(tmp_path / "invoice.jsonl").lines == server.invoice.lines


# Other ways to run it.


async def test_it_runs_in_the_callers_loop_too():
    async with StandIn() as server, client_of(server) as client:
        await client.messages.create(**ask())
        assert server.invoice.paid == 1


async def test_a_port_taken_is_an_error_and_a_stopped_server_frees_its_port():
    with StandIn() as server, pytest.raises(OSError):  # noqa: PT011 - its number differs by system
        StandIn(port=server.port).__enter__()
    with StandIn(port=server.port):
        pass


def steer(url: str, path: str, order: Any = None) -> Any:
    body = None if order is None else json.dumps(order).encode()
    with urlopen(Request(url + path, data=body), timeout=10) as response:
        return json.loads(response.read())


async def test_a_process_says_what_it_is_is_steered_over_http_and_leaves_its_invoice_when_killed(tmp_path):
    bill = tmp_path / "invoice.jsonl"
    command = [sys.executable, "-m", "airflow_llm_provider.testing.standin", "--port", "0", "--keep-requests"]
    with subprocess.Popen([*command, "--invoice", str(bill)], stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        try:
            url = process.stdout.readline().strip()
            assert "not from Claude" in process.stdout.readline()
            async with anthropic.AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0) as client:
                steer(url, "/stand-in/reply", {"text": "scripted", "matching": "letter-1"})
                steer(url, "/stand-in/fail", {"status": 529, "matching": "letter-2"})
                assert steer(url, "/stand-in/settings", {"latency_s": 0.01}) == {"latency_s": 0.01}
                assert (await client.messages.create(**ask("letter-1"))).content[0].text == "scripted"
                with pytest.raises(anthropic.OverloadedError):
                    await client.messages.create(**ask("letter-2"))
                steer(url, "/stand-in/heal", {})
                await client.messages.create(**ask("letter-2"))
            told = steer(url, "/stand-in/invoice?lines=1")
            assert (told["paid"], told["seen"], told["in_flight"]) == (2, 3, 0)
            assert [line["item"] for line in told["lines"]] == ["letter-1", "letter-2"]
            assert len(steer(url, "/stand-in/requests")) == 3
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert Bill.read(bill).cost_micro_usd == told["cost_micro_usd"] > 0
    assert KEY not in bill.read_text()


async def test_a_wrong_order_over_http_is_refused_with_the_reason(client, claude_server):
    for path, order in (
        ("fail", {"kind": "gremlins"}),
        ("fail", {"often": True}),
        ("reply", {"txt": ""}),
        ("settings", {"speed": 3}),
        ("settings", {"limits": {"rps": 3}}),
    ):
        with pytest.raises(anthropic.BadRequestError, match="stand-in: "):
            await client.post(f"/stand-in/{path}", body=order, cast_to=object)


# Record and replay.


async def test_recorded_exchanges_play_back_with_the_keys_scrubbed(tmp_path: Path, claude_server):
    file = tmp_path / "exchanges.jsonl"
    secret = f"My key is {KEY}, and theirs sk-ant-api03-someone-elses."
    claude_server.reply(text=f"You said: {secret}", matching="My key")
    async with (
        StandIn(exchanges=Recording(file, upstream=claude_server.url)) as recorder,
        client_of(recorder) as client,
    ):
        recorded = await client.messages.create(**structured())
        assert KEY in (await client.messages.create(**ask(secret))).content[0].text
        async with client.messages.stream(**ask()) as stream:
            streamed = await stream.get_final_message()
        claude_server.fail(times=1)
        with pytest.raises(anthropic.OverloadedError):
            await client.messages.create(**ask("overloaded"))
        await client.models.list()
    assert "sk-ant" not in file.read_text()
    assert claude_server.invoice.paid == 3

    async with StandIn(exchanges=Replay(file)) as replay, client_of(replay, "sk-ant-another-key") as client:
        assert await client.messages.create(**dict(reversed(structured().items()))) == recorded
        async with client.messages.stream(**ask()) as stream:
            assert await stream.get_final_message() == streamed
        with pytest.raises(anthropic.OverloadedError):
            await client.messages.create(**ask("overloaded"))
        assert len((await client.models.list()).data) == 4
        with pytest.raises(anthropic.NotFoundError, match="no recorded exchange"):
            await client.messages.create(**ask("never asked"))
        assert replay.invoice.paid == 0
