"""Error statuses: which of our errors each is, and for how long the server asks to be left alone."""

from __future__ import annotations

import email.utils
import math
import time

from airflow_llm_provider.errors import (
    AuthenticationFailed,
    BadRequest,
    LLMError,
    Overloaded,
    RateLimited,
    ServerError,
    SpendLimitReached,
    TooLong,
    UnknownModel,
)

_GATEWAY_STATUS = frozenset({499, 502, 504, 524})  # something between us and the API gave up: it may have run
# All processes of a connection heed it, so that one absurd header would silence them for good.
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
