"""The wire logs of the links of this process, for whoever wants to show them when something has failed.

Nothing is kept of a closed link unless somebody collects at that time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self
from weakref import WeakKeyDictionary, WeakSet

KEPT = 8
"""How many closed links are kept, the last ones: a test may make thousands."""


class Logged(Protocol):
    """Something that has a wire log: a link to a vhost-user backend."""

    @property
    def path(self) -> str: ...
    @property
    def wire_log(self) -> list[str]: ...


_lock = threading.Lock()
_open: WeakSet[Logged] = WeakSet()
_collections: list[Collection] = []


class Collection:
    """What was said while a ``with`` block ran: by links that were made in it, and by those that were there
    before and spoke in it.

    Attributes:
        left_out: how many closed links are not there any more, because more were closed after them.
    """

    def __init__(self) -> None:
        self._heard: WeakKeyDictionary[Logged, str] = WeakKeyDictionary()
        self._closed: deque[tuple[str, list[str]]] = deque(maxlen=KEPT)
        self.left_out = 0

    def logs(self) -> list[tuple[str, list[str]]]:
        """For each link that said something: the path of its socket, and its messages in words. Closed links
        come first.
        """
        with _lock:
            still_open = list(_open)
        there = [(link.path, self._news(link)) for link in still_open]
        return [(path, lines) for path, lines in (*self._closed, *there) if lines]

    def _news(self, link: Logged) -> list[str]:
        """What a link said since the block began."""
        lines, last = link.wire_log, self._heard.get(link)
        return lines[lines.index(last) + 1 :] if last in lines else lines

    def add(self, link: Logged) -> None:
        """Keeps what a link said that is about to close."""
        self.add_lines(link.path, self._news(link))

    def add_lines(self, path: str, lines: Sequence[str]) -> None:
        """Keeps the log of a connection that was no link."""
        self.left_out += len(self._closed) == KEPT
        self._closed.append((path, list(lines)))

    def __enter__(self) -> Self:
        with _lock:
            still_open = list(_open)
            _collections.append(self)
        for link in still_open:
            if lines := link.wire_log:
                self._heard[link] = lines[-1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            _collections.remove(self)


def opened(link: Logged) -> None:
    """A link was made."""
    with _lock:
        _open.add(link)


def closed(link: Logged) -> None:
    """A link is closed."""
    with _lock:
        _open.discard(link)
        for collection in _collections:
            collection.add(link)


def said(path: str, lines: Sequence[str]) -> None:
    """A connection that was no link is over."""
    with _lock:
        for collection in _collections:
            collection.add_lines(path, lines)
