"""The driver of the CAN controller (virtio 1.4, section "CAN Device")."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from xenvirt.errors import RequestFailedError, RequestUnsupportedError, ResponseError
from xenvirt.virtio.can import (
    CLASSIC_DATA_SIZE,
    FD_DATA_SIZE,
    CanConfig,
    CanFeature,
    Control,
    ControllerStatus,
    Frame,
    FrameFlag,
    MessageType,
    Result,
)
from xenvirt.virtio.features import Feature
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.rings import largest_ring
from xenvirt.virtio.structure import Structure

from .driver import AsyncDriver, Driver, DriverCore
from .receiver import LINKS_TIMEOUT, AsyncReceiver, Receiver
from .request import Answer, AsyncLink, Link, LinkInfo, Request

TRANSMIT_QUEUE, RECEIVE_QUEUE, CONTROL_QUEUE = 0, 1, 2

FD_SIZES: Final = (*range(9), 12, 16, 20, 24, 32, 48, 64)
"""How many bytes of data an FD frame can have (ISO 11898-1)."""


@dataclass(frozen=True)
class CanFrame:
    """A frame on the bus.

    Raises:
        ValueError: the identifier or the length is none that CAN has.
    """

    id: int
    """11 bits, 29 if `extended`."""
    data: bytes = b""
    """At most 8 bytes, of an FD frame 12, 16, 20, 24, 32, 48 or 64 too."""
    extended: bool = False
    fd: bool = False
    remote: bool = False
    """A request for data (RTR): `data` is as long as what is asked for, and its bytes do not count."""

    def __post_init__(self) -> None:
        bits = 29 if self.extended else 11
        if not 0 <= self.id < 1 << bits:
            raise ValueError(f"CAN identifier {self.id:#x}: {bits} bits it has")
        if len(self.data) not in (FD_SIZES if self.fd else FD_SIZES[: CLASSIC_DATA_SIZE + 1]):
            kind = f"an FD frame has one of {FD_SIZES}" if self.fd else "a classic frame has at most 8"
            raise ValueError(f"{len(self.data)} bytes of data: {kind}")
        if self.remote and self.fd:
            raise ValueError("there is no remote frame of CAN FD")


class CanCore(DriverCore):
    """What the blocking driver and that of asyncio have in common: the requests.

    Attributes:
        config: the configuration space, as it was when it was read last.
    """

    device_id: ClassVar[DeviceId] = DeviceId.CAN
    wanted_features: ClassVar[int] = (
        CanFeature.CAN_CLASSIC | CanFeature.CAN_FD | CanFeature.RTR_FRAMES | CanFeature.LATE_TX_ACK
    )
    avoided_features: ClassVar[int] = Feature.EVENT_IDX  # vhost-device-can 0.1.0 loses buffers with it
    config_structure: ClassVar[type[Structure] | None] = CanConfig

    config: CanConfig
    _receive_buffers: int = 0

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:  # noqa: ARG002 - three queues, whatever the link
        return (largest_ring(self.device_id),) * 3

    def _started(self, link: LinkInfo, space: bytes) -> None:
        super()._started(link, space)
        self.config = CanConfig.from_bytes(space)

    @property
    def bus_off(self) -> bool:
        """True if the controller had left the bus, when the configuration space was read last."""
        return bool(self.config.status & ControllerStatus.BUSOFF)

    def send_request(self, frame: CanFrame) -> Request[None]:
        """Sends a frame.

        Raises:
            RequestUnsupportedError: this kind of frame was not negotiated.
        """
        feature = CanFeature.CAN_FD if frame.fd else CanFeature.CAN_CLASSIC
        if frame.remote:
            feature |= CanFeature.RTR_FRAMES
        if int(self.features) & feature != feature:
            raise RequestUnsupportedError(
                f"the controller cannot send {frame}: {feature!r} is needed, and features "
                f"{self.features:#x} were negotiated"
            )
        flags = FrameFlag(0)
        if frame.extended:
            flags |= FrameFlag.EXTENDED
        if frame.fd:
            flags |= FrameFlag.FD
        if frame.remote:
            flags |= FrameFlag.RTR
        header = Frame(MessageType.TX, len(frame.data), flags=flags, can_id=frame.id)
        return _request(TRANSMIT_QUEUE, header.to_bytes() + frame.data, f"sending {frame}")

    @staticmethod
    def control_request(message: MessageType) -> Request[None]:
        """SET_CTRL_MODE_START or SET_CTRL_MODE_STOP."""
        return _request(CONTROL_QUEUE, Control(message).to_bytes(), message.name)

    @staticmethod
    def receive_request() -> Request[CanFrame]:
        """A buffer for one frame, always large enough for CAN FD."""

        def parse(answer: Answer) -> CanFrame:
            data = answer.data()
            header = Frame.from_bytes(data)
            payload = data[Frame.size() : Frame.size() + header.length]
            if header.msg_type != MessageType.RX or len(payload) < header.length:
                raise ResponseError(
                    f"the CAN controller wrote {len(data)} bytes as a received frame: {header}",
                    header.msg_type,
                )
            try:
                return CanFrame(
                    header.can_id,
                    payload,
                    bool(header.flags & FrameFlag.EXTENDED),
                    bool(header.flags & FrameFlag.FD),
                    bool(header.flags & FrameFlag.RTR),
                )
            except ValueError as error:
                raise ResponseError(f"the CAN controller received no frame that exists: {error}") from error

        return Request(RECEIVE_QUEUE, (), (Frame.size() + FD_DATA_SIZE,), parse, "frame of the CAN bus")


def _request(queue: int, message: bytes, what: str) -> Request[None]:
    def parse(answer: Answer) -> None:
        result = answer.buffers[0][0]
        if result == Result.NOT_OK:
            raise RequestFailedError(f"{what}: the controller answered NOT_OK", result)
        if result != Result.OK:
            raise ResponseError(
                f"{what}: the device wrote no result, or one that does not exist ({result:#x})", result
            )

    return Request(queue, (message,), (1,), parse, what)


class CanDriver(CanCore, Driver):
    """Sends and receives CAN frames.

    ::

        with connect("can.sock0") as link, CanDriver(link) as can:
            can.start()
            can.send(CanFrame(0x123, b"hello"))
            print(can.receive())

    Args:
        link: what :func:`xenvirt.connect` gave.
        receive_buffers: how many buffers the controller has for received frames. More take bursts better. By
            default it gets one with each :meth:`receive` that has to wait: vhost-device-can 0.1.0 loses the
            buffers that it has no frame for. What comes in between waits there.

    Raises, in each operation:
        RequestFailedError: the controller answered NOT_OK: it is stopped, or off the bus.
        ResponseError: the answer makes no sense.
        LinkTimeoutError: there was none in time.
    """

    def __init__(self, link: Link, *, receive_buffers: int = 0) -> None:
        super().__init__(link)
        self._received = Receiver(link, self.receive_request, receive_buffers)

    def start(self) -> None:
        """Starts the controller; before, nothing is sent or received."""
        self.link.run(self.control_request(MessageType.SET_CTRL_MODE_START))

    def stop(self) -> None:
        """Stops the controller."""
        self.link.run(self.control_request(MessageType.SET_CTRL_MODE_STOP))

    def send(self, frame: CanFrame) -> None:
        """Sends a frame; returns when the controller has taken it, with LATE_TX_ACK when it was on the bus.

        Raises:
            RequestUnsupportedError: this kind of frame was not negotiated.
        """
        self.link.run(self.send_request(frame))

    def receive(self, timeout: float | None = LINKS_TIMEOUT) -> CanFrame:
        """Waits for the next frame, at most `timeout` seconds; by default as long as the link does."""
        return self._received.get(timeout)

    def refresh(self) -> CanConfig:
        """Reads the configuration space again: did the controller leave the bus?"""
        self._started(self.link, self.link.config(0, CanConfig.size()))
        return self.config


class AsyncCanDriver(CanCore, AsyncDriver):
    """Sends and receives CAN frames, for asyncio; ``async for frame in can`` receives them all.

    Args:
        link: what :func:`xenvirt.connect_async` gave.
        receive_buffers: as in :class:`CanDriver`.
    """

    def __init__(self, link: AsyncLink, *, receive_buffers: int = 0) -> None:
        super().__init__(link)
        self._receive_buffers = receive_buffers

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._received = await AsyncReceiver.start(self.link, self.receive_request, self._receive_buffers)
        return self

    async def start(self) -> None:
        """As :meth:`CanDriver.start`."""
        await self.link.run(self.control_request(MessageType.SET_CTRL_MODE_START))

    async def stop(self) -> None:
        """As :meth:`CanDriver.stop`."""
        await self.link.run(self.control_request(MessageType.SET_CTRL_MODE_STOP))

    async def send(self, frame: CanFrame) -> None:
        """As :meth:`CanDriver.send`."""
        await self.link.run(self.send_request(frame))

    async def receive(self, timeout: float | None = LINKS_TIMEOUT) -> CanFrame:
        """As :meth:`CanDriver.receive`."""
        return await self._received.get(timeout)

    async def refresh(self) -> CanConfig:
        """As :meth:`CanDriver.refresh`."""
        self._started(self.link, await self.link.config(0, CanConfig.size()))
        return self.config

    async def __aiter__(self) -> AsyncIterator[CanFrame]:
        while True:
            yield await self._received.get(None)
