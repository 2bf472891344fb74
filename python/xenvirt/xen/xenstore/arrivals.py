"""Events of a watch that wait for a thread to take them."""

from __future__ import annotations

import contextlib
import os
import select

from .events import Pending


class Arrivals(Pending):
    """What is pending, and a descriptor that says so."""

    def __init__(self, token: str) -> None:
        super().__init__(token)
        # Readable while events are kept here; another thread may have taken them from the connection.
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll: select.epoll | None = None

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ready < 0

    @property
    def ready(self) -> int:
        """A descriptor that is readable while something is pending; -1 at the end."""
        return self._ready

    def ready_or_readable(self, connection: int) -> int:
        """A descriptor that is readable while something is pending, or may come from the connection."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._epoll.register(self._ready, select.EPOLLIN)
            self._epoll.register(connection, select.EPOLLIN)
        return self._epoll.fileno()

    def wake(self) -> None:
        """Wakes who waits for `ready`."""
        os.eventfd_write(self._ready, 1)

    def quiet(self) -> None:
        """Nothing is pending any more."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._ready)

    def end(self) -> None:
        """Gives its descriptors back. May be called again."""
        self.watched.clear()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        if self._ready >= 0:
            self.wake()  # who waits on another thread
            os.close(self._ready)
            self._ready = -1
