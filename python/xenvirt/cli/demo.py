"""``xenvirt demo``: a disk in one process, its driver in another, and how fast the two are."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from xenvirt import Daemon, connect
from xenvirt.drivers import BlockDriver, Pending, Request
from xenvirt.virtio import feature_names
from xenvirt.virtio.block import SECTOR_SIZE
from xenvirt.virtio.ids import DeviceId

T = TypeVar("T")

CHUNK = 128 * 1024
BLOCK = 4096
DEEP = 32
"""How many requests are under way at once, where it is about throughput."""
BAR = 40
NEXT = """\
What to try next:
  xenvirt probe                                       what this host offers
  truncate -s 1G disk.raw
  xenvirt serve blk disk.raw --socket disk.sock       a disk for a QEMU or User-Mode Linux guest
  xenvirt serve entropy --socket rng.sock             random numbers for it
and for a device of your own, examples/entropy.py: 20 lines are a whole backend."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "demo",
        help="see it work: a disk in one process, its driver in another",
        description="Serves a disk from one process, writes and reads it from another over a vhost-user "
        "socket, verifies every byte, shows throughput and latency. Needs no Xen, no KVM and no root.",
    )
    parser.add_argument(
        "--size", type=int, default=64, metavar="MIB", help="size of the disk in MiB (default 64)"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="length of each measurement (default 2)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Shows it all; the exit status is 1 if a byte came back wrong."""
    if arguments.size < 1:
        print("xenvirt demo: the disk has at least 1 MiB", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="xenvirt-demo-") as folder:
        image = Path(folder) / "disk.raw"
        with image.open("wb") as file:
            file.truncate(arguments.size << 20)
        serve = ("-m", "xenvirt", "serve", "blk", str(image), "--socket={socket}", "--queues=2")
        with (
            Daemon(sys.executable, *serve) as daemon,
            connect(daemon.socket) as link,
            BlockDriver(link) as disk,
        ):
            print(
                f"A disk of {disk.size >> 20} MiB, served by Python in process {daemon.pid}, is driven from"
            )
            print(f"process {os.getpid()}, over {daemon.socket} and shared memory.")
            print(f"Negotiated: {', '.join(feature_names(disk.features, DeviceId.BLOCK))}\n")
            wrong = verify(disk, image)
            if wrong:
                print(f"\nxenvirt demo: {wrong}", file=sys.stderr)
                return 1
            measure(disk, arguments.seconds)
    print(f"\n{NEXT}")
    return 0


def verify(disk: BlockDriver, image: Path) -> str:
    """Writes the whole disk, reads it back, and looks at the image too. Says what is wrong; nothing, if all
    is well.
    """
    count = disk.size // CHUNK
    sectors = CHUNK // SECTOR_SIZE
    pattern = random.Random(0x1AF4).randbytes(CHUNK)  # noqa: S311 - a pattern, not a secret

    def chunk(number: int) -> bytes:
        return number.to_bytes(8, "little") + pattern[8:]

    writes = (
        disk.write_request(number * sectors, chunk(number), queue=number % disk.queues)
        for number in range(count)
    )
    began = time.perf_counter()
    for number, _ in enumerate(in_flight(disk, writes, DEEP), 1):
        progress("writing", number, count)
    disk.flush()
    print(f", flushed: {rate(disk.size, time.perf_counter() - began)}")

    reads = (
        disk.read_request(number * sectors, sectors, queue=number % disk.queues) for number in range(count)
    )
    began = time.perf_counter()
    for number, data in enumerate(in_flight(disk, reads, DEEP)):
        if data != chunk(number):
            return f"what was read at {number * CHUNK} is not what was written"
        progress("reading", number + 1, count)
    print(f", verified: {rate(disk.size, time.perf_counter() - began)}")

    with image.open("rb") as file:
        for number in range(count):
            if file.read(CHUNK) != chunk(number):
                return f"the image at {number * CHUNK} is not what was written"
    print("          the image on the host agrees")
    return ""


def measure(disk: BlockDriver, seconds: float) -> None:
    """Random reads: one at a time for the latency, many at a time for the throughput."""
    blocks = disk.size // BLOCK
    places = random.Random(1)  # noqa: S311

    def reads() -> Iterator[Request[bytes]]:
        end = time.perf_counter() + seconds
        number = 0
        while time.perf_counter() < end:
            sector = places.randrange(blocks) * (BLOCK // SECTOR_SIZE)
            yield disk.read_request(sector, BLOCK // SECTOR_SIZE, queue=number % disk.queues)
            number += 1

    latencies = []
    for request in reads():
        began = time.perf_counter()
        disk.link.run(request)
        latencies.append((time.perf_counter() - began) * 1e6)
    print(f"\n4 KiB random reads, one at a time: {len(latencies) / seconds:,.0f} a second")
    print(histogram(latencies))

    began = time.perf_counter()
    done = sum(1 for _ in in_flight(disk, reads(), DEEP))
    took = time.perf_counter() - began
    print(f"4 KiB random reads, {DEEP} at a time: {done / took:,.0f} a second, {rate(done * BLOCK, took)}")
    print("The driver, in Python too, takes its share of that time.")


def in_flight(disk: BlockDriver, requests: Iterable[Request[T]], depth: int) -> Iterator[T]:
    """The results in order, with up to `depth` requests under way."""
    pending: deque[Pending[T]] = deque()
    for request in requests:
        if len(pending) >= depth:
            # By halves, so that each kick and each call is about several requests.
            for _ in range(depth // 2):
                yield pending.popleft().result()
        pending.append(disk.link.submit(request))
    while pending:
        yield pending.popleft().result()


def progress(what: str, done: int, total: int) -> None:
    """A line that grows on a terminal; elsewhere only its end."""
    if not sys.stdout.isatty() and done < total:
        return
    filled = BAR * done // total
    start = "\r" if sys.stdout.isatty() else ""
    print(
        f"{start}{what:9} [{'#' * filled}{'.' * (BAR - filled)}] {done * CHUNK >> 20:4} MiB",
        end="",
        flush=True,
    )


def rate(size: int, seconds: float) -> str:
    """Bytes in a time, in words."""
    return f"{size / max(seconds, 1e-9) / (1 << 20):,.0f} MiB/s"


def histogram(latencies: list[float]) -> str:
    """Latencies in microseconds: a line for each power of two, and the percentiles."""
    if not latencies:
        return "  nothing was measured"
    ordered = sorted(latencies)
    counts: dict[int, int] = {}
    for latency in ordered:
        bucket = max(int(latency), 1).bit_length() - 1
        counts[bucket] = counts.get(bucket, 0) + 1
    most = max(counts.values())
    lines = []
    for bucket in range(min(counts), max(counts) + 1):
        count = counts.get(bucket, 0)
        bar = "#" * -(-BAR * count // most)
        lines.append(f"  {1 << bucket:>7,} us {bar:{BAR}} {count:,}")
    marks = {name: ordered[min(int(len(ordered) * share), len(ordered) - 1)] for name, share in PERCENTILES}
    lines.append("  " + ", ".join(f"{name} {value:,.0f} us" for name, value in marks.items()))
    return "\n".join(lines)


PERCENTILES = (("median", 0.5), ("99 %", 0.99), ("99.9 %", 0.999), ("longest", 1.0))
