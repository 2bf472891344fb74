"""Xen, from a dom0 or a driver domain: memory of other domains by foreign mappings, event channels, and what
stands in for a device of another domain."""

from xenvirt._native import (
    DeviceModel,
    EventChannels,
    ForeignMapping,
    ForeignMemory,
    FrameFailure,
    HypercallBuffer,
    InterruptFd,
    IoreqServer,
    IoRequest,
)
from xenvirt.errors import ForeignMapError, XenCallError

__all__ = [
    "DeviceModel",
    "EventChannels",
    "ForeignMapError",
    "ForeignMapping",
    "ForeignMemory",
    "FrameFailure",
    "HypercallBuffer",
    "InterruptFd",
    "IoRequest",
    "IoreqServer",
    "XenCallError",
]
