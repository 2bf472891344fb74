"""The network device: its constants and structures (virtio 1.3, section 5.1; Linux: virtio_net.h).

Queues, seen from the driver: 0 receives, 1 transmits, 2 and 3 are the second pair, and so on; the control
queue is the last one, after as many pairs as the device has at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated, Final

from .structure import U8, U16, U32, Structure

MQ_PAIRS_MIN: Final = 1
"""The fewest queue pairs that MQ can set."""
MQ_PAIRS_MAX: Final = 0x8000
"""The most queue pairs that MQ can set."""


class NetFeature(IntFlag):
    """What a network device can do (virtio 1.3, section 5.1.3). HOST is the device, GUEST the driver."""

    CSUM = 1 << 0
    """The device takes packets with a partial checksum."""
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GSO = 1 << 6
    """Legacy: all kinds of GSO."""
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    """A received packet may span several buffers; `num_buffers` counts them."""
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    DEVICE_STATS = 1 << 50
    VQ_NOTF_COAL = 1 << 52
    NOTF_COAL = 1 << 53
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    HASH_REPORT = 1 << 57
    GUEST_HDRLEN = 1 << 59
    RSS = 1 << 60
    RSC_EXT = 1 << 61
    STANDBY = 1 << 62
    SPEED_DUPLEX = 1 << 63


class LinkStatus(IntFlag):
    """The `status` field (virtio 1.3, section 5.1.4)."""

    LINK_UP = 1
    ANNOUNCE = 2


class HeaderFlag(IntFlag):
    """The `flags` of a packet's header."""

    NEEDS_CSUM = 1
    """The checksum from `csum_start` on is still to be put at `csum_offset` after it."""
    DATA_VALID = 2
    """The checksum was found right."""
    RSC_INFO = 4


class GsoType(IntEnum):
    """How a large packet is to be cut (`gso_type`); ECN is a bit that may be added."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5
    ECN = 0x80


class ControlClass(IntEnum):
    """The class of a control command (virtio 1.3, section 5.1.6.5)."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5
    NOTF_COAL = 6


class ReceiveCommand(IntEnum):
    """The commands of class RX."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


class MacCommand(IntEnum):
    """The commands of class MAC."""

    TABLE_SET = 0
    ADDR_SET = 1


class VlanCommand(IntEnum):
    """The commands of class VLAN."""

    ADD = 0
    DEL = 1


class QueueCommand(IntEnum):
    """The commands of class MQ."""

    VQ_PAIRS_SET = 0
    RSS_CONFIG = 1
    HASH_CONFIG = 2


class ControlStatus(IntEnum):
    """The last byte of a control command, written by the device."""

    OK = 0
    ERR = 1


@dataclass(frozen=True)
class PacketHeader(Structure):
    """What stands in front of each packet since virtio 1.0 (section 5.1.6): 12 bytes, in both directions."""

    flags: U8 = 0
    """A :class:`HeaderFlag`."""
    gso_type: U8 = 0
    """A :class:`GsoType`."""
    hdr_len: U16 = 0
    """Bytes of Ethernet, IP and TCP or UDP headers."""
    gso_size: U16 = 0
    """Bytes after the headers in each cut packet."""
    csum_start: U16 = 0
    csum_offset: U16 = 0
    num_buffers: U16 = 0
    """Received packets: how many buffers the packet spans; 1 without MRG_RXBUF."""


@dataclass(frozen=True)
class LegacyPacketHeader(Structure):
    """The header for a driver that has neither VERSION_1 nor MRG_RXBUF (section 5.1.6.1): 10 bytes."""

    flags: U8 = 0
    gso_type: U8 = 0
    hdr_len: U16 = 0
    gso_size: U16 = 0
    csum_start: U16 = 0
    csum_offset: U16 = 0


@dataclass(frozen=True)
class ControlHeader(Structure):
    """What a control command begins with: 2 bytes, then its data, then one byte of :class:`ControlStatus`."""

    command_class: U8 = 0
    """A :class:`ControlClass`."""
    command: U8 = 0


@dataclass(frozen=True)
class QueuePairs(Structure):
    """The data of VQ_PAIRS_SET: 2 bytes."""

    virtqueue_pairs: U16 = 0


@dataclass(frozen=True)
class NetConfig(Structure):
    """The configuration space of a network device (virtio 1.3, section 5.1.4): 24 bytes."""

    mac: Annotated[bytes, "6s"] = bytes(6)
    """MAC: the address, in the order of the wire."""
    status: U16 = 0
    """STATUS: a :class:`LinkStatus`."""
    max_virtqueue_pairs: U16 = 0
    """MQ or RSS: 1 to 0x8000."""
    mtu: U16 = 0
    """MTU: in bytes."""
    speed: U32 = 0
    """SPEED_DUPLEX: in units of 1 Mbit/s; above 2^31 - 1 it is unknown."""
    duplex: U8 = 0
    """SPEED_DUPLEX: 0 half, 1 full, else unknown."""
    rss_max_key_size: U8 = 0
    """RSS or HASH_REPORT: in bytes."""
    rss_max_indirection_table_length: U16 = 0
    """RSS: in entries."""
    supported_hash_types: U32 = 0
    """RSS or HASH_REPORT: a bit mask."""
