"""SCSI's own answers: status, sense data, INQUIRY and READ CAPACITY (SPC-6 and SBC-5, which virtio carries).

Everything in SCSI is big-endian, unlike virtio.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final, Self


class ScsiStatus(IntEnum):
    """How the unit fared with a command (SAM-6, section 5.3)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    """There is sense data."""
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class SenseKey(IntEnum):
    """What kind of trouble it is (SPC-6, section 4.4.6)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    """Something changed since the last command, for instance a reset: ask again."""
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    RESERVED = 0xC
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


ADDITIONAL: Final = MappingProxyType(
    {
        (0x00, 0x00): "no additional sense information",
        (0x04, 0x00): "logical unit not ready",
        (0x0C, 0x00): "write error",
        (0x11, 0x00): "unrecovered read error",
        (0x1A, 0x00): "parameter list length error",
        (0x20, 0x00): "invalid command operation code",
        (0x21, 0x00): "logical block address out of range",
        (0x24, 0x00): "invalid field in the command block",
        (0x25, 0x00): "logical unit not supported",
        (0x26, 0x00): "invalid field in the parameter list",
        (0x27, 0x00): "write protected",
        (0x28, 0x00): "the medium may have changed",
        (0x29, 0x00): "power on, reset or bus device reset",
        (0x2A, 0x09): "the capacity has changed",
        (0x39, 0x00): "saving parameters not supported",
        (0x3A, 0x00): "medium not present",
        (0x3F, 0x0E): "the list of logical units has changed",
        (0x44, 0x00): "internal target failure",
    }
)
"""What the usual pairs of ASC and ASCQ say (SPC-6, annex F.2)."""


@dataclass(frozen=True)
class Sense:
    """Sense data, in either of its formats (SPC-6, section 4.4)."""

    key: int
    """A :class:`SenseKey`."""
    asc: int = 0
    """The additional sense code."""
    ascq: int = 0
    """Its qualifier."""
    deferred: bool = False
    """It is about an earlier command."""

    @classmethod
    def from_bytes(cls, data: bytes) -> Self | None:
        """Decodes it; None where there is none, or its format is a vendor's own."""
        code = data[0] & 0x7F if data else 0
        if code in (0x70, 0x71) and len(data) >= 3:
            fixed = data.ljust(14, b"\0")
            return cls(fixed[2] & 0xF, fixed[12], fixed[13], code == 0x71)
        if code in (0x72, 0x73) and len(data) >= 4:
            return cls(data[1] & 0xF, data[2], data[3], code == 0x73)
        return None

    def __str__(self) -> str:
        text = ADDITIONAL.get((self.asc, self.ascq))
        numbers = f"ASC {self.asc:#04x}, ASCQ {self.ascq:#04x}"
        return (
            f"{SenseKey(self.key).name}, {text} ({numbers})"
            if text
            else f"{SenseKey(self.key).name}, {numbers}"
        )


@dataclass(frozen=True)
class Inquiry:
    """What a unit says of itself: the standard data of INQUIRY (SPC-6, section 6.7.2)."""

    device_type: int
    """0: a disk, 5: a CD, 0x1F: there is no unit at this number."""
    removable: bool
    vendor: str
    product: str
    revision: str

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decodes it; what is missing at the end is empty."""
        data = data.ljust(36, b"\0")

        def text(start: int, end: int) -> str:
            return data[start:end].rstrip(b"\0 ").decode("ascii", "replace")

        return cls(data[0] & 0x1F, bool(data[1] & 0x80), text(8, 16), text(16, 32), text(32, 36))


@dataclass(frozen=True)
class Capacity:
    """How large a disk is (SBC-5, sections 5.20 and 5.21)."""

    blocks: int
    block_size: int
    """In bytes."""

    @property
    def size(self) -> int:
        """In bytes."""
        return self.blocks * self.block_size
