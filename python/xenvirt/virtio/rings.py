"""How large a ring a device takes, which vhost-user does not tell.

virtio-mmio and PCI have a register for it (virtio 1.3, sections 4.2.2 and 4.1.4.3); a vhost-user frontend
finds it out when the backend ends the connection over a SET_VRING_NUM. So there is this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from .ids import DeviceId

LARGEST_RINGS: Final[Mapping[int, int]] = MappingProxyType(
    {
        DeviceId.BLOCK: 128,  # QEMU's export, unless it is told another one
        DeviceId.CONSOLE: 128,
        DeviceId.SCSI: 128,  # QEMU assumes it of every backend
        DeviceId.SOUND: 64,
        DeviceId.CAN: 64,
    }
)
"""The largest ring in descriptors that the known backends of a type take, where it is below 1024."""

LARGEST_RING: Final = 1024
"""What known backends of all other types take."""


def largest_ring(device_id: int) -> int:
    """The largest ring in descriptors that every backend of this type that we know takes.

    >>> largest_ring(DeviceId.SOUND), largest_ring(DeviceId.VSOCK)
    (64, 1024)
    """
    return LARGEST_RINGS.get(device_id, LARGEST_RING)
