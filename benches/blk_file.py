"""An image in the page cache, 4 KiB at random and 32 requests deep, against qemu-storage-daemon's file."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from xenvirt import Daemon

from .blk_null import blkio_bench, storage_daemon
from .rig import Row, served, take_turns

AIM = 1.0
SIZE = 64 << 20
DEPTH = 32


def _kiops(socket: str, workload: str) -> float:
    return blkio_bench(socket, DEPTH, workload=workload)["kiops"]


def run(name: str, quick: bool) -> Iterator[Row]:
    """A row for reads and one for writes, for our block device in Python and for the one in Rust."""
    for language in ("python", "native"):
        yield from _rows(name, language, quick)


def _rows(name: str, language: str, quick: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="xenvirt-bench-") as folder:
        images = [Path(folder) / "ours", Path(folder) / "peer"]
        for image in images:
            image.write_bytes(bytes(range(1, 256)) * (SIZE // 255) + bytes(SIZE % 255))
        with (
            Daemon(*served("file_disk.py", "{socket}", str(images[0]), language)) as ours,
            storage_daemon(f"file,filename={images[1]}") as peer,
        ):
            for word, workload in (("read", "randread"), ("write", "randwrite")):
                mine, theirs = take_turns(
                    1 if quick else 7,
                    partial(_kiops, ours.socket, workload),
                    partial(_kiops, peer.socket, workload),
                )
                yield Row(f"{name}/{word}-{language}", mine, theirs, "kIOPS", "higher", AIM)
