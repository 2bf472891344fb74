"""What runs in dom0 for `map-*`: ours and the peer by turns, a JSON object as result.

`python3 foreign.py NAME PEER TURNS`. A guest is made for it, paused, and destroyed at the end.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from xenvirt.xen import ForeignMemory

FRAME = 4096
FIRST = 0x1000
"""A frame of the guest's kernel, at 16 MiB."""
ROUNDS = {1: 50, 64: 50, 4096: 3}
"""Of one sample, for so many frames."""

CONFIG = """
name = "bench"
type = "pvh"
kernel = "/boot/vmlinuz"
memory = {memory}
vcpus = 1
"""


class Peer:
    """The C program, which waits for lines."""

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def sample(self, domid: int, first: int, count: int, stride: int, rounds: int) -> tuple[float, int]:
        """The median of the rounds, in nanoseconds, and the sum of all bytes that were read."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(domid, first, count, stride, rounds, file=self._process.stdin, flush=True)
        nanoseconds, total = self._process.stdout.readline().split()
        return float(nanoseconds), int(total)

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def map_frames(foreign: ForeignMemory, domid: int, count: int, rounds: int) -> tuple[float, int]:
    """Maps, reads a byte of the first frame, unmaps: the median, as an emulated machine that does not get
    its host's processor stands still in the middle of a round."""
    frames, total, taken = range(FIRST, FIRST + count), 0, []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        with foreign.map(domid, frames) as memory:
            total += memory.read(0, 1)[0]
        taken.append(time.perf_counter_ns() - start)
    return statistics.median_high(taken), total


def measure(name: str, program: str, turns: int) -> dict[str, float]:
    """The medians, in nanoseconds."""
    peer = Peer(program)
    domid = make_guest(128)
    try:
        with ForeignMemory() as foreign:
            count = int(name.removeprefix("map-"))
            rounds = ROUNDS[count]
            sides: tuple[Callable[[], tuple[float, int]], Callable[[], tuple[float, int]]] = (
                lambda: map_frames(foreign, domid, count, rounds),
                lambda: peer.sample(domid, FIRST, count, count, rounds),
            )
            taken: tuple[list[float], list[float]] = [], []
            for turn in range(turns + 1):
                results = [side() for side in sides]
                assert results[0][1] == results[1][1], "both have read the same bytes"
                if turn:  # the first warms up
                    for values, (nanoseconds, _) in zip(taken, results, strict=True):
                        values.append(nanoseconds)
    finally:
        subprocess.run(["xl", "destroy", str(domid)], check=True)
        peer.close()
    return dict(zip(("ours", "peer"), map(statistics.median, taken), strict=True))


def make_guest(memory: int) -> int:
    """A paused PVH guest of so many MiB; gives its number."""
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(CONFIG.format(memory=memory))
        file.flush()
        subprocess.run(["xl", "create", "-p", file.name], check=True, stdout=subprocess.DEVNULL)
    return int(subprocess.run(["xl", "domid", "bench"], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    Path("/dev/xen/privcmd").stat()
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
