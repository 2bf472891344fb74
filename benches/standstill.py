"""Did this machine stand still? Other people's programs give up when an answer takes too long; on a virtual
machine, or one with much else to do, that may be nobody's fault."""

import os
import threading
import time
from types import TracebackType
from typing import Self

PAUSE = 0.005
"""How long a watcher sleeps at a time: seconds."""


class Standstill:
    """Watches cores: a thread on each that sleeps for a moment, again and again, and notes when it came back
    late. Who only sleeps is let in before those who work, so that a busy program waits at least as long.

    Args:
        cores: the cores to be watched.
    """

    def __init__(self, *cores: int) -> None:
        self._ended = threading.Event()
        self._longest = dict.fromkeys(cores, 0.0)
        self._threads = [threading.Thread(target=self._watch, args=(core,)) for core in cores]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def longest(self) -> float:
        """For how long a core let nobody in, at most: seconds."""
        return max(self._longest.values())

    def _watch(self, core: int) -> None:
        os.sched_setaffinity(0, {core})
        before = time.monotonic()
        while not self._ended.wait(PAUSE):
            now = time.monotonic()
            self._longest[core] = max(self._longest[core], now - before - PAUSE)
            before = now
