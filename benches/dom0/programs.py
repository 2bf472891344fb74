"""Programs that measure when they are asked to, a line at a time, and taking turns between them."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable


class Program:
    """A program that waits for lines, and answers each with nanoseconds and a number to check."""

    def __init__(self, path: str) -> None:
        self._process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words: int | str) -> tuple[float, int]:
        """Asks for one measurement."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        nanoseconds, check = self._process.stdout.readline().split()
        return float(nanoseconds), int(check)

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


Side = Callable[[], tuple[float, int]]
"""Measures once: nanoseconds, and what must be the same on all sides."""


def take_turns(turns: int, sides: dict[str, Side]) -> dict[str, float]:
    """The median of each side, in nanoseconds, after a turn that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        results = {name: side() for name, side in sides.items()}
        assert len({check for _, check in results.values()}) == 1, f"all see the same: {results}"
        if turn:
            for name, (nanoseconds, _) in results.items():
                taken[name].append(nanoseconds)
    return {name: statistics.median(values) for name, values in taken.items()}
