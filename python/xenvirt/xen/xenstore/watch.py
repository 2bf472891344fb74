"""Watches, blocking."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from xenvirt.errors import XenStoreError

from . import operations
from .events import Pending, WatchEvent
from .paths import checked

if TYPE_CHECKING:
    from .store import XenStore


class Watch:
    """The events of some watched paths: an iterator that waits; or `poll`, when `fileno` is readable.

    Attributes:
        token: the token of its events.
    """

    def __init__(self, store: XenStore, token: str) -> None:
        self.token = token
        self._store = store
        self._pending = Pending(token)
        # Readable while events are kept here; another thread may have taken them from the connection.
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll: select.epoll | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """What is watched."""
        return tuple(self._pending.watched)

    def add(self, path: str) -> None:
        """Watches one more path. It is reported once, at once.

        Raises:
            ValueError: it is watched already.
        """
        store = self._store
        with store._lock:
            self._check()
            if checked(path) in self._pending.watched:
                raise ValueError(f"{path} is watched already")
            self._pending.watched.append(path)
            try:
                store._run(operations.watch(path, self.token))
            except BaseException:
                self._pending.watched.remove(path)
                raise

    def remove(self, path: str) -> None:
        """Watches a path no longer; what it has reported and nobody took is dropped.

        Raises:
            ValueError: it is not watched.
        """
        with self._store._lock:
            self._check()
            if path not in self._pending.watched:
                raise ValueError(f"{path} is not watched")
            self._pending.watched.remove(path)
            self._store._run(operations.unwatch(path, self.token))

    def poll(self) -> WatchEvent | None:
        """An event, if there is one; does not wait."""
        store = self._store
        with store._lock:
            if not self._pending:
                self._check()
                store._check()
                store._pump()
            event = self._pending.take()
            if not self._pending and self._ready >= 0:
                self._quiet()
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
            with self._store._lock:
                self._check()
                self._store._check()
                poller.register(self._ready, select.POLLIN)
                poller.register(self._store._connection.fileno(), select.POLLIN)
            poller.poll(None if left is None else left * 1000)
        return event

    def fileno(self) -> int:
        """A descriptor for select, epoll and asyncio: readable when `poll` may have an event (it may not)."""
        self._check()
        if self._epoll is None:
            self._epoll = select.epoll()
            self._epoll.register(self._ready, select.EPOLLIN)
            self._epoll.register(self._store._connection.fileno(), select.EPOLLIN)
        return self._epoll.fileno()

    def __iter__(self) -> Iterator[WatchEvent]:
        """Events, for ever: until the watch is closed."""
        while self._ready >= 0:
            try:
                event = self.wait()
            except ValueError:
                if self._ready >= 0:
                    raise
                return
            assert event is not None
            yield event

    def close(self) -> None:
        """Watches nothing any more. May be called again."""
        store = self._store
        with store._lock:
            if self._ready < 0:
                return
            try:
                for path in self.paths:
                    self.remove(path)
            except XenStoreError:
                if store._broken is None:
                    raise
            finally:
                store._watches.pop(self.token, None)
                self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Watch({', '.join(self.paths)})"

    def _put(self, path: str) -> None:
        self._pending.put(path)
        self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._ready, 1)

    def _quiet(self) -> None:
        if self._store._broken is None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._ready)

    def _end(self) -> None:
        """Gives its descriptors back."""
        self._pending.watched.clear()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        if self._ready >= 0:
            self._wake()  # who waits on another thread
            os.close(self._ready)
            self._ready = -1

    def _check(self) -> None:
        if self._ready < 0:
            raise ValueError("this watch is closed")
