"""The socket device: its constants and structures (virtio 1.3, section 5.10; Linux: virtio_vsock.h).

Queues, seen from the driver: 0 receives, 1 transmits, 2 brings events.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from .structure import U16, U32, U64, Structure

HOST_CID: Final = 2
"""The address of the host (section 5.10.4)."""


class VsockFeature(IntFlag):
    """What a socket device can do (virtio 1.3, section 5.10.3)."""

    STREAM = 1 << 0
    """Streams; a device that offers no feature has them too."""
    SEQPACKET = 1 << 1
    NO_IMPLIED_STREAM = 1 << 2


class SocketType(IntEnum):
    """The kind of a socket."""

    STREAM = 1
    SEQPACKET = 2


class Operation(IntEnum):
    """What a packet means (virtio 1.3, section 5.10.6)."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class ShutdownFlag(IntFlag):
    """The flags of SHUTDOWN."""

    RECEIVE = 1
    """No more data will be received."""
    SEND = 2
    """No more data will be sent."""


class PacketFlag(IntFlag):
    """The flags of RW, for sockets of type SEQPACKET."""

    EOM = 1
    """The end of a message."""
    EOR = 2
    """The end of a record."""


class EventId(IntEnum):
    """What the event queue tells."""

    TRANSPORT_RESET = 0
    """All connections are gone, and the address may have changed."""


@dataclass(frozen=True)
class PacketHeader(Structure):
    """What each packet begins with (virtio 1.3, section 5.10.6): 44 bytes, then `len` bytes of data."""

    src_cid: U64 = 0
    dst_cid: U64 = 0
    src_port: U32 = 0
    dst_port: U32 = 0
    len: U32 = 0
    """Bytes of data after the header."""
    type: U16 = 0
    """A :class:`SocketType`."""
    op: U16 = 0
    """An :class:`Operation`."""
    flags: U32 = 0
    """By `op`: :class:`ShutdownFlag` or :class:`PacketFlag`."""
    buf_alloc: U32 = 0
    """Credit: bytes of receive buffer that the sender of this header has for this connection."""
    fwd_cnt: U32 = 0
    """Credit: bytes that it has taken out of that buffer so far, modulo 2^32."""


@dataclass(frozen=True)
class Event(Structure):
    """A message of the event queue: 4 bytes."""

    id: U32 = 0
    """An :class:`EventId`."""


@dataclass(frozen=True)
class VsockConfig(Structure):
    """The configuration space of a socket device (virtio 1.3, section 5.10.4): 8 bytes."""

    guest_cid: U64 = 0
    """The guest's address; the upper 32 bits are 0."""
