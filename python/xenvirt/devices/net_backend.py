"""What stands behind a network device: the base of all, a sink that counts, and a cable between two devices.

The tap is in :mod:`xenvirt.devices.tap`.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from xenvirt import Session, VirtQueue
from xenvirt.errors import GuestMemoryFault, RingError, StaleChainError
from xenvirt.virtio.net import LegacyPacketHeader, PacketHeader

if TYPE_CHECKING:
    from .net import NetDevice

BATCH: Final = 256
MAX_FRAME: Final = 65550
"""The longest frame that is taken: 64 KiB of payload and an Ethernet header."""
BACKLOG: Final = 1024
"""How many frames a cable holds for a driver that has no buffers at the moment; more are dropped."""


class NetBackend:
    """Where the frames of a network device come from and go to. All methods are called on the thread that
    serves the device; `transmit` and `receivable` on that of their queue, if it has one.

    Attributes:
        threads: each queue may have a thread of its own.
        pairs: how many queue pairs it can make use of.
        offloads: what a driver may be offered because of it, for instance HOST_TSO4.
        mtu: the largest payload in bytes; None: it does not say.
    """

    threads: bool = False
    pairs: int = 1
    offloads: int = 0
    mtu: int | None = None

    def attach(self, device: NetDevice, session: Session) -> None:
        """A driver is ready."""

    def detach(self) -> None:
        """The driver is gone."""

    def transmit(self, pair: int, queue: VirtQueue) -> None:
        """The driver has frames to be sent; take them out of the queue."""
        raise NotImplementedError(f"{type(self).__name__} has no transmit(pair, queue)")

    def receivable(self, pair: int) -> None:
        """The driver has given new buffers to a receive queue."""

    def set_pairs(self, pairs: int) -> None:
        """The driver uses this many queue pairs from now on."""

    def close(self) -> None:
        """Gives back what it has opened. Closing twice is allowed."""


class Sink(NetBackend):
    """Takes every frame, counts it, and drops it, by the batch: for benches and tests."""

    threads = True

    def __init__(self, *, pairs: int = 1) -> None:
        self.pairs = pairs
        # By pair: each may be counted on a thread of its own.
        self._frames = [0] * pairs
        self._octets = [0] * pairs
        self._header: type[PacketHeader | LegacyPacketHeader] = PacketHeader

    def attach(self, device: NetDevice, session: Session) -> None:  # noqa: ARG002 - see the base
        self._header = PacketHeader if device.header_size == PacketHeader.size() else LegacyPacketHeader

    @property
    def frames(self) -> int:
        """How many came."""
        return sum(self._frames)

    @property
    def octets(self) -> int:
        """How many bytes they had, without the headers of virtio."""
        return sum(self._octets)

    def transmit(self, pair: int, queue: VirtQueue) -> None:
        while batch := queue.pop_batch(self._header, limit=BATCH):
            self._frames[pair] += len(batch)
            self._octets[pair] += batch.total_readable
            batch.complete()


class CableEnd(NetBackend):
    """One end of a cable; :func:`cable` makes both.

    A frame that comes while the other end's driver has no buffer waits there, up to a number; without a
    driver it is dropped. Neither end waits for the other.

    Attributes:
        dropped: frames that did not reach the driver at this end.
    """

    threads = True

    def __init__(self) -> None:
        self.other: CableEnd = self
        self.dropped = 0
        # The thread of the other device comes here with its frames.
        self._lock = threading.Lock()
        self._device: NetDevice | None = None
        self._waiting: deque[bytes] = deque()

    def attach(self, device: NetDevice, session: Session) -> None:  # noqa: ARG002 - see the base
        with self._lock:
            self._device = device

    def detach(self) -> None:
        with self._lock:
            self._device = None
            self._waiting.clear()

    def transmit(self, pair: int, queue: VirtQueue) -> None:
        device = self._device
        assert device is not None
        for chain in queue:
            frame = chain.read(device.header_size + MAX_FRAME)[device.header_size :]
            whole = chain.readable == 0
            chain.complete()
            if frame and whole:
                self.other.arrive(pair, frame)

    def arrive(self, pair: int, frame: bytes) -> None:
        """Takes a frame from the cable. May be called from any thread."""
        with self._lock:
            if self._device is None or len(self._waiting) >= BACKLOG:
                self.dropped += 1
            elif self._waiting or not self._put(pair, frame):
                self._waiting.append(frame)

    def receivable(self, pair: int) -> None:
        with self._lock:
            while self._waiting and self._put(pair, self._waiting[0]):
                self._waiting.popleft()

    def _put(self, pair: int, frame: bytes) -> bool:
        device = self._device
        assert device is not None
        try:
            return device.put(pair, bytes(device.header_size) + frame)
        except (RingError, StaleChainError, GuestMemoryFault):
            # Of this end's driver, and maybe on the other's thread: its own thread hears of it too.
            self.dropped += 1
            return True


def cable(*, pairs: int = 1) -> tuple[CableEnd, CableEnd]:
    """A cable: what the driver of the one device sends comes out at the other."""
    one, other = CableEnd(), CableEnd()
    one.other, other.other = other, one
    one.pairs = other.pairs = pairs
    return one, other
