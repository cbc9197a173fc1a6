"""The HTTP client: the anthropic SDK, imported only here, and only when something is sent."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import gc
import ipaddress
import logging
import os
import ssl
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import orjson

from airflow_llm_provider.engine.api_errors import ErrorResponse
from airflow_llm_provider.engine.reply import blocked_reply, json_of_reply
from airflow_llm_provider.engine.request import Request, to_json
from airflow_llm_provider.engine.schema_limits import in_dialect, problem_of
from airflow_llm_provider.errors import AuthenticationFailed, BadRequest, LLMError, NetworkError

if TYPE_CHECKING:
    import anthropic

HeaderCallback = Callable[[Mapping[str, str]], None]

DEFAULT_BASE_URL = "https://api.anthropic.com"
# Above this the API requires a stream, because proxies close connections that stay silent for too long.
MAX_UNSTREAMED_TOKENS = 21_333
_MIN_TOKENS_PER_S = 20  # a stream that is slower than this times out
# Loggers of libraries that write bodies and headers, the API key among them, at DEBUG.
_LIBRARY_LOGGERS = (
    "anthropic",
    "httpx2",
    "httpcore2",
    "httpx",
    "httpcore",
    "aiohttp.client",
    "aiohttp.internal",
)
_COUNTED_FIELDS = frozenset(
    {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "mcp_servers"}
)
"""What /v1/messages/count_tokens takes: https://platform.claude.com/docs/en/api/messages/count_tokens."""


class Client(Protocol):
    """What the engine needs of an HTTP client; a test may bring its own."""

    async def send(
        self,
        request: Request,
        *,
        timeout_s: float,
        on_first_byte: Callable[[], object],
        on_headers: HeaderCallback,
    ) -> bytes:
        """Send a request once and return the bytes of the reply.

        Args:
            request: What to send.
            timeout_s: Seconds to wait for the complete reply.
            on_first_byte: Called when the connection stands and the first byte of the request leaves. Before that,
                nothing can have been billed, however the send ends.
            on_headers: Called with the response headers, whatever the status.

        Raises:
            LLMError: No reply. It says in `billed` whether the API may have charged for it.
        """

    async def count_tokens(self, request: Request, *, timeout_s: float) -> int:
        """Return the input tokens of `request` as the API counts them, which is free.

        Raises:
            LLMError: the API cannot be reached, or it does not count tokens.
        """

    async def close(self) -> None:
        """Close the open sockets."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that the API lists.

    Attributes:
        id: The model id.
        retires_at: When it stops answering, if the API says so.
    """

    id: str
    retires_at: dt.datetime | None = None


@dataclass(frozen=True, kw_only=True)
class AnthropicClient:
    """The Messages API of Anthropic, or of a server that is compatible with it.

    It reads nothing of ANTHROPIC_*, AWS_*, GOOGLE_*, AZURE_* and OTEL_* from the environment.

    Attributes:
        api_key: The key. It is never shown, logged or stored.
        base_url: The server's root, without /v1.
        proxy: URL of an HTTP proxy, which may hold a password. Without it, HTTP_PROXY, HTTPS_PROXY and NO_PROXY of
            the environment count; with it, they do not.
        no_proxy: Hosts that are reached without `proxy`: names (with their subdomains), IP addresses, networks such
            as 10.0.0.0/8, each with an optional port, or `*` for all.
        ca_bundle: Path of a PEM file that replaces the system's certificates.
        max_connections: Sockets open at the same time; at least as many as calls in flight.
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    proxy: str | None = field(default=None, repr=False)
    no_proxy: tuple[str, ...] = ()
    ca_bundle: str | None = None
    max_connections: int = 1000

    @property
    def endpoint(self) -> str:
        """Platform and base URL, which identify the server in fingerprints."""
        return f"anthropic {self.base_url.rstrip('/')}"

    async def send(
        self,
        request: Request,
        *,
        timeout_s: float,
        on_first_byte: Callable[[], object],
        on_headers: HeaderCallback,
    ) -> bytes:
        """Send a request once and return the bytes of the reply.

        Args:
            request: What to send. Above MAX_UNSTREAMED_TOKENS the reply is streamed and put together here.
            timeout_s: Seconds to wait for the complete reply; for a stream, between two of its events.
            on_first_byte: Called when the connection stands and the first byte of the request leaves.
            on_headers: Called with the response headers, whatever the status.

        Raises:
            LLMError: No reply. It says in `billed` whether the API may have charged for it.
        """
        sdk, fields = self._sdk, request.fields(self._api_schema(request.schema))
        total_s = timeout_s
        if request.max_tokens > MAX_UNSTREAMED_TOKENS:
            fields["stream"] = True
            total_s = max(timeout_s, request.max_tokens / _MIN_TOKENS_PER_S)
        body = _Body(content=to_json(fields), on_first_byte=on_first_byte)
        try:
            # The SDK's timeout is for one read. A server that sends a byte from time to time would never reach it.
            async with asyncio.timeout(total_s):
                return await self._exchange(sdk, body, timeout_s, on_headers)
        except TimeoutError as error:
            raise NetworkError(
                f"No complete reply within {total_s:g} s. The API may have charged for the request."
                if body.has_left
                else f"No connection to {self.base_url} within {total_s:g} s. Nothing was sent.",
                billed=body.has_left,
            ) from error
        except Exception as error:  # noqa: BLE001  # whatever the SDK raises gets its class
            # The rate limiter learns the limits from a refusal, too, above all from a 429.
            if (refused := getattr(error, "response", None)) is not None:
                on_headers(refused.headers)
            if (response := _error_response(error, body.content)) is not None and response.is_blocked:
                return blocked_reply(request, is_free=response.is_free)
            raise self._translated(error, has_left=body.has_left, sent=body.content) from None

    async def _exchange(
        self, sdk: anthropic.AsyncAnthropic, body: _Body, timeout_s: float, on_headers: HeaderCallback
    ) -> bytes:
        """Send a body and return the reply, whether the server streams it or not."""
        from anthropic import AsyncStream
        from anthropic.types import Message, RawMessageStreamEvent

        # The raw response: parsing into the SDK's models costs as much CPU as the call itself.
        async with await sdk.post(
            "/v1/messages",
            cast_to=Message,
            content=body,
            options={"timeout": timeout_s, "headers": {"Content-Length": str(len(body.content))}},
            stream=True,
            stream_cls=AsyncStream[RawMessageStreamEvent],
        ) as stream:
            response = stream.response
            on_headers(response.headers)
            # What the server does counts, not what it was asked for: some gateways ignore `stream`.
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raw = bytes(await response.aread())
                if not raw.startswith((b"event:", b"data:", b":")):
                    return raw
            return await _put_together(stream)

    async def count_tokens(self, request: Request, *, timeout_s: float) -> int:
        """Return the input tokens of `request` as the API counts them, which is free.

        Args:
            request: what would be sent.
            timeout_s: for the whole exchange.

        Raises:
            LLMError: the API cannot be reached, or it does not count tokens.
        """
        sdk, fields = self._sdk, request.fields(self._api_schema(request.schema))
        body = to_json({name: value for name, value in fields.items() if name in _COUNTED_FIELDS})
        try:
            async with asyncio.timeout(timeout_s):
                response = await sdk.post(
                    "/v1/messages/count_tokens",
                    cast_to=self._raw,
                    content=body,
                    options={"timeout": timeout_s},
                )
            return int(orjson.loads(response.content)["input_tokens"])
        except TimeoutError as error:
            raise NetworkError(f"Tokens were not counted within {timeout_s:g} s.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise BadRequest("The server's count of tokens is not in the form of the API.") from error
        except Exception as error:  # noqa: BLE001  # each error of the SDK gets its class
            raise self._translated(error, sent=body) from None

    async def models(self) -> list[Model]:
        """List the models that the key can use; this costs nothing."""
        try:
            return [
                Model(id=model.id, retires_at=getattr(model, "retires_at", None))
                async for model in self._sdk.models.list(limit=100)
            ]
        except Exception as error:  # noqa: BLE001  # whatever the SDK raises gets its class
            raise self._translated(error) from None

    async def close(self) -> None:
        """Close the open sockets."""
        # Only those of this process. Closing those of a parent could end them for the parent, too.
        if (client := self._sdk_clients.pop(os.getpid(), None)) is not None:
            await client.close()

    def sdk_client(self, *, timeout_s: float | None = None) -> anthropic.Anthropic:
        """Return the SDK's own synchronous client, with the same key, base URL, proxy and CA bundle.

        Its retries are the SDK's default. Its calls are not in the ledger, and no budget or rate limit applies.

        Args:
            timeout_s: Seconds for one request; None for the SDK's default.

        Raises:
            AuthenticationFailed: There is no API key.
        """
        _load_sdk()
        import anthropic
        from anthropic import not_given

        client = anthropic.Anthropic(
            api_key=self._require_key(),
            webhook_key="",  # otherwise read from the environment
            base_url=self.base_url,
            timeout=not_given if timeout_s is None else timeout_s,
            open_telemetry={"traces": False, "propagation": False},
            http_client=anthropic.DefaultHttpxClient(
                proxy=self._route(), trust_env=False, verify=self._verify(), follow_redirects=False
            ),
        )
        _drop_environment_headers(client)
        return client

    @property
    def _sdk(self) -> anthropic.AsyncAnthropic:
        """The SDK's client of this process: a child that was forked since gets one of its own."""
        known = self._sdk_clients.get(os.getpid())
        if known is None:
            known = self._sdk_clients[os.getpid()] = self._open_sdk()
        return known

    @cached_property
    def _sdk_clients(self) -> dict[int, anthropic.AsyncAnthropic]:
        """By process. A parent's stays here, so that it is not closed as garbage."""
        return {}

    def _open_sdk(self) -> anthropic.AsyncAnthropic:
        _load_sdk()
        import anthropic
        import httpx2

        key = self._require_key()
        http = anthropic.DefaultAioHttpClient(
            # Kept open longer than the SDK's five seconds, so that a pause in a run costs no new handshakes.
            limits=httpx2.Limits(max_connections=self.max_connections, keepalive_expiry=30.0),
            proxy=self._route(),
            trust_env=False,
            verify=self._verify(),
            # Documents go to the host that the connection names, and nowhere else.
            follow_redirects=False,
        )
        client = anthropic.AsyncAnthropic(
            api_key=key,
            webhook_key="",  # otherwise read from the environment
            base_url=self.base_url,
            max_retries=0,  # the engine retries
            open_telemetry={"traces": False, "propagation": False},
            http_client=http,
        )
        _drop_environment_headers(client)
        return client

    def _require_key(self) -> str:
        if not self.api_key:
            raise AuthenticationFailed(
                "The Airflow connection has no API key. Put it in the password field, or export it as "
                'AIRFLOW_CONN_CLAUDE_DEFAULT=\'{"conn_type": "claude", "password": "…"}\'.'
            )
        return self.api_key

    def _route(self) -> str | None:
        """Return the proxy for the one host that this client talks to; None to reach it directly."""
        url = urlsplit(self.base_url)
        if self.proxy:
            return None if _bypasses_proxy(url.hostname or "", url.port, self.no_proxy) else self.proxy
        environment = urllib.request.getproxies_environment()
        proxy = environment.get(url.scheme)
        if not proxy or _bypasses_proxy(url.hostname or "", url.port, environment.get("no", "").split(",")):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    def _verify(self) -> ssl.SSLContext:
        """Return what servers' certificates are checked with."""
        if not self.ca_bundle:
            import httpx2

            return httpx2.create_ssl_context()
        try:
            return ssl.create_default_context(cafile=self.ca_bundle)
        except OSError as error:
            raise BadRequest(
                f"The connection's CA bundle {self.ca_bundle!r} can't be read: {error}. Nothing was sent."
            ) from error

    @cached_property
    def _raw(self) -> type[Any]:
        import httpx2

        return httpx2.Response

    @cached_property
    def _schemas(self) -> dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]:
        return {}

    def _api_schema(self, schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the schema in the API's dialect; what that can't enforce is moved into descriptions."""
        if schema is None:
            return None
        known = self._schemas.get(id(schema))
        if known is None:
            # Also what was checked when its DAG was parsed: a request may be made by hand.
            if problem := problem_of({"output_type": schema}):
                raise BadRequest(f"{problem} Nothing was sent.")
            _load_sdk()
            import anthropic

            try:
                taken = anthropic.transform_schema(in_dialect(schema))
            except Exception as error:
                raise BadRequest(
                    f"The output type has a part that the API has no schema for ({error}). Give every field a type "
                    "of its own; Any is not one. Nothing was sent."
                ) from error
            # The schema is stored too: as long as it lives, no other object can have its id.
            known = self._schemas[id(schema)] = (schema, taken)
        return known[1]

    def _translated(self, error: Exception, *, has_left: bool | None = None, sent: bytes = b"") -> LLMError:
        """Return our error for what the SDK raised, without the API key in its message.

        Args:
            error: What was raised.
            has_left: Whether the first byte of the request had left; None for requests that never cost anything.
            sent: The body of the request, no part of which is shown.
        """
        translated = self._by_class(error, has_left, sent)
        # Some gateways repeat the key that they were sent.
        if self.api_key:
            translated.args = tuple(str(text).replace(self.api_key, "***") for text in translated.args)
        translated.billed = translated.billed and bool(has_left)
        return translated

    def _by_class(self, error: Exception, has_left: bool | None, sent: bytes) -> LLMError:
        import anthropic

        if isinstance(error, LLMError):
            return error
        if (response := _error_response(error, sent)) is not None:
            return response.error()
        if isinstance(error, anthropic.AnthropicError) and not isinstance(
            error, anthropic.APIConnectionError
        ):
            rejected = BadRequest(f"The SDK rejected the request: {error}")
            rejected.billed = bool(has_left)
            return rejected
        cause = _root(error)
        # Only the system's own text is shown: the HTTP library quotes what the server sent.
        is_of_the_system = isinstance(cause, OSError) and bool(str(cause))
        reason = f"{type(cause).__name__}: {cause}" if is_of_the_system else type(cause).__name__
        meaning = {True: " The API may have charged for the request.", False: " Nothing was sent.", None: ""}
        return NetworkError(
            f"The connection to {self.base_url} failed: {reason}.{meaning[has_left]}", billed=bool(has_left)
        )


@dataclass(kw_only=True, slots=True)
class _Body:
    """The body of a request, which the HTTP library asks for once the connection stands.

    So it tells whether anything has left: waiting for a free socket, the name of the host, the connection, TLS and
    the tunnel of a proxy all come before.
    """

    content: bytes
    on_first_byte: Callable[[], object]
    has_left: bool = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.has_left = True
        self.on_first_byte()
        yield self.content


async def _put_together(stream: anthropic.AsyncStream[Any]) -> bytes:
    """Return the message that a stream of events adds up to."""
    from anthropic import not_given
    from anthropic.lib.streaming import AsyncMessageStream

    read = AsyncMessageStream(stream, output_format=not_given)
    billed: dict[str, Any] = {}
    try:
        async for event in read:
            # The SDK adds up the tokens that it knows. What else is billed, such as `iterations`, is in the last event.
            if event.type == "message_delta":
                billed |= {name: value for name, value in (event.usage.model_extra or {}).items() if value}
        message = await read.get_final_message()
    except AssertionError:  # the SDK's word for a stream without a message
        message = None
    if message is None or message.stop_reason is None:
        raise NetworkError(
            "The stream ended before the message was complete. The API may have charged for it.", billed=True
        )
    # Not mode="json": pydantic has no JSON for half of a surrogate pair.
    # It would warn of blocks that this version of the SDK does not know.
    whole: dict[str, Any] = message.to_dict(mode="python", warnings=False)
    return json_of_reply({**whole, "usage": {**whole["usage"], **billed}})


def _error_response(error: Exception, sent: bytes) -> ErrorResponse | None:
    """Return what the server answered to `sent` in place of a reply; None if it did not answer."""
    import anthropic

    if not isinstance(error, anthropic.APIStatusError):
        return None
    response = ErrorResponse.read(error.status_code, error.response.headers, error.body)
    return dataclasses.replace(response, sent=sent)


def _load_sdk() -> None:
    """Import the SDK and silence its loggers.

    The garbage collector is off meanwhile: it would take a third of the time to search 3,000 new modules.
    """
    # The parent of a forked worker, or another provider, may have imported it without silencing its loggers.
    if "anthropic" in sys.modules:
        _silence_loggers()
        return
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        import aiohttp  # noqa: F401  # the SDK's backend
        import anthropic  # noqa: F401

        # The modules stay as long as the process, so no later collection has to search them.
        gc.freeze()
        _silence_loggers()
    finally:
        if is_enabled:
            gc.enable()


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _bypasses_proxy(host: str, port: int | None, no_proxy: Sequence[str]) -> bool:
    """Tell whether a host is among those that are reached without the proxy."""
    host = host.lower()
    for entry in no_proxy:
        name, of_port = _split_port(entry.strip().lower())
        if name and of_port in ("", str(port)) and _matches(host, name):
            return True
    return False


def _split_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):  # [::1]:8080
        name, _, port = entry.removeprefix("[").partition("]")
        return name, port.removeprefix(":")
    # More colons are an IPv6 address without a port.
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, ""


def _matches(host: str, name: str) -> bool:
    """Tell whether a host is `name`, one of its subdomains, or an address in that network."""
    if name == "*":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        domain = name.removeprefix("*").removeprefix(".")
        return host == domain or host.endswith(f".{domain}")
    try:
        return address in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False


def _drop_environment_headers(client: anthropic.Anthropic | anthropic.AsyncAnthropic) -> None:
    """Remove the headers that the SDK took from ANTHROPIC_CUSTOM_HEADERS; it has no public way to refuse them."""
    client._custom_headers = {}


def _drop_below_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _silence_loggers() -> None:
    """Keep bodies and headers out of every log, whatever level the loggers of the libraries have."""
    for name in (*_LIBRARY_LOGGERS, *logging.root.manager.loggerDict):
        # A filter holds for one logger and not for those below it, so each gets its own.
        if name in _LIBRARY_LOGGERS or name.startswith(tuple(f"{top}." for top in _LIBRARY_LOGGERS)):
            logging.getLogger(name).addFilter(_drop_below_warning)
