"""A device and a driver in one process, without a socket or a thread."""

from __future__ import annotations

import os
import threading

import pytest

from xenvirt import Session, connect
from xenvirt.errors import DeviceFailedError, LinkTimeoutError, NegotiationError, QueueStoppedError

from .conftest import echo, echo_request
from .devices import Broken, Echo, Keeper


def test_the_device_runs_on_the_drivers_thread() -> None:
    device = Echo()
    with connect(device) as link:
        link.start(link.offered_features, [16])
        assert echo(link) == b"hello"
    assert device.threads == {threading.current_thread().name}
    assert device.happened == ["activate", "reset"]


def test_an_exception_of_the_device_comes_out_of_the_drivers_call() -> None:
    with connect(Broken()) as link:
        link.start(link.offered_features, [16])
        with pytest.raises(DeviceFailedError, match="RuntimeError: the device is broken") as caught:
            echo(link)
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_device_that_keeps_quiet_is_a_timeout() -> None:
    device = Keeper()
    with connect(device, timeout=0.05) as link:
        link.start(link.offered_features, [16])
        pending = link.submit(echo_request())
        with pytest.raises(LinkTimeoutError):
            pending.result()
        device.kept[0].write(b"late")
        device.kept[0].complete()
        assert pending.result() == b"late"


def test_a_watch_runs_while_the_driver_waits() -> None:
    read, write = os.pipe()

    class Speaks(Keeper):
        def activate(self, session: Session) -> None:
            super().activate(session)
            session.watch(read, self.ready)

        def ready(self) -> None:
            self.kept[0].write(os.read(read, 5))
            self.kept[0].complete()

    with connect(Speaks()) as link:
        link.start(link.offered_features, [16])
        pending = link.submit(echo_request())
        os.write(write, b"spoke")
        assert pending.result() == b"spoke"
    os.close(read)
    os.close(write)


def test_config_space_is_written_and_updated() -> None:
    device = Echo()
    with connect(device) as link:
        link.start(link.offered_features, [16])
        link.write_config(1, b"\x07")
        assert link.config(0, 100) == b"\0\x07" + bytes(6)
        assert device.happened == ["activate", "config 1 07"]
        with pytest.raises(ValueError, match="the config space has 8 bytes"):
            link.write_config(7, b"ab")
        device.update_config(b"12345678")
        assert (link.config_changes, link.config(0, 8)) == (1, b"12345678")


def test_a_device_can_be_connected_to_again() -> None:
    device = Echo()
    for _ in range(2):
        with connect(device) as link:
            link.start(link.offered_features, [16])
            assert echo(link) == b"hello"
    assert device.happened == ["activate", "reset"] * 2


def test_a_closed_link_says_so() -> None:
    link = connect(Echo())
    link.start(link.offered_features, [16])
    link.close()
    link.close()
    with pytest.raises(QueueStoppedError, match="the link is closed"):
        echo(link)
    with pytest.raises(QueueStoppedError, match="the link is closed"):
        link.start(0, [16])


def test_a_queue_that_was_not_started_says_so() -> None:
    with connect(Echo()) as link:
        with pytest.raises(QueueStoppedError, match="no driver has started"):
            echo(link)
        link.start(link.offered_features, [16])
        with pytest.raises(QueueStoppedError, match="queue 3 was not started"):
            echo(link, queue=3)
        with pytest.raises(QueueStoppedError, match="has a driver already"):
            link.start(0, [16])


def test_requests_beyond_the_ring_wait_for_room() -> None:
    with connect(Echo()) as link:
        link.start(link.offered_features, [4])
        pending = [link.submit(echo_request(b"%d" % number)) for number in range(50)]
        assert [one.result() for one in pending] == [b"%d" % number for number in range(50)]


@pytest.mark.parametrize("sizes", [[32], [16, 16]])
def test_more_or_larger_rings_than_the_device_has_are_refused(sizes: list[int]) -> None:
    with connect(Echo()) as link, pytest.raises(NegotiationError, match=r"the device has \[16\]"):
        link.start(link.offered_features, sizes)
