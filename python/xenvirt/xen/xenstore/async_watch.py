"""Watches, on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from xenvirt.errors import XenStoreError

from . import operations
from .async_channel import AsyncChannel
from .events import Pending, WatchEvent
from .paths import checked


class AsyncArrivals(Pending):
    """What is pending, for a task that waits for it."""

    def __init__(self, token: str) -> None:
        super().__init__(token)
        self.ready = asyncio.Event()

    def wake(self) -> None:
        """Wakes who waits for `ready`."""
        self.ready.set()


class AsyncWatch:
    """The events of some watched paths: ``async for event in watch``, or ``await watch.wait()``.

    Attributes:
        token: the token of its events.
    """

    def __init__(self, channel: AsyncChannel, token: str, paths: tuple[str, ...]) -> None:
        self.token = token
        self._channel = channel
        self._wanted = paths
        self._arrivals = AsyncArrivals(token)

    @property
    def paths(self) -> tuple[str, ...]:
        """What is watched."""
        return tuple(self._arrivals.watched)

    async def add(self, path: str) -> None:
        """Watches one more path. It is reported once, at once.

        Raises:
            ValueError: it is watched already, or the watch is outside of its block.
        """
        self._check()
        if checked(path) in self._arrivals.watched:
            raise ValueError(f"{path} is watched already")
        self._arrivals.watched.append(path)
        try:
            await self._channel.run(operations.watch(path, self.token))
        except BaseException:
            self._arrivals.watched.remove(path)
            raise

    async def remove(self, path: str) -> None:
        """Watches a path no longer; what it has reported and nobody took is dropped.

        Raises:
            ValueError: it is not watched.
        """
        self._check()
        if path not in self._arrivals.watched:
            raise ValueError(f"{path} is not watched")
        self._arrivals.watched.remove(path)
        await self._channel.run(operations.unwatch(path, self.token))

    async def wait(self) -> WatchEvent:
        """Waits for an event; ``asyncio.timeout`` limits it.

        Raises:
            XenStoreError: ECONNRESET, the daemon is gone or the store was closed.
        """
        while True:
            self._check()
            if (event := self._arrivals.take()) is not None:
                return event
            self._channel.check()
            self._arrivals.ready.clear()
            await self._arrivals.ready.wait()

    async def __aiter__(self) -> AsyncIterator[WatchEvent]:
        """Events, for ever."""
        while True:
            yield await self.wait()

    async def __aenter__(self) -> Self:
        if self.token in self._channel.watches:
            raise ValueError(f"token {self.token!r} is the one of another watch of this connection")
        self._channel.watches[self.token] = self._arrivals
        try:
            for path in self._wanted:
                await self.add(path)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def __repr__(self) -> str:
        return f"AsyncWatch({', '.join(self.paths or self._wanted)})"

    async def _close(self) -> None:
        try:
            for path in self.paths:
                await self.remove(path)
        except (XenStoreError, ValueError):
            if self._channel.broken is None:
                raise
        finally:
            self._channel.watches.pop(self.token, None)
            self._arrivals.wake()

    def _check(self) -> None:
        if self._channel.watches.get(self.token) is not self._arrivals:
            raise ValueError("this watch is not open: use it in its async with block")
