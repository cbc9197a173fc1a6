"""Payloads: which prompts are kept in the ledger, and how. Replies are always kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from airflow_llm_provider.errors import LedgerUnusable


class PayloadPolicy:
    """Decides which prompts are kept.

    Args:
        text: `full`, `errors`, `sampled:<share>` (and those of errors) or `none`.

    Raises:
        LedgerUnusable: `text` is something else.
    """

    def __init__(self, text: str) -> None:
        self._share = _parse(text)

    def keeps(self, fingerprint: str, *, error: bool) -> bool:
        """Return whether a prompt is kept; the sample has the same prompts in every run."""
        if self._share is None:
            return False
        # The bits of a hash are evenly distributed, so its first 32 bits can draw the sample.
        return error or int(fingerprint[:8], 16) < self._share * 2**32


def pack_prompt(prompt: Callable[[], bytes]) -> bytes:
    """Compress a request body; `prompt` makes it, so that a prompt that is not kept is not made."""
    # The fastest level, because the writer's thread does this while calls wait for its commit.
    return zlib.compress(prompt(), level=1)


def unpack_prompt(packed: bytes) -> bytes:
    """Return the request body of a kept prompt."""
    return zlib.decompress(packed)


def _parse(text: str) -> float | None:
    """Return the share of prompts that is kept, besides those of errors; None to keep none."""
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
