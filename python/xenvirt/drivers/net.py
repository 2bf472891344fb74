"""The driver of the network device (virtio 1.3, section 5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

from xenvirt.virtio.net import NetConfig, PacketHeader, ReceiveCommand

from .driver import AsyncDriver, Driver
from .net_requests import BUFFERS, NetRequests
from .receiver import AsyncReceiver, Receiver
from .request import AsyncLink, Link

if TYPE_CHECKING:
    from typing_extensions import Buffer

PLAIN = PacketHeader()
"""The header of a packet without offloads."""


class NetDriver(NetRequests, Driver):
    """Sends and receives Ethernet frames.

    ::

        with connect("net.sock") as link, NetDriver(link) as net:
            net.send(bytes.fromhex("ffffffffffff") + net.mac + b"\\x88\\xb5" + b"hello")
            print(net.receive().hex())

    Frames are from the destination address on, without a checksum at the end.

    Args:
        link: what :func:`xenvirt.connect` gave.
        offloads: features such as GUEST_CSUM that are negotiated too, where they are offered; their packets
            come by :meth:`receive_packet`, and go with a header of your own.

    Raises, in each operation:
        RequestFailedError: the device refused a command.
        RequestUnsupportedError: a feature that it takes was not negotiated.
        ResponseError: the device answered something that makes no sense.
        LinkTimeoutError: it did not answer, or no frame came, in time.
        DisconnectedError: the backend went away.
    """

    def __init__(self, link: Link, *, offloads: int = 0) -> None:
        self._offloads = offloads
        super().__init__(link)
        self._receivers = {0: Receiver(link, partial(self.receive_request, 0), BUFFERS)}

    def send(self, frame: Buffer, *, pair: int = 0, header: PacketHeader = PLAIN) -> None:
        """Sends a frame; returns when the device has taken it."""
        self.link.run(self.send_request(frame, pair, header))

    def send_all(self, frames: Sequence[Buffer], *, pair: int = 0) -> None:
        """Sends frames; the device finds them together, as far as the ring has room."""
        for sent in self.link.submit_all([self.send_request(frame, pair, PLAIN) for frame in frames]):
            sent.result()

    def receive(self, *, pair: int = 0) -> bytes:
        """Waits for the next frame."""
        return self.receive_packet(pair=pair)[1]

    def receive_packet(self, *, pair: int = 0) -> tuple[PacketHeader, bytes]:
        """Waits for the next frame, and gives its header too."""
        while (packet := self._add_part(pair, self._receivers[pair].get())) is None:
            pass
        return packet

    def set_mode(self, mode: ReceiveCommand, on: bool) -> None:
        """Switches a receive mode: PROMISC, ALLMULTI, and (CTRL_RX_EXTRA) ALLUNI, NOMULTI, NOUNI, NOBCAST."""
        self.link.run(self.mode_request(mode, on))

    def set_addresses(self, unicast: Iterable[bytes], multicast: Iterable[bytes]) -> None:
        """Says which addresses, beside its own, it listens to when it is not promiscuous."""
        self.link.run(self.table_request(unicast, multicast))

    def set_mac(self, mac: bytes) -> None:
        """Gives the device another address."""
        self.link.run(self.mac_request(mac))

    def set_pairs(self, pairs: int) -> None:
        """Uses this many queue pairs from now on; the device chooses in which one a frame comes."""
        for pair in range(pairs if pairs <= self.max_pairs else 0):
            if pair not in self._receivers:
                make = partial(self.receive_request, pair)
                self._receivers[pair] = Receiver(self.link, make, BUFFERS)
        self.link.run(self.pairs_request(pairs))

    def refresh(self) -> NetConfig:
        """Reads the configuration space again, for instance after the link went down."""
        self.config_space = self.link.config(0, NetConfig.size())
        self.config = NetConfig.from_bytes(self.config_space)
        return self.config


class AsyncNetDriver(NetRequests, AsyncDriver):
    """Sends and receives Ethernet frames, for asyncio. One task at a time may receive from a pair.

    Args:
        link: what :func:`xenvirt.connect_async` gave.
        offloads: as in :class:`NetDriver`.
    """

    def __init__(self, link: AsyncLink, *, offloads: int = 0) -> None:
        self._offloads = offloads
        super().__init__(link)
        self._receivers: dict[int, AsyncReceiver[bytes]] = {}

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._receivers[0] = await AsyncReceiver.start(self.link, partial(self.receive_request, 0), BUFFERS)
        return self

    async def send(self, frame: Buffer, *, pair: int = 0, header: PacketHeader = PLAIN) -> None:
        """As :meth:`NetDriver.send`."""
        await self.link.run(self.send_request(frame, pair, header))

    async def receive(self, *, pair: int = 0) -> bytes:
        """As :meth:`NetDriver.receive`; if it is cancelled nothing is lost."""
        return (await self.receive_packet(pair=pair))[1]

    async def receive_packet(self, *, pair: int = 0) -> tuple[PacketHeader, bytes]:
        """As :meth:`NetDriver.receive_packet`."""
        while (packet := self._add_part(pair, await self._receivers[pair].get())) is None:
            pass
        return packet

    async def set_mode(self, mode: ReceiveCommand, on: bool) -> None:
        """As :meth:`NetDriver.set_mode`."""
        await self.link.run(self.mode_request(mode, on))

    async def set_addresses(self, unicast: Iterable[bytes], multicast: Iterable[bytes]) -> None:
        """As :meth:`NetDriver.set_addresses`."""
        await self.link.run(self.table_request(unicast, multicast))

    async def set_mac(self, mac: bytes) -> None:
        """As :meth:`NetDriver.set_mac`."""
        await self.link.run(self.mac_request(mac))

    async def set_pairs(self, pairs: int) -> None:
        """As :meth:`NetDriver.set_pairs`."""
        for pair in range(pairs if pairs <= self.max_pairs else 0):
            if pair not in self._receivers:
                make = partial(self.receive_request, pair)
                self._receivers[pair] = await AsyncReceiver.start(self.link, make, BUFFERS)
        await self.link.run(self.pairs_request(pairs))
