"""Random reads of 4 KiB from a null disk written in Python, against qemu-storage-daemon's null-co."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from tests.peers import libblkio
from xenvirt import Daemon

from .rig import DEVICE_CORE, DRIVER_CORE, Row, output_of, pinned, served, take_turns

POLL = 0.001
"""For how long our thread looks on after the last request, where both sides poll: seconds."""


class Setting(NamedTuple):
    """How one of the benches is run, and what it aims at."""

    depth: int
    poll: bool
    aim: float


SETTINGS = {
    "blk-qd1": Setting(1, False, 1.1),
    "blk-qd32": Setting(32, False, 1.0),
    "blk-qd64-poll": Setting(64, True, 1.0),
}


def storage_daemon(blockdev: str, *, poll: bool = False) -> Daemon:
    """qemu-storage-daemon with one disk, on the device's core.

    It serves from its main loop, which sleeps, unless told to poll: then from a thread that looks on as long
    as ours does.
    """
    export = "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={socket}"
    thread = ["--object", f"iothread,id=thread,poll-max-ns={round(POLL * 1e9)}"] if poll else []
    export += ",iothread=thread" if poll else ""
    command = ["qemu-storage-daemon", *thread, "--blockdev", f"{blockdev},node-name=disk", "--export", export]
    return Daemon(*pinned(DEVICE_CORE, *command))


def blkio_bench(
    socket: str, depth: int, *, workload: str = "randread", poll: bool = False
) -> dict[str, float]:
    """One second of requests of 4 KiB: `kiops`, `mean_lat_us` and more."""
    if not libblkio.program("blkio-bench").exists():
        raise FileNotFoundError("no blkio-bench: `python -m tests.peers.prepare` makes it")
    options = ["--runtime=1", f"--readwrite={workload}", "--blocksize=4096", f"--iodepth={depth}"]
    options += ["--poll"] if poll else []
    client = libblkio.program("blkio-bench")
    command = pinned(DRIVER_CORE, client, *options, "virtio-blk-vhost-user", f"path={socket}")
    aggregate: dict[str, float] = json.loads(output_of(command))["aggregate"]
    assert aggregate["kiops"] > 0, aggregate
    return aggregate


def run(name: str, quick: bool) -> Iterator[Row]:
    """One row: the mean latency at depth 1, else requests a second."""
    depth, poll, aim = SETTINGS[name]
    value = "mean_lat_us" if depth == 1 else "kiops"
    null = "null-co,size=1073741824,read-zeroes=on"
    with (
        Daemon(*served("null_disk.py", "{socket}", str(POLL if poll else 0.0))) as ours,
        storage_daemon(null, poll=poll) as peer,
    ):
        mine, theirs = take_turns(
            1 if quick else 7,
            lambda: blkio_bench(ours.socket, depth, poll=poll)[value],
            lambda: blkio_bench(peer.socket, depth, poll=poll)[value],
        )
    if depth == 1:
        yield Row(name, mine, theirs, "us", "lower", aim)
    else:
        yield Row(name, mine, theirs, "kIOPS", "higher", aim)
