"""Engines of the triggerer: one a connection, process and event loop, shared by all its triggers."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from airflow_llm_provider.engine.run import Engine
from airflow_llm_provider.hooks.settings import Settings

_IDLE_S = 60.0  # an engine nobody uses is kept so long

_keepers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Settings, _Keeper]] = (
    weakref.WeakKeyDictionary()
)


@asynccontextmanager
async def shared_engine(settings: Settings) -> AsyncIterator[Engine]:
    """Lend the engine of a connection; whoever changes the connection gets another."""
    keepers = _keepers.setdefault(asyncio.get_running_loop(), {})
    keeper = keepers.get(settings)
    if keeper is None:
        keeper = keepers[settings] = _Keeper(settings, keepers)
    keeper.users += 1
    try:
        yield await asyncio.shield(keeper.engine)
    finally:
        keeper.users -= 1
        if not keeper.users:
            keeper.idle.set()


class _Keeper:
    """A task that owns one engine: when it is idle for long, or the loop ends, the engine is closed."""

    def __init__(self, settings: Settings, keepers: dict[Settings, _Keeper]) -> None:
        loop = asyncio.get_running_loop()
        self.users = 0
        self.idle = asyncio.Event()
        self.engine: asyncio.Future[Engine] = loop.create_future()
        self._settings, self._keepers = settings, keepers
        # A context of its own: with the first trigger's, all it ever logs would land in that task's log.
        self._task = loop.create_task(self._keep(), context=contextvars.Context())

    async def _keep(self) -> None:
        try:
            engine = await asyncio.to_thread(self._settings.engine)
        except BaseException as error:  # noqa: BLE001  # whoever waits for the engine must hear of it
            self._keepers.pop(self._settings, None)
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
            self._keepers.pop(self._settings, None)  # before closing: nobody is lent a closed engine
            await engine.close()
