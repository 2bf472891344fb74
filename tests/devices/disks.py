"""The disks that all have to do the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from xenvirt.devices import BlockDevice, NativeBlockDevice

MakeDisk = Callable[..., BlockDevice]

DISKS: dict[str, MakeDisk] = {
    "python": BlockDevice,
    "io_uring": NativeBlockDevice,
    "system-calls": partial(NativeBlockDevice, io_uring=False),
}
"""A class, or what makes one, by who answers the requests."""
