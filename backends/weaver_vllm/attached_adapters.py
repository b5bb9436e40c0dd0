"""The adapters that one engine was given, under names that are never used for anything else."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from secrets import token_hex

from weaver.domain import AdapterRef

Load = Callable[[str, AdapterRef], Awaitable[None]]
"""Gives the engine an adapter under a name, or raises why it does not take it."""
Unload = Callable[[str], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Entry:
    name: str
    loading: "asyncio.Task[None]"
    users: int = 0
    forgotten: bool = False


class EngineAdapters:
    """No more than `slots` at a time, so that the engine never drops one by itself. The least recently used that nobody
    uses makes room; where all are in use, who needs another one waits.

    vLLM's prefix cache goes by the name alone, so an adapter that comes back gets a new one.
    """

    def __init__(self, slots: int, load: Load, unload: Unload) -> None:
        self._slots, self._load, self._unload = slots, load, unload
        self._prefix, self._numbers = f"weaver-{token_hex(4)}", count(1)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def using(self, adapter: AdapterRef) -> AsyncIterator[str]:
        """The name to ask the engine by, for as long as it is used."""
        entry = await self._entry(adapter)
        try:
            await asyncio.shield(entry.loading)
            yield entry.name
        finally:
            entry.users -= 1
            await self._let_go(adapter.adapter_id, entry)

    async def forget(self, adapter_id: str) -> None:
        entry = self._entries.get(adapter_id)
        if entry is not None:
            entry.forgotten = True
            await self._let_go(adapter_id, entry)

    def clear(self) -> None:
        """The engine is a new one: it has none of them. Those who use one will hear so."""
        self._entries.clear()

    async def _entry(self, adapter: AdapterRef) -> _Entry:
        async with self._changed:
            while (entry := self._entries.get(adapter.adapter_id)) is None:
                if len(self._entries) < self._slots:
                    name = f"{self._prefix}-{next(self._numbers)}"
                    entry = _Entry(name, asyncio.ensure_future(self._load(name, adapter)))
                    self._entries[adapter.adapter_id] = entry
                    break
                idle = next((id_ for id_, each in self._entries.items() if not each.users), None)
                if idle is None:
                    await self._changed.wait()
                else:
                    await self._drop(idle)
            self._entries.move_to_end(adapter.adapter_id)
            entry.users += 1
            return entry

    async def _let_go(self, adapter_id: str, entry: _Entry) -> None:
        failed = entry.loading.done() and (entry.loading.cancelled() or entry.loading.exception() is not None)
        async with self._changed:
            if self._entries.get(adapter_id) is entry and not entry.users:
                if failed:
                    del self._entries[adapter_id]
                elif entry.forgotten:
                    await self._drop(adapter_id)
            self._changed.notify_all()

    async def _drop(self, adapter_id: str) -> None:
        await self._unload(self._entries.pop(adapter_id).name)
