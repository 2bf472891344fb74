"""What the drivers of the network device have in common: packets and commands (virtio 1.3, section 5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from xenvirt.errors import RequestFailedError, RequestUnsupportedError, ResponseError
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.names import feature_names
from xenvirt.virtio.net import (
    ControlClass,
    ControlHeader,
    ControlStatus,
    MacCommand,
    NetConfig,
    NetFeature,
    PacketHeader,
    QueueCommand,
    QueuePairs,
    ReceiveCommand,
)

from .driver import DriverCore
from .request import Answer, LinkInfo, Request

if TYPE_CHECKING:
    from typing_extensions import Buffer

RING: Final = 256
"""Descriptors of each queue."""
BUFFERS: Final = 128
"""Receive buffers that the device has at a time, for each pair."""
MERGED: Final = 2048
"""The size of a receive buffer with MRG_RXBUF, where a packet may span several."""
LONGEST: Final = 65562
"""The longest packet with GUEST_TSO4 and the like, with its header (section 5.1.6.3.1)."""
ETHERNET: Final = 14
CONTROL_RING: Final = 16


class NetRequests(DriverCore):
    """The requests.

    Attributes:
        config: the configuration space as it was at the start.
    """

    device_id: ClassVar[DeviceId] = DeviceId.NET
    wanted_features: ClassVar[int] = (
        NetFeature.MAC
        | NetFeature.STATUS
        | NetFeature.MTU
        | NetFeature.MRG_RXBUF
        | NetFeature.CTRL_VQ
        | NetFeature.CTRL_RX
        | NetFeature.CTRL_RX_EXTRA
        | NetFeature.CTRL_MAC_ADDR
        | NetFeature.MQ
    )
    config_structure = NetConfig
    _offloads: int = 0

    def _check(self, link: LinkInfo) -> int:
        return super()._check(link) | int(self._offloads)

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:
        """A pair; and all that the device has where it takes commands, whose queue is the last one."""
        if not link.offered_features & NetFeature.CTRL_VQ:
            return (RING, RING)
        pairs = (link.queue_count - 1) // 2 if link.offered_features & NetFeature.MQ else 1
        return (RING,) * (2 * max(pairs, 1)) + (CONTROL_RING,)

    def _started(self, link: LinkInfo, space: bytes) -> None:
        super()._started(link, space)
        self.config = NetConfig.from_bytes(space)
        self._parts: dict[int, list[bytes]] = {}
        self._control_queue = len(self.queue_sizes(link)) - 1 if self.features & NetFeature.CTRL_VQ else None

    @property
    def mac(self) -> bytes:
        """The address that the device has at the start; RequestUnsupportedError if it tells none."""
        if not self.features & NetFeature.MAC:
            raise RequestUnsupportedError("the device tells no address: MAC was not negotiated")
        return self.config.mac

    @property
    def max_pairs(self) -> int:
        """How many queue pairs the device has."""
        return self.config.max_virtqueue_pairs if self.features & NetFeature.MQ else 1

    @property
    def mergeable(self) -> bool:
        """A received packet may span several buffers."""
        return bool(self.features & NetFeature.MRG_RXBUF)

    def receive_request(self, pair: int) -> Request[bytes]:
        """Gives the device a buffer for a received packet, or for a part of one."""
        large = NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6
        mtu = self.config.mtu if self.features & NetFeature.MTU else 1500
        plain = LONGEST if self.features & large else PacketHeader.size() + ETHERNET + max(mtu, 1500)
        size = MERGED if self.mergeable else plain

        def parse(answer: Answer) -> bytes:
            if not 1 <= answer.used <= size:
                raise ResponseError(
                    f"the device says it wrote {answer.used} bytes of a packet to a buffer of {size}"
                )
            return answer.data()

        return Request(2 * pair, (), (size,), parse, f"packet for pair {pair}")

    def send_request(self, frame: Buffer, pair: int, header: PacketHeader) -> Request[None]:
        """Sends a frame."""
        what = f"frame of {memoryview(frame).nbytes} bytes"
        return Request(2 * pair + 1, (header.to_bytes(), frame), (), lambda _: None, what)

    def command_request(self, command_class: int, command: int, data: bytes, what: str) -> Request[None]:
        """A command.

        Raises:
            RequestUnsupportedError: the device takes none (CTRL_VQ).
        """
        if self._control_queue is None:
            raise RequestUnsupportedError(f"cannot {what}: the device takes no commands (CTRL_VQ)")

        def parse(answer: Answer) -> None:
            status = answer.buffers[0][0]
            if status == ControlStatus.ERR:
                raise RequestFailedError(f"the device refused to {what}", status)
            if status != ControlStatus.OK:
                raise ResponseError(f"the device answers {status:#x} when told to {what}: 0 or 1 can be")

        header = ControlHeader(command_class, command).to_bytes()
        # The header, the data and the status each in a descriptor, as Linux does.
        return Request(self._control_queue, (header, data), (1,), parse, what)

    def mode_request(self, mode: ReceiveCommand, on: bool) -> Request[None]:
        """Switches a receive mode."""
        extra = mode not in (ReceiveCommand.PROMISC, ReceiveCommand.ALLMULTI)
        what = f"switch {mode.name} {'on' if on else 'off'}"
        self._need(NetFeature.CTRL_RX_EXTRA if extra else NetFeature.CTRL_RX, what)
        return self.command_request(ControlClass.RX, mode, bytes([on]), what)

    def table_request(self, unicast: Iterable[bytes], multicast: Iterable[bytes]) -> Request[None]:
        """Says which addresses it listens to."""
        data = b""
        for addresses in (list(unicast), list(multicast)):
            data += len(addresses).to_bytes(4, "little") + b"".join(addresses)
        self._need(NetFeature.CTRL_RX, "set its table of addresses")
        return self.command_request(
            ControlClass.MAC, MacCommand.TABLE_SET, data, "set its table of addresses"
        )

    def mac_request(self, mac: bytes) -> Request[None]:
        """Changes its address."""
        what = f"take the address {mac.hex(':')}"
        self._need(NetFeature.CTRL_MAC_ADDR, what)
        return self.command_request(ControlClass.MAC, MacCommand.ADDR_SET, mac, what)

    def pairs_request(self, pairs: int) -> Request[None]:
        """Says how many pairs are in use."""
        what = f"use {pairs} queue pairs"
        self._need(NetFeature.MQ, what)
        data = QueuePairs(pairs).to_bytes()
        return self.command_request(ControlClass.MQ, QueueCommand.VQ_PAIRS_SET, data, what)

    def _need(self, feature: NetFeature, what: str) -> None:
        if not self.features & feature:
            (name,) = feature_names(feature, self.device_id)
            raise RequestUnsupportedError(f"the device cannot {what}: {name} was not negotiated")

    def _add_part(self, pair: int, part: bytes) -> tuple[PacketHeader, bytes] | None:
        """Takes a buffer that came back; gives the packet if it is whole now."""
        parts = self._parts.setdefault(pair, [])
        parts.append(part)
        if len(parts[0]) < PacketHeader.size():
            del self._parts[pair]
            raise ResponseError(
                f"a packet of {len(part)} bytes has no room for its header of {PacketHeader.size()}"
            )
        header = PacketHeader.from_bytes(parts[0])
        if self.mergeable and header.num_buffers == 0:
            del self._parts[pair]
            raise ResponseError("a packet says that it has 0 buffers: with MRG_RXBUF it has one or more")
        if len(parts) < (header.num_buffers if self.mergeable else 1):
            return None
        del self._parts[pair]
        return header, b"".join(parts)[PacketHeader.size() :]
