"""Responses that are not a reply: the class of the error, and whether the API may have charged for the request."""

from __future__ import annotations

import email.utils
import math
import re
import string
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import orjson

from airflow_llm_provider.errors import (
    AuthenticationFailed,
    BadRequest,
    LLMError,
    Overloaded,
    RampLimited,
    RateLimited,
    ServerError,
    SpendLimitReached,
    TooLong,
    UnknownModel,
)

# https://platform.claude.com/docs/en/api/errors
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_CLIENT_CLOSED = 499  # the request was being worked on when its connection was closed
_MAX_RETRY_AFTER_S = 3600.0  # one absurd header would stop all processes of the connection

# The API has no status and no code for these; it says them in words. Where each was seen: anthropics/claude-code
# issues 66314 (credit), 38035 and 2127 (limit), 72457 (organization), docker/docker-agent 569 (context limit),
# anthropics/claude-code 58367 (filter). "Input is too long" is what Bedrock says.
_OUT_OF_MONEY = ("credit balance is too low", "reached your specified")
_DISABLED = ("organization has been disabled", "organization is disabled")
_TOO_LONG = ("prompt is too long", "input is too long", "exceed context limit")
_BLOCKED = "blocked by content filtering policy"
# Of a schema. Not all of the API's limits are published, so a type that was checked may get one of these.
_SCHEMA_REFUSED = (
    *("output_config.format.schema", "schemas contains too many", "circular reference detected in schema"),
    *("schema is too complex", "compiled grammar is too large"),
)

_MODEL = re.compile(r"(?!file\b).*\bmodels?\b", re.DOTALL)
_ECHO_WORDS, _LONG_WORD = 3, 24
_LONG_NUMBER = 8  # characters of a word with digits, such as an account number
_ESCAPED = re.compile(r"\\[ntr]")
_AROUND_WORDS = string.punctuation + "\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb"  # quotation marks
_LONGEST_MESSAGE = 2_000  # characters; the API's own are shorter


@dataclass(frozen=True, kw_only=True)
class ErrorResponse:
    """What a server answered in place of a reply.

    Attributes:
        status: The HTTP status. Below 300: an error event in the middle of a stream.
        kind: The API's type of the error, such as `overloaded_error`; empty if it names none.
        code: The API's code of its cause, such as `ramp_limit_exceeded`; empty if it names none.
        message: What it says.
        request_id: The API's id of the request, from the body or the header.
        is_of_the_api: Whether the body has the shape of the API's own errors.
        retry_after: The Retry-After header: seconds or a date.
        sent: The body of the request, no part of which is shown.
    """

    status: int
    kind: str = ""
    code: str = ""
    message: str = ""
    request_id: str = ""
    is_of_the_api: bool = False
    retry_after: str | None = None
    sent: bytes = field(default=b"", repr=False)

    @classmethod
    def read(cls, status: int, headers: Mapping[str, str], body: Any) -> Self:
        """Read a response; `body` is its JSON, or anything else that it holds."""
        outer = body if isinstance(body, Mapping) else {}
        inner = outer.get("error")
        error = inner if isinstance(inner, Mapping) else {}
        details = error.get("details")
        kind, message = _text(error.get("type")), _text(error.get("message"))
        return cls(
            status=status,
            kind=kind,
            code=_text(details.get("error_code")) if isinstance(details, Mapping) else "",
            # Other platforms, such as Bedrock, have the message at the top.
            message=message or _text(outer.get("message")),
            request_id=_text(outer.get("request_id")) or headers.get("request-id", ""),
            is_of_the_api=outer.get("type") == "error" and bool(kind),
            retry_after=headers.get("retry-after"),
        )

    @property
    def is_free(self) -> bool:
        """Whether the API itself refused the request, so that it cannot have charged for it.

        What a gateway says proves nothing, whatever its status: the API may have run the request behind it. Nor does a
        500 of the API: its documentation does not say that such a request is free, and the model may have answered
        before something else failed.
        """
        is_refusal = 400 <= self.status < 500 and self.status != _CLIENT_CLOSED
        return self.is_of_the_api and bool(self.request_id) and (is_refusal or self.status == 529)

    @property
    def is_blocked(self) -> bool:
        """Whether the API's content filter kept the answer back."""
        return self._says(_BLOCKED)

    @property
    def said(self) -> str:
        """What happened, as a sentence without its full stop."""
        where = "An error inside the stream" if self.status < 300 else f"HTTP {self.status}"
        named = f"{where} {self.code or self.kind}".rstrip()
        by = f" (request {self.request_id})" if self.request_id else ""
        return f"{named}: {_without_echo(self.message, self._asked) or 'no reason given'}{by}"

    @cached_property
    def _asked(self) -> str:
        """The words of the request's texts, without case and punctuation around them."""
        try:
            request = orjson.loads(self.sent)
        except ValueError:  # nothing was sent
            return ""
        texts = (request.get(name) for name in ("system", "messages"))
        return " ".join(_plain(word) for text in _texts(list(texts)) for word in text.split())

    def error(self) -> LLMError:
        """Return the error that this response stands for."""
        error = self._error(self._effective_status)
        error.billed = not self.is_free
        return error

    @property
    def _effective_status(self) -> int:
        """The status that the API gives to this type of error.

        A stream that has begun has the status 200, whatever comes later. A gateway may hide a 529 behind a 500.
        """
        if self.status < 300:
            return _STATUS_OF_TYPE.get(self.kind, 500)
        if self.status >= 500 and self.kind in ("overloaded_error", "rate_limit_error"):
            return _STATUS_OF_TYPE[self.kind]
        return self.status

    def _error(self, status: int) -> LLMError:
        wait_s = _retry_after_s(self.retry_after)
        # Before the statuses: a spent limit can have the status 429, and a retry does not help.
        if "spend_limit" in self.code or "billing" in self.code + self.kind or status == 402:
            return self._out_of_money()
        if self._says(*_OUT_OF_MONEY):
            return self._out_of_money()
        # Not in the API's words: a firewall may have refused this one document, which says nothing about the key.
        is_page = not self.kind and not self.message
        if (
            status < 400
            or status == 407
            or (is_page and status in (404, 405))
            or (status == 403 and not self.kind)
        ):
            return BadRequest(
                f"{self.said}. Something between Airflow and the API answered in its place, and redirects are not "
                "followed. If it refuses all requests, check host, proxy and key of the Airflow connection."
            )
        if status in (401, 403) or self.code == "organization_on_hold" or self._says(*_DISABLED):
            return AuthenticationFailed(
                f"{self.said}. Check the API key in the Airflow connection, and its organization in the Claude Console."
            )
        if status == 429:
            ramp = self.code == "ramp_limit_exceeded"
            return (RampLimited if ramp else RateLimited)(self.said, retry_after_s=wait_s)
        if status == 529:
            return Overloaded(self.said, retry_after_s=wait_s)
        if status == 413 or self._says(*_TOO_LONG):
            return TooLong(
                f"{self.said}. Send less text, read it in parts (long_input=), or lower max_tokens."
            )
        if status == 404 and _MODEL.match(self.message.lower()):
            return UnknownModel(
                f"{self.said}. `airflow-llm test-connection` lists the models that the key can use."
            )
        if status in (408, 409, _CLIENT_CLOSED) or status >= 500:
            return ServerError(self.said, retry_after_s=wait_s)
        if self._says(*_SCHEMA_REFUSED):
            return BadRequest(
                f"{self.said}. The output type is over a limit of the API. Simplify it, or ask without the API's "
                "enforcement: request=RequestFields(enforce=False)."
            )
        return BadRequest(self.said)

    def _out_of_money(self) -> SpendLimitReached:
        return SpendLimitReached(
            f"{self.said}. The account's own limit is reached, or its credit is used up. Raise it in the Claude "
            "Console, and clear the task: paid answers are kept."
        )

    def _says(self, *words: str) -> bool:
        """Tell whether the server says one of these, and does not only repeat it from the request."""
        message = self.message.lower()
        return any(each in message and each not in self._asked for each in words)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _retry_after_s(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, at most an hour; None if it can't be read."""
    if not header:
        return None
    try:
        asked_s = float(header)
    except ValueError:
        try:
            asked_s = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, asked_s), _MAX_RETRY_AFTER_S) if math.isfinite(asked_s) else None


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts within a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _plain(word: str) -> str:
    return word.strip(_AROUND_WORDS).casefold()


def _without_echo(message: str, asked: str) -> str:
    """Return the message of a server without what it repeats of the request: an error is logged, a document is not.

    Three words in a row that stand in the request are an echo, and so is a single long one, or a long number.

    Args:
        message: what the server says.
        asked: the words of the request, as `ErrorResponse._asked` has them.
    """
    # Some servers write a line break as an escape.
    words, kept = _ESCAPED.sub(" ", message[:_LONGEST_MESSAGE]).split(), list[str]()
    plain = [_plain(word) for word in words]
    at = 0
    while at < len(words):
        end = at
        while end < len(words) and plain[end] and " ".join(plain[at : end + 1]) in asked:
            end += 1
        if end - at >= _ECHO_WORDS or any(map(_is_telling, plain[at:end])):
            kept.append(f"({len(' '.join(words[at:end]))} characters of the request)")
            at = end
        else:
            kept.append(words[at])
            at += 1
    return " ".join(kept)


def _is_telling(word: str) -> bool:
    return len(word) >= (_LONG_NUMBER if any(map(str.isdigit, word)) else _LONG_WORD)
