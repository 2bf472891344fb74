"""A daemon behind a transport that speaks no vhost-user: here a driver of this process, in shared memory."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from xenvirt import Chain, DeviceId, RemoteDevice, Server, VhostUserSocket, _native
from xenvirt.device import config_bytes
from xenvirt.devices import BlockDevice
from xenvirt.drivers import BlockDriver
from xenvirt.errors import DeviceFailedError, DisconnectedError, NegotiationError
from xenvirt.remote_backend import RemoteBackend, hung_up

from ..vhost_user import fake_backend as fake
from ..vhost_user.fake_backend import FakeBackend
from .conftest import echo, echo_request
from .devices import Echo, Keeper
from .sharing_link import linked


@pytest.fixture
def daemons() -> Iterator[Server]:
    with Server() as server:
        yield server


def test_a_driver_is_served_by_the_daemon(daemons: Server, path: str) -> None:
    device = Echo()
    served = daemons.add(device, VhostUserSocket(path))
    with linked(path) as link:
        assert link.offered_features == served._endpoint.offered_features
        link.start(link.offered_features, [16])
        for text in (b"hello", b"again"):
            assert echo(link, text) == text
        assert device.happened == ["activate"]
        link.write_config(2, b"\x01\x02")
        assert device.happened == ["activate", "config 2 0102"]
        device.update_config(b"new conf")
        link.wait_for(lambda: link.config_changes > 0, "a changed config space")
        assert link.config(0, 8) == b"new conf"
    assert device.happened == ["activate", "config 2 0102", "reset"]
    assert served.counters.chains == 2


def test_a_disk_of_two_queues_keeps_what_is_written(daemons: Server, path: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with BlockDevice(image, queues=2, queue_size=128) as disk:
        daemons.add(disk, VhostUserSocket(path))
        with linked(path, DeviceId.BLOCK) as link, BlockDriver(link) as driver:
            assert (driver.queues, driver.capacity) == (2, 2048)
            for queue in range(2):
                driver.write(queue * 4096, bytes([queue + 1]) * 4096, queue=queue)
            assert driver.read(0, 8192) == b"\1" * 4096 + b"\2" * 4096
    assert image.read_bytes()[4096:8192] == b"\2" * 4096


def test_the_daemon_is_told_of_a_queue_that_its_driver_stopped(daemons: Server, path: str) -> None:
    served = daemons.add(Echo(), VhostUserSocket(path))
    with linked(path) as link:
        link.start(link.offered_features, [16])
        assert echo(link, b"hello") == b"hello"
        assert served._endpoint.queues[0].running
        link._service.handle(_native.Event.QueueStopped(0))
        assert not served._endpoint.queues[0].running
        link._service.handle(_native.Event.QueueStopped(0))  # nobody serves it any more


def test_a_daemon_that_was_started_again_goes_on(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with Server() as first:
        keeper = Keeper()
        first.add(keeper, VhostUserSocket(path))
        link = linked(path)
        link.start(link.offered_features, [16])
        kept = link.submit_now(echo_request(b"kept"))
        assert keeper.got.wait(10)
    with Server() as second, link:
        second.add(Echo(), VhostUserSocket(path))
        assert kept.result() == b"kept"  # begun anew
        assert echo(link, b"new") == b"new"
    assert "goes on" in caplog.text


class Backwards(Keeper):
    """Answers the second request before the first, and dies over that."""

    def __init__(self) -> None:
        super().__init__()
        self.chains: list[Chain] = []

    def process(self, queue: _native.VirtQueue) -> None:
        self.chains += queue
        if len(self.chains) == 2:
            self.chains[1].complete()
            self.got.set()


def test_requests_answered_out_of_order_are_not_begun_anew(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server() as first:
        backwards = Backwards()
        first.add(backwards, VhostUserSocket(path))
        link = linked(path)
        link.start(link.offered_features, [16])
        waiting = [link.submit_now(echo_request(text)) for text in (b"one", b"two")]
        assert backwards.got.wait(10)
    with Server() as second, link:
        second.add(Echo(), VhostUserSocket(path))
        with caplog.at_level(logging.ERROR):
            link.attend(10)
            link.collect()
        assert [request.done for request in waiting] == [False, True]
        assert "out of their order" in caplog.text
        assert link._endpoint.queues[0].counters[-1] == 1  # its errors


def test_a_daemon_that_does_not_come_back_stops_the_device(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server() as first:
        first.add(Echo(), VhostUserSocket(path))
        link = linked(path, timeout=0.05)
        link.start(link.offered_features, [16])
    with link:
        link.wait_for(lambda: link._endpoint.queues[0].counters[-1] == 1, "an error of the queue")
        assert "the device stops: cannot connect" in caplog.text


def test_a_daemon_that_is_not_there_is_told(path: str) -> None:
    with pytest.raises(DisconnectedError, match="cannot connect"):
        linked(path, timeout=0.05)


def test_a_daemon_that_cannot_be_used_is_refused_and_left(daemons: Server, path: str) -> None:
    device = Echo()
    daemons.add(device, VhostUserSocket(path))

    def refuse(_daemon: _native.Frontend) -> None:
        raise NegotiationError("it has no wings")

    with pytest.raises(NegotiationError, match="no wings"):
        linked(path, check=refuse)
    with linked(path) as link:  # somebody else's turn
        link.start(link.offered_features, [16])
        assert echo(link) == b"hello"


def test_a_ring_that_the_daemon_does_not_take_stops_the_device(daemons: Server, path: str) -> None:
    daemons.add(Echo(), VhostUserSocket(path))
    with linked(path) as link, pytest.raises(DeviceFailedError, match="SET_VRING_NUM"):
        link.start(link.offered_features, [64])  # it takes 16, and vhost-user does not tell


def test_each_driver_gets_a_connection_of_its_own(path: str) -> None:
    """Reset, the daemon stops its rings, lets go of the driver's memory, and is hung up on, in this order."""
    memory = os.memfd_create("nothing")
    os.truncate(memory, 4096)
    left = [_native.SharedRegion(memory, 0, 4096)]
    with FakeBackend(Path(path), config=b"old conf") as first:
        backend = RemoteBackend(RemoteDevice(path), DeviceId.VSOCK, lambda *_: [], no_regions=lambda: left)
        backend._queues = {0: cast("_native.HandedOver", None)}
        backend.reset()
        assert hung_up(backend._daemon)
    order = [
        one.request for one in first.received if one.request in (fake.GET_VRING_BASE, fake.SET_MEM_TABLE)
    ]
    assert order == [fake.GET_VRING_BASE, fake.SET_MEM_TABLE]
    Path(path).unlink()
    with FakeBackend(Path(path), config=b"new conf") as second:
        backend.config_written(0, b"x")
        assert config_bytes(backend.config)[:8] == b"new conf"
        backend.close()
    assert [one.payload[12:] for one in second.of(fake.SET_CONFIG)] == [b"x"]
    os.close(memory)


def test_a_daemon_that_dies_again_and_again_costs_nothing(path: str) -> None:
    """Neither descriptors nor watches of the daemons before are kept in a session that goes on."""
    held: list[tuple[int, int]] = []
    link = None
    for _ in range(4):
        with Server() as server:
            server.add(Echo(), VhostUserSocket(path))
            if link is None:
                link = linked(path)
                link.start(link.offered_features, [16])
            assert echo(link) == b"hello"
            session = link._service.session
            assert session is not None
            gc.collect()
            held.append((len(os.listdir("/proc/self/fd")), len(session._callbacks)))  # noqa: PTH208
    assert link is not None
    link.close()
    assert held[1:] == held[:1] * 3
