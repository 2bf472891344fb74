"""The console device: its constants and structures (virtio 1.3, section 5.3; Linux: virtio_console.h).

Queues, seen from the driver: 0 receives and 1 transmits on port 0, 2 receives and 3 transmits control
messages, 4 and 5 are port 1, and so on. The queues from 2 on exist with MULTIPORT only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from .structure import U16, U32, Structure

BAD_ID: Final = 0xFFFF_FFFF
"""The port number of control messages that concern no port."""


class ConsoleFeature(IntFlag):
    """What a console can do (virtio 1.3, section 5.3.3)."""

    SIZE = 1 << 0
    """`cols` and `rows` are given."""
    MULTIPORT = 1 << 1
    """There are several ports, and control queues."""
    EMERG_WRITE = 1 << 2
    """A character written to `emerg_wr` is printed, even before the driver is set up."""


class ControlEvent(IntEnum):
    """What a control message is about (virtio 1.3, section 5.3.6.2)."""

    DEVICE_READY = 0
    """Driver to device: it is there (value 1) or failed (0)."""
    PORT_ADD = 1
    """Device to driver: a port appeared."""
    PORT_REMOVE = 2
    PORT_READY = 3
    """Driver to device: the port can be used (value 1), or could not be added (0)."""
    CONSOLE_PORT = 4
    """Device to driver: this port is a console."""
    RESIZE = 5
    """Device to driver: a :class:`ControlResize` follows."""
    PORT_OPEN = 6
    """Both ways: the other end opened (1) or closed (0) the port."""
    PORT_NAME = 7
    """Device to driver: the name follows, not terminated."""


@dataclass(frozen=True)
class Control(Structure):
    """A message of the control queues: 8 bytes; RESIZE and PORT_NAME have more after it."""

    id: U32 = 0
    """The port, or :data:`BAD_ID`."""
    event: U16 = 0
    """A :class:`ControlEvent`."""
    value: U16 = 0


@dataclass(frozen=True)
class ControlResize(Structure):
    """What follows a RESIZE message: 4 bytes, in the order of the specification (section 5.3.6.2).

    Older Linux took the first number for the rows; that of Debian 12 does not any more. A change of the
    configuration space (SIZE) is understood by all that have one port.
    """

    cols: U16 = 0
    rows: U16 = 0


@dataclass(frozen=True)
class ConsoleConfig(Structure):
    """The configuration space of a console (virtio 1.3, section 5.3.4): 12 bytes."""

    cols: U16 = 0
    """SIZE: columns in characters."""
    rows: U16 = 0
    """SIZE: rows in characters."""
    max_nr_ports: U32 = 0
    """MULTIPORT: how many ports there can be."""
    emerg_wr: U32 = 0
    """EMERG_WRITE: write only, the low byte is printed."""
