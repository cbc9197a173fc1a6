"""Engines of the triggerer: one per connection, process and event loop, shared by all its triggers."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.hooks.connection import Connection

_IDLE_S = 60.0  # an engine without users is closed after this time

# By event loop, because an engine's sockets belong to one.
_keepers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Connection, _Keeper]] = (
    weakref.WeakKeyDictionary()
)


@asynccontextmanager
async def shared_engine(connection: Connection) -> AsyncIterator[Engine]:
    """Give the shared engine of a connection; a changed connection gets another."""
    keepers = _keepers.setdefault(asyncio.get_running_loop(), {})
    keeper = keepers.get(connection)
    if keeper is None:
        keeper = keepers[connection] = _Keeper(connection, keepers)
    # Counted before the first await: the keeper must not close an engine that a trigger already waits for.
    keeper.users += 1
    try:
        # All triggers wait for the same future, so the end of one must not cancel it.
        yield await asyncio.shield(keeper.engine)
    finally:
        keeper.users -= 1
        if not keeper.users:
            keeper.idle.set()


class _Keeper:
    """An asyncio task that owns one engine, and closes it when it has no users for a while or the loop ends."""

    def __init__(self, connection: Connection, keepers: dict[Connection, _Keeper]) -> None:
        loop = asyncio.get_running_loop()
        self.users = 0
        self.idle = asyncio.Event()
        self.engine: asyncio.Future[Engine] = loop.create_future()
        self._connection, self._keepers = connection, keepers
        # A context of its own: with the first trigger's, all its log lines would appear in that task's log.
        self._task = loop.create_task(self._keep(), context=contextvars.Context())

    async def _keep(self) -> None:
        try:
            engine = await asyncio.to_thread(self._connection.engine)
        except BaseException as error:  # noqa: BLE001  # those who wait for the engine get the error
            self._keepers.pop(self._connection, None)
            self.engine.set_exception(error)
            return
        self.engine.set_result(engine)
        try:
            while True:
                await self.idle.wait()
                self.idle.clear()
                await asyncio.sleep(_IDLE_S)
                if not self.users:
                    return
        finally:
            self._keepers.pop(
                self._connection, None
            )  # before closing, so that no trigger is given a closed engine
            await engine.close()
