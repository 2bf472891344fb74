"""The frontend against a backend that is written from the specification, well-behaved or not."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from xenvirt._native import Frontend, SharedRegion
from xenvirt.errors import (
    DisconnectedError,
    LinkTimeoutError,
    NegotiationError,
    ProtocolError,
    QueueStoppedError,
    RequestRefusedError,
)

from . import fake_backend as fake
from .fake_backend import FakeBackend, Received, number_reply, reply

PATIENCE = 20.0
"""How long a test that goes wrong waits before it says so."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sock"


def test_negotiates_what_both_sides_have(path: Path) -> None:
    with (
        FakeBackend(path, protocol_features=fake.MQ | fake.CONFIG | 1 << 40) as backend,
        Frontend(path) as frontend,
    ):
        assert frontend.offered_features == fake.VERSION_1
        assert frontend.offered_protocol_features == fake.MQ | fake.CONFIG | 1 << 40
        assert frontend.protocol_features == fake.MQ | fake.CONFIG
        assert frontend.queue_count == 2
        assert backend.of(fake.SET_PROTOCOL_FEATURES)[0].number == fake.MQ | fake.CONFIG
        requests = [message.request for message in backend.received]
        assert requests[:4] == [
            fake.SET_OWNER,
            fake.GET_FEATURES,
            fake.GET_PROTOCOL_FEATURES,
            fake.SET_PROTOCOL_FEATURES,
        ]


def test_acks_only_the_protocol_features_asked_for(path: Path) -> None:
    with FakeBackend(path), Frontend(path, protocol_features=fake.CONFIG) as frontend:
        assert frontend.protocol_features == fake.CONFIG
        assert frontend.queue_count is None


def test_asks_nothing_of_a_backend_without_protocol_features(path: Path) -> None:
    with FakeBackend(path, features=fake.VERSION_1) as backend, Frontend(path) as frontend:
        assert frontend.protocol_features == 0
        frontend.set_features(fake.VERSION_1)
        frontend.enable_queue(0)
        assert not backend.of(fake.GET_PROTOCOL_FEATURES)
        assert not backend.of(fake.SET_VRING_ENABLE)


def test_refuses_to_leave_xen_mmap_out_before_the_backend_hears_of_it(path: Path) -> None:
    with FakeBackend(path, protocol_features=fake.MQ | fake.XEN_MMAP) as backend:
        with pytest.raises(NegotiationError, match=r"XEN_MMAP.*leave it out"):
            Frontend(path, protocol_features=fake.MQ)
        assert not backend.of(fake.SET_PROTOCOL_FEATURES)


def share(frontend: Frontend, backend: FakeBackend) -> Received:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 0x4000)
    frontend.set_memory(
        [
            SharedRegion(fd, 0x1000, 0x2000),
            SharedRegion(fd, 0x8000, 0x1000, offset=0x3000, user_address=0x7000_0000),
        ]
    )
    os.close(fd)
    (table,) = backend.of(fake.SET_MEM_TABLE)
    assert struct.unpack_from("=II", table.payload) == (2, 0)
    assert [os.fstat(fd).st_size for fd in table.fds] == [0x4000, 0x4000]
    return table


def test_regions_have_32_bytes(path: Path) -> None:
    with FakeBackend(path) as backend, Frontend(path) as frontend:
        table = share(frontend, backend)
        regions = list(fake.REGION.iter_unpack(table.payload[8:]))
        assert regions == [(0x1000, 0x2000, 0x1000, 0), (0x8000, 0x1000, 0x7000_0000, 0x3000)]


def test_regions_have_40_bytes_with_xen_mmap(path: Path) -> None:
    offered = fake.MQ | fake.REPLY_ACK | fake.XEN_MMAP
    with FakeBackend(path, protocol_features=offered) as backend, Frontend(path) as frontend:
        table = share(frontend, backend)
        regions = list(fake.XEN_REGION.iter_unpack(table.payload[8:]))
        assert regions == [(0x1000, 0x2000, 0x1000, 0, 0, 0), (0x8000, 0x1000, 0x7000_0000, 0x3000, 0, 0)]


@pytest.mark.parametrize("protocol_features", [fake.MQ, fake.MQ | fake.REPLY_ACK])
def test_a_queue_is_set_up_in_user_addresses_and_kicked_last(path: Path, protocol_features: int) -> None:
    with FakeBackend(path, protocol_features=protocol_features) as backend, Frontend(path) as frontend:
        share(frontend, backend)
        frontend.set_features(fake.VERSION_1)
        kick = os.eventfd(0)
        frontend.set_queue(
            1, 64, descriptors=0x8000, available=0x8400, used=0x1000, base=7, kick=kick, call=kick, err=kick
        )
        frontend.enable_queue(1)
        assert frontend.stop_queue(1) == 42
        os.close(kick)
        assert backend.of(fake.SET_FEATURES)[0].number == fake.VERSION_1 | fake.PROTOCOL_FEATURES
        assert backend.of(fake.SET_VRING_NUM)[0].payload == struct.pack("=II", 1, 64)
        assert backend.of(fake.SET_VRING_BASE)[0].payload == struct.pack("=II", 1, 7)
        address = struct.pack("=IIQQQQ", 1, 0, 0x7000_0000, 0x1000, 0x7000_0400, 0)
        assert backend.of(fake.SET_VRING_ADDR)[0].payload == address
        for request in (fake.SET_VRING_CALL, fake.SET_VRING_ERR, fake.SET_VRING_KICK):
            (message,) = backend.of(request)
            assert (message.number, len(message.fds)) == (1, 1)
        vring = [m.request for m in backend.received if fake.SET_VRING_NUM <= m.request <= fake.SET_VRING_ERR]
        assert vring[-2:] == [fake.SET_VRING_KICK, fake.GET_VRING_BASE]


def test_a_queue_without_eventfds_says_so_in_bit_8(path: Path) -> None:
    with FakeBackend(path) as backend, Frontend(path) as frontend:
        share(frontend, backend)
        frontend.set_queue(3, 8, descriptors=0x1000, available=0x1800, used=0x2000)
        for request in (fake.SET_VRING_CALL, fake.SET_VRING_KICK):
            (message,) = backend.of(request)
            assert (message.number, message.fds) == (0x103, [])
        assert not backend.of(fake.SET_VRING_ERR)


def test_a_queue_outside_the_memory_is_refused_here(path: Path) -> None:
    with FakeBackend(path) as backend, Frontend(path) as frontend:
        share(frontend, backend)
        with pytest.raises(ValueError, match="used ring 0x3000, must be in one of the 2 regions"):
            frontend.set_queue(0, 8, descriptors=0x1000, available=0x1800, used=0x3000)
        assert not backend.of(fake.SET_VRING_NUM)


def test_config_is_asked_for_from_its_beginning(path: Path) -> None:
    with FakeBackend(path) as backend, Frontend(path) as frontend:
        assert frontend.config(4, 2) == b"45"
        (message,) = backend.of(fake.GET_CONFIG)
        assert message.payload == struct.pack("=III", 0, 6, 0) + bytes(6)
        frontend.set_config(3, b"xyz")
        assert backend.of(fake.SET_CONFIG)[0].payload == struct.pack("=III", 3, 3, 0) + b"xyz"


def test_a_refused_config_is_an_error_and_the_connection_lives(path: Path) -> None:
    refuse = {fake.GET_CONFIG: lambda message: reply(message, struct.pack("=III", 0, 0, 0))}
    with FakeBackend(path, reactions=refuse), Frontend(path) as frontend:
        with pytest.raises(RequestRefusedError, match="GET_CONFIG") as caught:
            frontend.config(0, 99)
        assert caught.value.request == "GET_CONFIG"
        frontend.barrier()
        assert frontend.stop_queue(0) == 42


def test_what_needs_a_feature_names_it(path: Path) -> None:
    with FakeBackend(path, protocol_features=fake.MQ), Frontend(path) as frontend:
        with pytest.raises(
            NegotiationError, match="GET_STATUS needs the protocol feature STATUS, which the peer"
        ):
            _ = frontend.status
        with pytest.raises(ValueError, match="not offered: 0x1"):
            frontend.set_features(fake.VERSION_1 | 1)


def test_the_status_is_read_and_written(path: Path) -> None:
    with FakeBackend(path, protocol_features=fake.STATUS) as backend, Frontend(path) as frontend:
        frontend.set_status(7)
        assert backend.of(fake.SET_STATUS)[0].number == 7
        assert frontend.status == 15


def test_a_refusal_carries_what_the_backend_answered(path: Path) -> None:
    refuse = {fake.SET_FEATURES: lambda message: number_reply(message, 3)}
    with FakeBackend(path, reactions=refuse), Frontend(path) as frontend:
        with pytest.raises(RequestRefusedError) as caught:
            frontend.set_features(fake.VERSION_1)
        assert (caught.value.request, caught.value.code) == ("SET_FEATURES", 3)
        assert frontend.features == 0


def test_a_backend_that_does_not_answer_is_a_timeout_and_then_of_no_more_use(path: Path) -> None:
    silent = {fake.GET_VRING_BASE: lambda _: b""}
    # What has to be answered before may take its time; here that is nothing.
    with FakeBackend(path, reactions=silent), Frontend(path, timeout=0.1, negotiate=False) as frontend:
        with pytest.raises(LinkTimeoutError, match="no answer to GET_VRING_BASE within 100ms") as caught:
            frontend.stop_queue(0)
        assert "-> GET_VRING_BASE queue 0" in caught.value.__notes__[0]
        with pytest.raises(DisconnectedError, match="ended earlier: no answer to GET_VRING_BASE"):
            frontend.stop_queue(0)


def test_a_backend_that_hangs_up_names_what_was_asked(path: Path) -> None:
    with FakeBackend(path, hang_up_on=fake.GET_QUEUE_NUM):
        with pytest.raises(
            DisconnectedError, match="while the answer to GET_QUEUE_NUM was awaited"
        ) as caught:
            Frontend(path)
        assert "not confirmed yet: SET_PROTOCOL_FEATURES, GET_QUEUE_NUM" in str(caught.value)
        assert "-> SET_PROTOCOL_FEATURES MQ | REPLY_ACK | CONFIG" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda m: number_reply(m, 0)[:-1], "in mid-message"),
        (
            lambda m: fake.HEADER.pack(m.request, 5, 4) + bytes(4),
            "GET_QUEUE_NUM: payload of 4 bytes, must be 8",
        ),
        (lambda m: fake.HEADER.pack(m.request, 1, 8) + bytes(8), "must have the reply bit"),
        (lambda m: fake.HEADER.pack(m.request, 4, 8) + bytes(8), "must have version 1"),
        (
            lambda m: fake.HEADER.pack(m.request, 5, 1 << 31),
            "payload of 2147483648 bytes, must be at most 4096",
        ),
        (
            lambda _: fake.HEADER.pack(99, 5, 8) + bytes(8),
            "a reply to request 99 came where one to GET_QUEUE_NUM",
        ),
    ],
)
def test_a_malformed_answer_is_an_error_in_words(path: Path, answer: fake.Reaction, words: str) -> None:
    reactions = {fake.GET_QUEUE_NUM: answer}
    with (
        FakeBackend(path, reactions=reactions, hang_up_after=fake.GET_QUEUE_NUM),
        pytest.raises((ProtocolError, DisconnectedError), match=words),
    ):
        Frontend(path, timeout=PATIENCE)


def test_a_malformed_answer_names_its_request(path: Path) -> None:
    short = {fake.GET_VRING_BASE: lambda message: reply(message, b"1")}
    with FakeBackend(path, reactions=short), Frontend(path) as frontend:
        with pytest.raises(ProtocolError) as caught:
            frontend.stop_queue(0)
        assert caught.value.request == "GET_VRING_BASE"


def test_nobody_there_is_a_disconnect_after_the_timeout(path: Path) -> None:
    with pytest.raises(DisconnectedError, match=r"cannot connect to .*device.sock: .*tried for 50ms"):
        Frontend(path, timeout=0.05)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        with pytest.raises(DisconnectedError, match="refused"):
            Frontend(path, timeout=0.05)


def test_what_is_no_socket_is_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, tmp_path):
        with pytest.raises(OSError, match=f"cannot connect to {path}: it is no socket") as caught:
            Frontend(path, timeout=None)
        assert caught.value.errno == errno.ENOTSOCK


def test_a_socket_that_comes_late_is_found(path: Path) -> None:
    backend = FakeBackend(path)
    waiting = threading.Event()

    def come_late() -> None:
        waiting.wait()
        backend.__enter__()

    late = threading.Thread(target=come_late)
    late.start()
    threading.Timer(0.05, waiting.set).start()
    with Frontend(path, timeout=PATIENCE) as frontend:
        assert frontend.queue_count == 2
    late.join()
    backend.__exit__(None, None, None)


def test_a_path_that_cannot_be_a_socket_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="name too long") as caught:
        Frontend(tmp_path / ("x" * 200))
    assert not isinstance(caught.value, DisconnectedError)


class HandlerError(Exception):
    """Raised by a signal handler of a test."""


def test_a_signal_handler_runs_while_the_frontend_waits(path: Path) -> None:
    def raise_from_handler(_number: int, _frame: object) -> None:
        raise HandlerError

    before = signal.signal(signal.SIGALRM, raise_from_handler)
    silent = {fake.GET_VRING_BASE: lambda _: b""}
    try:
        with FakeBackend(path, reactions=silent), Frontend(path, timeout=PATIENCE) as frontend:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(HandlerError):
                frontend.stop_queue(0)
            with pytest.raises(DisconnectedError, match="interrupted by a signal"):
                frontend.stop_queue(0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_that_returns_does_not_disturb_the_wait(path: Path) -> None:
    seen = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: seen.set())

    def late(_message: Received) -> None:
        assert seen.wait(PATIENCE)

    try:
        with (
            FakeBackend(path, reactions={fake.GET_VRING_BASE: late}),
            Frontend(path, timeout=PATIENCE) as frontend,
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert frontend.stop_queue(0) == 42
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_calls_the_frontend_in_the_middle_of_a_call_gets_an_error(path: Path) -> None:
    errors: list[BaseException] = []
    silent = {fake.GET_VRING_BASE: lambda _: b""}
    with FakeBackend(path, reactions=silent), Frontend(path, timeout=PATIENCE) as frontend:

        def meddle(_number: int, _frame: object) -> None:
            try:
                frontend.close()
            except RuntimeError as error:
                errors.append(error)
                raise

        before = signal.signal(signal.SIGALRM, meddle)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(RuntimeError, match="under way in this very thread"):
                frontend.stop_queue(0)
        finally:
            signal.signal(signal.SIGALRM, before)
    assert len(errors) == 1


def test_raw_messages_go_out_as_they_are_and_come_back_as_they_are(path: Path) -> None:
    with FakeBackend(path) as backend, Frontend(path, negotiate=False) as frontend:
        assert not backend.received
        answer = frontend.raw(fake.GET_FEATURES)
        assert answer is not None
        assert (answer.request, answer.flags, len(answer.payload), answer.fds) == (
            fake.GET_FEATURES,
            5,
            8,
            (),
        )
        fd = os.eventfd(0)
        assert frontend.raw(77, b"payload", [fd, fd], reply=False, flags=0xF9) is None
        frontend.raw(fake.GET_FEATURES)
        os.close(fd)
        (message,) = backend.of(77)
        assert (message.flags, message.payload, len(message.fds)) == (0xF9, b"payload", 2)
        assert any("raw: request 77 7 bytes: 70 61" in line for line in frontend.wire_log)


def test_closed_within_tells_whether_the_peer_hung_up(path: Path) -> None:
    with FakeBackend(path, hang_up_on=99), Frontend(path) as frontend:
        assert not frontend.closed_within(0)
        frontend.raw(99, reply=False)
        assert frontend.closed_within(PATIENCE)


def test_a_config_change_is_counted_and_answered(path: Path) -> None:
    offered = fake.MQ | fake.REPLY_ACK | fake.BACKEND_REQ
    with FakeBackend(path, protocol_features=offered) as backend, Frontend(path) as frontend:
        (message,) = backend.of(fake.SET_BACKEND_REQ_FD)
        with socket.socket(fileno=os.dup(message.fds[0])) as reverse:
            reverse.settimeout(PATIENCE)
            assert frontend.config_changes() == 0
            for _ in range(2):
                reverse.sendall(fake.HEADER.pack(2, 9, 0))
                assert reverse.recv(100) == fake.HEADER.pack(2, 5, 8) + bytes(8)
            fd = frontend.config_change_fd
            assert fd is not None
            assert select.select([fd], [], [], PATIENCE)[0] == [fd]
            assert frontend.config_changes() == 2
            assert frontend.config_changes() == 0
            reverse.sendall(fake.HEADER.pack(4, 9, 8) + bytes(8))  # VRING_CALL, which was not negotiated
            assert reverse.recv(100) == fake.HEADER.pack(4, 5, 8) + struct.pack("=Q", 1)


def test_nothing_is_left_after_close(path: Path) -> None:
    def resources() -> tuple[int, int]:
        return sum(1 for _ in Path("/proc/self/fd").iterdir()), sum(
            1 for _ in Path("/proc/self/task").iterdir()
        )

    gc.collect()  # what earlier tests left goes now, not while we count
    before = resources()
    for _ in range(20):
        offered = fake.MQ | fake.REPLY_ACK | fake.BACKEND_REQ
        with FakeBackend(path, protocol_features=offered) as backend, Frontend(path) as frontend:
            share(frontend, backend)
        path.unlink()
    deadline = time.monotonic() + PATIENCE
    while resources() != before and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread that was joined is listed until the kernel has put it away
    assert resources() == before


def test_a_closed_frontend_says_so_and_keeps_its_log(path: Path) -> None:
    with FakeBackend(path):
        frontend = Frontend(path)
        frontend.close()
        frontend.close()
        assert frontend.closed
        with pytest.raises(QueueStoppedError, match="the link is closed"):
            _ = frontend.features
        assert any("-> SET_OWNER" in line for line in frontend.wire_log)


def test_a_connected_socket_will_do(path: Path) -> None:
    with FakeBackend(path), socket.socket(socket.AF_UNIX) as connected:
        connected.connect(str(path))
        with Frontend.from_fd(connected.fileno()) as frontend:
            assert frontend.queue_count == 2


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_a_timeout_that_is_none_is_a_value_error(path: Path, timeout: float) -> None:
    with pytest.raises(ValueError, match="must be 0 or more seconds, or None"):
        Frontend(path, timeout=timeout)


def test_a_queue_is_not_enabled_before_the_features_are_settled(path: Path) -> None:
    with FakeBackend(path) as backend, Frontend(path) as frontend:
        with pytest.raises(ValueError, match="settled by set_features before a ring is enabled"):
            frontend.enable_queue(0)
        assert not backend.of(fake.SET_VRING_ENABLE)


def test_a_peer_that_talks_without_end_does_not_keep_closed_within(path: Path) -> None:
    flood = {99: lambda message: 1000 * number_reply(message, 0)}
    with FakeBackend(path, reactions=flood), Frontend(path, negotiate=False) as frontend:
        frontend.raw(99, reply=True)
        assert not frontend.closed_within(0)
