"""The driver's end of a vhost-user backend, with rings and buffers in the memory of a domain: what a frontend
that serves Xen guests does, but that dom0 itself is the driver."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from xenvirt import Frontend, _native
from xenvirt.link import LinkMemory
from xenvirt.virtio.features import Feature
from xenvirt.xen import ForeignMemory

FOREIGN = 1
"""How Xen maps a region (vhost-user, XEN_MMAP)."""

FRAME = 4096
FIRST_FRAME = 0x400
"""From 4 MiB on, where a guest that was never started has nothing of its own."""
QUEUE_FRAMES = 0x100


class DomainMemory(LinkMemory):
    """A part of a domain's memory for each queue. Addresses are the domain's."""

    def __init__(self, foreign: ForeignMemory, domid: int, queue_sizes: Sequence[int], features: int) -> None:
        end = FIRST_FRAME + QUEUE_FRAMES * len(queue_sizes)
        # From 0 on, so that an offset in the mapping is an address of the domain.
        self.mapping = foreign.map(domid, range(end), writable=True, partial=True)
        self.queues = [
            _native.DriverQueue(
                index,
                size,
                self.mapping,
                (FIRST_FRAME + index * QUEUE_FRAMES) * FRAME,
                QUEUE_FRAMES * FRAME,
                event_idx=bool(features & Feature.EVENT_IDX),
                indirect=bool(features & Feature.INDIRECT_DESC),
                in_order=bool(features & Feature.IN_ORDER),
            )
            for index, size in enumerate(queue_sizes)
        ]

    def close(self) -> None:
        """Unmaps it."""
        self.queues.clear()
        self.mapping.close()


class GuestLink(Frontend):
    """A link whose memory is a domain's, `regions` of it, given to the backend as they are."""

    def __init__(
        self, path: str, foreign: ForeignMemory, domid: int, regions: Sequence[_native.SharedRegion]
    ) -> None:
        super().__init__(_native.Frontend(path), 20.0, path)
        self._foreign, self._domid, self._regions = foreign, domid, regions

    def start(self, features: int, queue_sizes: Sequence[int]) -> None:
        """As `Link.start`."""
        acked = features & self.offered_features
        memory = DomainMemory(self._foreign, self._domid, queue_sizes, acked)
        self.protocol.set_features(acked)
        self.protocol.set_memory(self._regions)
        for queue in memory.queues:
            error = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._errors[error] = queue.index
            descriptors, available, used = queue.addresses
            self.protocol.set_queue(
                queue.index,
                queue.size,
                descriptors=descriptors,
                available=available,
                used=used,
                kick=queue.kick_fd,
                call=queue.fileno(),
                err=error,
            )
            self._epoll.register(error, select.EPOLLIN)
        for queue in memory.queues:
            self.protocol.enable_queue(queue.index)
            self._epoll.register(queue.fileno(), select.EPOLLIN)
        self._memory = memory
