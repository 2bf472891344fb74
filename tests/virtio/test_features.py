"""Which features a device offers follows from what it is."""

from types import SimpleNamespace
from typing import cast

import pytest

from xenvirt.virtio import DeviceId, Feature
from xenvirt.virtio.block import BlockFeature
from xenvirt.virtio.features import RING_FEATURES, Described, offered_features
from xenvirt.virtio.net import NetFeature


def device(device_id: int, queues: int, features: int = 0, in_order: bool = False) -> Described:
    return cast(
        "Described",
        SimpleNamespace(
            device_id=device_id,
            queue_sizes=(64,) * queues,
            features=features,
            in_order=in_order,
            _ring_features=RING_FEATURES,
        ),
    )


@pytest.mark.parametrize(
    ("device_id", "queues", "expected"),
    [
        (DeviceId.BLOCK, 1, 0),
        (DeviceId.BLOCK, 2, BlockFeature.MQ),
        (DeviceId.NET, 2, 0),
        (DeviceId.NET, 3, 0),
        (DeviceId.NET, 4, NetFeature.MQ),
        (DeviceId.CONSOLE, 6, 0),
    ],
)
def test_multiqueue_follows_from_the_queues(device_id: DeviceId, queues: int, expected: int) -> None:
    assert offered_features(device(device_id, queues)) == RING_FEATURES | expected


def test_a_device_adds_its_own_features() -> None:
    assert offered_features(device(DeviceId.BLOCK, 1, BlockFeature.RO)) == RING_FEATURES | BlockFeature.RO


def test_in_order_is_offered_when_asked_for() -> None:
    assert offered_features(device(DeviceId.BLOCK, 1, in_order=True)) & Feature.IN_ORDER
