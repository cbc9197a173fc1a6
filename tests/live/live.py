"""Asks the real API and the stand-in the same, about ten small calls, and says where their behaviour differs."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import re
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import orjson

from airflow_llm_provider.engine.ceiling import ceiling_micro_usd
from airflow_llm_provider.engine.client import AnthropicClient, Client, HeaderCallback
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import AuthenticationFailed, LLMError
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.pricing import micro_usd, usd
from airflow_llm_provider.testing.standin import StandIn

TIER = "fast"
HEADERS = (
    *(f"anthropic-ratelimit-{kind}-{what}" for kind in ("requests", "input-tokens", "output-tokens")
      for what in ("limit", "remaining", "reset")),
    "request-id",
)  # fmt: skip
"""What the rate limiter and the errors read."""

_REQUEST_ID = re.compile(r" \(request [^)]*\)")


class Recorder:
    """A client that keeps the last reply and its headers.

    Args:
        client: sends.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.reply: dict[str, Any] = {}
        self.headers: Mapping[str, str] = {}

    async def send(
        self,
        request: Request,
        *,
        timeout_s: float,
        on_first_byte: Callable[[], object],
        on_headers: HeaderCallback,
    ) -> bytes:
        def keep(headers: Mapping[str, str]) -> None:
            self.headers = {name.lower(): value for name, value in headers.items()}
            on_headers(headers)

        raw = await self.client.send(
            request, timeout_s=timeout_s, on_first_byte=on_first_byte, on_headers=keep
        )
        self.reply = orjson.loads(raw)
        return raw

    async def count_tokens(self, request: Request, *, timeout_s: float) -> int:
        return await self.client.count_tokens(request, timeout_s=timeout_s)

    async def close(self) -> None:
        await self.client.close()


@dataclass(kw_only=True)
class Server:
    """One of the two servers, asked through the engine, so that ledger and budget hold for it.

    Attributes:
        endpoint: where it is; its client records.
        scope: with the budget.
        engine: with a ledger of its own; None to make requests only.
    """

    endpoint: Endpoint
    scope: CallScope
    engine: Engine | None = None

    @property
    def heard(self) -> Recorder:
        """The last exchange."""
        assert isinstance(self.endpoint.client, Recorder)
        return self.endpoint.client

    def request(self, text: str, **fields: Any) -> Request:
        """Return a request to the model."""
        content = fields.pop("content", [{"type": "text", "text": text}])
        usual = {"max_tokens": 64, "model": self.endpoint.model(TIER), "endpoint": self.endpoint.address}
        return Request(messages=[{"role": "user", "content": content}], **{**usual, **fields})

    async def ask(self, request: Request) -> dict[str, Any]:
        """Return the reply as the server gave it."""
        assert self.engine is not None, "only for a server that is asked"
        await self.engine.obtain(request, scope=self.scope, reuse="never")
        return self.heard.reply


Look = Callable[[Server], Any]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One question about how a server behaves.

    Attributes:
        name: what it is about.
        look: asks, and returns what was seen: what would differ if the servers did.
        requests: what it may pay for, for the estimate.
    """

    name: str
    look: Look
    requests: Callable[[Server], Sequence[Request]] = field(default=lambda _: ())


def reply(name: str, text: str, seen: Callable[[dict[str, Any]], Any], **fields: Any) -> Probe:
    """Return a probe that looks at one paid reply."""

    async def look(server: Server) -> Any:
        return seen(await server.ask(server.request(text, **fields)))

    return Probe(name=name, look=look, requests=lambda server: [server.request(text, **fields)])


def refusal(name: str, **fields: Any) -> Probe:
    """Return a probe of a request that should be refused, which is free."""

    async def look(server: Server) -> Any:
        await server.ask(server.request("Say yes.", **fields))
        return "it is answered"

    return Probe(name=name, look=look)


def stop(said: dict[str, Any]) -> dict[str, Any]:
    """Return why the model stopped, and the kinds of blocks that it wrote."""
    kinds = sorted({block["type"] for block in said["content"]})
    return {"stop_reason": said["stop_reason"], "stop_sequence": said.get("stop_sequence"), "blocks": kinds}


def keys_of_answer(said: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an answer in JSON."""
    text = "".join(block.get("text", "") for block in said["content"])
    return {"stop_reason": said["stop_reason"], "fields": sorted(json.loads(text))}


def called(said: dict[str, Any]) -> dict[str, Any]:
    """Return what a tool call has."""
    [call] = [block for block in said["content"] if block["type"] == "tool_use"]
    has = {name: type(call.get(name)).__name__ for name in ("id", "name", "input")}
    return {"stop_reason": said["stop_reason"], **has}


# Schemas in the API's own dialect, sent as they are.

STRING, NULLABLE = {"type": "string"}, {"anyOf": [{"type": "string"}, {"type": "null"}]}


def an_object(properties: Mapping[str, Any], *, required: bool = True) -> dict[str, Any]:
    """Return the schema of an object."""
    names = list(properties) if required else []
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def fields_of(part: Any, count: int) -> dict[str, Any]:
    """Return so many fields of one kind."""
    return {f"f{n}": part for n in range(count)}


def enforced(schema: Any) -> dict[str, Any]:
    """Return the fields of a request whose answer has a schema."""
    return {"extra": {"output_config": {"format": {"type": "json_schema", "schema": schema}}}}


SMALL = an_object({"amount": STRING})
NINE, AGAIN = {"$ref": "#/$defs/Nine"}, {"$ref": "#/$defs/A"}
TWICE = {**an_object({"a": NINE, "b": NINE}), "$defs": {"Nine": an_object(fields_of(NULLABLE, 9))}}
CIRCLE = {**an_object({"a": AGAIN}), "$defs": {"A": an_object({"b": AGAIN})}}
LOOK_UP = {
    "name": "look_up",
    "description": "Looks up an order.",
    "input_schema": an_object({"order": STRING}),
}
STRICT = [{**LOOK_UP, "name": f"look_up_{n}", "strict": True} for n in range(21)]
LETTER = "We owe you $7.00. One, two, three, four, five."

# Text of about so many tokens, for the API and for the stand-in's rule of four characters.
CACHE_SIZES = (600, 1_400, 2_800, 5_600)


def cached(server: Server, tokens: int) -> Request:
    """Return a request whose beginning of so many tokens is marked for the cache."""
    # Unlike any other run's, so that nothing is in the cache before.
    begin = {"type": "text", "text": f"{server.scope.run_id[-8:]} {tokens} " + "the " * tokens}
    return server.request(
        "", content=[begin, {"type": "text", "text": "Say yes."}], shared_blocks=1, max_tokens=8
    )


async def look_at_cache(server: Server) -> Any:
    """Return which sizes are written to the prompt cache, and whether the largest is read again."""
    seen = {}
    for tokens in CACHE_SIZES:
        usage = (await server.ask(cached(server, tokens)))["usage"]
        seen[f"about {tokens} tokens"] = "written" if usage["cache_creation_input_tokens"] else "not cached"
    again = dataclasses.replace(
        cached(server, CACHE_SIZES[-1]), sample=1
    )  # else it would come from the ledger
    usage = (await server.ask(again))["usage"]
    return {**seen, "the last again": "read" if usage["cache_read_input_tokens"] else "not read"}


async def look_at_count(server: Server) -> Any:
    """Return whether tokens are counted as they are billed, schema included."""
    plain = server.request(LETTER, max_tokens=8)
    shaped = server.request(LETTER, max_tokens=64, **enforced(SMALL))
    seen = {}
    for name, request in (("plain", plain), ("with a schema", shaped)):
        counted = await server.heard.count_tokens(request, timeout_s=60)
        billed = (await server.ask(request))["usage"]["input_tokens"]
        seen[name] = "as billed" if abs(counted - billed) <= 0.02 * billed else "not as billed"
    return seen


async def look_at_headers(server: Server) -> Any:
    """Return which headers that are relied on come with a reply."""
    await server.ask(server.request("Say yes.", max_tokens=8))
    return {name: "sent" if name in server.heard.headers else "missing" for name in HEADERS}


PROBES = (
    reply("a finished answer", "Say yes.", stop),
    reply("an answer cut off by max_tokens", f"Repeat this: {LETTER}", stop, max_tokens=1),
    reply("an answer that ends at a stop sequence", f"Repeat this: {LETTER}", stop,
          extra={"stop_sequences": ["three"]}),
    reply("a tool call", "Look up order 7.", called, tools=[LOOK_UP],
          extra={"tool_choice": {"type": "tool", "name": "look_up"}}),
    reply("an enforced type", f"What is owed? {LETTER}", keys_of_answer, **enforced(SMALL)),
    reply("schema: a definition of 9 unions, used twice", "Say yes.", lambda _: "it is answered",
          max_tokens=400, **enforced(TWICE)),
    refusal("schema: 17 unions", **enforced(an_object(fields_of(NULLABLE, 17)))),
    refusal("schema: 25 optional fields", **enforced(an_object(fields_of(STRING, 25), required=False))),
    refusal("schema: a recursive type", **enforced(CIRCLE)),
    refusal("schema: an open object", **enforced(an_object({"a": {"type": "object"}}))),
    refusal("schema: a bound", **enforced(an_object({"a": {"type": "integer", "minimum": 1}}))),
    refusal("schema: minItems 2", **enforced(an_object({"a": {"type": "array", "items": STRING, "minItems": 2}}))),
    refusal("schema: an unknown string format", **enforced(an_object({"a": {**STRING, "format": "phone"}}))),
    refusal("schema: a field without a type", **enforced(an_object({"a": {}}))),
    refusal("21 strict tools", tools=STRICT),
    refusal("temperature", extra={"temperature": 0.5}),
    Probe(name="headers", look=look_at_headers, requests=lambda server: [server.request("Say yes.", max_tokens=8)]),
    Probe(name="the smallest prefix that is cached", look=look_at_cache,
          requests=lambda server: [cached(server, size) for size in (*CACHE_SIZES, CACHE_SIZES[-1])]),
    Probe(name="count_tokens", look=look_at_count,
          requests=lambda server: [server.request(LETTER), server.request(LETTER, **enforced(SMALL))]),
)  # fmt: skip


async def seen(probe: Probe, server: Server) -> Any:
    """Return what a probe sees; an error of the server is a thing seen, too."""
    try:
        return await probe.look(server)
    except AuthenticationFailed:
        raise
    except LLMError as error:
        return f"{type(error).__name__}: {_REQUEST_ID.sub('', str(error))}"
    except (KeyError, TypeError, ValueError) as error:
        return f"a reply of another form: {type(error).__name__}"


def server_of(endpoint: Endpoint, folder: Path, name: str, budget_micro_usd: int) -> Server:
    """Return a server with a ledger of its own in a folder, and a budget."""
    recorded = dataclasses.replace(endpoint, client=Recorder(endpoint.client))
    engine = Engine(endpoint=recorded, ledger=Ledger(f"sqlite:///{folder / name}.db"))
    scope = CallScope(
        dag_id="live", run_id=uuid.uuid4().hex, task_id=name, connection_id=endpoint.connection_id,
        trace_id=uuid.uuid4().hex, budget_micro_usd=budget_micro_usd,
    )  # fmt: skip
    return Server(endpoint=recorded, engine=engine, scope=scope)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was seen at both servers, by probe: there, and at the stand-in."""

    seen: Mapping[str, tuple[Any, Any]]
    requests_paid: int
    cost_micro_usd: int

    @property
    def different(self) -> dict[str, tuple[Any, Any]]:
        """What differs."""
        return {name: both for name, both in self.seen.items() if both[0] != both[1]}


async def compare(endpoint: Endpoint, *, budget_micro_usd: int) -> Comparison:
    """Ask a server and a fresh stand-in the same.

    Args:
        endpoint: of the server. It is paid from the budget.
        budget_micro_usd: what may be spent there; a probe that does not fit says so and is not sent.

    Raises:
        AuthenticationFailed: the server does not take the key.
    """
    with tempfile.TemporaryDirectory(prefix="airflow-llm-live-") as name, StandIn() as stand_in:
        folder = Path(name)
        twin = at(endpoint, stand_in.url, api_key="key-of-the-stand-in", proxy=None)
        there = server_of(endpoint, folder, "there", budget_micro_usd)
        here = server_of(twin, folder, "stand-in", 10**9)
        found: dict[str, tuple[Any, Any]] = {}
        try:
            for probe in PROBES:
                found[probe.name] = (await seen(probe, there), await seen(probe, here))
                print(".", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
        finally:
            for server in (there, here):
                assert server.engine is not None, "both are asked"
                await server.engine.close()
        assert there.engine is not None, "it was asked"
        tally = there.engine.tally
        return Comparison(seen=found, requests_paid=tally.requests, cost_micro_usd=tally.paid_micro_usd)


def paid(endpoint: Endpoint) -> list[Request]:
    """Return the requests that are paid for where nothing refuses them."""
    server = Server(endpoint=endpoint, scope=CallScope(run_id="0" * 8))
    return [request for probe in PROBES for request in probe.requests(server)]


def most_micro_usd(endpoint: Endpoint) -> int | None:
    """Return the highest price of all that is paid for; None for a model without a known price."""
    ceilings = [ceiling_micro_usd(request, endpoint.prices) for request in paid(endpoint)]
    known = [ceiling for ceiling in ceilings if ceiling is not None]
    return sum(known) if len(known) == len(ceilings) else None


def endpoint_of(conn_id: str, base_url: str | None) -> Endpoint:
    """Return the endpoint of an Airflow connection, or of a base URL in its place; ends the program without a key."""
    from airflow_llm_provider.cli.connection import claude_hook

    hook = claude_hook(conn_id)
    if not hook.client.api_key:
        stop_here(f"The connection {conn_id!r} has no API key. Put it in its password field.")
    endpoint = hook.connection.endpoint
    return at(endpoint, base_url.rstrip("/")) if base_url else endpoint


def at(endpoint: Endpoint, base_url: str, **fields: Any) -> Endpoint:
    """Return the endpoint at another base URL, with other fields of its client."""
    assert isinstance(endpoint.client, AnthropicClient), "a connection makes no other"
    client = dataclasses.replace(endpoint.client, base_url=base_url, **fields)
    return dataclasses.replace(endpoint, client=client, address=client.endpoint)


def stop_here(why: str) -> NoReturn:
    """End the program before anything is sent."""
    print(f"{why} Nothing was sent.", file=sys.stderr)
    sys.exit(2)


def require_consent(endpoint: Endpoint, budget_micro_usd: int, *, is_given: bool) -> None:
    """Say what it may cost, and ask; ends the program where the answer is no."""
    most = most_micro_usd(endpoint)
    if most is None:
        stop_here(f"The price of {endpoint.model(TIER)} is not known, so no budget can hold it.")
    print(
        f"{len(paid(endpoint))} calls to {endpoint.address} with {endpoint.model(TIER)}, and requests that are "
        f"refused and free. They cost ${usd(most)} at the most, and a budget of ${usd(budget_micro_usd)} stops them.",
        file=sys.stderr,
    )
    if is_given:
        return
    if not sys.stdin.isatty():
        stop_here("There is nobody to ask whether to go on: give --yes.")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        stop_here("Declined.")


def report(comparison: Comparison) -> None:
    """Print what is the same and what differs; the last line is JSON."""
    for name, (there, here) in comparison.seen.items():
        print(f"{'same   ' if there == here else 'DIFFERS'}  {name}")
        if there != here:
            print(f"           there:    {_written(there)}\n           stand-in: {_written(here)}")
    different = comparison.different
    print(f"{len(comparison.seen) - len(different)} of {len(comparison.seen)} are the same.")
    print(
        json.dumps(
            {
                "name": "live",
                "same": len(comparison.seen) - len(different),
                "different": {
                    name: {"there": there, "stand_in": here} for name, (there, here) in different.items()
                },
                "requests_paid": comparison.requests_paid,
                "cost_usd": usd(comparison.cost_micro_usd),
            }
        )
    )


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conn-id", default="claude_default", help="the Airflow connection whose key pays")
    parser.add_argument("--base-url", help="ask this server in place of the connection's")
    parser.add_argument("--usd", default="0.01", help="the budget, in US dollars")
    parser.add_argument("--yes", action="store_true", help="spend without a question")
    given = parser.parse_args(arguments)
    endpoint, budget = endpoint_of(given.conn_id, given.base_url), micro_usd(given.usd)
    require_consent(endpoint, budget, is_given=given.yes)
    try:
        comparison = asyncio.run(compare(endpoint, budget_micro_usd=budget))
    except AuthenticationFailed as error:
        print(f"{error}", file=sys.stderr)
        return 2
    report(comparison)
    return 1 if comparison.different else 0


if __name__ == "__main__":
    sys.exit(main())
