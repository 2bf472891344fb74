"""What a driver sees of a daemon: vhost-user tells neither what it is nor how long its config space is nor
how large its rings may be, and virtio-mmio needs all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from xenvirt.errors import NegotiationError
from xenvirt.vhost_user.protocol import ProtocolFeature
from xenvirt.virtio.block import BlockConfig, BlockFeature
from xenvirt.virtio.config_fields import config_length
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.net import NetFeature
from xenvirt.virtio.rings import largest_ring, queue_count

BY_CONTROL_QUEUE = int(
    NetFeature.CTRL_VQ
    | NetFeature.CTRL_GUEST_OFFLOADS
    | NetFeature.CTRL_RX
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_MAC_ADDR
    | NetFeature.GUEST_ANNOUNCE
    | NetFeature.MQ
    | NetFeature.RSS
    | NetFeature.HASH_REPORT
    | NetFeature.NOTF_COAL
    | NetFeature.VQ_NOTF_COAL
    | NetFeature.DEVICE_STATS
)
"""What a driver of a network card may not have without its control queue (virtio 1.3, section 5.1.3.1).
Daemons offer it and have no such queue: QEMU serves that itself."""


class RemoteShape(NamedTuple):
    """A daemon as a device."""

    device_id: int
    features: int
    """The feature bits that it offers."""
    queue_sizes: tuple[int, ...]
    """The largest size of each ring in descriptors."""
    config: bytes
    """Its config space, as long as its features speak of; empty where it has none, or does not show it."""


PAIR = 2
"""Queues of a network card without a control queue."""


class Asked(Protocol):
    """What is asked: a :class:`xenvirt._native.Frontend` that has negotiated."""

    @property
    def offered_features(self) -> int: ...
    @property
    def protocol_features(self) -> int: ...
    @property
    def queue_count(self) -> int | None: ...
    def config(self, offset: int, size: int, /) -> bytes: ...


def shape_of(
    daemon: Asked, device_id: DeviceId | int, queue_sizes: Sequence[int] | None = None
) -> RemoteShape:
    """Asks a daemon, and a table where it cannot be asked.

    Args:
        daemon: the connection, negotiated.
        device_id: what kind of device it is.
        queue_sizes: the largest size of each ring, if you know better: a daemon ends the connection over a
            ring that is larger than it takes. A network card has a control queue only if you say that it has
            more than two.

    Raises:
        NegotiationError: there is no telling how many queues it has, or it has fewer than were asked for.
    """
    features = daemon.offered_features
    config = b""
    length = config_length(device_id, features)
    if length and daemon.protocol_features & ProtocolFeature.CONFIG:
        config = daemon.config(0, length)
    has = daemon.queue_count
    if device_id == DeviceId.NET and (queue_sizes is None or len(queue_sizes) <= PAIR):
        features &= ~BY_CONTROL_QUEUE
    if queue_sizes is None:
        queue_sizes = (largest_ring(device_id),) * _queues(device_id, features, config, has)
    if has is not None and len(queue_sizes) > has:
        raise NegotiationError(
            f"the daemon has {has} queues, and {len(queue_sizes)} were asked for: {tuple(queue_sizes)}"
        )
    return RemoteShape(int(device_id), features, tuple(queue_sizes), config)


def _queues(device_id: int, features: int, config: bytes, has: int | None) -> int:
    """How many queues a driver gets to see: a daemon says how many it has at most, and a block device in its
    config space how many of them it uses."""
    usual = queue_count(device_id)
    if device_id == DeviceId.BLOCK:
        usual = BlockConfig.from_bytes(config).num_queues if features & BlockFeature.MQ else 1
    queues = has if usual is None else usual if has is None else min(usual, has)
    if device_id not in (DeviceId.BLOCK, DeviceId.NET) and has is not None:
        queues = has
    if not queues:
        raise NegotiationError(
            f"there is no telling how many queues a device of type {device_id} has, since the daemon does "
            "not offer the protocol feature MQ: say queue_sizes"
        )
    return queues
