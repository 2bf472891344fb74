"""The network device, driven in process by our driver."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from xenvirt import Device, Link, connect, connect_async
from xenvirt.devices import CableEnd, NetBackend, NetDevice, Sink, cable
from xenvirt.drivers import AsyncNetDriver, NetDriver
from xenvirt.drivers.request import Answer, Request
from xenvirt.errors import DeviceFailedError, LinkTimeoutError, RequestFailedError, RequestUnsupportedError
from xenvirt.virtio import Feature
from xenvirt.virtio.net import LinkStatus, NetConfig, NetFeature, PacketHeader, ReceiveCommand

ONE, OTHER, STRANGER = (bytes.fromhex(f"5254000000{number:02x}") for number in (1, 2, 3))
GROUP, BROADCAST = bytes.fromhex("01005e000001"), b"\xff" * 6


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def drive(stack: ExitStack, device: Device, timeout: float = 5.0) -> tuple[Link, NetDriver]:
    link = stack.enter_context(connect(device, timeout=timeout))
    return link, stack.enter_context(NetDriver(link))


def wired(stack: ExitStack, pairs: int = 1) -> tuple[tuple[Link, NetDriver], tuple[Link, NetDriver]]:
    ends = cable(pairs=pairs)
    macs = (ONE, OTHER)
    one, other = (NetDevice(end, mac=mac) for end, mac in zip(ends, macs, strict=True))
    return drive(stack, one, timeout=0.3), drive(stack, other, timeout=0.3)


def frame(to: bytes, payload: bytes, source: bytes = STRANGER) -> bytes:
    return to + source + b"\x88\xb5" + payload


def test_a_sink_counts_what_it_drops(stack: ExitStack) -> None:
    sink = Sink()
    _, net = drive(stack, NetDevice(sink, mac="52:54:00:00:00:01", mtu=9000))
    assert (net.mac, net.config.mtu, net.config.status) == (ONE, 9000, LinkStatus.LINK_UP)
    frames = [frame(BROADCAST, bytes(size)) for size in range(46, 1046)]
    net.send_all(frames)
    assert (sink.frames, sink.octets) == (len(frames), sum(map(len, frames)))


def test_frames_cross_a_cable_both_ways(stack: ExitStack) -> None:
    (_, one), (_, other) = wired(stack)
    for number in range(300):
        one.send(frame(OTHER, b"there %d" % number))
        other.send(frame(ONE, b"back %d" % number))
        assert other.receive() == frame(OTHER, b"there %d" % number)
        assert one.receive() == frame(ONE, b"back %d" % number)


@pytest.mark.parametrize("size", [60, 1514, 2036, 2037, 4084, 4085, 9014, 65549])
def test_a_long_frame_spans_receive_buffers(stack: ExitStack, size: int) -> None:
    (_, one), (_, other) = wired(stack)
    sent = frame(OTHER, bytes(number % 251 for number in range(size - 14)))
    one.send(sent)
    header, received = other.receive_packet()
    assert received == sent
    assert header == PacketHeader(num_buffers=-(-(size + 12) // 2048))


def test_frames_wait_for_a_driver_that_has_no_buffers(stack: ExitStack) -> None:
    (_, one), (_, other) = wired(stack)
    frames = [frame(OTHER, b"%d" % number) for number in range(600)]
    one.send_all(frames)
    assert [other.receive() for _ in frames] == frames


def test_what_a_cable_cannot_hold_is_dropped_and_counted(stack: ExitStack) -> None:
    ends = cable()
    _, one = drive(stack, NetDevice(ends[0]))
    one.send(frame(OTHER, b"nobody is there"))
    assert ends[1].dropped == 1
    _, other = drive(stack, NetDevice(ends[1], mac=OTHER), timeout=0.2)
    one.send_all([frame(OTHER, b"%d" % number) for number in range(2000)])
    with pytest.raises(LinkTimeoutError):
        receive_until_timeout(other)
    assert ends[1].dropped > 1


def receive_until_timeout(net: NetDriver) -> None:
    """Receives for ever: the end is an error. What comes is in order, from the first on."""
    for number in itertools.count():
        assert net.receive() == frame(OTHER, b"%d" % number)


def test_receive_modes_decide_what_comes(stack: ExitStack) -> None:
    (_, one), (_, other) = wired(stack)

    def passed() -> list[bytes]:
        for to in (OTHER, STRANGER, GROUP, BROADCAST):
            one.send(frame(to, b"?"))
        one.send(frame(OTHER, b"end") if ReceiveCommand.NOUNI not in off else frame(BROADCAST, b"end"))
        came = []
        while (received := other.receive())[14:] != b"end":
            came.append(received[:6])
        return came

    off: set[ReceiveCommand] = set()
    assert passed() == [OTHER, STRANGER, GROUP, BROADCAST]
    other.set_mode(ReceiveCommand.PROMISC, False)
    assert passed() == [OTHER, BROADCAST]
    other.set_mode(ReceiveCommand.ALLMULTI, True)
    assert passed() == [OTHER, GROUP, BROADCAST]
    other.set_mode(ReceiveCommand.ALLMULTI, False)
    other.set_addresses([STRANGER], [GROUP])
    assert passed() == [OTHER, STRANGER, GROUP, BROADCAST]
    other.set_addresses([], [])
    other.set_mode(ReceiveCommand.NOBCAST, True)
    assert passed() == [OTHER]
    other.set_mode(ReceiveCommand.NOBCAST, False)
    other.set_mode(ReceiveCommand.NOUNI, True)
    off.add(ReceiveCommand.NOUNI)
    assert passed() == [BROADCAST]
    other.set_mode(ReceiveCommand.NOUNI, False)
    off.clear()
    other.set_mac(STRANGER)
    one.send(frame(OTHER, b"to the old address"))
    one.send(frame(STRANGER, b"to the new one"))
    assert other.receive() == frame(STRANGER, b"to the new one")


def test_a_table_of_addresses_that_is_cut_short_is_refused(stack: ExitStack) -> None:
    _, net = drive(stack, NetDevice(Sink()))
    with pytest.raises(RequestFailedError, match="table"):
        net.link.run(net.command_request(1, 0, b"\x02\0\0\0" + ONE, "set half a table"))
    with pytest.raises(RequestFailedError, match="no such"):
        net.link.run(net.command_request(99, 0, b"\0", "do no such thing"))
    with pytest.raises(RequestFailedError):
        net.link.run(net.command_request(0, 0, b"", "say no mode"))


def test_a_command_without_room_for_its_status_does_no_harm(stack: ExitStack) -> None:
    _, net = drive(stack, NetDevice(Sink()))
    net.link.run(Request(2, [b"\0\0\1"], [], lambda answer: answer.used, "command"))
    net.link.run(Request(2, [b"\0"], [1], _expect_refusal, "command cut short"))
    net.set_mode(ReceiveCommand.PROMISC, True)


def _expect_refusal(answer: Answer) -> None:
    assert answer.buffers == [b"\1"]


def test_the_pairs_in_use_are_set(stack: ExitStack) -> None:
    asked: list[int] = []

    class Backend(Sink):
        def set_pairs(self, pairs: int) -> None:
            asked.append(pairs)

    link, net = drive(stack, NetDevice(Backend(pairs=3)))
    assert (net.max_pairs, link.queue_count) == (3, 7)
    net.set_pairs(3)
    for refused in (0, 4):
        with pytest.raises(RequestFailedError, match="pairs"):
            net.set_pairs(refused)
    assert asked == [1, 3]
    for pair in range(3):
        net.send(frame(BROADCAST, b"."), pair=pair)


def test_each_pair_of_a_cable_comes_out_where_the_driver_listens(stack: ExitStack) -> None:
    (_, one), (_, other) = wired(stack, pairs=2)
    one.set_pairs(2)
    other.set_pairs(2)
    one.send(frame(OTHER, b"first"), pair=0)
    one.send(frame(OTHER, b"second"), pair=1)
    assert other.receive(pair=1) == frame(OTHER, b"second")
    assert other.receive(pair=0) == frame(OTHER, b"first")


def test_a_driver_without_mergeable_buffers_gets_what_fits(stack: ExitStack) -> None:
    class Plain(NetDriver):
        wanted_features = NetFeature.MAC

    ends = cable()
    devices = [NetDevice(end, mac=OTHER) for end in ends]
    _, one = drive(stack, devices[0])
    net = Plain(stack.enter_context(connect(devices[1])))
    with pytest.raises(RequestUnsupportedError, match="CTRL_RX"):
        net.set_mode(ReceiveCommand.PROMISC, False)
    one.send(frame(OTHER, bytes(1500)))
    one.send(frame(OTHER, bytes(1501)))
    one.send(frame(OTHER, b"next"))
    assert net.receive() == frame(OTHER, bytes(1500))
    header, received = net.receive_packet()
    assert (header.num_buffers, received) == (1, frame(OTHER, b"next"))
    assert devices[1].dropped == 1


def test_a_legacy_driver_has_a_header_of_ten_bytes(stack: ExitStack) -> None:
    ends, sink = cable(), Sink()
    _, one = drive(stack, NetDevice(ends[0]))
    with connect(NetDevice(ends[1])) as link:
        link.start(NetFeature.MAC, (64, 64))
        buffer = link.submit(Request(0, [], [100], lambda answer: answer.data(), "packet"))
        one.send(frame(OTHER, b"old"))
        assert buffer.result() == bytes(10) + frame(OTHER, b"old")
        link.run(Request(1, [bytes(10) + frame(ONE, b"older")], [], lambda _: None, "frame"))
        assert one.receive() == frame(ONE, b"older")
    with connect(NetDevice(sink)) as link:
        link.start(NetFeature.MAC, (64, 64))
        link.run(Request(1, [bytes(10) + frame(ONE, b"older")], [], lambda _: None, "frame"))
    assert (sink.frames, sink.octets) == (1, 19)


def test_a_frame_without_a_whole_header_goes_nowhere(stack: ExitStack) -> None:
    (link, one), (_, other) = wired(stack)
    for size in (1, 11, 12):
        link.run(Request(1, [bytes(size)], [], lambda _: None, "no frame"))
    one.send(frame(OTHER, b"a frame"))
    assert other.receive() == frame(OTHER, b"a frame")


def test_a_frame_that_is_too_long_for_any_network_goes_nowhere(stack: ExitStack) -> None:
    (_, one), (_, other) = wired(stack)
    one.send(frame(OTHER, bytes(70_000)))
    one.send(frame(OTHER, b"a frame"))
    assert other.receive() == frame(OTHER, b"a frame")


def test_the_link_goes_down_and_up(stack: ExitStack) -> None:
    device = NetDevice(Sink())
    link, net = drive(stack, device)
    device.set_link(False)
    link.wait_for(lambda: link.config_changes == 1, "the link to go down")
    assert net.refresh() == NetConfig(mac=device.mac, status=LinkStatus(0), max_virtqueue_pairs=1)
    device.set_link(True)
    assert net.refresh().status == LinkStatus.LINK_UP


def test_a_broken_ring_at_one_end_of_a_cable_leaves_the_other_alone(stack: ExitStack) -> None:
    (_, one), (link, _other) = wired(stack)
    link.submit(Request(2, [b"\0\0\1"], [1], lambda _: None, "command"))
    link.close()
    one.send(frame(OTHER, b"nobody"))
    one.send(frame(OTHER, b"nobody"))


def test_several_queues_mean_mq_and_one_pair_does_not() -> None:
    for pairs in (1, 2):
        with connect(NetDevice(Sink(pairs=pairs))) as link:
            assert bool(link.offered_features & NetFeature.MQ) == (pairs > 1)
            assert link.offered_features & Feature.VERSION_1


def test_what_a_backend_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="this Sink has 1"):
        NetDevice(Sink(), pairs=2)
    with pytest.raises(ValueError, match="between 1 and 127"):
        NetDevice(Sink(), pairs=0)
    with pytest.raises(ValueError, match="one thread"):
        NetDevice(NetBackend(), thread_per_queue=True)


@pytest.mark.parametrize("mac", ["", "52:54:00:00:00", "01:00:5e:00:00:01", b"short", "no address"])
def test_what_is_no_address_of_an_interface_is_refused(mac: str | bytes) -> None:
    with pytest.raises(ValueError, match="no address of an interface"):
        NetDevice(Sink(), mac=mac)


def test_two_devices_have_two_addresses() -> None:
    assert NetDevice(Sink()).mac != NetDevice(Sink()).mac
    assert NetDevice(Sink()).mac[0] & 3 == 2


def test_a_backend_has_to_say_what_it_does_with_frames(stack: ExitStack) -> None:
    link = stack.enter_context(connect(NetDevice(NetBackend())))
    with pytest.raises(DeviceFailedError, match="NetBackend has no transmit"):
        NetDriver(link)


def test_on_asyncio_frames_and_commands_are_the_same() -> None:
    ends: tuple[CableEnd, CableEnd] = cable(pairs=2)

    async def talk() -> None:
        async with (
            await connect_async(NetDevice(ends[0], mac=ONE)) as one_link,
            await connect_async(NetDevice(ends[1], mac=OTHER)) as other_link,
            AsyncNetDriver(one_link) as one,
            AsyncNetDriver(other_link) as other,
        ):
            receiving = asyncio.create_task(other.receive())
            await one.send(frame(OTHER, bytes(5000)))
            assert await receiving == frame(OTHER, bytes(5000))
            await one.set_pairs(2)
            await other.set_pairs(2)
            await other.set_mac(STRANGER)
            await other.set_addresses([ONE], [GROUP])
            await other.set_mode(ReceiveCommand.PROMISC, False)
            await one.send(frame(OTHER, b"not any more"), pair=1)
            await one.send(frame(ONE, b"in the table"), pair=1)
            assert await other.receive(pair=1) == frame(ONE, b"in the table")

    asyncio.run(talk())
