"""An image in the page cache, 4 KiB at random and 32 requests deep, against qemu-storage-daemon's file."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from xenvirt import Daemon

from .blk_null import blkio_bench, compare, storage_daemons
from .rig import Row, served

AIM = 1.0
SIZE = 32 << 20
DEPTH = 32
OURS = ("python", "native")


def _kiops(workload: str, socket: str) -> float:
    return blkio_bench(socket, DEPTH, workload=workload)["kiops"]


def run(name: str, quick: bool) -> Iterator[Row]:
    """Rows for reads and for writes, of our disk in Python and of the one in Rust. The peer's is the better
    of its ways."""
    with tempfile.TemporaryDirectory(prefix="xenvirt-bench-") as folder:
        # An image each: who writes to one locks it.
        images = [Path(folder) / owner for owner in (*OURS, "main-loop", "thread")]
        for image in images:
            image.write_bytes(bytes(range(256)) * (SIZE // 256))
        mine, theirs = images[: len(OURS)], images[len(OURS) :]
        for word, workload in (("read", "randread"), ("write", "randwrite")):
            ours, peers = compare(
                [Daemon(*served("file_disk.py", "{socket}", str(image), image.name)) for image in mine],
                storage_daemons([f"file,filename={image}" for image in theirs]),
                1 if quick else 7,
                partial(_kiops, workload),
            )
            for kind, median in zip(OURS, ours, strict=True):
                yield Row(f"{name}/{word}-{kind}", median, max(peers), "kIOPS", "higher", AIM)
