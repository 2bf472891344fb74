"""How many rings a device has, and how large they may be, which vhost-user does not tell.

virtio-mmio and PCI have a register for the size (virtio 1.3, sections 4.2.2 and 4.1.4.3); a vhost-user
frontend finds it out when the backend ends the connection over a SET_VRING_NUM. How many there are can be
asked only where the backend has the protocol feature MQ. So there are these tables.
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


QUEUES: Final[Mapping[int, int]] = MappingProxyType(
    {
        DeviceId.NET: 2,  # the control queue is the frontend's own affair, and not counted
        DeviceId.BLOCK: 1,
        DeviceId.CONSOLE: 2,
        DeviceId.ENTROPY: 1,
        DeviceId.SCSI: 3,
        DeviceId.INPUT: 2,
        DeviceId.VSOCK: 3,
        DeviceId.CRYPTO: 2,
        DeviceId.SOUND: 4,
        DeviceId.FS: 2,
        DeviceId.RPMB: 1,
        DeviceId.SCMI: 2,
        DeviceId.I2C: 1,
        DeviceId.CAN: 3,
        DeviceId.GPIO: 2,
        DeviceId.SPI: 1,
    }
)
"""How many queues a device of a type has at least (virtio 1.3, section 5, "Virtqueues" of each type)."""


def queue_count(device_id: int) -> int | None:
    """How many queues a device of this type has at least; None for a type that we do not know.

    >>> queue_count(DeviceId.SOUND), queue_count(DeviceId.GPU)
    (4, None)
    """
    return QUEUES.get(device_id)


def largest_ring(device_id: int) -> int:
    """The largest ring in descriptors that every backend of this type that we know takes.

    >>> largest_ring(DeviceId.SOUND), largest_ring(DeviceId.VSOCK)
    (64, 1024)
    """
    return LARGEST_RINGS.get(device_id, LARGEST_RING)
