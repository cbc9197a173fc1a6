"""Prompt caching: one call writes the shared prefix, the others wait and read it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from airflow_llm_provider.engine.request import Request

# Below about a thousand tokens no model caches a prefix, so there is nothing to wait for.
_WORTH_WARMING_CHARACTERS = 4_000


@dataclass(slots=True)
class CacheWarmup:
    """Which prefixes this engine has sent once already."""

    _events: dict[str, asyncio.Event] = field(default_factory=dict)

    def guard(self, request: Request) -> _PrefixGuard:
        """Return the turn of a request; entering it waits while another warms the same prefix."""
        worth = request.shared_characters >= _WORTH_WARMING_CHARACTERS
        return _PrefixGuard(self._events, request.shared_prefix if worth else "")


@dataclass(slots=True)
class _PrefixGuard:
    """The first to come goes alone; the others wait until it is back."""

    events: dict[str, asyncio.Event]
    key: str
    first: bool = False

    async def __aenter__(self) -> None:
        if not self.key:
            return
        if event := self.events.get(self.key):
            await event.wait()
        else:
            self.events[self.key] = asyncio.Event()
            self.first = True

    async def __aexit__(self, *_: object) -> None:
        if self.first:
            self.events[self.key].set()
