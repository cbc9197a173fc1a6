"""The prompt cache: which tokens of a request are written to it, read from it, or neither."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.wire import Usage

MINIMUM_TOKENS = 1_024  # a shorter prefix is not cached, even if it is marked
LOOKBACK_BLOCKS = 20  # how far before a mark the API searches for an earlier write
_TTL_S = {"5m": 300.0, "1h": 3_600.0}
_CROWDED = 10_000  # with more entries than this, the expired ones are removed


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The usage of one request, and what it writes to the cache when its answer begins."""

    usage: Usage
    writes: tuple[tuple[bytes, float], ...] = ()  # prefix, lifetime in seconds


@dataclass(frozen=True, kw_only=True)
class _Mark:
    digest: bytes
    tokens: int  # of the whole prefix that ends here
    ttl: str | None


class PromptCache:
    """A prompt cache by exact prefix.

    Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching

    A prefix belongs to a model and a key. It can be read only after the response that wrote it has begun, so
    concurrent first requests all pay for the write.
    """

    def __init__(
        self, *, minimum_tokens: int = MINIMUM_TOKENS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.minimum_tokens = minimum_tokens
        self._clock = clock
        self._ends: dict[bytes, tuple[float, float]] = {}  # prefix -> (when it ends, its lifetime)

    def look(self, question: Question) -> Reading:
        """Count what `question` reads from the cache and would write to it."""
        total = question.tokens
        if not any(block.ttl for block in question.blocks):
            return Reading(usage=Usage(input_tokens=total))
        now = self._clock()
        marks = list(_marks(question))
        read = self._longest_read(marks, now)
        written = {"5m": 0, "1h": 0}
        writes = []
        covered = read
        for mark in marks:
            if mark.ttl is None or mark.tokens < max(self.minimum_tokens, covered + 1):
                continue
            # Only what no shorter mark has covered: each token is written, and charged, once.
            written[mark.ttl] += mark.tokens - covered
            writes.append((mark.digest, _TTL_S[mark.ttl]))
            covered = mark.tokens
        usage = Usage(
            input_tokens=total - covered,
            cache_read_tokens=read,
            cache_write_5m_tokens=written["5m"],
            cache_write_1h_tokens=written["1h"],
        )
        return Reading(usage=usage, writes=tuple(writes))

    def begin(self, reading: Reading) -> None:
        """Make readable what `reading` wrote: its response has begun."""
        now = self._clock()
        if len(self._ends) > _CROWDED:
            self._ends = {digest: entry for digest, entry in self._ends.items() if entry[0] > now}
        for digest, lifetime_s in reading.writes:
            self._ends[digest] = (now + lifetime_s, lifetime_s)

    def _longest_read(self, marks: list[_Mark], now: float) -> int:
        """Return the tokens of the longest readable prefix; renew its lifetime."""
        marked = [position for position, mark in enumerate(marks) if mark.ttl]
        for position in range(marked[-1], -1, -1):
            if not any(0 <= end - position <= LOOKBACK_BLOCKS for end in marked):
                continue
            entry = self._ends.get(marks[position].digest)
            if entry and entry[0] > now:
                # As on the API, a read renews the lifetime of what it reads.
                self._ends[marks[position].digest] = (now + entry[1], entry[1])
                return marks[position].tokens
        return 0


def _marks(question: Question) -> Iterator[_Mark]:
    # One running hash: the digest at a block covers all blocks before it, so equal digests are equal prefixes.
    running = hashlib.blake2b(f"{question.model}\0{question.key_last4}".encode(), digest_size=16)
    tokens = 0
    for block in question.blocks:
        running.update(block.kind.encode() + b"\0" + block.role.encode() + b"\0" + _content_of(block.raw))
        tokens += block.tokens
        yield _Mark(digest=running.digest(), tokens=tokens, ttl=block.ttl)


def _content_of(raw: Any) -> bytes:
    # A mark is not part of the content: the same prefix is found with other marks.
    if isinstance(raw, dict) and "cache_control" in raw:
        raw = {name: value for name, value in raw.items() if name != "cache_control"}
    return orjson.dumps(raw, option=orjson.OPT_SORT_KEYS)
