"""What the lab is doing, for whoever waits: lines on standard error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Say = Callable[[str], None]
"""Is told one line about what happens next."""

MB = 1_000_000


def on_stderr(line: str) -> None:
    """A line on standard error, marked as ours."""
    print(f"xenvirt lab: {line}", file=sys.stderr, flush=True)


def silent(line: str) -> None:
    """Says nothing."""


@contextmanager
def growing(size: Callable[[], int], total: int, stream: TextIO | None = None) -> Iterator[None]:
    """While the block runs, shows on a terminal how much of `total` bytes is there."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield
        return
    over = threading.Event()

    def show() -> None:
        while not over.wait(0.25):
            print(f"\r  {size() // MB} of {total // MB} MB", end="", file=stream, flush=True)

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        print("\r\x1b[K", end="", file=stream, flush=True)
