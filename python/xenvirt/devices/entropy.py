"""The entropy device (virtio 1.3, section 5.4)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar

from xenvirt import Device, VirtQueue
from xenvirt.virtio import DeviceId


class EntropyDevice(Device):
    """Gives a guest random bytes: its ``/dev/hwrng``.

    Args:
        source: gives as many bytes as it is asked for; by default the kernel's random numbers. A
            deterministic one
            makes a test repeatable. When it gives fewer, the driver gets fewer.
        limit: the most bytes for one buffer: the driver chooses the size, and shall not keep us busy with it.
    """

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    queue_sizes = (256,)

    def __init__(self, source: Callable[[int], bytes] = os.urandom, *, limit: int = 65536) -> None:
        if limit < 1:
            raise ValueError(
                f"limit is {limit}: each buffer must get at least one byte (virtio 1.3, section 5.4.6.2)"
            )
        self.source = source
        self.limit = limit

    def process(self, queue: VirtQueue) -> None:
        """Fills each buffer, up to the limit."""
        for chain in queue:
            chain.write(self.source(min(chain.writable, self.limit)))
            chain.complete()
