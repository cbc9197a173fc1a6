"""Recorded exchanges: real requests and their replies in a file, without keys, replayed later."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp
import orjson

from airflow_llm_provider.testing.wire import ApiError

SCRUBBED = "[scrubbed]"

_KEY = re.compile(r"sk-ant-[\w-]{8,}")
_SHORTEST_KEY = 6  # a shorter "key" could be an ordinary word of the document
_PASSED_ON = re.compile(r"x-api-key|authorization|content-type|anthropic-.*|accept", re.IGNORECASE)
_KEPT = re.compile(
    r"content-type|request-id|retry-after|anthropic-ratelimit-.*|x-should-retry", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request and its reply; the request's body is canonical JSON."""

    method: str
    path: str
    request: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    reply: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what two equal requests have in common."""
        return (self.method, self.path, self.request)


class Exchanges(Protocol):
    """Answers requests instead of the stand-in's text rules."""

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Exchange:
        """Return the exchange of this request."""
        ...

    async def close(self) -> None:
        """Release connections and files."""
        ...


class Recording:
    """Passes requests on to `upstream` and appends each exchange to a JSONL file.

    The caller's key goes upstream with the request. The file never has it: of all headers only a few of the reply's
    are written, and every occurrence of the key, or of anything that looks like an Anthropic key, is replaced in
    both bodies.
    """

    def __init__(self, path: str | Path, *, upstream: str) -> None:
        self.path = Path(path)
        self.upstream = upstream.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Exchange:
        """Ask upstream, write the exchange to the file, and return it unchanged."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600), trust_env=True)
        passed = {name: value for name, value in headers.items() if _PASSED_ON.fullmatch(name)}
        try:
            # No redirects: one would take the caller's key to another host.
            async with self._session.request(
                method, self.upstream + path, headers=passed, data=body or None, allow_redirects=False
            ) as response:
                reply = (await response.read()).decode("utf-8", "replace")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(
                502, f"stand-in: no connection to {self.upstream}: {type(error).__name__}"
            ) from error
        kept = {name.lower(): value for name, value in response.headers.items() if _KEPT.fullmatch(name)}
        keys = _keys_in(headers)
        exchange = Exchange(
            method=method,
            path=path,
            request=_scrub(_canonical(body), keys),
            status=response.status,
            headers={name: _scrub(value, keys) for name, value in kept.items()},
            reply=_scrub(reply, keys),
        )
        with self.path.open("ab") as file:
            file.write(orjson.dumps(asdict(exchange)) + b"\n")
        return Exchange(**{**asdict(exchange), "headers": kept, "reply": reply})

    async def close(self) -> None:
        """Close the connections upstream."""
        if self._session is not None:
            await self._session.close()


class Replay:
    """Answers from a file that `Recording` wrote: the same canonical request gets the same reply.

    A request that was recorded several times gets its replies in order, then the last one again.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._left: dict[tuple[str, str, str], list[Exchange]] = {}
        for line in self.path.read_bytes().splitlines():
            exchange = Exchange(**orjson.loads(line))
            self._left.setdefault(exchange.key, []).append(exchange)

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Exchange:
        """Return the recorded exchange; ApiError 404 when there is none."""
        request = _scrub(_canonical(body), _keys_in(headers))
        left = self._left.get((method, path, request))
        if not left:
            raise ApiError(
                404,
                f"stand-in: no recorded exchange for this {method} {path} in {self.path}. Its body begins "
                f"{request[:120]!r}. Record it first, with --record FILE --upstream URL.",
            )
        return left.pop(0) if len(left) > 1 else left[0]

    async def close(self) -> None:
        """Do nothing: the file was read at the start."""


def _canonical(body: bytes) -> str:
    try:
        return orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS).decode() if body else ""
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")


def _keys_in(headers: Mapping[str, str]) -> list[str]:
    found = [headers.get("x-api-key", ""), headers.get("authorization", "").removeprefix("Bearer ")]
    return [key for key in found if len(key) >= _SHORTEST_KEY]


def _scrub(text: str, keys: Iterable[str]) -> str:
    for key in keys:
        # As it is, and as it is escaped in JSON.
        for written in {key, orjson.dumps(key).decode()[1:-1]}:
            text = text.replace(written, SCRUBBED)
    return _KEY.sub(SCRUBBED, text)
