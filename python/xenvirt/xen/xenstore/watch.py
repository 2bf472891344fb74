"""Watches, blocking."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from xenvirt.errors import XenStoreError

from . import operations
from .arrivals import Arrivals
from .channel import Channel
from .events import WatchEvent
from .paths import checked


class Watch:
    """The events of some watched paths: an iterator that waits; or `poll`, when `fileno` is readable.

    Attributes:
        token: the token of its events.
    """

    def __init__(self, channel: Channel, token: str) -> None:
        self.token = token
        self._channel = channel
        self._arrivals = channel.watches[token] = Arrivals(token)

    @property
    def paths(self) -> tuple[str, ...]:
        """What is watched."""
        return tuple(self._arrivals.watched)

    def add(self, path: str) -> None:
        """Watches one more path. It is reported once, at once.

        Raises:
            ValueError: it is watched already.
        """
        channel = self._channel
        with channel.lock:
            self._check()
            if checked(path) in self._arrivals.watched:
                raise ValueError(f"{path} is watched already")
            self._arrivals.watched.append(path)
            try:
                channel.run(operations.watch(path, self.token))
            except BaseException:
                self._arrivals.watched.remove(path)
                raise

    def remove(self, path: str) -> None:
        """Watches a path no longer; what it has reported and nobody took is dropped.

        Raises:
            ValueError: it is not watched.
        """
        with self._channel.lock:
            self._check()
            if path not in self._arrivals.watched:
                raise ValueError(f"{path} is not watched")
            self._arrivals.watched.remove(path)
            self._channel.run(operations.unwatch(path, self.token))

    def poll(self) -> WatchEvent | None:
        """An event, if there is one; does not wait."""
        channel = self._channel
        with channel.lock:
            if not self._arrivals:
                self._check()
                channel.check()
                channel.pump()
            event = self._arrivals.take()
            if not self._arrivals and not self._arrivals.ended and channel.broken is None:
                self._arrivals.quiet()
            return event

    def wait(self, timeout: float | None = None) -> WatchEvent | None:
        """Waits for an event, at most `timeout` seconds (None: for ever); None if there was none.

        Raises:
            XenStoreError: ECONNRESET, the daemon is gone.
            ValueError: the watch or its store is closed, perhaps meanwhile, by another thread.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (event := self.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            poller = select.poll()
            with self._channel.lock:
                self._check()
                self._channel.check()
                poller.register(self._arrivals.ready, select.POLLIN)
                poller.register(self._channel.fileno(), select.POLLIN)
            poller.poll(None if left is None else left * 1000)
        return event

    def fileno(self) -> int:
        """A descriptor for select, epoll and asyncio: readable when `poll` may have an event (it may not)."""
        self._check()
        return self._arrivals.ready_or_readable(self._channel.fileno())

    def __iter__(self) -> Iterator[WatchEvent]:
        """Events, for ever: until the watch is closed."""
        while not self._arrivals.ended:
            try:
                event = self.wait()
            except ValueError:
                if not self._arrivals.ended:
                    raise
                return
            assert event is not None
            yield event

    def close(self) -> None:
        """Watches nothing any more. May be called again."""
        channel = self._channel
        with channel.lock:
            if self._arrivals.ended:
                return
            try:
                for path in self.paths:
                    self.remove(path)
            except XenStoreError:
                if channel.broken is None:
                    raise
            finally:
                channel.watches.pop(self.token, None)
                self._arrivals.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Watch({', '.join(self.paths)})"

    def _check(self) -> None:
        if self._arrivals.ended:
            raise ValueError("this watch is closed")
