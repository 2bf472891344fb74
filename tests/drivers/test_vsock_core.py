"""The socket device's protocol, packet by packet, with the sections of the specification that it follows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirt.drivers.vsock_core import BUFFER, MAX_PAYLOAD, Connection, State, VsockCore
from xenvirt.virtio.vsock import Operation, PacketHeader, ShutdownFlag

US, HOST = 3, 2
BOTH = ShutdownFlag.RECEIVE | ShutdownFlag.SEND


def packet(
    operation: int,
    data: bytes = b"",
    *,
    port: int = 49152,
    peer: int = 80,
    room: int = 1000,
    taken: int = 0,
    flags: int = 0,
    kind: int = 1,
    to: int = US,
) -> bytes:
    header = PacketHeader(HOST, to, peer, port, len(data), kind, operation, flags, room, taken)
    return header.to_bytes() + data


def sent(core: VsockCore) -> list[tuple[PacketHeader, bytes]]:
    packets = [(PacketHeader.from_bytes(header), data) for header, data in core.outgoing]
    core.outgoing.clear()
    return packets


def operations(core: VsockCore) -> list[int]:
    return [header.op for header, _ in sent(core)]


def connected(room: int = 1000) -> tuple[VsockCore, Connection]:
    core = VsockCore(US)
    connection = core.connect(80)
    core.heard(packet(Operation.RESPONSE, room=room))
    core.outgoing.clear()
    return core, connection


def test_a_request_names_both_ends_and_our_room() -> None:
    core = VsockCore(US)
    connection = core.connect(80)
    ((header, data),) = sent(core)
    assert header == PacketHeader(US, HOST, 49152, 80, 0, 1, Operation.REQUEST, 0, BUFFER, 0)
    assert data == b""
    assert connection.state is State.CONNECTING
    core.heard(packet(Operation.RESPONSE))
    assert connection.state.value == "open"
    assert connection.credit == 1000


def test_a_refused_request_is_no_reset() -> None:
    core = VsockCore(US)
    connection = core.connect(80)
    core.heard(packet(Operation.RST))
    assert (connection.state, connection.error) == (State.CLOSED, ConnectionRefusedError)


def test_no_more_is_sent_than_there_is_credit_and_more_is_asked_for_once() -> None:
    core, connection = connected(room=10)
    assert connection.send(memoryview(b"0123456789abc")) == 10
    assert connection.send(memoryview(b"abc")) == 0
    packets = sent(core)
    assert [(header.op, data) for header, data in packets] == [
        (Operation.RW, b"0123456789"),
        (Operation.CREDIT_REQUEST, b""),
    ]
    core.heard(packet(Operation.CREDIT_UPDATE, room=10, taken=4))
    assert connection.credit == 4
    assert connection.send(memoryview(b"abcdef")) == 4
    assert operations(core) == [Operation.RW, Operation.CREDIT_REQUEST]


def test_long_data_goes_in_several_packets() -> None:
    core, connection = connected(room=3 * MAX_PAYLOAD)
    data = bytes(MAX_PAYLOAD * 2 + 5)
    assert connection.send(memoryview(data)) == len(data)
    assert [header.len for header, _ in sent(core)] == [MAX_PAYLOAD, MAX_PAYLOAD, 5]


@given(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=60), st.integers(1, 1 << 18))
def test_credit_holds_when_the_counters_wrap(sizes: list[int], room: int) -> None:
    core, connection = connected(room)
    connection._sent = connection._peer_taken = (1 << 32) - 1000
    taken = (1 << 32) - 1000
    core.heard(packet(Operation.CREDIT_UPDATE, room=room, taken=taken))
    for size in sizes:
        gone = connection.send(memoryview(bytes(size)))
        assert gone == min(size, room)
        taken = (taken + gone) % (1 << 32)
        core.heard(packet(Operation.CREDIT_UPDATE, room=room, taken=taken))
        core.outgoing.clear()


def test_what_comes_is_kept_and_the_peer_hears_when_half_of_its_room_is_free() -> None:
    core, connection = connected()
    half = bytes(BUFFER // 2)
    core.heard(packet(Operation.RW, half))
    core.heard(packet(Operation.RW, half))
    assert connection.take(BUFFER // 2 - 1) == half[1:]
    assert operations(core) == []
    assert connection.take(1) == b"\0"
    ((header, _),) = sent(core)
    assert (header.op, header.buf_alloc, header.fwd_cnt) == (Operation.CREDIT_UPDATE, BUFFER, BUFFER // 2)


def test_every_packet_of_ours_tells_our_credit_so_that_no_update_is_needed() -> None:
    core, connection = connected()
    core.heard(packet(Operation.RW, bytes(100)))
    connection.take(100)
    connection.send(memoryview(b"x"))
    ((header, _),) = sent(core)
    assert header.fwd_cnt == 100
    core.heard(packet(Operation.CREDIT_REQUEST))
    ((header, _),) = sent(core)
    assert (header.op, header.fwd_cnt) == (Operation.CREDIT_UPDATE, 100)


def test_a_peer_that_sends_more_than_there_is_room_for_is_cut_off() -> None:
    core, connection = connected()
    core.heard(packet(Operation.RW, bytes(BUFFER)))
    core.heard(packet(Operation.RW, b"x"))
    assert connection.error is ConnectionAbortedError
    assert operations(core) == [Operation.RST]
    assert len(connection.take(BUFFER + 1)) == BUFFER


def test_closing_says_both_directions_and_ends_with_the_answer() -> None:
    core, connection = connected()
    connection.close()
    ((header, _),) = sent(core)
    assert (header.op, header.flags) == (Operation.SHUTDOWN, BOTH)
    core.heard(packet(Operation.RW, b"late"))
    assert (connection.state, bytes(connection.received)) == (State.CLOSING, b"")
    core.heard(packet(Operation.RST))
    assert (connection.state, connection.error) == (State.CLOSED, None)
    core.heard(packet(Operation.RW, b"later"))
    assert operations(core) == [Operation.RST], "nobody knows the connection any more"


def test_an_end_that_nobody_answers_is_a_reset_after_a_while() -> None:
    core, connection = connected()
    connection.close()
    core.outgoing.clear()
    core.expire(100.0)
    core.expire(107.9)
    assert (connection.state, operations(core)) == (State.CLOSING, [])
    core.expire(108.0)
    assert (connection.state, operations(core), core.closing) == (State.CLOSED, [Operation.RST], {})
    answered = core.connect(81)
    core.heard(packet(Operation.RESPONSE, port=answered.local_port, peer=81))
    answered.close()
    core.heard(packet(Operation.RST, port=answered.local_port, peer=81))
    assert core.closing == {}


def test_a_peer_that_is_done_in_both_directions_gets_the_answer_and_its_data_stays() -> None:
    core, connection = connected()
    core.heard(packet(Operation.RW, b"last words"))
    core.heard(packet(Operation.SHUTDOWN, flags=ShutdownFlag.SEND))
    assert (connection.at_end, connection.may_send) == (True, True)
    core.heard(packet(Operation.SHUTDOWN, flags=ShutdownFlag.RECEIVE))
    assert operations(core) == [Operation.RST]
    assert (connection.state, connection.error) == (State.CLOSED, None)
    assert connection.take(100) == b"last words"


def test_half_a_shutdown_lets_the_other_half_go_on() -> None:
    core, connection = connected()
    connection.shutdown(ShutdownFlag.SEND)
    connection.shutdown(ShutdownFlag.SEND)
    assert [(header.op, header.flags) for header, _ in sent(core)] == [(Operation.SHUTDOWN, 2)]
    assert connection.send(memoryview(b"x")) == 0
    core.heard(packet(Operation.RW, b"answer"))
    assert connection.take(6) == b"answer"
    connection.shutdown(ShutdownFlag.RECEIVE)
    assert [(header.op, header.flags) for header, _ in sent(core)] == [(Operation.SHUTDOWN, 3)]


def test_a_reset_breaks_it_and_what_came_before_is_still_there() -> None:
    core, connection = connected()
    core.heard(packet(Operation.RW, b"before"))
    core.heard(packet(Operation.RST))
    assert connection.error is ConnectionResetError
    assert connection.take(10) == b"before"
    assert connection.credit == 0


def test_a_listener_takes_what_it_has_room_for() -> None:
    core = VsockCore(US)
    listener = core.listen(5000, backlog=2)
    for peer in (1, 2, 3):
        core.heard(packet(Operation.REQUEST, port=5000, peer=peer, room=77))
    assert operations(core) == [Operation.RESPONSE, Operation.RESPONSE, Operation.RST]
    assert [connection.peer for connection in listener.waiting] == [(HOST, 1), (HOST, 2)]
    assert listener.waiting.popleft().credit == 77
    with pytest.raises(OSError, match="somebody listens on port 5000 already"):
        core.listen(5000)
    listener.close()
    assert operations(core) == [Operation.RST]
    core.heard(packet(Operation.REQUEST, port=5000, peer=4))
    assert operations(core) == [Operation.RST]


@pytest.mark.parametrize(
    "stray",
    [
        b"",
        b"\xa5" * 44,
        packet(Operation.RW, to=9),
        packet(Operation.INVALID),
        packet(99),
        packet(Operation.RW, b"abc")[:-1],
    ],
)
def test_what_makes_no_sense_is_counted_and_answered_by_nothing(stray: bytes) -> None:
    core, connection = connected()
    core.heard(stray)
    assert (core.ignored, connection.state, operations(core)) == (1, State.OPEN, [])


def test_other_socket_types_and_unknown_connections_are_answered_with_reset() -> None:
    core, connection = connected()
    core.heard(packet(Operation.RW, kind=2))
    core.heard(packet(Operation.RW, peer=81))
    core.heard(packet(Operation.RST, peer=81))
    packets = sent(core)
    assert [(header.op, header.type) for header, _ in packets] == [(Operation.RST, 2), (Operation.RST, 1)]
    assert connection.state is State.OPEN


def test_a_reset_of_the_transport_ends_all_connections_and_no_listener() -> None:
    core, connection = connected()
    listener = core.listen(5000)
    core.transport_reset(7)
    assert (connection.error, core.guest_cid) == (ConnectionResetError, 7)
    core.heard(packet(Operation.REQUEST, port=5000, to=7))
    assert len(listener.waiting) == 1


def test_ports_of_ours_differ_and_can_be_chosen() -> None:
    core = VsockCore(US)
    assert [core.connect(80).local_port for _ in range(3)] == [49152, 49153, 49154]
    assert core.connect(80, local_port=7).local_port == 7
    with pytest.raises(OSError, match="port 7 is connected to port 80 of CID 2 already"):
        core.connect(80, local_port=7)
    with pytest.raises(ValueError, match="32 bits"):
        core.connect(1 << 32)


HEADERS = st.builds(
    PacketHeader,
    src_cid=st.sampled_from([HOST, US, 9]),
    dst_cid=st.sampled_from([US, HOST]),
    src_port=st.sampled_from([80, 81]),
    dst_port=st.sampled_from([49152, 49153, 5000]),
    len=st.integers(0, 5000),
    type=st.integers(0, 3),
    op=st.integers(0, 9),
    flags=st.integers(0, 4),
    buf_alloc=st.integers(0, (1 << 32) - 1),
    fwd_cnt=st.integers(0, (1 << 32) - 1),
)


@given(st.lists(st.tuples(HEADERS, st.integers(0, 5000)), max_size=60))
def test_a_hostile_device_cannot_make_it_fail_or_keep_more_than_its_room(
    packets: list[tuple[PacketHeader, int]],
) -> None:
    core = VsockCore(US)
    core.listen(5000, backlog=3)
    connections = [core.connect(80), core.connect(81)]
    for header, size in packets:
        core.heard(header.to_bytes() + bytes(size))
        for connection in connections:
            assert len(connection.received) <= BUFFER
            sent_now = connection.send(memoryview(bytes(100)))
            assert 0 <= sent_now <= 100
            assert connection.state is State.OPEN or sent_now == 0
        # To each packet there is at most one answer, beside what we send ourselves.
        assert len(core.outgoing) <= 5
        core.outgoing.clear()
