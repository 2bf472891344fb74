"""What runs in dom0 for `map-*` and `attach-1g`: ours and the peer by turns, a JSON object as result.

`python3 foreign.py NAME CORE PEER TURNS`, with the paths of the Rust bench and of the C program. A guest is
made for it, paused, and destroyed at the end.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.dom0.programs import Program, Side, take_turns
from xenvirt.xen import ForeignMemory

FRAME = 4096
FIRST = 0x1000
"""A frame of the guest's kernel, at 16 MiB."""
WHOLE = 0x3F000 - FIRST
"""All frames of a guest of 1 GiB from there on but for the last 16 MiB, in which pages are Xen's."""
TOUCHED = 16
ROUNDS = {1: 50, 64: 50, 4096: 3}
"""Of one sample, for so many frames."""

CONFIG = """
name = "bench"
type = "pvh"
kernel = "/boot/vmlinuz"
memory = {memory}
vcpus = 1
"""


def map_frames(foreign: ForeignMemory, domid: int, count: int, rounds: int) -> tuple[float, int]:
    """Maps, reads a byte of the first frame, unmaps: the median of the rounds."""
    frames, total, taken = range(FIRST, FIRST + count), 0, []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        with foreign.map(domid, frames) as memory:
            total += memory.read(0, 1)[0]
        taken.append(time.perf_counter_ns() - start)
    return statistics.median_high(taken), total


def touch(foreign: ForeignMemory, domid: int) -> tuple[float, int]:
    """Attaches to the whole guest, reads a byte here and there, lets go."""
    start = time.perf_counter_ns()
    with foreign.attach(domid) as memory:
        frames = range(FIRST, FIRST + WHOLE, WHOLE // TOUCHED)
        total = sum(memory.read(frame * FRAME, 1)[0] for frame in frames)
    return time.perf_counter_ns() - start, total


def measure(name: str, core: Program, peer: Program, turns: int) -> dict[str, float]:
    """The medians, in nanoseconds."""
    with ForeignMemory() as foreign, guest(1024 if name == "attach-1g" else 128) as domid:
        sides: dict[str, Side]
        if name == "attach-1g":
            sides = {
                "python": lambda: touch(foreign, domid),
                "peer": lambda: peer.ask(domid, FIRST, WHOLE, WHOLE // TOUCHED, 1),
            }
        else:
            count = int(name.removeprefix("map-"))
            rounds = ROUNDS[count]
            sides = {
                "python": lambda: map_frames(foreign, domid, count, rounds),
                "core": lambda: core.ask("map", domid, FIRST, count, rounds),
                "peer": lambda: peer.ask(domid, FIRST, count, count, rounds),
            }
        return take_turns(turns, sides)


@contextmanager
def guest(memory: int) -> Iterator[int]:
    """A paused PVH guest of so many MiB."""
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(CONFIG.format(memory=memory))
        file.flush()
        subprocess.run(["xl", "create", "-p", file.name], check=True, stdout=subprocess.DEVNULL)
    asked = subprocess.run(["xl", "domid", "bench"], check=True, capture_output=True, text=True)
    try:
        yield int(asked.stdout)
    finally:
        subprocess.run(["xl", "destroy", "bench"], check=True)


if __name__ == "__main__":
    with closing(Program(sys.argv[2])) as core, closing(Program(sys.argv[3])) as peer:
        print(json.dumps(measure(sys.argv[1], core, peer, int(sys.argv[4]))))
