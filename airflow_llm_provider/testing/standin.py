"""The stand-in: a test double of the Claude API on loopback, with faults, limits and an invoice.

None of its answers is Claude's. They come from plain text rules over the request itself.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import itertools
import secrets
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from airflow_llm_provider.testing.exchanges import Exchanges, Recording, Replay
from airflow_llm_provider.testing.faults import Fault, FaultKind, Matching, Orders, ScriptedReply
from airflow_llm_provider.testing.invoice import Invoice
from airflow_llm_provider.testing.limits import Limits
from airflow_llm_provider.testing.prompt_cache import MINIMUM_TOKENS, PromptCache
from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.routes import WHAT_THIS_IS, application
from airflow_llm_provider.testing.wire import MODELS, Model

_BACKLOG = 1_024  # a task opens hundreds of connections at once
_GRACE_S = 0.1  # for requests in flight when the server stops


class StandIn:
    """A server of the Messages API, as a context manager that runs it in a thread of its own.

        with StandIn(latency_s=0.2) as server:
            client = anthropic.Anthropic(base_url=server.url, api_key="any")

    `async with` runs it in the current event loop instead. Its methods may be called from any thread.

    Args:
        host: the address it listens on.
        port: 0 takes a free port; `url` has it.
        api_key: the only key that it accepts; default: any key.
        latency_s: seconds before an answer begins; may be set at any time.
        limits: `rpm`, `itpm`, `otpm` and `burst` to enforce, see `Limits`; default: none.
        validate: check each request against the API's OpenAPI description (needs llm-comply).
        keep_requests: keep the bodies of accepted requests in `requests`.
        invoice: a file that the invoice's lines are appended to.
        identify: returns an invoice line's `item` for a question; default: the first characters of its document.
        models: the models it knows.
        workspace_geo: where a request runs that states no `inference_geo`: `global` or `us`.
        cache_minimum_tokens: the shortest prefix that is cached.
        exchanges: recorded exchanges that answer instead of the text rules.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        latency_s: float = 0.0,
        limits: Mapping[str, float] | None = None,
        validate: bool = False,
        keep_requests: bool = False,
        invoice: str | Path | None = None,
        identify: Callable[[Question], str] | None = None,
        models: Iterable[Model] = MODELS,
        workspace_geo: str = "global",
        cache_minimum_tokens: int = MINIMUM_TOKENS,
        exchanges: Exchanges | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.api_key = api_key
        self.latency_s = latency_s
        self.limits = Limits(limits)
        self.validate = validate
        self.keep_requests = keep_requests
        self.requests: list[dict[str, Any]] = []
        self.invoice = Invoice(path=invoice)
        self.identify = identify
        self.models = {model.id: model for model in models}
        self.workspace_geo = workspace_geo
        self.cache = PromptCache(minimum_tokens=cache_minimum_tokens)
        self.exchanges = exchanges
        self.faults: Orders[Fault] = Orders()
        self.replies: Orders[ScriptedReply] = Orders()
        self.seen = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.stopping = threading.Event()
        self._ids = itertools.count(1)
        self._run_id = secrets.token_hex(4)
        self._runner: web.AppRunner | None = None
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        """Return the base URL to give to a client."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    # For tests.

    def fail(
        self,
        status: int = 529,
        *,
        kind: FaultKind = "error",
        times: int | None = None,
        share: float | None = None,
        matching: Matching = None,
        after: int = 0,
        **more: Any,
    ) -> None:
        """Order a fault; the latest order that matches a request is used.

        Args:
            status: the HTTP status of an error.
            kind: what goes wrong; see `FaultKind`.
            times: how many requests it hits; None: all.
            share: the share of the requests that it hits, from 0 to 1; None: all.
            matching: only requests that contain this text, or for which this function of the question is true.
            after: how many matching requests pass first.
            **more: the other fields of `Fault`.
        """
        self.faults.add(
            Fault(kind=kind, status=status, times=times, share=share, matching=matching, after=after, **more)
        )

    def heal(self) -> None:
        """Cancel all faults; requests that hang already keep hanging."""
        self.faults.clear()

    def reply(
        self,
        *,
        text: str | None = None,
        data: Any = None,
        call: Callable[[Question], Any] | None = None,
        tool_use: Sequence[Mapping[str, Any]] = (),
        matching: Matching = None,
        model: str | None = None,
        turn: int | None = None,
        times: int | None = None,
        stop_reason: str = "",
    ) -> None:
        """Script the reply to matching requests; the latest script that matches is used.

        Args:
            text: the answer as text.
            data: the answer as a value, sent as JSON.
            call: the answer as a function of the question.
            tool_use: the tool calls of the reply: `[{"name": …, "input": {…}}, …]`.
            matching: only requests that contain this text, or for which this function of the question is true.
            model: only requests to this model.
            turn: only requests of a conversation with so many earlier answers; 0 for the first request.
            times: how many requests it answers; None: all.
            stop_reason: default: `tool_use` with calls, else `end_turn`.
        """
        self.replies.add(
            ScriptedReply(
                text=text,
                data=data,
                call=call,
                tool_use=tool_use,
                matching=matching,
                model=model,
                turn=turn,
                times=times,
                stop_reason=stop_reason,
            )
        )

    def limit(self, limits: Mapping[str, float] | None) -> None:
        """Enforce other limits from now on, with full buckets.

        Args:
            limits: `rpm`, `itpm`, `otpm` and `burst`; None enforces none.
        """
        self.limits = Limits(limits)

    def summary(self) -> dict[str, Any]:
        """Return the invoice's totals and the requests in flight, as GET /stand-in/invoice does."""
        return {
            "stand_in": WHAT_THIS_IS,
            "paid": self.invoice.paid,
            "seen": self.seen,
            "cost_micro_usd": self.invoice.cost_micro_usd,
            "unpriced": self.invoice.unpriced,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
        }

    # For its routes.

    @contextmanager
    def in_flight_now(self) -> Iterator[None]:
        """Count a request as seen, and as in flight while it is."""
        self.seen += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    def next_request_id(self) -> str:
        """Return a request id that no other stand-in uses."""
        return f"req_{self._run_id}{next(self._ids):016x}"

    # Start and stop.

    def __enter__(self) -> Self:
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(ready)), name=f"stand-in-{self._run_id}", daemon=True
        )
        self._thread.start()
        # Raises here what went wrong in the thread, such as a port that is taken.
        ready.result()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._stop()
        if self._thread:
            self._thread.join()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _live(self, ready: concurrent.futures.Future[None]) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        try:
            await self._start()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that started us
            ready.set_exception(error)
            return
        ready.set_result(None)
        await stop.wait()
        await self._close()

    async def _start(self) -> None:
        self.stopping.clear()
        # A handler goes on when its client disconnects: like the API, it answers and charges each accepted request.
        self._runner = web.AppRunner(
            application(self), access_log=None, handler_cancellation=False, shutdown_timeout=_GRACE_S
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port, backlog=_BACKLOG).start()
        except OSError:
            await self._runner.cleanup()
            raise
        self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        self.stopping.set()
        if self._runner:
            await self._runner.cleanup()
        if self.exchanges:
            await self.exchanges.close()
        self.invoice.close()


def serve(
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    latency_s: float = 0.0,
    invoice: str | Path | None = None,
    api_key: str | None = None,
    limits: Mapping[str, float] | None = None,
    validate: bool = False,
    keep_requests: bool = False,
    record: str | Path | None = None,
    upstream: str | None = None,
    replay: str | Path | None = None,
    faults: Iterable[Fault] = (),
) -> None:
    """Run a stand-in in this process until SIGINT or SIGTERM; print its address and what it is.

    Args:
        host: as for `StandIn`.
        port: as for `StandIn`.
        latency_s: as for `StandIn`.
        invoice: as for `StandIn`.
        api_key: as for `StandIn`.
        limits: as for `StandIn`.
        validate: as for `StandIn`.
        keep_requests: as for `StandIn`.
        record: append the exchanges with `upstream` to this file.
        upstream: the base URL that requests are passed on to.
        replay: answer from a file that `record` wrote.
        faults: faults that apply from the start.
    """
    exchanges: Exchanges | None = None
    if record is not None or upstream is not None:
        if record is None or upstream is None or replay is not None:
            raise ValueError("Give record= and upstream= together, and without replay=.")
        exchanges = Recording(record, upstream=upstream)
    elif replay is not None:
        exchanges = Replay(replay)
    server = StandIn(
        host=host,
        port=port,
        latency_s=latency_s,
        invoice=invoice,
        api_key=api_key,
        limits=limits,
        validate=validate,
        keep_requests=keep_requests,
        exchanges=exchanges,
    )
    for fault in faults:
        server.faults.add(fault)
    asyncio.run(_until_signalled(server, told=_told(record, upstream, replay)))


def main(arguments: list[str] | None = None) -> None:
    """Run a stand-in from the command line."""
    parser = argparse.ArgumentParser(prog="stand-in", description=WHAT_THIS_IS)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free port")
    parser.add_argument(
        "--latency", dest="latency_s", type=float, default=0.0, help="seconds before an answer begins"
    )
    parser.add_argument("--invoice", type=Path, help="append the invoice's lines to this file")
    parser.add_argument("--api-key", help="accept only this key")
    for name in ("rpm", "itpm", "otpm", "burst"):
        parser.add_argument(f"--{name}", type=float, help="enforce this limit")
    parser.add_argument(
        "--validate", action="store_true", help="check requests against the API's OpenAPI description"
    )
    parser.add_argument(
        "--keep-requests", action="store_true", help="keep the requests; /stand-in/requests shows them"
    )
    parser.add_argument(
        "--record", type=Path, help="append the exchanges with --upstream to this file, without keys"
    )
    parser.add_argument("--upstream", help="base URL that requests are passed on to")
    parser.add_argument("--replay", type=Path, help="answer from a recorded file")
    options = vars(parser.parse_args(arguments))
    limits = {
        name: value for name in ("rpm", "itpm", "otpm", "burst") if (value := options.pop(name)) is not None
    }
    try:
        serve(limits=limits or None, **options)
    except (OSError, ValueError) as error:
        parser.error(str(error))


async def _until_signalled(server: StandIn, *, told: str) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with server:
        print(f"{server.url}\n{told}", flush=True)  # noqa: T201 - what the command is for
        await stop.wait()


def _told(record: object, upstream: object, replay: object) -> str:
    if record:
        return f"This is a recorder: it passes requests on to {upstream} and writes them to {record}, without keys."
    if replay:
        return f"This is a stand-in, not Claude: it plays back the exchanges recorded in {replay}."
    return WHAT_THIS_IS


if __name__ == "__main__":
    main()
