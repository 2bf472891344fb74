"""The network device (virtio 1.3, section 5.1)."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import deque
from typing import ClassVar, Final

from xenvirt import Chain, Device, Feature, Session, VirtQueue
from xenvirt.virtio import DeviceId
from xenvirt.virtio.net import (
    MQ_PAIRS_MIN,
    ControlClass,
    ControlHeader,
    ControlStatus,
    LegacyPacketHeader,
    LinkStatus,
    MacCommand,
    NetConfig,
    NetFeature,
    PacketHeader,
    QueueCommand,
    QueuePairs,
)

from .net_backend import NetBackend
from .net_filter import MAC_SIZE, ReceiveFilter

log = logging.getLogger("xenvirt")

MAX_COMMAND: Final = 1 << 16
"""Bytes of a control command that are looked at."""
NUM_BUFFERS: Final = PacketHeader.offset("num_buffers")


class NetDevice(Device):
    """A network card of a guest.

    What it offers beside the offloads of its backend: MAC, STATUS, MTU if one is given, mergeable receive
    buffers, and the control queue with receive modes, address tables and the number of queue pairs.

    Args:
        backend: where frames come from and go to: a :class:`Sink`, an end of a :func:`cable`, a :class:`Tap`.
            It stays the caller's: close it after the device.
        mac: the address, 6 bytes or as ``52:54:00:12:34:56``; a random one of those that anybody may use if
            not given.
        pairs: how many queue pairs at most; by default as many as the backend can use.
        mtu: what the driver is told; by default what the backend says.
        queue_size: the largest ring that a driver may have; User-Mode Linux wants 256 of every device.
        thread_per_queue: serve each queue on its own thread, where the backend can.

    Attributes:
        dropped: frames that the driver had no buffer large enough for, and would never have.
    """

    device_id: ClassVar[DeviceId] = DeviceId.NET

    def __init__(
        self,
        backend: NetBackend,
        *,
        mac: bytes | str | None = None,
        pairs: int | None = None,
        mtu: int | None = None,
        queue_size: int = 256,
        thread_per_queue: bool = False,
    ) -> None:
        if thread_per_queue and not backend.threads:
            raise ValueError(f"a {type(backend).__name__} has one thread for all queues")
        self.thread_per_queue = thread_per_queue
        self.backend = backend
        self.mac = random_mac() if mac is None else parse_mac(mac)
        self.max_pairs = backend.pairs if pairs is None else pairs
        if not 1 <= self.max_pairs <= 127:
            raise ValueError(f"{self.max_pairs} queue pairs: between 1 and 127 can be")
        if self.max_pairs > backend.pairs:
            raise ValueError(
                f"{self.max_pairs} queue pairs: this {type(backend).__name__} has {backend.pairs}"
            )
        mtu = backend.mtu if mtu is None else mtu
        self.queue_sizes = (queue_size,) * (2 * self.max_pairs + 1)
        self.features = (
            NetFeature.MAC
            | NetFeature.STATUS
            | NetFeature.MRG_RXBUF
            | NetFeature.CTRL_VQ
            | NetFeature.CTRL_RX
            | NetFeature.CTRL_RX_EXTRA
            | NetFeature.CTRL_MAC_ADDR
            | NetFeature(backend.offloads)
        )
        if mtu is not None:
            self.features |= NetFeature.MTU
        self.config = self._space = NetConfig(
            mac=self.mac, status=LinkStatus.LINK_UP, max_virtqueue_pairs=self.max_pairs, mtu=mtu or 0
        )
        self.header_size = PacketHeader.size()
        self.dropped = 0
        self.filter = ReceiveFilter(self.mac)
        self._receivers: list[_Receiver] = []
        self._control_queue: int | None = None

    def activate(self, session: Session) -> None:
        features = session.features
        mergeable = bool(features & NetFeature.MRG_RXBUF)
        modern = mergeable or bool(features & Feature.VERSION_1)
        self.header_size = PacketHeader.size() if modern else LegacyPacketHeader.size()
        self.filter = ReceiveFilter(self.mac)
        # The control queue comes after all pairs that there can be (section 5.1.2).
        pairs = self.max_pairs if features & NetFeature.MQ else 1
        self._control_queue = 2 * pairs if features & NetFeature.CTRL_VQ else None
        self._receivers = [
            _Receiver(queue, mergeable=mergeable, modern=modern) for queue in session.queues[: 2 * pairs : 2]
        ]
        self.backend.attach(self, session)
        self.backend.set_pairs(1)

    def reset(self) -> None:
        self.backend.detach()
        self._receivers = []

    def process(self, queue: VirtQueue) -> None:
        """The driver sends, gives buffers, or commands."""
        pair, transmits = divmod(queue.index, 2)
        if queue.index == self._control_queue:
            for chain in queue:
                self._command(chain)
        elif transmits:
            self.backend.transmit(pair, queue)
        else:
            self.backend.receivable(pair)

    def put(self, pair: int, packet: bytes) -> bool:
        """Gives the driver a packet: a header of `header_size` bytes, whose number of buffers is filled in
        here, and a frame. False if there are not buffers enough for it at the moment; then nothing happened.

        For backends. May be called from any thread, by one at a time.
        """
        if not self.filter.passes(packet[self.header_size : self.header_size + MAC_SIZE]):
            return True
        receiver = self._receivers[pair if pair < len(self._receivers) else 0]
        if not receiver.running:
            receiver = self._receivers[0]
        chains = receiver.room(len(packet))
        if chains is None:
            return False
        if not chains:
            self.dropped += 1
            return True
        receiver.fill(chains, packet)
        return True

    def ready(self, pair: int) -> bool:
        """True if the driver has a receive buffer in this pair."""
        return pair < len(self._receivers) and self._receivers[pair].ready()

    def set_link(self, up: bool) -> None:
        """Plugs the cable in, or pulls it: the driver sees the link come or go. May be called from any
        thread."""
        self._space = dataclasses.replace(self._space, status=LinkStatus.LINK_UP if up else LinkStatus(0))
        self.update_config(self._space)

    def _command(self, chain: Chain) -> None:
        """A chain of the control queue (section 5.1.6.5)."""
        request = chain.read(MAX_COMMAND)
        done = len(request) >= ControlHeader.size() and self._obey(
            ControlHeader.from_bytes(request), request[ControlHeader.size() :]
        )
        if chain.writable:
            chain.write(bytes([ControlStatus.OK if done else ControlStatus.ERR]))
        chain.complete()

    def _obey(self, header: ControlHeader, data: bytes) -> bool:
        match header.command_class, header.command:
            case ControlClass.RX, command:
                return len(data) >= 1 and self.filter.set_mode(command, bool(data[0]))
            case ControlClass.MAC, MacCommand.TABLE_SET:
                return self.filter.set_table(data)
            case ControlClass.MAC, MacCommand.ADDR_SET if len(data) >= MAC_SIZE:
                self.filter.mac = data[:MAC_SIZE]
                return True
            case ControlClass.MQ, QueueCommand.VQ_PAIRS_SET if len(data) >= QueuePairs.size():
                pairs = QueuePairs.from_bytes(data).virtqueue_pairs
                if not MQ_PAIRS_MIN <= pairs <= len(self._receivers):
                    return False
                self.backend.set_pairs(pairs)
                return True
        return False


class _Receiver:
    """One receive queue."""

    def __init__(self, queue: VirtQueue, *, mergeable: bool, modern: bool) -> None:
        self._queue = queue
        self._mergeable = mergeable
        self._modern = modern
        # Taken from the ring, and not enough for the packet that was there.
        self._kept: deque[Chain] = deque()

    @property
    def running(self) -> bool:
        """Has the driver started it?"""
        return self._queue.running

    def ready(self) -> bool:
        """Is there a buffer?"""
        if not self._kept and (chain := self._queue.pop()) is not None:
            self._kept.append(chain)
        return bool(self._kept)

    def room(self, size: int) -> list[Chain] | None:
        """The buffers for a packet of so many bytes: one, or with MRG_RXBUF as many as it takes. None if the
        driver has not given enough yet; an empty list if no number of them will do."""
        chains: list[Chain] = []
        left = size
        while left > 0:
            chain = self._kept.popleft() if self._kept else self._queue.pop()
            if chain is None:
                self._kept.extendleft(reversed(chains))
                # All of the ring, and not enough: more will not come.
                return [] if self._fills_ring() else None
            if chain.writable < (PacketHeader.size() if not chains else 1):
                chain.complete()
                continue
            chains.append(chain)
            left -= chain.writable
            if left > 0 and not self._mergeable:
                self._kept.extendleft(reversed(chains))
                return []
        return chains

    def _fills_ring(self) -> bool:
        return self._mergeable and len(self._kept) >= self._queue.size

    def fill(self, chains: list[Chain], packet: bytes) -> None:
        """Writes a packet to its buffers; the driver sees them at once."""
        if self._modern:
            count = len(chains).to_bytes(2, "little")
            packet = packet[:NUM_BUFFERS] + count + packet[NUM_BUFFERS + len(count) :]
        if len(chains) == 1:
            chains[0].write(packet)
            chains[0].complete()
            return
        rest = memoryview(packet)
        for chain in chains:
            size = chain.writable
            chain.write(rest[:size])
            rest = rest[size:]
        self._queue.complete(chains)


def random_mac() -> bytes:
    """A random address that is locally administered, and of one interface only."""
    return bytes([os.urandom(1)[0] & 0xFC | 0x02]) + os.urandom(5)


def parse_mac(mac: bytes | str) -> bytes:
    """An address as bytes.

    Raises:
        ValueError: it is none, or one of a group.
    """
    try:
        parsed = bytes.fromhex(mac.replace(":", "")) if isinstance(mac, str) else bytes(mac)
    except ValueError:
        parsed = b""
    if len(parsed) != MAC_SIZE or parsed[0] & 1:
        raise ValueError(f"{mac!r} is no address of an interface: 6 bytes are, as in 52:54:00:12:34:56")
    return parsed
