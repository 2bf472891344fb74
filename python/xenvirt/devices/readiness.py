"""Which descriptors a device waits for, and for what: input, room for output, or nothing at the moment."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Final

from xenvirt import Session

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT


class Readiness:
    """The descriptors of one session, which come and go by what the device can deal with.

    A watch of a session is for input only, and goes on as long as there is some. Here all descriptors stand
    in one epoll instance, which is itself a descriptor that the session watches.

    Args:
        session: the life that it belongs to; it ends with it.
        ready: called with the descriptor and what is ready of IN and OUT. An end or an error counts as all
            that was wanted: reading or writing then tells.
    """

    def __init__(self, session: Session, ready: Callable[[int, int], None]) -> None:
        self._epoll = select.epoll()
        # Regular files and the like cannot be waited for, and are always ready. So is this one, while it
        # is asked.
        self._always_ready = os.eventfd(1, os.EFD_CLOEXEC)
        self._always: dict[int, int] = {}
        self._wanted: dict[int, int] = {}
        self._ready = ready
        self._watch = session.watch(self._epoll.fileno(), self._look)

    def want(self, fd: int, events: int) -> None:
        """From now on waits for `events` of `fd`: IN, OUT, both, or 0 for nothing.

        Raises:
            OSError: `fd` is not open.
        """
        before = self._wanted.get(fd, 0)
        if events == before or self._epoll.closed:
            return
        self._wanted[fd] = events
        if fd in self._always:
            self._want_always(fd, events)
        elif not events:
            self._epoll.unregister(fd)
        elif before:
            self._epoll.modify(fd, events)
        else:
            try:
                self._epoll.register(fd, events)
            except PermissionError:
                self._want_always(fd, events)

    def close(self) -> None:
        """Waits for nothing any more. Closing twice is allowed."""
        if not self._epoll.closed:
            self._watch.close()
            self._epoll.close()
            os.close(self._always_ready)

    def _want_always(self, fd: int, events: int) -> None:
        before = any(self._always.values())
        self._always[fd] = events
        now = any(self._always.values())
        if now and not before:
            self._epoll.register(self._always_ready, IN)
        elif before and not now:
            self._epoll.unregister(self._always_ready)

    def _look(self) -> None:
        for fd, events in self._epoll.poll(0):
            if fd == self._always_ready:
                for other, wanted in list(self._always.items()):
                    self._tell(other, wanted)
            else:
                # Neither IN nor OUT: it ended or failed, and whoever waits is to see it.
                self._tell(fd, events & (IN | OUT) or IN | OUT)

    def _tell(self, fd: int, events: int) -> None:
        # What one is told may end the other's interest, or everything.
        if events & self._wanted.get(fd, 0) and not self._epoll.closed:
            self._ready(fd, events & self._wanted[fd])
