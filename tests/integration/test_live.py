"""`make live` finds no difference between a stand-in and itself, and every difference that there is."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.errors import AuthenticationFailed
from airflow_llm_provider.testing.standin import StandIn
from tests.live import live

SCRIPT = Path(live.__file__)
BUDGET = 10_000
KEY = "sk-live-0123456789"


@dataclass
class Answer:
    """A reply of the stand-in, to be changed on its way."""

    path: str
    asked: dict[str, Any]
    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


Change = Callable[[Answer], None]


@asynccontextmanager
async def changed(stand_in: StandIn, change: Change) -> AsyncIterator[str]:
    """Give the URL of a server that is the stand-in, changed in one respect."""

    async def handle(request: web.Request) -> web.Response:
        raw = await request.read()
        async with session.post(stand_in.url + request.path, data=raw, headers=request.headers) as given:
            kept = {name.lower(): value for name, value in given.headers.items() if "-" in name}
            kept = {name: value for name, value in kept.items() if not name.startswith("content-")}
            answer = Answer(request.path, orjson.loads(raw), given.status, await given.json(), kept)
        change(answer)
        return web.json_response(answer.body, status=answer.status, headers=answer.headers)

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    async with aiohttp.ClientSession() as session, TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def endpoint(url: str) -> Endpoint:
    client = AnthropicClient(api_key=KEY, base_url=url, proxy="http://127.0.0.1:9", no_proxy=("127.0.0.1",))
    return Endpoint(client=client, address=client.endpoint, tiers={"fast": "claude-haiku-5-5"})


async def test_a_stand_in_does_not_differ_from_itself_and_costs_under_a_cent() -> None:
    with StandIn(api_key=KEY) as stand_in:
        compared = await live.compare(endpoint(stand_in.url), budget_micro_usd=BUDGET)
        assert compared.different == {}
        assert len(compared.seen) == len(live.PROBES)
        assert compared.requests_paid == stand_in.invoice.paid <= 16
        assert 0 < compared.cost_micro_usd <= BUDGET
        # Each probe saw what it is about, and not an error that both servers share.
        assert compared.seen["a finished answer"][0]["stop_reason"] == "end_turn"
        assert compared.seen["an answer cut off by max_tokens"][0]["stop_reason"] == "max_tokens"
        assert compared.seen["an answer that ends at a stop sequence"][0]["stop_sequence"] == "three"
        assert compared.seen["a tool call"][0] == {
            "stop_reason": "tool_use",
            "id": "str",
            "name": "str",
            "input": "dict",
        }
        assert compared.seen["an enforced type"][0]["fields"] == ["amount"]
        assert set(compared.seen["headers"][0].values()) == {"sent"}
        assert set(compared.seen["count_tokens"][0].values()) == {"as billed"}
        refused = [name for name, (there, _) in compared.seen.items() if "BadRequest: HTTP 400" in str(there)]
        assert len(refused) == 10


def another_stop_reason(answer: Answer) -> None:
    if answer.body.get("stop_reason") == "tool_use":
        answer.body["stop_reason"] = "end_turn"


def without_a_header(answer: Answer) -> None:
    answer.headers.pop("anthropic-ratelimit-input-tokens-remaining", None)


def counting_otherwise(answer: Answer) -> None:
    if answer.path.endswith("count_tokens"):
        answer.body["input_tokens"] *= 2


def without_a_cache(answer: Answer) -> None:
    if "usage" in answer.body:
        answer.body["usage"] |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def in_other_words(answer: Answer) -> None:
    if "union types" in str(answer.body):
        answer.body["error"]["message"] = "Too many unions."


def counting_each_use(answer: Answer) -> None:
    if "Nine" in str(answer.asked):
        answer.status = 400
        answer.body = {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "Schemas contains too many parameters"},
        }


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (another_stop_reason, {"a tool call"}),
        (without_a_header, {"headers"}),
        (counting_otherwise, {"count_tokens"}),
        (without_a_cache, {"the smallest prefix that is cached"}),
        (in_other_words, {"schema: 17 unions"}),
        (counting_each_use, {"schema: a definition of 9 unions, used twice"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_server_that_differs_in_one_respect_is_reported_with_just_that(
    change: Change, names: set[str]
) -> None:
    with StandIn() as stand_in:
        async with changed(stand_in, change) as url:
            compared = await live.compare(endpoint(url), budget_micro_usd=BUDGET)
    assert set(compared.different) == names


async def test_another_minimum_of_the_cache_is_seen() -> None:
    with StandIn(cache_minimum_tokens=4_096) as stand_in:
        compared = await live.compare(endpoint(stand_in.url), budget_micro_usd=BUDGET)
    [(there, here)] = compared.different.values()
    assert [there[f"about {size} tokens"] for size in live.CACHE_SIZES] == ["not cached"] * 3 + ["written"]
    assert [here[f"about {size} tokens"] for size in live.CACHE_SIZES] == ["not cached"] + ["written"] * 3


async def test_the_budget_stops_it() -> None:
    with StandIn() as stand_in:
        compared = await live.compare(endpoint(stand_in.url), budget_micro_usd=800)
        assert stand_in.invoice.cost_micro_usd <= 800
    assert compared.cost_micro_usd <= 800
    assert "BudgetExceeded" in str(compared.different["the smallest prefix that is cached"][0])


async def test_a_wrong_key_ends_it_at_once() -> None:
    with StandIn(api_key=KEY) as stand_in:
        wrong = endpoint(stand_in.url)
        client = AnthropicClient(
            api_key="sk-wrong-key", base_url=stand_in.url, proxy="http://x:9", no_proxy=("*",)
        )
        with pytest.raises(AuthenticationFailed):
            await live.compare(Endpoint(client=client, address=wrong.address), budget_micro_usd=BUDGET)
        assert stand_in.invoice.paid == 0


def run(
    tmp_path: Path, *arguments: str, connection: dict[str, Any] | None
) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "ANTHROPIC"))}
    env |= {"AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(SCRIPT.parents[2])}
    if connection is not None:
        env["AIRFLOW_CONN_CLAUDE_DEFAULT"] = json.dumps({"conn_type": "claude", **connection})
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_the_command_asks_before_it_spends_and_says_what_it_may_cost(tmp_path: Path) -> None:
    with StandIn() as stand_in:
        connection = {"password": KEY, "host": stand_in.url}
        ran = run(tmp_path, connection=connection)
        assert ran.returncode == 2, ran.stderr
        assert "give --yes. Nothing was sent." in ran.stderr
        assert "a budget of $0.010000 stops them" in ran.stderr
        assert stand_in.seen == 0
        ran = run(tmp_path, "--yes", connection={"password": KEY} | {"host": "http://127.0.0.1:9"})
        assert ran.returncode == 1
        ran = run(tmp_path, "--yes", "--base-url", stand_in.url, connection=connection)
        assert ran.returncode == 0, ran.stdout
        last = json.loads(ran.stdout.splitlines()[-1])
        assert (last["same"], last["different"]) == (len(live.PROBES), {})
        assert KEY not in ran.stdout + ran.stderr


def test_the_command_says_so_where_there_is_no_key(tmp_path: Path) -> None:
    ran = run(tmp_path, "--yes", connection={"host": "http://127.0.0.1:9"})
    assert ran.returncode == 2
    assert "has no API key. Put it in its password field. Nothing was sent." in ran.stderr
