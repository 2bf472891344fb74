"""The I2C adapter: its constants and structures (virtio 1.3, section 5.12; Linux: virtio_i2c.h).

One queue. A request is a :class:`RequestHeader`, the data (none, to write or to read), and one byte of
:class:`Status`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from .structure import U16, U32, Structure


class I2cFeature(IntFlag):
    """What an I2C adapter can do (virtio 1.3, section 5.12.3)."""

    ZERO_LENGTH_REQUEST = 1 << 0
    """Requests without data. A driver MUST negotiate it (section 5.12.6)."""


class RequestFlag(IntFlag):
    """The `flags` of a request."""

    FAIL_NEXT = 1 << 0
    """If this request fails, the next one must fail too: they belong together."""
    READ = 1 << 1
    """The data is read from the bus; Linux says M_RD."""


class Status(IntEnum):
    """The last byte of a request, written by the device."""

    OK = 0
    ERR = 1


@dataclass(frozen=True)
class RequestHeader(Structure):
    """What a request begins with (virtio 1.3, section 5.12.6): 8 bytes."""

    addr: U16 = 0
    """The address on the bus as the wire has it: 7-bit addresses are shifted left by one."""
    padding: U16 = 0
    flags: U32 = 0
    """A :class:`RequestFlag`."""
