"""The stand-in's HTTP routes: the Messages API's endpoints, and /stand-in to control it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
from aiohttp import web

from airflow_llm_provider.testing import contract
from airflow_llm_provider.testing.answers import answer, demanded_call
from airflow_llm_provider.testing.charge import Charge, check_terms
from airflow_llm_provider.testing.exchanges import Exchanges
from airflow_llm_provider.testing.faults import Fault, Order, Orders, ScriptedReply
from airflow_llm_provider.testing.invoice import ITEM_CHARS, Invoice, InvoiceLine
from airflow_llm_provider.testing.limits import Limits
from airflow_llm_provider.testing.prompt_cache import PromptCache
from airflow_llm_provider.testing.question import (
    CHARS_PER_TOKEN,
    Question,
    count_tokens,
    read_question,
    tool_use_tokens,
)
from airflow_llm_provider.testing.wire import ApiError, Model, Reply, dumps, events, message

_log = logging.getLogger(__name__)

WHAT_THIS_IS = (
    "This is a stand-in, a test double of the Claude API: its answers come from text rules, not from Claude."
)

_BODY_BYTES = 32 * 1024 * 1024  # the API's own limit
_DRIBBLES = 20
_SAMPLING = frozenset({"temperature", "top_p", "top_k"})
_ID = web.RequestKey("id", str)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server(Protocol):
    """What the routes need of the stand-in that they answer for."""

    api_key: str | None
    latency_s: float
    limits: Limits
    validate: bool
    keep_requests: bool
    requests: list[dict[str, Any]]
    invoice: Invoice
    identify: Callable[[Question], str] | None
    models: dict[str, Model]
    workspace_geo: str
    cache: PromptCache
    exchanges: Exchanges | None
    faults: Orders[Fault]
    replies: Orders[ScriptedReply]
    stopping: threading.Event

    def limit(self, limits: Mapping[str, float] | None) -> None:
        """Enforce other limits from now on."""

    def heal(self) -> None:
        """Cancel all faults."""

    def summary(self) -> dict[str, Any]:
        """Return the invoice's totals with what is in flight."""

    def in_flight_now(self) -> contextlib.AbstractContextManager[None]:
        """Count a request as seen, and as in flight while it is."""

    def next_request_id(self) -> str:
        """Return a request id that no other server gives out."""


def application(server: Server) -> web.Application:
    """Return the web application that answers for `server`."""
    routes = _Routes(server)
    app = web.Application(client_max_size=_BODY_BYTES, middlewares=[routes.in_the_apis_shape])
    if server.exchanges is None:
        app.router.add_post("/v1/messages", routes.messages)
        app.router.add_post("/v1/messages/count_tokens", routes.count_tokens)
        app.router.add_get("/v1/models", routes.models)
        app.router.add_get("/v1/models/{id}", routes.model)
    else:
        app.router.add_route("*", "/v1/{path:.*}", routes.exchange)
    app.router.add_get("/stand-in", routes.what_this_is)
    app.router.add_get("/stand-in/invoice", routes.invoice)
    app.router.add_get("/stand-in/requests", routes.requests)
    app.router.add_post("/stand-in/fail", routes.fail)
    app.router.add_post("/stand-in/heal", routes.heal)
    app.router.add_post("/stand-in/reply", routes.reply)
    app.router.add_post("/stand-in/settings", routes.settings)
    return app


class _Routes:
    def __init__(self, server: Server) -> None:
        self.server = server

    @web.middleware
    async def in_the_apis_shape(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Give the request its id, and answer errors in the API's shape."""
        request_id = request[_ID] = self.server.next_request_id()
        try:
            return await handler(request)
        except ApiError as error:
            refused = error
        except web.HTTPRequestEntityTooLarge:
            refused = ApiError(413, "Request exceeds the maximum allowed number of bytes.")
        except web.HTTPException as error:
            kind = "not_found_error" if error.status == 404 else "invalid_request_error"
            refused = ApiError(
                error.status, f"{request.method} {request.path}: {error.reason}", error_type=kind
            )
        except Exception:  # noqa: BLE001 - a server always answers
            _log.exception("The stand-in failed at %s %s", request.method, request.path)
            refused = ApiError(500, "stand-in: an internal error, see its log")
        headers = self._headers(request_id) | refused.headers()
        return web.Response(
            status=refused.status,
            body=refused.body(request_id),
            content_type="application/json",
            headers=headers,
        )

    # The API.

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """Answer POST /v1/messages."""
        server = self.server
        with server.in_flight_now():
            question = await self._question(request)
            if server.keep_requests:
                server.requests.append(question.body)
            # Before the limits: tokens that are read from the cache do not count against them.
            reading = server.cache.look(question)
            server.limits.admit(reading.usage.input_tokens + reading.usage.cache_write_tokens)
            fault = server.faults.take(question)
            if fault and not fault.is_billed:
                if fault.kind == "gateway":
                    return self._gateway(fault)
                if fault.kind == "error":
                    raise fault.error()
            if fault and fault.kind == "stream_error" and not question.stream:
                raise fault.error()
            if fault and fault.kind == "hang":
                if fault.is_billed:
                    lost = Reply(stop_reason="hang")
                    charge = Charge.of(
                        question, reading.usage, server.models, server.workspace_geo, lost.steps
                    )
                    self._bill(request[_ID], question, charge, lost, fault)
                return await self._hang(request)
            if server.latency_s:
                await asyncio.sleep(server.latency_s)
            reply = _fitted(self._reply(question, fault), question)
            usage = replace(reading.usage, output_tokens=_output_tokens(reply, question))
            charge = Charge.of(question, usage, server.models, server.workspace_geo, reply.steps)
            # The response begins here: it is charged, and its cached prefix can be read. Like the API, the stand-in
            # charges even if the caller has disconnected, because it cannot know.
            server.cache.begin(reading)
            server.limits.spend(charge.usage.output_tokens)
            if fault is None or fault.is_billed:
                self._bill(request[_ID], question, charge, reply, fault)
            if fault and fault.kind == "gateway":
                return self._gateway(fault)
            if fault and fault.kind == "error":
                raise fault.error()
            return await self._deliver(request, question, reply, charge, fault)

    async def count_tokens(self, request: web.Request) -> web.Response:
        """Answer POST /v1/messages/count_tokens, which costs nothing."""
        question = await self._question(request, count_only=True)
        return self._json(request, {"input_tokens": question.tokens})

    async def models(self, request: web.Request) -> web.Response:
        """Answer GET /v1/models."""
        self._authenticate(request)
        found = [model.to_api() for model in self.server.models.values()]
        for name, step in (("after_id", 1), ("before_id", 0)):
            if cursor := request.query.get(name):
                at = next((n for n, model in enumerate(found) if model["id"] == cursor), None)
                if at is None:
                    raise ApiError(400, f"{name}: {cursor} is not a model")
                found = found[at + step :] if step else found[:at]
        limit = int(request.query.get("limit", 20))
        page = found[:limit]
        edges = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return self._json(request, {"data": page, "has_more": len(found) > limit, **edges})

    async def model(self, request: web.Request) -> web.Response:
        """Answer GET /v1/models/{id}."""
        self._authenticate(request)
        return self._json(request, self._model(request.match_info["id"]).to_api())

    async def exchange(self, request: web.Request) -> web.Response:
        """Answer from recorded exchanges, or record one; the invoice has none of them."""
        assert self.server.exchanges is not None
        with self.server.in_flight_now():
            found = await self.server.exchanges.answer(
                request.method, request.path_qs, request.headers, await request.read()
            )
        headers = {"request-id": request[_ID], **found.headers}
        return web.Response(status=found.status, body=found.reply.encode(), headers=headers)

    # Control.

    async def what_this_is(self, _: web.Request) -> web.Response:
        """Say what this server is."""
        return web.Response(text=WHAT_THIS_IS + "\n")

    async def invoice(self, request: web.Request) -> web.Response:
        """Answer GET /stand-in/invoice; `?lines=1` adds the lines."""
        # Pricing thousands of lines takes a while, so it does not run on the event loop.
        told = await asyncio.to_thread(self.server.summary)
        if request.query.get("lines") not in (None, "", "0"):
            told["lines"] = [asdict(line) for line in self.server.invoice.lines]
        return web.json_response(body=orjson.dumps(told))

    async def requests(self, _: web.Request) -> web.Response:
        """Answer GET /stand-in/requests: the bodies seen, when they are kept."""
        return web.json_response(body=orjson.dumps(self.server.requests))

    async def fail(self, request: web.Request) -> web.Response:
        """Order a fault."""
        self.server.faults.add(await _order(request, Fault))
        return web.json_response({"ok": True})

    async def heal(self, _: web.Request) -> web.Response:
        """Cancel all faults."""
        self.server.heal()
        return web.json_response({"ok": True})

    async def reply(self, request: web.Request) -> web.Response:
        """Script a reply."""
        self.server.replies.add(await _order(request, ScriptedReply))
        return web.json_response({"ok": True})

    async def settings(self, request: web.Request) -> web.Response:
        """Change the latency and the limits."""
        wanted = await _json_object(request)
        if unknown := wanted.keys() - {"latency_s", "limits"}:
            raise ApiError(400, f"stand-in: {sorted(unknown)} cannot be set; only latency_s and limits can")
        try:
            if "limits" in wanted:
                self.server.limit(wanted["limits"])
            self.server.latency_s = float(wanted.get("latency_s", self.server.latency_s))
        except (TypeError, ValueError) as error:
            raise ApiError(400, f"stand-in: {error}") from error
        return web.json_response({"latency_s": self.server.latency_s})

    # The steps of an answer.

    def _authenticate(self, request: web.Request) -> str:
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix(
            "Bearer "
        )
        if self.server.api_key is not None and key != self.server.api_key:
            raise ApiError(401, "invalid x-api-key" if key else "x-api-key header is required")
        if "anthropic-version" not in request.headers:
            raise ApiError(400, "anthropic-version: header is required")
        return key

    def _model(self, name: str) -> Model:
        if name not in self.server.models:
            raise ApiError(404, f"model: {name}")
        return self.server.models[name]

    async def _question(self, request: web.Request, *, count_only: bool = False) -> Question:
        key = self._authenticate(request)
        try:
            body = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            raise ApiError(400, f"The request body is not valid JSON: {error}") from error
        if self.server.validate:
            contract.check(body, schema="CountMessageTokensParams" if count_only else "CreateMessageParams")
        question = read_question(body, key=key, count_only=count_only)
        model = self._model(question.model)
        if not model.takes_sampling and (named := _SAMPLING & question.body.keys()):
            raise ApiError(400, f"`{min(named)}` is deprecated for this model.")
        check_terms(body, model)
        if question.tokens > model.max_input_tokens:
            raise ApiError(
                400, f"prompt is too long: {question.tokens} tokens > {model.max_input_tokens} maximum"
            )
        if question.max_tokens > model.max_tokens:
            raise ApiError(
                400,
                f"max_tokens: {question.max_tokens} > {model.max_tokens}, which is the maximum allowed "
                f"number of output tokens for {model.id}",
            )
        return question

    def _reply(self, question: Question, fault: Fault | None) -> Reply:
        if scripted := self.server.replies.take(question):
            reply = scripted.reply(question)
        elif call := demanded_call(question):
            reply = Reply(tool_use=(call,))
        else:
            reply = Reply(text=answer(question))
        if reply.tool_use and not question.tool_names:
            raise ApiError(400, "stand-in: a tool call was scripted for a request that has no tools")
        return fault.spoil(reply) if fault else reply

    def _bill(
        self, request_id: str, question: Question, charge: Charge, reply: Reply, fault: Fault | None
    ) -> None:
        identify, usage = self.server.identify, charge.usage
        self.server.invoice.add(
            InvoiceLine(
                request_id=request_id,
                time=datetime.now(UTC).isoformat(),
                model=question.model,
                item=identify(question) if identify else question.document[:ITEM_CHARS],
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cache_read_tokens,
                cache_write_5m_tokens=usage.cache_write_5m_tokens,
                cache_write_1h_tokens=usage.cache_write_1h_tokens,
                passes=[each.line() for each in charge.passes],
                inference_geo=charge.inference_geo,
                web_searches=charge.web_searches,
                key_last4=question.key_last4,
                stop_reason=reply.stop_reason,
                fault=fault.kind if fault else None,
            )
        )

    async def _deliver(
        self, request: web.Request, question: Question, reply: Reply, charge: Charge, fault: Fault | None
    ) -> web.StreamResponse:
        message_id = f"msg_{request[_ID].removeprefix('req_')}"
        headers = self._headers(request[_ID])
        if question.stream:
            pieces = list(events(reply, charge, message_id=message_id))
            if fault and fault.kind == "stream_error":
                pieces = [*pieces[: len(pieces) // 2], fault.error().event(request[_ID])]
            headers |= {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        else:
            pieces = [dumps(message(reply, charge, message_id=message_id))]
            headers["content-type"] = "application/json"
            if fault is None or fault.kind not in ("drop", "slow"):
                return web.Response(body=pieces[0], headers=headers)
            # As a plain response has it: without it, aiohttp would send the body in chunks.
            headers["content-length"] = str(len(pieces[0]))
        response = web.StreamResponse(headers=headers)
        with contextlib.suppress(ConnectionError):  # the caller may have disconnected; it is charged anyway
            await response.prepare(request)
            await self._write(request, response, pieces, fault)
        return response

    async def _write(
        self, request: web.Request, response: web.StreamResponse, pieces: list[bytes], fault: Fault | None
    ) -> None:
        body = b"".join(pieces)
        if fault and fault.kind == "drop":
            await response.write(body[: len(body) // 2])
            if request.transport:
                request.transport.close()
        elif fault and fault.kind == "slow":
            step = -(-len(body) // _DRIBBLES)
            for at in range(0, len(body), step):
                await asyncio.sleep(fault.duration_s / _DRIBBLES)
                await response.write(body[at : at + step])
        else:
            for piece in pieces:
                await response.write(piece)

    def _gateway(self, fault: Fault) -> web.Response:
        """Answer as something between the caller and the API does: not in the API's shape, without a request id."""
        text = f"<html><body><h1>{fault.status}</h1>{fault.message or 'stand-in: a gateway was ordered'}</body></html>"
        return web.Response(
            status=fault.status, text=text, content_type="text/html", headers=fault.error().headers()
        )

    async def _hang(self, request: web.Request) -> web.StreamResponse:
        """Never answer: wait until the client disconnects or the server stops."""
        while request.transport is not None and not request.transport.is_closing():
            # aiohttp waits for its handlers when it stops, so this one has to end.
            if self.server.stopping.is_set():
                request.transport.close()
                break
            await asyncio.sleep(0.05)
        return web.Response()

    def _headers(self, request_id: str) -> dict[str, str]:
        return {
            "request-id": request_id,
            "anthropic-organization-id": "stand-in",
            **self.server.limits.headers(),
        }

    def _json(self, request: web.Request, value: Any) -> web.Response:
        return web.Response(
            body=orjson.dumps(value), content_type="application/json", headers=self._headers(request[_ID])
        )


def _fitted(reply: Reply, question: Question) -> Reply:
    """Cut a reply at the first stop sequence and at max_tokens, as the API would have stopped there."""
    found = [
        (at, stop) for stop in question.body.get("stop_sequences") or () if (at := reply.text.find(stop)) >= 0
    ]
    if found:
        at, stop = min(found)
        reply = Reply(
            text=reply.text[:at], stop_reason="stop_sequence", stop_sequence=stop, steps=reply.steps
        )
    if count_tokens(reply.text) > question.max_tokens:
        cut = reply.text[: question.max_tokens * CHARS_PER_TOKEN]
        reply = Reply(text=cut, stop_reason="max_tokens", steps=reply.steps)
    if question.tool_choice.get("disable_parallel_tool_use"):
        reply = replace(reply, tool_use=reply.tool_use[:1])
    while reply.tool_use and _reply_tokens(reply) > question.max_tokens:
        # max_tokens ends the reply within a call: that call has no input, and there are no calls after it.
        *before, last = reply.tool_use
        kept = (*before, replace(last, input={})) if last.input else tuple(before)
        reply = replace(reply, tool_use=kept, stop_reason="max_tokens")
    return reply


def _output_tokens(reply: Reply, question: Question) -> int:
    # max_tokens=0 only writes the cache; otherwise even an empty answer has one token.
    return max(1, _reply_tokens(reply)) if question.max_tokens else 0


def _reply_tokens(reply: Reply) -> int:
    calls = sum(tool_use_tokens(use.name, use.input) for use in reply.tool_use)
    return count_tokens(reply.text) + calls


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"stand-in: not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "stand-in: the body must be a JSON object")
    return body


async def _order(request: web.Request, kind: type[Order]) -> Order:
    try:
        return kind(**await _json_object(request))
    except (TypeError, ValueError) as error:
        raise ApiError(400, f"stand-in: {error}") from error
