"""The SCSI host: its constants and structures (virtio 1.3, section 5.6; Linux: virtio_scsi.h).

Queues, seen from the driver: 0 takes task management, 1 brings events, 2 and the following take commands. The
sizes of `cdb` and `sense` are the defaults, 32 and 96; a driver may set others in the configuration space.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated, Final

from .structure import U8, U16, U32, U64, Structure

CDB_DEFAULT_SIZE: Final = 32
"""Bytes of the command block."""
SENSE_DEFAULT_SIZE: Final = 96
"""Bytes of sense data."""

Lun = Annotated[bytes, "8s"]
"""A logical unit as virtio writes it: 1, target, then the unit as two bytes with 0x40 set in the first
(section 5.6.6.1).
"""


class ScsiFeature(IntFlag):
    """What a SCSI host can do (virtio 1.3, section 5.6.3)."""

    INOUT = 1 << 0
    """A request may read and write."""
    HOTPLUG = 1 << 1
    CHANGE = 1 << 2
    T10_PI = 1 << 3


class Response(IntEnum):
    """How the host fared with a request (virtio 1.3, section 5.6.6.1); the unit answers in `status`."""

    OK = 0
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


class TaskAttribute(IntEnum):
    """How a command is ordered among others."""

    SIMPLE = 0
    ORDERED = 1
    HEAD = 2
    ACA = 3


class ControlType(IntEnum):
    """What a request of the control queue is."""

    TMF = 0
    AN_QUERY = 1
    AN_SUBSCRIBE = 2


class TaskManagement(IntEnum):
    """The task management functions."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7


class EventType(IntEnum):
    """What an event is; EVENTS_MISSED is a bit that may be added."""

    NO_EVENT = 0
    TRANSPORT_RESET = 1
    ASYNC_NOTIFY = 2
    PARAM_CHANGE = 3
    EVENTS_MISSED = 0x8000_0000


class ResetReason(IntEnum):
    """The reason of a TRANSPORT_RESET event."""

    HARD = 0
    RESCAN = 1
    REMOVED = 2


@dataclass(frozen=True)
class CommandRequest(Structure):
    """What a command begins with: 51 bytes, then the data to write."""

    lun: Lun = bytes(8)
    tag: U64 = 0
    task_attr: U8 = 0
    """A :class:`TaskAttribute`."""
    prio: U8 = 0
    crn: U8 = 0
    cdb: Annotated[bytes, "32s"] = bytes(32)
    """The command block."""


@dataclass(frozen=True)
class CommandResponse(Structure):
    """What the device answers to a command: 108 bytes, then the data that was read."""

    sense_len: U32 = 0
    resid: U32 = 0
    """Bytes of the data buffers that were not used."""
    status_qualifier: U16 = 0
    status: U8 = 0
    """The SCSI status of the unit."""
    response: U8 = 0
    """A :class:`Response`."""
    sense: Annotated[bytes, "96s"] = bytes(96)


@dataclass(frozen=True)
class TaskManagementRequest(Structure):
    """A task management request: 24 bytes, answered by one byte of :class:`Response`."""

    type: U32 = 0
    """ControlType.TMF."""
    subtype: U32 = 0
    """A :class:`TaskManagement`."""
    lun: Lun = bytes(8)
    tag: U64 = 0


@dataclass(frozen=True)
class Event(Structure):
    """A message of the event queue: 16 bytes."""

    event: U32 = 0
    """An :class:`EventType`."""
    lun: Lun = bytes(8)
    reason: U32 = 0


@dataclass(frozen=True)
class ScsiConfig(Structure):
    """The configuration space of a SCSI host (virtio 1.3, section 5.6.4): 36 bytes."""

    num_queues: U32 = 0
    """Request queues, those for control and events not counted."""
    seg_max: U32 = 0
    max_sectors: U32 = 0
    cmd_per_lun: U32 = 0
    event_info_size: U32 = 0
    sense_size: U32 = 0
    """The driver may write it."""
    cdb_size: U32 = 0
    """The driver may write it."""
    max_channel: U16 = 0
    max_target: U16 = 0
    max_lun: U32 = 0
