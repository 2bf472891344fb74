"""The driver's end of a virtio-mmio device of a simulated guest: registers by a vCPU, rings in its memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from xenvirt import _native
from xenvirt.errors import NegotiationError
from xenvirt.link import Link, LinkMemory
from xenvirt.testing import SimulatedDomain, SimulatedXen
from xenvirt.virtio.features import Feature
from xenvirt.xen import ForeignMemory

# virtio 1.3, 4.2.2, MMIO Device Register Layout.
MAGIC, VERSION, DEVICE_ID = 0x000, 0x004, 0x008
DEVICE_FEATURES, DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x010, 0x014, 0x020, 0x024
QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
STATUS, CONFIG_GENERATION, CONFIG = 0x070, 0x0FC, 0x100
QUEUE_ADDRESSES = (0x080, 0x090, 0x0A0)
"""Low halves of where descriptors, the available and the used ring are; the high ones follow each."""
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FAILED = 1, 2, 4, 8, 128

QUEUE_MEMORY = 1 << 20
"""Bytes of the guest's memory for each queue and its buffers, from 4 MiB of its RAM on."""


class GuestMemory(LinkMemory):
    """Rings and buffers in the guest's memory, at its own addresses."""

    def __init__(
        self, foreign: ForeignMemory, guest: SimulatedDomain, sizes: Sequence[int], features: int
    ) -> None:
        self.mapping = foreign.attach(guest.domid, writable=True)
        start = guest.ram[0].start + (4 << 20)
        self.queues = [
            _native.DriverQueue(
                index,
                size,
                self.mapping,
                start + index * QUEUE_MEMORY,
                QUEUE_MEMORY,
                event_idx=bool(features & Feature.EVENT_IDX),
            )
            for index, size in enumerate(sizes)
        ]

    def close(self) -> None:
        self.queues.clear()
        self.mapping.close()


class GuestDriver(Link):
    """A driver that polls, as one on x86 has to: no interrupt of such a device can be raised there."""

    def __init__(self, xen: SimulatedXen, guest: SimulatedDomain, base: int) -> None:
        super().__init__(20.0)
        self._foreign = ForeignMemory(hypervisor=xen)
        self._guest, self._base = guest, base
        assert [self._load(MAGIC), self._load(VERSION)] == [0x7472_6976, 2]
        self._store(STATUS, 0)
        self._store(STATUS, ACKNOWLEDGE | DRIVER)
        self._features = 0

    def _load(self, register: int, size: int = 4) -> int:
        return self._guest.load(self._base + register, size)

    def _store(self, register: int, value: int) -> None:
        self._guest.store(self._base + register, value)

    @property
    def device_id(self) -> int:
        """What it is."""
        return self._load(DEVICE_ID)

    @property
    def offered_features(self) -> int:
        halves = []
        for half in (0, 1):
            self._store(DEVICE_FEATURES_SEL, half)
            halves.append(self._load(DEVICE_FEATURES))
        return halves[0] | halves[1] << 32

    @property
    def negotiated_features(self) -> int:
        return self._features

    @property
    def queue_count(self) -> int:
        raise NotImplementedError

    def config(self, offset: int, size: int) -> bytes:
        return bytes(self._load(CONFIG + at, 1) for at in range(offset, offset + size))

    def write_config(self, offset: int, data: bytes) -> None:
        for at, byte in enumerate(data):
            self._guest.store(self._base + CONFIG + offset + at, byte, 1)

    @property
    def config_changes(self) -> int:
        return self._load(CONFIG_GENERATION)

    def start(self, features: int, queue_sizes: Sequence[int]) -> None:
        # Not indirect ones: DriverQueue wants those in memory that is mapped for good.
        acked = (int(features) | Feature.VERSION_1) & self.offered_features & ~Feature.INDIRECT_DESC
        memory = GuestMemory(self._foreign, self._guest, queue_sizes, acked)
        self._start(acked, memory)
        self._memory = memory

    def _start(self, features: int, memory: LinkMemory) -> None:
        for half in (0, 1):
            self._store(DRIVER_FEATURES_SEL, half)
            self._store(DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)
        self._store(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        if not self._load(STATUS) & FEATURES_OK:
            raise NegotiationError(f"the device does not take the features {features:#x}")
        for queue in memory.queues:
            self._store(QUEUE_SEL, queue.index)
            assert self._load(QUEUE_NUM_MAX) >= queue.size
            self._store(QUEUE_NUM, queue.size)
            for low, address in zip(QUEUE_ADDRESSES, queue.addresses, strict=True):
                self._store(low, address & 0xFFFF_FFFF)
                self._store(low + 4, address >> 32)
            self._store(QUEUE_READY, 1)
        self._store(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        self._features = features

    def attend(self, timeout: float | None) -> bool:
        """Passes kicks on, and lets the device run for a moment."""
        assert self._memory is not None
        for queue in self._memory.queues:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(queue.kick_fd)
                self._store(QUEUE_NOTIFY, queue.index)
        return bool(self._epoll.poll(min(0.001, 0.001 if timeout is None else timeout)))

    def _attend(self, ready: Sequence[tuple[int, int]]) -> None:
        raise AssertionError(ready)

    def _stop(self) -> None:
        if self._guest.exists:
            self._store(STATUS, 0)
        self._foreign.close()
