"""The payload policy: which prompts are kept beside the replies, which always are."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from airflow_llm_provider.errors import LedgerUnusable


class PayloadPolicy:
    """Which prompts are kept.

    text: `full`, `errors`, `sampled:<share>` (errors always) or `none`.
    """

    def __init__(self, text: str) -> None:
        self._share = _parse(text)

    def keeps(self, fingerprint: str, *, error: bool) -> bool:
        """Decide for one prompt; the sample holds the same ones at every run."""
        if self._share is None:
            return False
        return error or int(fingerprint[:8], 16) < self._share * 2**32


def pack_prompt(prompt: Callable[[], bytes]) -> bytes:
    """Compress a request body; it is only written out when it is kept."""
    return zlib.compress(prompt(), level=1)


def unpack_prompt(packed: bytes) -> bytes:
    """Return the request body that was kept."""
    return zlib.decompress(packed)


def _parse(text: str) -> float | None:
    """Return the share of prompts kept besides those of errors; None keeps none at all."""
    kind, _, share = text.strip().partition(":")
    if kind == "sampled":
        try:
            sample = float(share)
        except ValueError:
            sample = -1.0
        if 0 <= sample <= 1:
            return sample
    elif text.strip() in ("full", "errors", "none"):
        return {"full": 1.0, "errors": 0.0, "none": None}[kind]
    raise LedgerUnusable(
        f"[llm] payload is {text!r}; use full, errors, none or sampled:<share>, such as sampled:0.1"
    )
