"""A device's life: activate, process, config, reset; once each, in this order, whatever the frontend does."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest

from xenvirt import Server, Session, VhostUserSocket, VirtQueue, connect
from xenvirt.errors import DeviceFailedError, StaleChainError
from xenvirt.virtio.features import DeviceStatus

from .conftest import echo, echo_request, started
from .devices import Broken, Echo, Keeper


def until(happened: list[str], wanted: list[str]) -> None:
    """Waits until the device's thread has come so far."""
    deadline = time.monotonic() + 10
    while happened != wanted and time.monotonic() < deadline:
        time.sleep(0.001)
    assert happened == wanted


def test_activates_and_resets_once_for_each_frontend(server: Server, path: str) -> None:
    device = Echo()
    server.add(device, VhostUserSocket(path))
    for _ in range(2):
        with started(path) as link:
            assert echo(link) == b"hello"
    until(device.happened, ["activate", "reset"] * 2)


def test_a_frontend_that_only_looks_starts_no_session(server: Server, path: str) -> None:
    device = Echo()
    served = server.add(device, VhostUserSocket(path))
    with connect(path) as link:
        assert link.config(0, 8) == bytes(8)
    with started(path):
        until(device.happened, ["activate"])
        assert served.features == served._endpoint.offered_features
    until(device.happened, ["activate", "reset"])


def test_a_second_frontend_waits_until_the_first_is_gone(server: Server, path: str) -> None:
    server.add(Echo(), VhostUserSocket(path))
    first = started(path)
    answers: list[bytes] = []

    def second() -> None:
        with started(path) as link:
            answers.append(echo(link, b"second"))

    waiting = threading.Thread(target=second)
    waiting.start()
    assert echo(first, b"first") == b"first"
    assert answers == []
    first.close()
    waiting.join(10)
    assert answers == [b"second"]


def test_a_written_config_reaches_the_device_before_the_driver_goes_on(server: Server, path: str) -> None:
    device = Echo()
    server.add(device, VhostUserSocket(path))
    with started(path) as link:
        link.write_config(2, b"\x01\x02")
        assert device.happened == ["activate", "config 2 0102"]
        assert link.config(0, 8) == b"\0\0\x01\x02\0\0\0\0"


def test_an_updated_config_is_told_to_the_driver(server: Server, path: str) -> None:
    device = Echo()
    server.add(device, VhostUserSocket(path))
    with started(path) as link:
        device.update_config(b"new conf")
        link.wait_for(lambda: link.config_changes > 0, "a changed config space")
        assert link.config(0, 8) == b"new conf"
        with pytest.raises(ValueError, match="has 8 bytes, the new one 3"):
            device.update_config(b"abc")


def test_a_watch_is_called_on_the_device_thread_and_ends_with_the_session(server: Server, path: str) -> None:
    read, write = os.pipe()
    calls: list[str] = []

    class Watching(Echo):
        def activate(self, session: Session) -> None:
            super().activate(session)
            session.watch(read, self.ready)

        def ready(self) -> None:
            os.read(read, 1)
            calls.append(threading.current_thread().name)

    device = Watching()
    server.add(device, VhostUserSocket(path))
    with started(path) as link:
        os.write(write, b"x")
        echo(link)
        until(calls, [next(iter(device.threads))])
    until(device.happened, ["activate", "reset"])
    os.write(write, b"x")
    with connect(path) as link:
        link.config(0, 1)
    assert len(calls) == 1
    os.close(read)
    os.close(write)


def test_a_chain_kept_beyond_its_session_is_stale(server: Server, path: str) -> None:
    device = Keeper()
    server.add(device, VhostUserSocket(path))
    with started(path) as link:
        link.submit(echo_request())
        assert device.got.wait(10)
    assert device.over.wait(10)
    chain = device.kept[0]
    for use in (chain.read, chain.complete, lambda: chain.write(b"x")):
        with pytest.raises(StaleChainError):
            use()


def test_a_kept_chain_can_be_completed_from_another_thread(server: Server, path: str) -> None:
    device = Keeper()
    server.add(device, VhostUserSocket(path))
    with started(path) as link:
        pending = link.submit(echo_request())
        assert device.got.wait(10)
        chain = device.kept.pop()

        def complete() -> None:
            chain.write(chain.read())
            chain.complete()

        threading.Thread(target=complete).start()
        assert pending.result() == b"hello"


def test_stopping_a_queue_does_not_wait_for_ever_for_kept_chains_and_names_them(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = Keeper()
    server.add(device, VhostUserSocket(path))
    with started(path) as link, caplog.at_level(logging.WARNING, "xenvirt"):
        link.submit(echo_request())
        assert device.got.wait(10)
        head = device.kept[0].index
        # The chain is the newest one: the ring goes on before it, nothing is lost.
        assert link.protocol.stop_queue(0) == 0
    assert f"still has 1 chains of it (heads [{head}])" in caplog.text
    with pytest.raises(StaleChainError):
        device.kept[0].complete()


def test_stopping_a_queue_waits_for_a_chain_that_is_completed_soon(server: Server, path: str) -> None:
    device = Keeper()
    server.add(device, VhostUserSocket(path))
    with started(path) as link:
        link.submit(echo_request())
        assert device.got.wait(10)
        chain = device.kept[0]
        threading.Timer(0.05, chain.complete).start()
        assert link.protocol.stop_queue(0) == 1


def test_an_exception_stops_the_queue_and_not_the_server(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = Broken()
    served = server.add(device, VhostUserSocket(path))
    for _ in range(2):
        with started(path) as link:
            with pytest.raises(DeviceFailedError, match="VRING_ERR"):
                echo(link)
            assert link.protocol.status & DeviceStatus.NEEDS_RESET
    assert "RuntimeError: the device is broken" in caplog.text
    assert "Traceback" in caplog.text
    assert served.counters.errors == 2


def test_an_exception_in_activate_fails_all_queues(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Unwilling(Echo):
        queue_sizes = (16, 16)

        def activate(self, _session: Session) -> None:
            raise OSError("no such disk")

    server.add(Unwilling(), VhostUserSocket(path))
    with started(path, queues=2) as link, pytest.raises(DeviceFailedError):
        echo(link, queue=1)
    assert "activate failed, the device stops" in caplog.text


def test_one_queue_fails_and_the_other_goes_on(server: Server, path: str) -> None:
    class Half(Echo):
        queue_sizes = (16, 16)

        def process(self, queue: VirtQueue) -> None:
            if queue.index == 0 and queue.pop() is not None:
                raise RuntimeError("broken half")
            super().process(queue)

    server.add(Half(), VhostUserSocket(path))
    with started(path, queues=2) as link:
        with pytest.raises(DeviceFailedError, match="queue 0"):
            echo(link, queue=0)
        assert echo(link, queue=1) == b"hello"


def test_a_thread_for_each_queue(server: Server, path: str) -> None:
    both = threading.Barrier(2)

    class Threaded(Echo):
        queue_sizes = (16, 16)
        thread_per_queue = True

        def process(self, queue: VirtQueue) -> None:
            for chain in queue:
                both.wait(10)  # each queue is in here at the same time as the other
                chain.write(chain.read())
                chain.complete()
            self.threads.add(threading.current_thread().name)

    device = Threaded()
    server.add(device, VhostUserSocket(path))
    with started(path, queues=2) as link:
        pending = [link.submit(echo_request(queue=queue)) for queue in (0, 1)]
        assert [one.result() for one in pending] == [b"hello", b"hello"]
    until(device.happened, ["activate", "reset"])
    assert len(device.threads) == 2


def test_polling_serves_as_sleeping_does(server: Server, path: str) -> None:
    class Threaded(Echo):
        thread_per_queue = True

    for number, device in enumerate((Echo(), Threaded())):
        server.add(device, VhostUserSocket(f"{path}{number}"), poll=0.01)
        with started(f"{path}{number}") as link:
            for round_ in range(200):
                assert echo(link, b"%d" % round_) == b"%d" % round_
            time.sleep(0.05)  # longer than it polls: it sleeps now, and wakes up again
            assert echo(link) == b"hello"
            link.write_config(0, b"x")
        until(device.happened, ["activate", "config 0 78", "reset"])


def test_counters_tell_requests_bytes_and_notifications(server: Server, path: str) -> None:
    served = server.add(Echo(), VhostUserSocket(path))
    with started(path) as link:
        for _ in range(10):
            echo(link, b"12345")
        counters = served.counters
        assert (counters.chains, counters.bytes_read, counters.bytes_written) == (10, 50, 50)
        assert counters.kicks >= 10
        assert counters.calls >= 10
    assert served.queue_counters == (served.counters,)
