"""Looking for a daemon that is away, without waiting for it: its device's thread has other things to do."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from xenvirt import _native
from xenvirt.device import Session

PAUSE = 0.1
"""Seconds between two tries."""


class Search:
    """Tries again and again, on the thread that serves the device, until it is closed.

    Args:
        session: of the device.
        seconds: for so long it is to be tried.
        attempt: a try, the first of them after :data:`PAUSE`.

    Raises:
        OSError: there are no descriptors left.
    """

    def __init__(self, session: Session, seconds: float, attempt: Callable[[], object]) -> None:
        self._deadline = time.monotonic() + seconds
        self._attempt = attempt
        self._timer = _native.interval_timer(PAUSE)
        try:
            self._watch = session.watch(self._timer, self._expired)
        except BaseException:
            os.close(self._timer)
            raise

    @property
    def over(self) -> bool:
        """Has it been tried for long enough?"""
        return time.monotonic() >= self._deadline

    def close(self) -> None:
        """No more tries."""
        self._watch.close()
        os.close(self._timer)

    def _expired(self) -> None:
        os.read(self._timer, 8)
        self._attempt()


def connected(path: str) -> socket.socket | None:
    """A connection to whoever listens there at this moment; None while nobody does.

    Raises:
        OSError: the socket cannot be used (permissions, a path that is too long).
    """
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        ours.setblocking(False)
        ours.connect(path)
    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError, InterruptedError):
        ours.close()
        return None
    except BaseException:
        ours.close()
        raise
    return ours
