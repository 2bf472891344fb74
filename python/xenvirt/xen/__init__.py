"""Xen, from a dom0 or a driver domain: memory of other domains by foreign mappings and by grants, event
channels, and what stands in for a device of another domain."""

from xenvirt._native import (
    AttachedGrants,
    AttachedMemory,
    CopyFailure,
    DeviceModel,
    EventChannels,
    ForeignMapping,
    FrameFailure,
    GrantAllocator,
    GrantFailure,
    GrantMapping,
    GrantShare,
    GrantTable,
    HypercallBuffer,
    InterruptFd,
    IoreqServer,
    IoRequest,
)
from xenvirt.errors import ForeignMapError, GrantCopyError, GrantMapError, XenCallError
from xenvirt.xen.acpi import acpi_table
from xenvirt.xen.guest import XenGuest

from .foreign import ForeignMemory

__all__ = [
    "AttachedGrants",
    "AttachedMemory",
    "CopyFailure",
    "DeviceModel",
    "EventChannels",
    "ForeignMapError",
    "ForeignMapping",
    "ForeignMemory",
    "FrameFailure",
    "GrantAllocator",
    "GrantCopyError",
    "GrantFailure",
    "GrantMapError",
    "GrantMapping",
    "GrantShare",
    "GrantTable",
    "HypercallBuffer",
    "InterruptFd",
    "IoRequest",
    "IoreqServer",
    "XenCallError",
    "XenGuest",
    "acpi_table",
]
