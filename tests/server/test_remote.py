"""Somebody else's daemon as a device: the proxy between it and any frontend."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vhost_user.fake_backend import CONFIG, MQ, REPLY_ACK, FakeBackend
from xenvirt import RelayMessage, RemoteDevice, Server, VhostUserSocket, connect
from xenvirt._native import Endpoint
from xenvirt.errors import DisconnectedError
from xenvirt.vhost_user.protocol import ProtocolFeature, Request

from .conftest import echo, echo_request, started
from .devices import Echo, Keeper

PAGEFAULT = int(ProtocolFeature.PAGEFAULT)
UNKNOWN = 1 << 40


@pytest.fixture
def daemon(tmp_path: Path) -> str:
    """The path of the daemon's socket."""
    return str(tmp_path / "daemon.sock")


def until(true: Callable[[], bool]) -> None:
    """Waits until another thread has come so far."""
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert true()


def test_a_driver_reaches_the_device_behind_the_daemon(server: Server, path: str, daemon: str) -> None:
    device = Echo()
    direct = server.add(device, VhostUserSocket(daemon))
    relayed = server.add(RemoteDevice(daemon), VhostUserSocket(path))
    for text in (b"hello", b"again"):
        with started(path) as link:
            assert echo(link, text) == text
            assert relayed.features == direct.features == link.features
            assert relayed.protocol_features == direct.protocol_features
    assert relayed.queue_counters == ()


def test_config_is_read_written_and_its_changes_are_told(server: Server, path: str, daemon: str) -> None:
    device = Echo()
    server.add(device, VhostUserSocket(daemon))
    messages: list[RelayMessage] = []
    server.add(RemoteDevice(daemon, on_message=messages.append), VhostUserSocket(path))
    with started(path) as link:
        link.write_config(2, b"\x01\x02")
        assert device.happened[-1] == "config 2 0102"
        assert link.config(0, 8) == b"\0\0\x01\x02\0\0\0\0"
        device.update_config(b"new conf")
        link.wait_for(lambda: link.config_changes > 0, "a changed config space")
        assert link.config(0, 8) == b"new conf"
    change = next(message for message in messages if message.channel == "reverse")
    assert (change.sender, change.name, change.reply) == ("daemon", "BACKEND_CONFIG_CHANGE_MSG", False)


def test_messages_are_told_in_words_and_in_order(server: Server, path: str, daemon: str) -> None:
    server.add(Echo(), VhostUserSocket(daemon))
    messages: list[RelayMessage] = []
    server.add(RemoteDevice(daemon, on_message=messages.append), VhostUserSocket(path))
    with started(path) as link:
        assert echo(link) == b"hello"
        said = [line.split(maxsplit=1)[1] for line in link.protocol.wire_log]
    arrows = {"frontend": "->", "daemon": "<-"}
    until(lambda: len(messages) >= len(said))
    told = [f"{arrows[message.sender]} {message.text}" for message in messages]
    assert told[: len(said)] == said
    assert [message.time for message in messages] == sorted(message.time for message in messages)
    table = next(message for message in messages if message.number == Request.SET_MEM_TABLE)
    assert (table.files, table.name, table.need_reply) == (1, "SET_MEM_TABLE", True)
    assert "guest 0x40000000..+0x2000000 user 0x7f0000000000" in table.text


def test_kicks_calls_and_chains_are_counted(server: Server, path: str, daemon: str) -> None:
    direct = server.add(Echo(), VhostUserSocket(daemon), poll=0)
    relayed = server.add(RemoteDevice(daemon, count=True), VhostUserSocket(path))
    for connection in (1, 2):
        with started(path) as link:
            for _ in range(20):
                assert echo(link) == b"hello"
            # The last answer may be seen before its call is passed on, and then looked at.
            until(lambda: relayed.counters.calls == direct.counters.calls)
            until(lambda: relayed.counters.chains == direct.counters.chains)
            assert relayed.counters.chains == 20 * connection
            assert relayed.counters.kicks == 20 * connection  # the driver waits for each answer
    (queue,) = relayed.queue_counters
    assert queue == relayed.counters
    assert queue.errors == 0


def test_chains_under_way_are_not_lost_when_the_driver_comes_back(
    server: Server, path: str, daemon: str
) -> None:
    keeper = Keeper()
    server.add(keeper, VhostUserSocket(daemon))
    server.add(RemoteDevice(daemon, count=True), VhostUserSocket(path))
    with started(path) as link:
        link.submit_now(echo_request())
        assert keeper.got.wait(10)
        for chain in keeper.kept:
            chain.write(chain.read())
            chain.complete()
        # Stopped behind the one chain, as the daemon says, and not at its beginning.
        assert link.protocol.stop_queue(0) == 1


def test_what_is_not_passed_on_is_masked_and_named(
    server: Server, path: str, daemon: str, caplog: pytest.LogCaptureFixture
) -> None:
    offered = MQ | REPLY_ACK | CONFIG | PAGEFAULT | UNKNOWN
    with FakeBackend(Path(daemon), protocol_features=offered) as backend, caplog.at_level(logging.WARNING):
        server.add(RemoteDevice(daemon), VhostUserSocket(path))
        with connect(path) as link:
            assert link.protocol.offered_protocol_features == MQ | REPLY_ACK | CONFIG
            until(lambda: bool(caplog.messages))
    assert "PAGEFAULT" in caplog.text
    assert "0x10000000000" in caplog.text
    assert backend.of(Request.SET_PROTOCOL_FEATURES)[0].number == MQ | REPLY_ACK | CONFIG


def test_a_request_that_nobody_knows_is_the_daemons_to_judge(server: Server, path: str, daemon: str) -> None:
    with FakeBackend(Path(daemon)) as backend:
        server.add(RemoteDevice(daemon), VhostUserSocket(path))
        read, write = os.pipe()
        with connect(path) as link:
            link.protocol.raw(99, b"12345", [read, write], reply=False)
            link.protocol.barrier()
            assert link.config(0, 4) == b"0123"
        os.close(read)
        os.close(write)
    (unknown,) = backend.of(99)
    assert (unknown.payload, len(unknown.fds)) == (b"12345", 2)


def test_a_daemon_that_dies_ends_the_frontends_connection(
    path: str, daemon: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server() as server:
        relayed = server.add(RemoteDevice(daemon, timeout=10), VhostUserSocket(path))
        with Server() as daemons:
            daemons.add(Keeper(), VhostUserSocket(daemon))
            link = started(path)
            waiting = link.submit_now(echo_request())
        with pytest.raises(DisconnectedError):
            waiting.result()
        assert relayed.features == 0
        until(lambda: "the daemon closed its connection" in caplog.text)
        # The next frontend comes before the daemon is there again, and waits for it.
        with Server() as daemons:
            late = Echo()
            daemons.add(late, VhostUserSocket(daemon))
            with started(path) as link:
                assert echo(link) == b"hello"


def test_a_frontend_without_a_daemon_is_not_left_waiting(
    server: Server, path: str, daemon: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.add(RemoteDevice(daemon, timeout=0.05), VhostUserSocket(path))
    with pytest.raises(DisconnectedError):
        connect(path)
    until(lambda: "the daemon is not there" in caplog.text)
    assert daemon in caplog.text


def test_a_server_that_stops_does_not_wait_for_the_daemon(path: str, daemon: str) -> None:
    with Server() as server:
        server.add(RemoteDevice(daemon, timeout=3600), VhostUserSocket(path))
        server.stop()
    assert not Path(path).exists()


def test_many_messages_do_not_pile_up(server: Server, path: str, daemon: str) -> None:
    messages: list[RelayMessage] = []
    server.add(Echo(), VhostUserSocket(daemon))
    server.add(RemoteDevice(daemon, on_message=messages.append), VhostUserSocket(path))
    with connect(path) as link:
        for _ in range(2000):
            link.protocol.raw(Request.SET_OWNER, b"", reply=False)
        link.protocol.barrier()
        assert link.config(0, 8) == bytes(8)
    until(lambda: sum(message.number == Request.SET_OWNER for message in messages) >= 2000)


def test_a_daemon_that_does_not_read_holds_the_frontend_up_and_loses_nothing(
    server: Server, path: str, daemon: str
) -> None:
    count = 40_000  # more than both sockets take
    message = struct.pack("=III", Request.SET_VRING_BASE, 1, 8)
    sent = b"".join(message + struct.pack("=II", 0, number) for number in range(count))
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as frontend:
        listener.bind(daemon)
        listener.listen(1)
        server.add(RemoteDevice(daemon), VhostUserSocket(path))
        frontend.connect(path)
        sending = threading.Thread(target=frontend.sendall, args=(sent,))
        sending.start()
        with listener.accept()[0] as connection:
            sending.join(0.2)
            assert sending.is_alive()  # nobody keeps it for the daemon
            received = bytearray()
            while len(received) < len(sent):
                received += connection.recv(1 << 16)
            assert received == sent
        sending.join()


class OwnTransport:
    """One that a user wrote, for devices of this process."""

    connect = listens = False

    def attach(self, _endpoint: Endpoint, _device_id: int, /) -> bool:
        raise AssertionError("nothing was to be served here")

    def remove(self) -> None:
        raise AssertionError("nothing was to be served here")

    def __repr__(self) -> str:
        return "OwnTransport()"


def test_a_daemon_at_a_transport_that_takes_none_is_refused(server: Server) -> None:
    with pytest.raises(TypeError, match=r"RemoteDevice\('a\.sock'\) .* OwnTransport\(\), but at a VhostUser"):
        server.add(RemoteDevice("a.sock"), OwnTransport())
