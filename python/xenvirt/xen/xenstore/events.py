"""What was reported for a watch, kept until somebody takes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from .paths import lies_in


class WatchEvent(NamedTuple):
    """Something happened at `path`: made, written, removed, or its permissions changed; or nothing did.

    It says no more than where to look: each watch reports once when it is set, and may report again without a
    reason (docs/misc/xenstore.txt, WATCH). What is there is read afterwards.
    """

    path: str
    """Where: the watched path or one below it; the watched path itself also where a node above it was
    removed. It is relative where the watched one is."""
    watched: str
    """The path that was watched."""
    token: str
    """The token of the watch."""


class Pending(ABC):
    """The events of one watch that were not taken yet, in order, each path once.

    A second event of a path that waits already says nothing new; so what is kept is bounded by the number of
    nodes, however long nobody looks.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.watched: list[str] = []
        self._paths: dict[str, None] = {}

    def put(self, path: str) -> None:
        """Keeps an event, and wakes who waits for one."""
        self._paths[path] = None
        self.wake()

    @abstractmethod
    def wake(self) -> None:
        """Wakes who waits for an event."""

    def take(self) -> WatchEvent | None:
        """The oldest event, if there is one."""
        while self._paths:
            path = next(iter(self._paths))
            del self._paths[path]
            watched = [one for one in self.watched if lies_in(path, one)]
            if watched:  # else it came before the watch of that path was taken back
                return WatchEvent(path, max(watched, key=len), self.token)
        return None

    def __bool__(self) -> bool:
        return bool(self._paths)
