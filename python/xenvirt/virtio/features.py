"""Feature bits that belong to the rings and the transport rather than to a device (virtio 1.3, section 6),
and the device status field (section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import Final, Protocol

from .block import BlockFeature
from .ids import DeviceId
from .net import NetFeature


class Feature(IntFlag):
    """Ring and transport features, bits 24 to 41 (virtio 1.3, section 6). A plain ``int`` to whoever wants
    one.

    A device's own bits are in its module, for instance ``xenvirt.virtio.block.BlockFeature``. The server
    offers the ring features by itself: a device does not name them.
    """

    NOTIFY_ON_EMPTY = 1 << 24
    """Legacy: the device notifies when it runs out of buffers, even if told not to notify."""
    LOG_ALL = 1 << 26
    """vhost only: log every write to guest memory, for migration (VHOST_F_LOG_ALL)."""
    ANY_LAYOUT = 1 << 27
    """Legacy: any split of a request into descriptors; implied by VERSION_1."""
    INDIRECT_DESC = 1 << 28
    """A descriptor may point to a table of descriptors (section 2.7.5.3)."""
    EVENT_IDX = 1 << 29
    """Both sides say at which index they want to be notified (sections 2.7.7 and 2.7.10)."""
    PROTOCOL_FEATURES = 1 << 30
    """vhost-user only: there are protocol features to be negotiated. Never seen by a driver."""
    VERSION_1 = 1 << 32
    """The device follows virtio 1.0 or later; without it a device is legacy."""
    ACCESS_PLATFORM = 1 << 33
    """Addresses go through an IOMMU or are bus addresses. On Xen: they are grant references."""
    RING_PACKED = 1 << 34
    """The packed ring layout (section 2.8)."""
    IN_ORDER = 1 << 35
    """The device uses buffers in the order in which they were made available (section 2.7.9)."""
    ORDER_PLATFORM = 1 << 36
    """Memory accesses need the platform's own barriers."""
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    """The driver's notification carries more than the number of the queue."""
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    """One queue can be reset while the others run (section 2.6.1)."""
    ADMIN_VQ = 1 << 41


class DeviceStatus(IntFlag):
    """How far a driver is with its device (virtio 1.3, section 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


RING_FEATURES: Final = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.NOTIFY_ON_EMPTY
"""What our rings can do on both sides, and what is offered and acknowledged without anybody's asking."""


class Described(Protocol):
    """What a device says of itself, as far as features follow from it."""

    @property
    def device_id(self) -> int: ...
    @property
    def queue_sizes(self) -> Sequence[int]: ...
    @property
    def features(self) -> int: ...
    @property
    def in_order(self) -> bool: ...
    @property
    def _ring_features(self) -> int: ...


def offered_features(device: Described) -> int:
    """All features that a device offers: its own, those of the ring, and MQ where it has several queues.

    A block device has MQ with two queues, a network device with two pairs. PROTOCOL_FEATURES belongs to
    vhost-user, and is not among them.
    """
    features = int(device.features | device._ring_features)
    if device.in_order:
        features |= Feature.IN_ORDER
    queues = len(device.queue_sizes)
    if device.device_id == DeviceId.BLOCK and queues > 1:
        features |= BlockFeature.MQ
    if device.device_id == DeviceId.NET and queues // 2 > 1:
        features |= NetFeature.MQ
    return features
