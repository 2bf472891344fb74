"""The requests of a socket driver, without I/O (virtio 1.3, section 5.10.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from xenvirt.errors import ResponseError
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.structure import Structure
from xenvirt.virtio.vsock import Event, PacketHeader, VsockConfig, VsockFeature

from .driver import DriverCore
from .request import Answer, LinkInfo, Request
from .vsock_core import VsockCore

RECEIVE_QUEUE, TRANSMIT_QUEUE, EVENT_QUEUE = 0, 1, 2
RING_SIZE = 128

RECEIVE_BUFFERS = 64
"""How many buffers for packets the device has at a time."""
RECEIVE_DATA = 4096
"""Room for data in each, in bytes: devices cut longer packets to it."""
EVENT_BUFFERS = 4
MOST_UNDER_WAY = RING_SIZE // 2
"""How many packets may be on their way to the device: each takes two descriptors, so none waits for room."""


class VsockRequests(DriverCore):
    """What the blocking driver and that of asyncio have in common.

    Attributes:
        core: the protocol: all connections and listeners.
    """

    device_id: ClassVar[DeviceId] = DeviceId.VSOCK
    wanted_features: ClassVar[int] = VsockFeature.STREAM
    config_structure: ClassVar[type[Structure] | None] = VsockConfig

    core: VsockCore

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:  # noqa: ARG002 - three queues, whatever the link
        return (RING_SIZE,) * 3

    def _started(self, link: LinkInfo, space: bytes) -> None:
        super()._started(link, space)
        self.core = VsockCore(_cid(space))

    @property
    def guest_cid(self) -> int:
        """Our address, as the device says."""
        return self.core.guest_cid

    @staticmethod
    def receive_request() -> Request[bytes]:
        """A buffer for one packet: gives it whole, header and data."""
        size = PacketHeader.size() + RECEIVE_DATA
        return Request(RECEIVE_QUEUE, (), (size,), Answer.data, "packet of the socket device")

    @staticmethod
    def event_request() -> Request[int]:
        """A buffer for one event: gives its :class:`~xenvirt.virtio.vsock.EventId`."""

        def parse(answer: Answer) -> int:
            if answer.used < Event.size():
                raise ResponseError(f"the socket device wrote {answer.used} bytes as an event of 4")
            return Event.from_bytes(answer.buffers[0]).id

        return Request(EVENT_QUEUE, (), (Event.size(),), parse, "event of the socket device")

    @staticmethod
    def packet_request(header: bytes, data: bytes = b"") -> Request[None]:
        """Sends a packet as it is."""
        readable = [header, data] if data else [header]
        return Request(TRANSMIT_QUEUE, readable, (), lambda _: None, "packet to the socket device")

    def _next_packets(self, most: int) -> list[Request[None]]:
        """What waits to be sent, at most so many."""
        outgoing = self.core.outgoing
        return [self.packet_request(*outgoing.popleft()) for _ in range(min(most, len(outgoing)))]

    def _moved(self, space: bytes) -> None:
        """TRANSPORT_RESET: the connections are gone, and the address may be another."""
        self.config_space = space
        self.core.transport_reset(_cid(space))


def _cid(space: bytes) -> int:
    return VsockConfig.from_bytes(space).guest_cid & 0xFFFF_FFFF  # 5.10.4: the upper half is reserved
