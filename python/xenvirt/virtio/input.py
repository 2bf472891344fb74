"""The input device: its constants and structures (virtio 1.3, section 5.8; Linux: virtio_input.h).

Queues, seen from the driver: 0 brings events, 1 takes status events (LEDs). The configuration space is a
window: the driver writes `select` and `subsel`, then reads `length` and `data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from .structure import S32, U8, U16, U32, Structure


class ConfigSelect(IntEnum):
    """What the window of the configuration space shows (virtio 1.3, section 5.8.4)."""

    UNSET = 0x00
    ID_NAME = 0x01
    """The device's name."""
    ID_SERIAL = 0x02
    ID_DEVIDS = 0x03
    """A :class:`DeviceIds`."""
    PROP_BITS = 0x10
    """A bit mask of INPUT_PROP_*."""
    EV_BITS = 0x11
    """`subsel` is an event type: a bit mask of its codes."""
    ABS_INFO = 0x12
    """`subsel` is an absolute axis: an :class:`AbsInfo`."""


@dataclass(frozen=True)
class AbsInfo(Structure):
    """An absolute axis: 20 bytes."""

    min: S32 = 0
    max: S32 = 0
    fuzz: U32 = 0
    flat: U32 = 0
    res: U32 = 0


@dataclass(frozen=True)
class DeviceIds(Structure):
    """Who made the device: 8 bytes."""

    bustype: U16 = 0
    vendor: U16 = 0
    product: U16 = 0
    version: U16 = 0


@dataclass(frozen=True)
class InputEvent(Structure):
    """An event, as Linux's evdev has it without the time: 8 bytes."""

    type: U16 = 0
    code: U16 = 0
    value: U32 = 0
    """Signed values in two's complement."""


@dataclass(frozen=True)
class InputConfig(Structure):
    """The configuration space of an input device (virtio 1.3, section 5.8.4): 136 bytes."""

    select: U8 = 0
    """A :class:`ConfigSelect`."""
    subsel: U8 = 0
    length: U8 = 0
    """How many bytes of `data` count; 0 where there is nothing. The specification says size."""
    reserved: Annotated[bytes, "5s"] = bytes(5)
    data: Annotated[bytes, "128s"] = bytes(128)
