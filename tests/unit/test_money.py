"""Money, reply by reply: the price is that of an independent computation, and never above what was reserved unsaid.

`MONEY_REPLIES=20000` tries as many random replies; `make test-slow` does.
"""

import asyncio
import dataclasses
import functools
import itertools
import logging
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import ROUND_CEILING, Decimal
from functools import cache
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from conftest import SCOPE, Wire, make_terms, message, question
from genai_prices import Usage as GenaiUsage
from genai_prices import calc_price

from airflow_llm_provider.engine.ceiling import ceiling_micro_usd
from airflow_llm_provider.engine.cost_booking import CostBooking
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.reply import Message
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import BudgetExceeded, UnknownPrice
from airflow_llm_provider.ledger.schema import account
from airflow_llm_provider.options import Budget
from airflow_llm_provider.pricing import LIST_PRICES, Prices, micro_usd, usd

REPLIES = int(os.environ.get("MONEY_REPLIES", "300"))

# What is published, written out by hand: no rule of ours decides what is in these tables.
US = {
    "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8",
    "claude-sonnet-4-6", "claude-fable-5-2",
}  # fmt: skip
FAST = {"claude-opus-5-5", "claude-opus-5", "claude-opus-4-8", "claude-fable-5-2"}
OLD = {"claude-haiku-4-5", "claude-sonnet-4-5"}
WINDOW = dict.fromkeys(US, 1000000) | dict.fromkeys(OLD, 200000)
MODELS = sorted(US | OLD)
GEOGRAPHY, SPEED, TIER = {"us": Decimal("1.1")}, {"fast": Decimal(2)}, {"batch": Decimal("0.5")}
WEB_SEARCH_USD = Decimal("0.01")


# The independent computation.


@cache
def usd_of(model: str, kinds: tuple[int, int, int, int, int]) -> Decimal:
    uncached, output, read, five, hour = kinds
    tokens = GenaiUsage(
        input_tokens=uncached + read + five + hour,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=five + hour,
        cache_write_1h_tokens=hour,
    )
    return calc_price(tokens, model, provider_id="anthropic").total_price


def kinds_of(usage: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
    made = usage["cache_creation"]
    return (
        usage["input_tokens"],
        usage["output_tokens"],
        usage["cache_read_input_tokens"],
        made["ephemeral_5m_input_tokens"],
        made["ephemeral_1h_input_tokens"],
    )


def price_of_pass(
    usage: Mapping[str, Any], model: str, whole: Mapping[str, Any], *, fast: bool
) -> Decimal | None:
    if model not in US | OLD:
        return None
    geography, tier = whole["inference_geo"], whole["service_tier"]
    if geography not in ("us", "global", "not_available", None) or tier not in ("standard", "batch", None):
        return None
    if fast and model not in FAST:
        return None
    factor = (GEOGRAPHY.get(geography, Decimal(1)) if model in US else 1) * TIER.get(tier, Decimal(1))
    return usd_of(model, kinds_of(usage)) * factor * (SPEED["fast"] if fast else 1)


def expected_micro_usd(reply: Mapping[str, Any], request: Request) -> int | None:
    """Return the price of a reply, from genai-prices and the published factors; None where something is unknown."""
    whole, answered = reply["usage"], reply["model"]
    fell_back = any(block["type"] == "fallback" for block in reply["content"])
    passes = whole["iterations"] or [{**whole, "type": "message", "model": answered}]
    if whole["speed"] not in ("fast", "standard", None):
        return None
    prices: list[Decimal] = []
    for each in passes:
        unnamed = [request.model, answered] if fell_back and len(passes) > 1 else [answered]
        found = [
            price_of_pass(
                each,
                model,
                whole,
                # Another model's speed is not stated: where it can be fast, it is priced as fast.
                fast=whole["speed"] == "fast"
                if model == answered
                else model in FAST and "fast" in (request.extra.get("speed"), whole["speed"]),
            )
            for model in ([each["model"]] if each.get("model") else unnamed)
        ]
        known = [price for price in found if price is not None]
        if len(known) < len(found):
            return None
        prices.append(max(known))
    uses = whole["server_tool_use"] or {}
    if reply.get("container") or any(
        uses[name] for name in uses.keys() - {"web_search_requests", "web_fetch_requests"}
    ):
        return None
    total = sum(prices) + uses.get("web_search_requests", 0) * WEB_SEARCH_USD
    return int((total * 1_000_000).to_integral_value(ROUND_CEILING))


# Requests, and replies that they allow.


@dataclasses.dataclass
class Case:
    """A random request, with what the test knows of it."""

    random: random.Random
    number: int
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        pick = self.random
        self.model = pick.choice(MODELS)
        self.max_tokens = pick.choice([1, 100, 4_096, 20_000])
        fields = self.fields
        if self.model in US and pick.random() < 0.4:
            fields["inference_geo"] = pick.choice(["us", "global"])
        if self.model in FAST and pick.random() < 0.4:
            fields["speed"] = pick.choice(["fast", "standard"])
        if pick.random() < 0.2:
            fields["service_tier"] = pick.choice(["auto", "standard_only"])
        allowed = sorted(US) if "inference_geo" in fields else MODELS
        self.fallbacks = [
            {"model": pick.choice(allowed), **({"max_tokens": 5_000} if pick.random() < 0.5 else {})}
            for _ in range(pick.choice([0, 0, 0, 1, 2]))
        ]
        if self.fallbacks:
            fields["fallbacks"] = self.fallbacks
        self.searches, self.fetches = (pick.choice([0, 0, 0, 2, 5]) for _ in range(2))
        self.advices = pick.choice([0, 0, 0, 1, 3])
        advisor = pick.choice(["claude-opus-5-5", "claude-fable-5-2"])
        tools = [
            {"type": "web_search_20250305", "name": "web_search", "max_uses": self.searches},
            {"type": "web_fetch_20250910", "name": "web_fetch", "max_uses": self.fetches},
            {
                "type": "advisor_20260301",
                "name": "advisor",
                "max_uses": self.advices,
                "model": advisor,
                "max_tokens": 2_048,
            },
        ]
        if kept := [tool for tool in tools if tool["max_uses"]]:
            fields["tools"] = kept
        self.advisor = advisor
        self.compacts = pick.random() < 0.15
        if self.compacts:
            fields["context_management"] = {"edits": [{"type": "compact_20260112"}]}
        # So many tokens are in pages, which need no text of that length here.
        self.request = Request(
            model=self.model,
            messages=[{"role": "user", "content": f"question {self.number}"}],
            max_tokens=self.max_tokens,
            input_ceiling=pick.choice([0, 90_000, 150_000, 400_000]),
            extra=fields,
        )
        # A model takes no prompt that is longer than its window, so neither does a random reply tell of one.
        narrowest = min(WINDOW[hop["model"]] for hop in [{"model": self.model}, *self.fallbacks])
        self.prompt_tokens = min(self.request.input_ceiling_tokens, narrowest)

    def used(self, input_tokens: int, output_tokens: int) -> dict[str, Any]:
        """Return a usage with so many tokens, in random kinds."""
        cuts = (
            sorted(self.random.randint(0, input_tokens) for _ in range(3))
            if self.random.random() < 0.6
            else [0] * 3
        )
        read, five, hour = cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1]
        return {
            "input_tokens": input_tokens - cuts[2],
            "output_tokens": output_tokens,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": five + hour,
            "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
        }

    def up_to(self, most: int) -> int:
        """Return a random number, the highest in one of three cases."""
        return most if self.random.random() < 1 / 3 else self.random.randint(0, most)

    def reply(self) -> dict[str, Any]:
        """Return a reply that the request allows."""
        hops = [{"model": self.model}, *self.fallbacks]
        served = self.random.randrange(len(hops)) if self.random.random() < 0.7 else 0
        passes: list[dict[str, Any]] = []
        written = 0
        for hop in hops[:served]:
            output = self.up_to(hop.get("max_tokens", self.max_tokens))
            passes.append(
                {
                    "type": "message",
                    "model": hop["model"],
                    **self.used(self.up_to(self.prompt_tokens) + written, output),
                }
            )
            written += output
        hop = hops[served]
        answering, uses = self._turns(hop["model"], hop.get("max_tokens", self.max_tokens), written)
        passes += answering
        if served:
            last = max(n for n, each in enumerate(passes) if each["type"] == "message")
            passes[last] = {**passes[last], "type": "fallback_message", "model": hop["model"]}
        own = [each for each in answering if each["type"] == "message"]
        top = {
            name: sum(each[name] for each in own)
            for name in (
                "input_tokens",
                "output_tokens",
                "cache_read_input_tokens",
                "cache_creation_input_tokens",
            )
        }
        lifetimes = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
        made = {name: sum(each["cache_creation"][name] for each in own) for name in lifetimes}
        is_plain = len(passes) == 1 and self.random.random() < 0.5
        asks_fast = self.fields.get("speed") == "fast" and hop["model"] in FAST
        usual = "not_available" if hop["model"] in OLD else self.random.choice(["global", "us", None])
        fallback = {"type": "fallback", "from": {"model": self.model}, "to": {"model": hop["model"]}}
        return {
            "model": hop["model"],
            "stop_reason": "end_turn",
            "content": [*([fallback] if served else []), {"type": "text", "text": "Fine."}],
            "usage": {
                **top,
                "cache_creation": made,
                "inference_geo": self.fields.get("inference_geo", usual)
                if hop["model"] in US
                else "not_available",
                "speed": self.random.choice(["fast", "standard"])
                if asks_fast
                else self.random.choice(["standard", None]),
                "service_tier": self.random.choice(["standard", None]),
                "iterations": None if is_plain else passes,
                "server_tool_use": uses,
            },
        }

    def _turns(
        self, model: str, max_tokens: int, written: int
    ) -> tuple[list[dict[str, Any]], dict[str, int] | None]:
        """Return the passes of the model that answers, and the uses of the server's tools."""
        searches, fetches, advices = (
            self.up_to(most) for most in (self.searches, self.fetches, self.advices)
        )
        passes: list[dict[str, Any]] = []
        prompt = min(self.up_to(self.prompt_tokens) + written, WINDOW[model])
        if self.compacts and self.random.random() < 0.5:
            passes.append({"type": "compaction", **self.used(prompt, self.up_to(20_000))})
        left = max_tokens
        for turn in range(searches + fetches + advices + 1):
            output = self.up_to(left)
            left -= output
            # What a tool has found is in the next prompt, which has no other bound than the model's window.
            found = self.up_to(WINDOW[model] - prompt) if turn and (searches or fetches) else 0
            passes.append({"type": "message", **self.used(min(prompt + found, WINDOW[model]), output)})
            if turn < advices:
                advice = self.up_to(2_048)
                read = self.used(min(prompt + output + 500, WINDOW[self.advisor]), advice)
                passes.append({"type": "advisor_message", "model": self.advisor, **read})
                prompt = min(prompt + output + advice, WINDOW[model])
        uses = {"web_search_requests": searches, "web_fetch_requests": fetches}
        return passes, uses if searches or fetches or self.random.random() < 0.5 else None


# Replies that the request does not allow: more than was reserved, or something that nobody has a price of.


def unannounced(reply: dict[str, Any], pick: random.Random) -> dict[str, Any]:
    """Return a reply with something that was not asked for."""
    usage = reply["usage"]
    match pick.randrange(8):
        case 0:
            usage["inference_geo"] = pick.choice(["us", "eu", "mars", 7])
        case 1:
            usage["speed"] = pick.choice(["fast", "ludicrous"])
        case 2:
            usage["service_tier"] = pick.choice(["priority", "batch", "gold"])
        case 3:
            usage["server_tool_use"] = {"web_search_requests": 900, "web_fetch_requests": 1}
        case 4:
            usage["server_tool_use"] = {"mind_reading_requests": 1}
        case 5:
            reply["model"] = pick.choice([*MODELS, "claude-opus-99"])
        case 6:
            more = {"type": "advisor_message", "model": "claude-fable-5-2", **usage}
            usage["iterations"] = [*(usage["iterations"] or [{**usage, "type": "message"}]), more, more]
        case 7:
            reply["container"] = {"id": "container_1"}
    return reply


def random_replies(count: int, *, seed: int) -> Iterator[tuple[Case, dict[str, Any], bool]]:
    """Yield requests with a reply each, and whether the request allows it."""
    pick = random.Random(seed)
    for number in range(count):
        case = Case(random=pick, number=number)
        reply, is_allowed = case.reply(), pick.random() < 0.85
        yield case, reply if is_allowed else unannounced(reply, pick), is_allowed


def test_every_price_is_the_published_one_and_none_is_above_what_was_reserved_unsaid(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: Counter[str] = Counter()
    caplog.set_level(logging.WARNING)
    for case, reply, is_allowed in random_replies(REPLIES, seed=13):
        reserved = ceiling_micro_usd(case.request)
        assert reserved is not None
        price = expected_micro_usd(reply, case.request)
        caplog.clear()
        cost = CostBooking().cost_micro_usd(
            case.request, Message.parse(orjson.dumps(reply)), LIST_PRICES, reserved=reserved, connection_id=""
        )
        told = " ".join(record.getMessage() for record in caplog.records)
        assert cost == (reserved if price is None else price), (case, reply)
        if is_allowed:
            assert price is not None, (case, reply)
            assert price <= reserved, (price, reserved, case, reply)
        if price is None:
            assert f"booked at the most that was reserved for it, ${usd(reserved)}" in told
        elif price > reserved:
            assert f"${usd(price)} billed, ${usd(reserved)} reserved, ${usd(price - reserved)} more" in told
        else:
            assert told == ""
        seen["unknown" if price is None else "more" if price > reserved else "within"] += 1
    assert min(seen["within"], seen["unknown"], seen["more"]) > 0, seen
    print(f"{REPLIES:,} replies: {dict(seen)}")


async def test_the_account_is_the_sum_of_what_was_booked(engine: Engine, wire: Wire) -> None:
    capped = dataclasses.replace(SCOPE, run_budget_micro_usd=10**15)
    booked = 0
    for case, reply, _ in random_replies(30, seed=14):
        wire.script = [orjson.dumps(reply)]
        price = expected_micro_usd(reply, case.request)
        cost = (await engine.ask(case.request, make_terms(scope=capped))).cost_micro_usd
        assert cost == (ceiling_micro_usd(case.request) if price is None else price)
        booked += cost or 0
    assert engine.tally.paid_micro_usd == booked
    [(settled, reserved)] = spent(engine)
    assert (settled, reserved) == (booked, 0)


async def test_what_was_billed_above_the_reservation_is_missing_for_the_next_call(
    engine: Engine, wire: Wire
) -> None:
    request = question("one", max_tokens=100)
    reserved = ceiling_micro_usd(request)
    assert reserved is not None
    # Two reservations fit, with room to spare. The server bills three and a half for the first call.
    capped = dataclasses.replace(SCOPE, run_budget_micro_usd=3 * reserved)
    wire.script = [message("Fine.", output_tokens=7 * reserved)]
    [first] = await asyncio.gather(engine.ask(request, make_terms(scope=capped)))
    assert first.cost_micro_usd is not None
    assert first.cost_micro_usd > 3 * reserved
    assert str(engine.cost_booking) == (
        f", 1 of them billed above what was reserved, by ${usd(first.cost_micro_usd - reserved)}"
    )
    with pytest.raises(BudgetExceeded, match=r"left in budget"):
        await engine.ask(question("two", max_tokens=100), make_terms(scope=capped))
    assert spent(engine) == [(first.cost_micro_usd, 0)]
    assert len(wire.sent) == 1


def spent(engine: Engine) -> list[tuple[int, int]]:
    """Return what each account has settled and reserved."""
    query = sa.select(account.c.settled_micro_usd, account.c.reserved_micro_usd)
    with engine.ledger.database.read() as connection:
        return [tuple(row) for row in connection.execute(query)]


async def test_more_than_was_reserved_is_said_once_per_model_and_counted(
    engine: Engine, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.usually = message("Fine.", output_tokens=1_000_000)
    for number in range(3):
        await engine.ask(question(f"{number}?", max_tokens=100), make_terms())
    [said] = [record for record in caplog.records if "billed more than was reserved" in record.getMessage()]
    assert said.levelname == "WARNING"
    assert engine.cost_booking.beyond_reserved == 3


async def test_a_prompt_above_the_price_step_is_said(
    engine: Engine, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked = functools.partial(question, input_ceiling=200_000)
    wire.script = [message("Fine.", input_tokens=100_000), message("Fine.", input_tokens=100_001)]
    prices = [(await engine.ask(asked(f"{n}?"), make_terms())).cost_micro_usd for n in range(2)]
    assert prices == [10_003, 50_013]  # five times, for one token more
    assert "a prompt of more than 100,000 tokens costs more for every one of its tokens" in caplog.text
    assert str(engine.cost_booking) == ", 1 of them at the higher price of a long prompt"


# What no price can be put on is not sent under a budget.


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "code_execution_20260521", "name": "code_execution", "max_uses": 1}]},
        {
            "tools": [
                {"type": "advisor_20260301", "name": "advisor", "max_uses": 1, "model": "claude-opus-99"}
            ]
        },
        {"tools": "web_search"},
        {"mcp_servers": [{"type": "url", "url": "https://example.org", "name": "x"}]},
        {"container": "container_1"},
        {"fallbacks": "default"},
        {"fallbacks": [{"model": "claude-opus-99"}]},
        {"fallbacks": [{"max_tokens": 5}]},
        {"inference_geo": "eu"},
        {"speed": "ludicrous"},
        {"speed": "fast"},  # haiku has no fast mode
    ],
    ids=lambda fields: orjson.dumps(fields).decode()[:60],
)
async def test_a_request_whose_price_has_no_bound_is_not_sent_under_a_budget(
    engine: Engine, wire: Wire, fields: dict[str, Any]
) -> None:
    request = Request(model="claude-haiku-5-5", messages=[{"role": "user", "content": "?"}], extra=fields)
    assert ceiling_micro_usd(request) is None
    with pytest.raises(UnknownPrice):
        await engine.ask(request, make_terms(scope=dataclasses.replace(SCOPE, budget_micro_usd=10**12)))
    assert wire.sent == []


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({}, Decimal("1.1")),  # the workspace may have a default
        ({"inference_geo": "global"}, Decimal(1)),
        ({"inference_geo": "us"}, Decimal("1.1")),
        ({"inference_geo": "global", "speed": "fast"}, Decimal(2)),
        ({"speed": "fast"}, Decimal("2.2")),
        ({"inference_geo": "global", "service_tier": "standard_only"}, Decimal(1)),
        ({"inference_geo": "global", "fallbacks": []}, Decimal(1)),
        ({"inference_geo": "global", "tools": [{"name": "mine", "input_schema": {}}]}, Decimal(1)),
        # The caller runs it, too; and what has another shape than the API's is refused there, for nothing.
        ({"inference_geo": "global", "tools": [{"type": "bash_20250124", "name": "bash"}]}, Decimal(1)),
        ({"inference_geo": "global", "context_management": "x"}, Decimal(1)),
    ],
)
def test_the_reservation_is_for_the_most_expensive_that_the_request_allows(
    fields: dict[str, Any], share: Decimal
) -> None:
    request = Request(
        model="claude-opus-5-5", messages=[{"role": "user", "content": "?"}], max_tokens=1_000, extra=fields
    )
    # $8 for what is written to the cache for an hour, and $20 for output, per million.
    plain = request.input_ceiling_tokens * Decimal(8) + 1_000 * Decimal(20)
    assert ceiling_micro_usd(request) == int((plain * share).to_integral_value(ROUND_CEILING))


def test_a_reservation_grows_with_each_thing_that_the_server_may_do() -> None:
    def reserved(**fields: Any) -> int:
        request = Request(
            model="claude-sonnet-5-5", messages=[{"role": "user", "content": "?"}], extra=fields
        )
        return ceiling_micro_usd(request) or 0

    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    advisor = {
        "type": "advisor_20260301",
        "name": "advisor",
        "model": "claude-opus-5-5",
        "max_uses": 1,
        "max_tokens": 1_024,
    }
    grown = [
        reserved(),
        reserved(fallbacks=[{"model": "claude-haiku-5-5"}]),
        reserved(fallbacks=[{"model": "claude-opus-5-5"}]),
        reserved(context_management={"edits": [{"type": "compact_20260112"}]}),
        reserved(tools=[advisor]),
        reserved(tools=[search]),
        reserved(tools=[search | {"max_uses": 30}]),
        reserved(tools=[search | {"max_uses": 30}, advisor]),
    ]
    assert all(one < other for one, other in itertools.pairwise(grown)), grown


@pytest.mark.parametrize(("ttl", "written"), [("5m", Decimal("2.5")), ("1h", Decimal(4))])
def test_a_cache_write_without_a_lifetime_has_the_one_that_was_asked_for(ttl: str, written: Decimal) -> None:
    usage = {"input_tokens": 0, "cache_creation_input_tokens": 1_000_000}
    assert priced("claude-sonnet-5-5", {"usage": usage}, cache_ttl=ttl) == written * 1_000_000


def priced(model: str, reply: dict[str, Any], prices: Prices = LIST_PRICES, **fields: Any) -> int | None:
    """Return the price of a reply with a million tokens in and none out, unless it says otherwise."""
    usage = {"input_tokens": 1_000_000, "output_tokens": 0, **reply.get("usage", {})}
    whole = {"stop_reason": "end_turn", "content": [], "model": model, **reply, "usage": usage}
    message = Message.parse(orjson.dumps(whole))
    return CostBooking().cost_micro_usd(
        question(model=model, **fields), message, prices, reserved=None, connection_id=""
    )


FELL_BACK = [{"type": "fallback", "from": {"model": "mine"}, "to": {"model": "claude-sonnet-5-5"}}]


@pytest.mark.parametrize(
    ("asked", "reply", "cost"),
    [
        ("claude-sonnet-5-5", {"model": "claude-sonnet-5-5-20260901"}, 2_000_000),  # its dated name
        ("claude-sonnet-5-5", {"model": "claude-opus-5-5"}, 4_000_000),  # another model answered
        ("claude-sonnet-5-5", {"model": "somebody-else"}, None),
        ("mine", {"model": "llama-7"}, 1_000_000),  # a gateway has a name of its own for what is asked
        ("mine-20260101", {"model": "mine"}, None),
        ("mine", {"model": "mine-20260101"}, 1_000_000),
        ("mine", {"model": "claude-sonnet-5-5", "content": FELL_BACK}, 2_000_000),
        ("nobody", {"model": "claude-sonnet-5-5"}, None),  # nobody knows what this server charges
        ("nobody", {"model": "nobody"}, None),
    ],
)
def test_the_model_that_answered_has_the_price_that_is_known_for_it(
    asked: str, reply: dict[str, Any], cost: int | None
) -> None:
    own = Prices.of({"mine": {"input": 1, "output": 2}})
    assert priced(asked, reply, own) == cost


def test_own_factors_price_what_the_list_does_not_know() -> None:
    priority = {"usage": {"service_tier": "priority"}}
    assert priced("claude-opus-5-5", priority) is None
    own = {"claude-opus-5-5": {"input": 4, "output": 20, "factors": {"priority": 1.5, "eu": 1.2}}}
    assert priced("claude-opus-5-5", priority, Prices.of(own)) == 6_000_000
    assert priced("claude-opus-5-5", {"usage": {"inference_geo": "eu"}}, Prices.of(own)) == 4_800_000
    # What is not stated is reserved at the most that the factors allow: "eu" and "priority".
    request = question(model="claude-opus-5-5", max_tokens=1)
    most = request.input_ceiling_tokens * 8 + 20
    assert ceiling_micro_usd(request, Prices.of(own)) == -(-most * 18 // 10)


def test_code_that_ran_on_the_server_is_free_beside_the_newer_web_tools_only() -> None:
    ran = {"container": {"id": "container_1"}}
    newer = {"tools": [{"type": "web_search_20260318", "name": "web_search", "max_uses": 1}]}
    older = {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}]}
    found = [priced("claude-sonnet-5-5", ran, extra=extra) for extra in (newer, older, {})]
    assert found == [2_000_000, None, None]


def test_a_surcharge_is_on_fees_too() -> None:
    searched = {"usage": {"input_tokens": 0, "server_tool_use": {"web_search_requests": 3}}}
    found = [priced("claude-sonnet-5-5", searched, prices) for prices in (LIST_PRICES, Prices.of(None, 10))]
    assert found == [30_000, 33_000]


@pytest.mark.parametrize(
    ("iterations", "cost"),
    [
        (None, 2_000_000),
        ([], 2_000_000),
        ([{"type": "message", "input_tokens": 1_000_000, "output_tokens": 0}], 2_000_000),
        ([{"type": "message", "input_tokens": 400_000, "output_tokens": 0}], 2_000_000),  # the top has more
        (
            [{"type": "message", "input_tokens": 1_500_000, "output_tokens": 0}],
            3_000_000,
        ),  # the entries have more
        (
            [{"type": "compaction", "input_tokens": 100_000, "output_tokens": 10}],
            2_200_100,
        ),  # on top of the answer
        (
            [
                {
                    "type": "advisor_message",
                    "model": "claude-opus-5-5",
                    "input_tokens": 1_000,
                    "output_tokens": 0,
                }
            ],
            2_004_000,
        ),
        ([{"type": "advisor_message", "input_tokens": 1_000, "output_tokens": 0}], None),  # whose rates?
        ([{"type": "musing", "input_tokens": 1_000, "output_tokens": 0}], None),
        (
            [{"type": "musing", "model": "claude-opus-5-5", "input_tokens": 1_000, "output_tokens": 0}],
            2_004_000,
        ),
    ],
)
def test_nothing_that_a_usage_states_goes_unpriced(iterations: Any, cost: int | None) -> None:
    assert priced("claude-sonnet-5-5", {"usage": {"iterations": iterations}}) == cost


@pytest.mark.parametrize("amount", [Decimal("0.1"), 0.1, "0.1", "$0.10"])
def test_an_amount_is_a_budget_in_each_form(amount: Any) -> None:
    assert micro_usd(Budget.of(amount).task_usd) == 100_000
