"""What vhost-user does not tell of a daemon, and virtio-mmio needs."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.vhost_user.fake_backend import CONFIG, MQ, REPLY_ACK, VERSION_1, FakeBackend
from xenvirt import DeviceId
from xenvirt._native import Frontend
from xenvirt.errors import NegotiationError
from xenvirt.remote_shape import RemoteShape, shape_of
from xenvirt.vhost_user.protocol import Request
from xenvirt.virtio.block import BlockConfig, BlockFeature
from xenvirt.virtio.net import NetFeature

PROTOCOL_FEATURES = 1 << 30


def shape(backend: FakeBackend, device_id: int, queue_sizes: tuple[int, ...] | None = None) -> RemoteShape:
    with backend, Frontend(backend.path) as frontend:
        return shape_of(frontend, device_id, queue_sizes)


def test_config_is_read_no_further_than_the_features_speak_of_it(tmp_path: Path) -> None:
    backend = FakeBackend(
        tmp_path / "socket", features=PROTOCOL_FEATURES | VERSION_1 | BlockFeature.BLK_SIZE, config=bytes(60)
    )
    found = shape(backend, DeviceId.BLOCK)
    assert found == (DeviceId.BLOCK, VERSION_1 | BlockFeature.BLK_SIZE, (128,), bytes(24))
    (asked,) = backend.of(Request.GET_CONFIG)
    assert struct.unpack_from("=III", asked.payload) == (0, 24, 0)


def test_a_block_device_says_itself_how_many_queues_it_uses(tmp_path: Path) -> None:
    features = PROTOCOL_FEATURES | VERSION_1 | BlockFeature.MQ
    for uses, shown in ((2, 2), (1, 1), (7, 2)):  # the daemon has 2
        config = BlockConfig(num_queues=uses).to_bytes()
        backend = FakeBackend(tmp_path / f"socket{uses}", features=features, config=config)
        assert len(shape(backend, DeviceId.BLOCK).queue_sizes) == shown


def test_a_network_card_has_a_control_queue_only_where_the_caller_says_so(tmp_path: Path) -> None:
    features = PROTOCOL_FEATURES | VERSION_1 | NetFeature.MTU | NetFeature.CTRL_VQ | NetFeature.MQ
    found = shape(FakeBackend(tmp_path / "one", features=features, config=bytes(60)), DeviceId.NET)
    assert (found.features, found.queue_sizes) == (VERSION_1 | NetFeature.MTU, (1024, 1024))
    # Without MQ (of vhost-user) it is not asked how many it has.
    daemon = FakeBackend(tmp_path / "two", features=features, protocol_features=CONFIG, config=bytes(60))
    found = shape(daemon, DeviceId.NET, (256, 256, 64))
    assert (found.features, found.queue_sizes) == (features & ~PROTOCOL_FEATURES, (256, 256, 64))


@pytest.mark.parametrize(
    ("device_id", "ring"),
    [(DeviceId.SOUND, 64), (DeviceId.CAN, 64), (DeviceId.CONSOLE, 128), (DeviceId.SCSI, 128), (4, 1024)],
)
def test_the_table_has_the_largest_rings_and_the_daemon_the_number(
    tmp_path: Path, device_id: int, ring: int
) -> None:
    backend = FakeBackend(tmp_path / "socket", protocol_features=MQ | REPLY_ACK)
    assert shape(backend, device_id) == (device_id, VERSION_1, (ring, ring), b"")


def test_without_mq_the_type_tells_the_number(tmp_path: Path) -> None:
    backend = FakeBackend(tmp_path / "socket", protocol_features=REPLY_ACK | CONFIG, config=bytes(12))
    assert shape(backend, DeviceId.SOUND).queue_sizes == (64,) * 4


def test_an_unknown_type_without_mq_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NegotiationError, match="say queue_sizes"):
        shape(FakeBackend(tmp_path / "socket", protocol_features=REPLY_ACK), DeviceId.GPU)


def test_what_the_caller_knows_better_counts(tmp_path: Path) -> None:
    assert shape(FakeBackend(tmp_path / "one"), DeviceId.GPU, (32, 16)).queue_sizes == (32, 16)
    with pytest.raises(NegotiationError, match="has 2 queues, and 3 were asked for"):
        shape(FakeBackend(tmp_path / "two"), DeviceId.GPU, (32, 16, 8))
