"""The CAN driver: frames as the wire has them, both ways, and the controller's life."""

from __future__ import annotations

import asyncio

import pytest

from xenvirt.drivers import AsyncCanDriver, CanDriver, CanFrame
from xenvirt.errors import LinkTimeoutError, RequestFailedError, RequestUnsupportedError, ResponseError
from xenvirt.virtio import Feature
from xenvirt.virtio.can import CanFeature, Control, ControllerStatus, Frame, FrameFlag, MessageType, Result

from .fake_link import FakeAsyncLink, FakeLink

ALL = CanFeature.CAN_CLASSIC | CanFeature.CAN_FD | CanFeature.RTR_FRAMES


class Bus:
    """A controller, and the bus that it is on."""

    def __init__(self, features: int = ALL) -> None:
        self.link = FakeLink(self, Feature.VERSION_1 | features, space=bytearray(2))
        self.running = False
        self.result: int | None = None
        self.sent: list[tuple[Frame, bytes]] = []
        self.coming: list[bytes] = []

    def __call__(self, queue: int, readable: bytes, writable: list[bytearray]) -> int | None:
        if queue == 1:
            if not self.coming:
                return None
            data = self.coming.pop(0)
            writable[0][: len(data)] = data
            return len(data)
        if queue == 2:
            self.running = Control.from_bytes(readable).msg_type == MessageType.SET_CTRL_MODE_START
            writable[0][0] = Result.OK
        else:
            self.sent.append((Frame.from_bytes(readable), readable[Frame.size() :]))
            writable[0][0] = Result.OK if self.running else Result.NOT_OK
        if self.result is not None:
            writable[0][0] = self.result
        return 1

    def arrive(self, can_id: int, data: bytes, flags: int = 0) -> None:
        """A frame comes, in a buffer of 80 bytes as most devices write it."""
        header = Frame(MessageType.RX, len(data), flags=flags, can_id=can_id)
        self.coming.append((header.to_bytes() + data).ljust(80, b"\0"))


def test_frames_go_out_as_the_wire_has_them() -> None:
    bus = Bus()
    can = CanDriver(bus.link)
    assert bus.link.started == (64, 64, 64), "vhost-device-can takes no larger ring"
    can.start()
    can.send(CanFrame(0x123, b"hello"))
    can.send(CanFrame(0x1ABCDEF0, bytes(48), extended=True, fd=True))
    can.send(CanFrame(7, bytes(3), remote=True))
    assert bus.sent == [
        (Frame(MessageType.TX, 5, can_id=0x123), b"hello"),
        (
            Frame(MessageType.TX, 48, flags=FrameFlag.FD | FrameFlag.EXTENDED, can_id=0x1ABCDEF0),
            bytes(48),
        ),
        (Frame(MessageType.TX, 3, flags=FrameFlag.RTR, can_id=7), bytes(3)),
    ]


def test_frames_come_in_one_after_the_other() -> None:
    bus = Bus()
    can = CanDriver(bus.link)
    bus.arrive(0x123, b"one")
    bus.arrive(0x1ABCDEF0, bytes(range(64)), FrameFlag.FD | FrameFlag.EXTENDED)
    bus.arrive(5, b"", FrameFlag.RTR)
    assert can.receive() == CanFrame(0x123, b"one")
    assert can.receive() == CanFrame(0x1ABCDEF0, bytes(range(64)), extended=True, fd=True)
    assert can.receive() == CanFrame(5, remote=True)
    with pytest.raises(LinkTimeoutError, match=r"within 0.01 s: frame of the CAN bus"):
        can.receive(0.01)
    bus.arrive(6, b"late")
    assert can.receive() == CanFrame(6, b"late")


def test_the_device_has_as_many_buffers_as_asked() -> None:
    bus = Bus()
    bus.arrive(1, b"x")
    can = CanDriver(bus.link, receive_buffers=16)
    assert len(bus.link.waiting) == 16
    can.receive()
    assert len(bus.link.waiting) == 16


def test_without_buffers_the_device_gets_one_while_somebody_waits() -> None:
    bus = Bus()
    bus.link.offered_features |= Feature.EVENT_IDX
    can = CanDriver(bus.link)
    assert not can.features & Feature.EVENT_IDX, "vhost-device-can loses buffers with it"
    assert bus.link.waiting == []
    bus.arrive(1, b"x")
    can.receive()
    assert bus.link.waiting == []
    for lent in (1, 2):
        with pytest.raises(LinkTimeoutError):
            can.receive(0.01)
        assert len(bus.link.waiting) == lent, "the device may have lost the one before"
    bus.arrive(2, b"y")
    assert can.receive().id == 2
    for _ in range(40):
        with pytest.raises(LinkTimeoutError):
            can.receive(0)
    assert len(bus.link.waiting) == 32


def test_a_stopped_controller_sends_nothing() -> None:
    bus = Bus()
    can = CanDriver(bus.link)
    can.start()
    can.stop()
    with pytest.raises(RequestFailedError, match=r"sending CanFrame.id=1.* the controller answered NOT_OK"):
        can.send(CanFrame(1))
    bus.result = 0xA5
    with pytest.raises(ResponseError, match="SET_CTRL_MODE_START: the device wrote no result"):
        can.start()


def test_what_was_not_negotiated_is_refused_without_asking() -> None:
    bus = Bus(CanFeature.CAN_CLASSIC)
    can = CanDriver(bus.link)
    can.start()
    can.send(CanFrame(1))
    for frame in (CanFrame(1, fd=True), CanFrame(1, remote=True)):
        with pytest.raises(RequestUnsupportedError, match="the controller cannot send"):
            can.send(frame)
    assert len(bus.sent) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 0x800},
        {"id": 1 << 29, "extended": True},
        {"id": -1},
        {"id": 1, "data": bytes(9)},
        {"id": 1, "data": bytes(9), "fd": True},
        {"id": 1, "data": bytes(65), "fd": True},
        {"id": 1, "fd": True, "remote": True},
    ],
)
def test_what_is_no_frame_cannot_be_made(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"bits it has|bytes of data|no remote frame"):
        CanFrame(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        Frame(MessageType.TX, 0).to_bytes(),
        Frame(MessageType.RX, 8).to_bytes() + b"short",
        Frame(MessageType.RX, 0, can_id=0x800).to_bytes(),
        Frame(MessageType.RX, 9).to_bytes() + bytes(9),
    ],
)
def test_what_comes_and_is_no_frame_is_an_error_and_the_next_one_is_received(nonsense: bytes) -> None:
    bus = Bus()
    can = CanDriver(bus.link)
    bus.coming.append(nonsense)
    bus.arrive(1, b"good")
    with pytest.raises(ResponseError, match="the CAN controller"):
        can.receive()
    assert can.receive() == CanFrame(1, b"good")


def test_a_controller_that_left_the_bus_says_so() -> None:
    bus = Bus()
    can = CanDriver(bus.link)
    assert not can.bus_off
    bus.link.space[:] = ControllerStatus.BUSOFF.to_bytes(2, "little")
    can.refresh()
    assert can.bus_off


def test_the_driver_of_asyncio_does_the_same() -> None:
    async def use() -> list[CanFrame]:
        bus = Bus()
        link = FakeAsyncLink(bus.link)
        async with AsyncCanDriver(link, receive_buffers=2) as can:
            await can.start()
            await can.send(CanFrame(1, b"out"))
            assert bus.sent[0][1] == b"out"
            for number in range(3):
                bus.arrive(number, b"x")
            link.poke()
            frames = [await can.receive()]
            async for frame in can:
                frames.append(frame)
                if len(frames) == 3:
                    break
            with pytest.raises(LinkTimeoutError):
                await can.receive(0.01)
            await can.stop()
            assert not (await can.refresh()).status
            return frames

    assert asyncio.run(use()) == [CanFrame(number, b"x") for number in range(3)]
