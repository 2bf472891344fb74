"""A daemon that is away: nothing else waits for it. Each wait for it would outlast the test's own time."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xenvirt import DeviceId, RemoteDevice, Server, Session, VhostUserSocket, _native
from xenvirt.errors import DeviceFailedError, NegotiationError
from xenvirt.link import GUEST_ADDRESS, QUEUE_MEMORY, USER_ADDRESS
from xenvirt.remote_backend import RemoteBackend

from ..vhost_user import fake_backend as fake
from ..vhost_user.fake_backend import FakeBackend
from .conftest import echo, echo_request, started
from .devices import Echo
from .sharing_link import SharingLink, linked

pytestmark = pytest.mark.timeout(60)

LONG = 10_000.0
"""Seconds that the daemon may be away."""


@contextmanager
def serving(path: str, device: Echo | None = None) -> Iterator[Echo]:
    """A daemon."""
    with Server() as server:
        device = device or Echo()
        server.add(device, VhostUserSocket(path))
        yield device


def left_alone(path: str) -> SharingLink:
    """A driver at work, whose daemon has just died."""
    with serving(path):
        link = linked(path, timeout=LONG)
        link.start(link.offered_features, [16])
        assert echo(link) == b"hello"
    link.attend(None)  # the daemon's end
    return link


class Heard(logging.Handler):
    """Waits for a message of the log."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._heard = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._heard.set()

    def __enter__(self) -> threading.Event:
        logging.getLogger("xenvirt").addHandler(self)
        return self._heard

    def __exit__(self, *_: object) -> None:
        logging.getLogger("xenvirt").removeHandler(self)


def test_a_driver_goes_on_when_the_daemon_is_there_again(path: str) -> None:
    link = left_alone(path)
    request = link.submit_now(echo_request(b"meanwhile"))
    with serving(path), link:
        assert request.result() == b"meanwhile"
        assert echo(link) == b"hello"


def test_a_driver_resets_the_device_at_once(path: str) -> None:
    link = left_alone(path)
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    link.close()
    assert len(os.listdir("/proc/self/fd")) < descriptors  # noqa: PTH208


def test_a_driver_stops_a_queue_at_once(path: str) -> None:
    with left_alone(path) as link:
        link._service.handle(_native.Event.QueueStopped(0))
        with serving(path) as device:
            backend = link._service.device
            assert isinstance(backend, RemoteBackend)
            link.wait_for(lambda: backend._search is None, "the daemon")
        assert device.happened == []  # it has nothing to serve


class Ready(Echo):
    """Says when its driver is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = threading.Event()

    def activate(self, session: Session) -> None:
        super().activate(session)
        self.ready.set()


def test_a_server_closes_at_once(path: str, tmp_path: Path) -> None:
    memory = os.memfd_create("guest")
    os.truncate(memory, QUEUE_MEMORY)
    regions = [_native.SharedRegion(memory, GUEST_ADDRESS, QUEUE_MEMORY, user_address=USER_ADDRESS)]
    beside = str(tmp_path / "beside.sock")
    with Heard("the daemon hung up") as hung_up, Server() as server:
        with serving(path, device := Ready()):
            backend = RemoteBackend(RemoteDevice(path, timeout=LONG), DeviceId.VSOCK, lambda *_: regions)
            served = server.add(backend, VhostUserSocket(beside))
            link = started(beside)
            assert device.ready.wait(30)
        assert hung_up.wait(30)
        server.close()
        link.close()
    assert served.counters.errors == 0
    os.close(memory)


def test_a_driver_becomes_ready_meanwhile(path: str) -> None:
    with serving(path):
        link = linked(path, timeout=LONG)
    link.start(link.offered_features, [16])
    request = link.submit_now(echo_request(b"early"))
    with serving(path), link:
        assert request.result() == b"early"


@pytest.mark.parametrize("ready", [False, True], ids=["before", "after"])
def test_the_daemon_hears_later_what_was_written_to_the_config_space(path: str, ready: bool) -> None:
    """Before its queues run; of what was written to one place several times, the last."""
    if ready:
        link = left_alone(path)
    else:
        with serving(path):
            link = linked(path, timeout=LONG)
    for value in range(100):
        link.write_config(2, bytes([value, value]))
        link.write_config(4, bytes([value]))
    if not ready:
        link.start(link.offered_features, [16])
    with serving(path) as device, link:
        assert echo(link) == b"hello"
        assert device.happened == ["config 2 6363", "config 4 63", "activate"]
        link.write_config(2, b"\x01\x02")
        assert device.happened[3:] == ["config 2 0102"]


def test_a_driver_before_this_one_wrote_what_no_daemon_hears(path: str) -> None:
    link = left_alone(path)
    link.write_config(2, b"\x01\x02")
    backend = link._service.device
    backend.reset()
    assert isinstance(backend, RemoteBackend)
    with serving(path) as device:
        backend.config_written(4, b"\x03")
        assert device.happened == ["config 4 03"]
    link.close()


def test_what_a_daemon_was_given_is_closed_before_the_next_is_connected_to(path: str) -> None:
    happened: list[str] = []

    def check(_daemon: _native.Frontend) -> None:
        happened.append("connected")

    with serving(path):
        link = linked(path, check=check, closed=lambda: happened.append("closed"))
        link.start(link.offered_features, [16])
    link.attend(None)
    assert set(happened[1:]) == {"closed"}
    with serving(path), link:
        assert echo(link) == b"hello"
        assert happened[-1] == "connected"
        del happened[:]
    assert set(happened) == {"closed"}


@pytest.mark.parametrize("hang_up_on", [fake.SET_OWNER, fake.SET_MEM_TABLE, fake.SET_VRING_ENABLE])
def test_one_that_dies_at_once_is_not_the_last(path: str, hang_up_on: int) -> None:
    link = left_alone(path)
    features = fake.PROTOCOL_FEATURES | link.negotiated_features
    with FakeBackend(Path(path), features, config=bytes(8), hang_up_on=hang_up_on) as second:
        link.wait_for(lambda: bool(second.of(hang_up_on)), "the second daemon's end")
    Path(path).unlink()
    with serving(path), link:
        assert echo(link) == b"hello"


def test_one_that_has_lost_features_is_not_waited_for(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with left_alone(path) as link, FakeBackend(Path(path), config=bytes(8)):
        link.wait_for(lambda: link._endpoint.queues[0].counters[-1] == 1, "an error of the queue")
        assert "lost features" in caplog.text


def test_one_that_cannot_be_used_is_not_waited_for(path: str) -> None:
    refused = False

    def check(_daemon: _native.Frontend) -> None:
        if refused:
            raise NegotiationError("it has no wings")

    with serving(path):
        link = linked(path, timeout=LONG, check=check)
    refused = True
    with serving(path), link, pytest.raises(DeviceFailedError, match="no wings"):
        link.start(link.offered_features, [16])


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-10, 1e30, float("nan"), float("inf")])
def test_a_timer_of_an_impossible_interval_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be more than 0"):
        _native.interval_timer(seconds)
