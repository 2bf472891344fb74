"""Random reads of 4 KiB from a null disk written in Python, against qemu-storage-daemon's null-co."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from tests.peers import libblkio
from xenvirt import Daemon
from xenvirt.server import POLL_SECONDS

from .rig import DEVICE_CORE, DRIVER_CORE, Row, pinned, served, take_turns
from .standstill import Standstill


class Setting(NamedTuple):
    """How one of the benches is run, and what it aims at."""

    depth: int
    poll: bool
    """The driver polls, and the devices hardly ever sleep."""
    aim: float


SETTINGS = {
    "blk-qd1": Setting(1, False, 1.1),
    "blk-qd32": Setting(32, False, 1.0),
    "blk-qd64-poll": Setting(64, True, 1.0),
}

POLL = 0.001
"""For how long a device looks on before it sleeps where the driver polls: seconds."""


def storage_daemons(blockdevs: list[str], poll: float = POLL_SECONDS) -> list[Daemon]:
    """qemu-storage-daemon with one disk, on the device's core, in its two ways: from its main loop, which
    sleeps as soon as there is nothing to do, and from a thread that looks on for as long as ours does. A disk
    for each."""
    export = "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={socket}"
    thread = ["--object", f"iothread,id=thread,poll-max-ns={round(poll * 1e9)}"]
    daemons = []
    for blockdev, before, after in zip(blockdevs, ([], thread), ("", ",iothread=thread"), strict=True):
        disk = ["--blockdev", f"{blockdev},node-name=disk", "--export", export + after]
        daemons.append(Daemon(*pinned(DEVICE_CORE, "qemu-storage-daemon", *before, *disk)))
    return daemons


GIVES_UP = "Timeout receiving completion event"
"""What blkio-bench says before it aborts: no request was answered for half a second."""

STOOD_STILL = 0.2
"""A core that let nobody in for so long explains it: seconds."""

TRIES = 5


class GaveUpError(Exception):
    """blkio-bench waited in vain while the machine did not stand still: was a notification lost?"""


def blkio_bench(
    socket: str, depth: int, *, workload: str = "randread", poll: bool = False
) -> dict[str, float]:
    """One second of requests of 4 KiB: `kiops`, `mean_lat_us` and more.

    blkio-bench aborts when it waited half a second for an answer. That is a fault of the backend, unless
    one of the cores stood still meanwhile: then the second is measured again.

    Raises:
        GaveUpError: it waited in vain on a machine that did not stand still, or each time that it tried.
    """
    if not libblkio.program("blkio-bench").exists():
        raise FileNotFoundError("no blkio-bench: `python -m tests.peers.prepare` makes it")
    options = ["--runtime=1", f"--readwrite={workload}", "--blocksize=4096", f"--iodepth={depth}"]
    options += ["--poll"] if poll else []
    client = libblkio.program("blkio-bench")
    command = pinned(DRIVER_CORE, client, *options, "virtio-blk-vhost-user", f"path={socket}")
    for _ in range(TRIES):
        with Standstill(DEVICE_CORE, DRIVER_CORE) as machine:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            aggregate: dict[str, float] = json.loads(done.stdout)["aggregate"]
            assert aggregate["kiops"] > 0, aggregate
            return aggregate
        if GIVES_UP not in done.stderr:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        story = f"{GIVES_UP}; a core stood still for {machine.longest * 1e3:.0f} ms"
        if machine.longest < STOOD_STILL:
            break
        print(f"blkio-bench: {story}; once more", file=sys.stderr)
    raise GaveUpError(story)


def compare(
    ours: list[Daemon], peers: list[Daemon], turns: int, measure: Callable[[str], float]
) -> tuple[list[float], list[float]]:
    """Medians of all of them, ours and the peer's; each answers `measure` through its socket."""

    def sample(daemon: Daemon) -> float:
        try:
            return measure(daemon.socket)
        except Exception as error:
            whose = "ours" if daemon in ours else "the peer's"
            error.add_note(f"the backend was {whose}: {daemon}")
            raise

    with ExitStack() as stack:
        daemons = [stack.enter_context(daemon) for daemon in (*ours, *peers)]
        medians = take_turns(turns, *(partial(sample, daemon) for daemon in daemons))
    return medians[: len(ours)], medians[len(ours) :]


def run(name: str, quick: bool) -> Iterator[Row]:
    """One row: the mean latency at depth 1, else requests a second. The peer's is the better of its ways."""
    depth, poll, aim = SETTINGS[name]
    value = "mean_lat_us" if depth == 1 else "kiops"
    looking = POLL if poll else POLL_SECONDS
    (ours,), peers = compare(
        [Daemon(*served("null_disk.py", "{socket}", str(looking)))],
        storage_daemons(["null-co,size=1073741824,read-zeroes=on"] * 2, looking),
        1 if quick else 7,
        lambda socket: blkio_bench(socket, depth, poll=poll)[value],
    )
    if depth == 1:
        yield Row(name, ours, min(peers), "us", "lower", aim)
    else:
        yield Row(name, ours, max(peers), "kIOPS", "higher", aim)
