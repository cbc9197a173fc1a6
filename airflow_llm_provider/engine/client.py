"""The wire: the anthropic SDK, imported here and only here, and only when something is sent."""

from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import gc
import math
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from airflow_llm_provider.engine.request import Request, to_json
from airflow_llm_provider.errors import (
    AuthenticationFailed,
    BadRequest,
    LLMError,
    NetworkError,
    Overloaded,
    RateLimited,
    ServerError,
    SpendLimitReached,
    TooLong,
    UnknownModel,
)

if TYPE_CHECKING:
    import anthropic

HeaderCallback = Callable[[Mapping[str, str]], None]

DEFAULT_BASE_URL = "https://api.anthropic.com"
# Above this the API wants a stream, since a connection that says nothing for so long is cut on the way.
MAX_UNSTREAMED_TOKENS = 21_333
_SLOW_TOKENS_PER_S = 20  # a stream that is slower than this is given up


class Client(Protocol):
    """What the engine needs of the wire; a test may bring its own."""

    async def send(self, request: Request, *, timeout_s: float, on_headers: HeaderCallback) -> bytes:
        """Send `request` once and return the reply's bytes; raises LLMError.

        on_headers: is given the headers of the response, whatever its status.
        """

    async def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that the API lists."""

    id: str
    retires_at: dt.datetime | None = None


@dataclass(frozen=True, kw_only=True)
class AnthropicClient:
    """The Messages API of Anthropic, or of a server compatible with it.

    api_key: never shown, logged or stored.
    base_url: the server's root, without /v1.
    proxy: URL of an HTTP proxy; ca_bundle: path of a PEM file that replaces the system's certificates.
    max_connections: sockets open at once, at least as many as calls in flight.
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    proxy: str | None = field(default=None, repr=False)  # its URL may hold a password
    ca_bundle: str | None = None
    max_connections: int = 1000

    @property
    def endpoint(self) -> str:
        """The server's identity in fingerprints: platform and base URL."""
        return f"anthropic {self.base_url.rstrip('/')}"

    async def send(self, request: Request, *, timeout_s: float, on_headers: HeaderCallback) -> bytes:
        """Send `request` once and return the reply's bytes.

        on_headers: is given the headers of the response, whatever its status.
        Raises the error of its class; `billed` is set on those where the API may have charged.
        """
        sdk, fields = self._sdk, request.fields(self._api_schema(request.schema))
        try:
            if request.max_tokens > MAX_UNSTREAMED_TOKENS:
                return await self._stream(fields, timeout_s, on_headers)
            # The raw response: parsing into the SDK's models costs as much CPU as the call itself.
            async with asyncio.timeout(timeout_s):
                response = await sdk.post(
                    "/v1/messages", cast_to=self._raw, content=to_json(fields), options={"timeout": timeout_s}
                )
            on_headers(response.headers)
            return bytes(response.content)
        except TimeoutError as error:
            raise NetworkError(f"No complete answer within {timeout_s:g} s.", billed=True) from error
        except Exception as error:  # noqa: BLE001  # whatever the SDK raises gets its class
            if (refused := getattr(error, "response", None)) is not None:
                on_headers(refused.headers)
            raise self._translated(error) from None

    async def _stream(self, fields: dict[str, Any], timeout_s: float, on_headers: HeaderCallback) -> bytes:
        """Send a request as a stream and return the message it adds up to.

        timeout_s: the longest silence; the whole may take as long as its tokens do at a slow model's speed.
        """
        named = {name: fields.pop(name) for name in ("model", "max_tokens", "messages")}
        total_s = max(timeout_s, named["max_tokens"] / _SLOW_TOKENS_PER_S)
        async with (
            asyncio.timeout(total_s),
            self._sdk.messages.stream(**named, extra_body=fields, timeout=timeout_s) as stream,
        ):
            on_headers(stream.response.headers)
            message = await stream.get_final_message()
        if message.stop_reason is None:
            raise NetworkError("The stream ended before the answer did.", billed=True)
        return to_json(message.to_dict(mode="json"))

    async def models(self) -> list[Model]:
        """List the models this key can use; spends nothing."""
        try:
            return [
                Model(id=model.id, retires_at=getattr(model, "retires_at", None))
                async for model in self._sdk.models.list(limit=100)
            ]
        except Exception as error:  # noqa: BLE001  # whatever the SDK raises gets its class
            raise self._translated(error) from None

    async def close(self) -> None:
        """Close the connections."""
        if "_sdk" in self.__dict__:
            await self._sdk.close()

    def sdk_client(self) -> anthropic.Anthropic:
        """Return the SDK's own synchronous client, with the same key, base URL, proxy and CA bundle."""
        _load_sdk()
        import anthropic

        http = anthropic.DefaultHttpxClient(
            proxy=self.proxy,
            verify=_trust(self.ca_bundle) if self.ca_bundle else True,
            follow_redirects=False,
        )
        return anthropic.Anthropic(api_key=self.api_key, base_url=self.base_url, http_client=http)

    @cached_property
    def _sdk(self) -> anthropic.AsyncAnthropic:
        _load_sdk()
        import anthropic
        import httpx2

        if not self.api_key:
            raise AuthenticationFailed(
                "The Airflow connection has no API key: put it in the password field, or export it as "
                'AIRFLOW_CONN_CLAUDE_DEFAULT=\'{"conn_type": "claude", "password": "…"}\'.'
            )
        http = anthropic.DefaultAioHttpClient(
            # Kept alive longer than the SDK's five seconds: a run's lulls should not cost new handshakes.
            limits=httpx2.Limits(max_connections=self.max_connections, keepalive_expiry=30.0),
            proxy=self.proxy,
            verify=_trust(self.ca_bundle) if self.ca_bundle else True,
            # Documents go to the host that the connection names, and nowhere else.
            follow_redirects=False,
        )
        return anthropic.AsyncAnthropic(
            api_key=self.api_key, base_url=self.base_url, max_retries=0, http_client=http
        )

    @cached_property
    def _raw(self) -> type[Any]:
        import httpx2

        return httpx2.Response

    @cached_property
    def _schemas(self) -> dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]:
        return {}

    def _api_schema(self, schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the schema as the API takes it: what it can't enforce is moved into descriptions."""
        if schema is None:
            return None
        known = self._schemas.get(id(schema))
        if known is None:
            _load_sdk()
            import anthropic

            try:
                taken = anthropic.transform_schema(_prepared(schema))
            except BadRequest:
                raise
            except Exception as error:
                raise BadRequest(
                    f"The output type has a part that the API has no schema for ({error}). Give every field a type "
                    "of its own; Any has none."
                ) from error
            known = self._schemas[id(schema)] = (schema, taken)
        return known[1]

    def _translated(self, error: Exception) -> LLMError:
        """Turn what the SDK raises into our errors, by class, without a word of the key."""
        translated = self._by_class(error)
        # Some gateways repeat the key they were sent.
        if self.api_key:
            translated.args = tuple(str(text).replace(self.api_key, "***") for text in translated.args)
        return translated

    def _by_class(self, error: Exception) -> LLMError:
        import anthropic

        if isinstance(error, LLMError):
            return error
        if isinstance(error, anthropic.APIStatusError):
            code = str(error.error_code or error.type or "")
            said = f"HTTP {error.status_code} {code}".rstrip() + f": {error.api_message or 'no reason given'}"
            if error.request_id:
                said += f" (request {error.request_id})"
            retry_after = error.response.headers.get("retry-after")
            return error_of_status(error.status_code, code=code, said=said, retry_after=retry_after)
        if isinstance(error, anthropic.APIConnectionError):
            cause = _root(error)
            reason = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
            return NetworkError(
                f"The connection to {self.base_url} failed: {reason}.", billed=not _unsent(error)
            )
        if isinstance(error, anthropic.AnthropicError):
            return BadRequest(f"The SDK rejected the request: {error}")
        return NetworkError(
            f"The connection to {self.base_url} broke: {type(error).__name__}: {error}", billed=True
        )


def _load_sdk() -> None:
    """Import the SDK, with the garbage collector out of the way.

    Among the objects of 3,000 modules it would search for a third of the time, and again once they are there.
    """
    if "anthropic" in sys.modules:
        return
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        import aiohttp  # noqa: F401  # the SDK's backend
        import anthropic  # noqa: F401

        gc.freeze()
    finally:
        if is_enabled:
            gc.enable()


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _unsent(error: BaseException) -> bool:
    """Tell whether the connection never stood, so that nothing can have been billed."""
    import aiohttp

    never_stood = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, never_stood):
            return True
        cause = cause.__cause__
    return False


def _trust(ca_bundle: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        raise BadRequest(f"The connection's CA bundle {ca_bundle!r} can't be read: {error}") from error


def _prepared(schema: Any) -> Any:
    """Return a schema that the API's form of it can hold; raises BadRequest where it would lose fields."""
    if isinstance(schema, list):
        return [_prepared(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("type") == "object" and schema.get("additionalProperties") and not schema.get("properties"):
        raise BadRequest(
            "The output type has a dict with keys of the model's choice, which structured output can't hold: it would "
            "always be empty. Ask for a list of entries with a key and a value instead."
        )
    prepared = {name: _prepared(part) for name, part in schema.items()}
    if isinstance(types := schema.get("type"), list):  # the SDK takes one type at a time
        del prepared["type"]
        prepared["anyOf"] = [{"type": name} for name in types]
    return prepared


_GATEWAY_STATUS = frozenset({499, 502, 504, 524})  # something between us and the API gave up: it may have run
# All processes of a connection on_headers it, so that one absurd header would silence them for good.
_LONGEST_SILENCE_S = 3600.0


def error_of_status(status: int, *, code: str, said: str, retry_after: str | None) -> LLMError:
    """Return the error of a response that is no reply.

    code: the API's word for it, if any. said: all that is known of it, as a sentence without its full stop.
    retry_after: the header.
    """
    retry_after_s = _retry_after_s(retry_after)
    if status < 300:
        return ServerError(f"{said}. The stream ended before the answer did.", billed=True)
    if "spend_limit" in code or "billing" in code or status == 402:
        return SpendLimitReached(
            f"{said}. The account's own limit is reached: raise it in the Claude Console."
        )
    if status in (401, 403):
        return AuthenticationFailed(f"{said}. Check the API key in the Airflow connection.")
    if status == 429:
        return RateLimited(said, retry_after_s=retry_after_s)
    if status == 529:
        return Overloaded(said, retry_after_s=retry_after_s)
    if status == 404:
        return UnknownModel(f"{said}. `airflow-llm test-connection` says which models the key can use.")
    if status == 413 or "prompt is too long" in said:
        return TooLong(said)
    if status in (408, 409) or status >= 500:
        return ServerError(said, retry_after_s=retry_after_s, billed=status in _GATEWAY_STATUS)
    if status < 400 or status == 407:
        return BadRequest(
            f"{said}. Something between here and the API answered in its place, and redirects are not followed: "
            "check the host and proxy of the Airflow connection."
        )
    return BadRequest(said)


def _retry_after_s(header: str | None) -> float | None:
    """Read a Retry-After, in seconds or a date; None where it says nothing that can be waited for."""
    if not header:
        return None
    try:
        asked_s = float(header)
    except ValueError:
        try:
            asked_s = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, asked_s), _LONGEST_SILENCE_S) if math.isfinite(asked_s) else None
