"""The CAN controller: its constants and structures (virtio 1.4, section "CAN Device"; Linux: virtio_can.h).

Queues, seen from the driver: 0 transmits, 1 receives, 2 is the control queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from .structure import U8, U16, U32, Structure

CLASSIC_DATA_SIZE: Final = 8
"""The most bytes in a classic frame."""
FD_DATA_SIZE: Final = 64
"""The most bytes in a CAN FD frame."""


class CanFeature(IntFlag):
    """What a CAN controller can do."""

    CAN_CLASSIC = 1 << 0
    CAN_FD = 1 << 1
    RTR_FRAMES = 1 << 2
    LATE_TX_ACK = 1 << 3
    """A transmitted frame is completed once it was on the bus, not before."""


class ControllerStatus(IntFlag):
    """The `status` field of the configuration space."""

    BUSOFF = 1 << 0


class MessageType(IntEnum):
    """What a message is."""

    TX = 0x0001
    RX = 0x0101
    SET_CTRL_MODE_START = 0x0201
    SET_CTRL_MODE_STOP = 0x0202


class FrameFlag(IntFlag):
    """The `flags` of a frame."""

    RTR = 0x2000
    FD = 0x4000
    EXTENDED = 0x8000
    """The identifier has 29 bits."""


class Result(IntEnum):
    """The one byte that the device answers."""

    OK = 0
    NOT_OK = 1


@dataclass(frozen=True)
class Frame(Structure):
    """A frame to send (TX) or received (RX): 16 bytes, then `length` bytes of data."""

    msg_type: U16 = 0
    """A :class:`MessageType`."""
    length: U16 = 0
    """Bytes of data: up to 8, up to 64 with CAN FD."""
    reserved_classic_dlc: U8 = 0
    padding: U8 = 0
    reserved_xl_priority: U16 = 0
    flags: U32 = 0
    """A :class:`FrameFlag`."""
    can_id: U32 = 0
    """11 bits, 29 with EXTENDED."""


@dataclass(frozen=True)
class Control(Structure):
    """A control message: 2 bytes, answered by one byte of :class:`Result`."""

    msg_type: U16 = 0
    """SET_CTRL_MODE_START or SET_CTRL_MODE_STOP."""


@dataclass(frozen=True)
class CanConfig(Structure):
    """The configuration space of a CAN controller: 2 bytes."""

    status: U16 = 0
    """A :class:`ControllerStatus`."""
