"""What the benches share: rows, pinned programs, and taking turns."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

TOP = Path(__file__).resolve().parent.parent
SERVED = TOP / "benches" / "served"

DEVICE_CORE, DRIVER_CORE = 0, 1
"""Who serves runs on one core, who asks on another."""


@dataclass(frozen=True)
class Row:
    """One comparison: medians of the same run."""

    name: str
    ours: float
    peer: float
    unit: str
    better: Literal["lower", "higher"]
    aim: float
    """What `ratio` shall be, at most or at least."""

    @property
    def ratio(self) -> float:
        """Ours divided by the peer's."""
        return self.ours / self.peer

    @property
    def met(self) -> bool:
        """Is the aim met, at the two digits in which it is given and shown?"""
        ratio = round(self.ratio, 2)
        return ratio <= self.aim if self.better == "lower" else ratio >= self.aim

    def as_json(self) -> dict[str, object]:
        """As it is written to a file."""
        return {**asdict(self), "ratio": round(self.ratio, 4)}


Bench = Callable[[str, bool], Iterator[Row]]
"""Measures under a name. True for a bench that is only to be seen to run: few turns, short ones."""


def take_turns(turns: int, *samples: Callable[[], float]) -> list[float]:
    """The median of each: all of them once, then all of them again, so that what else the machine does meets
    each alike."""
    taken: list[list[float]] = [[] for _ in samples]
    for _ in range(turns):
        for values, sample in zip(taken, samples, strict=True):
            values.append(sample())
    return [statistics.median(values) for values in taken]


def pinned(core: int, *command: str | os.PathLike[str]) -> list[str]:
    """A command that runs on one core only."""
    return ["taskset", "--cpu-list", str(core), *(os.fspath(word) for word in command)]


def served(program: str, *args: str) -> list[str]:
    """The command of one of our devices in `served`, on the device's core."""
    return pinned(DEVICE_CORE, sys.executable, SERVED / program, *args)


def output_of(command: list[str]) -> str:
    """What a program prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@cache
def rust_bench(name: str) -> Path:
    """Builds a bench of rust/core, with the optimizations of a release, and says where it is."""
    command = [
        "cargo",
        "bench",
        "--quiet",
        "--locked",
        "--package",
        "xenvirt-core",
        "--bench",
        name,
        "--no-run",
    ]
    messages = subprocess.run(
        [*command, "--message-format=json"], check=True, cwd=TOP, stdout=subprocess.PIPE, text=True
    ).stdout
    for message in map(json.loads, messages.splitlines()):
        target = message.get("target", {})
        if target.get("name") == name and "bench" in target.get("kind", ()) and message.get("executable"):
            return Path(message["executable"])
    raise LookupError(f"cargo built no bench {name!r}")
