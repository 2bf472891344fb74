"""The driver of the input device (virtio 1.3, section 5.8)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import ClassVar, Final, Self

from xenvirt.errors import ResponseError
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.input import AbsInfo, ConfigSelect, DeviceIds, InputConfig, InputEvent

from .driver import AsyncDriver, Driver, DriverCore
from .receiver import LINKS_TIMEOUT, AsyncReceiver, Receiver
from .request import Answer, AsyncLink, Link, LinkInfo, Request

EVENT_QUEUE, STATUS_QUEUE = 0, 1
EVENT_BUFFERS = 64

EV_SYN: Final = 0
SYN_REPORT: Final = 0


class InputCore(DriverCore):
    """What the blocking driver and that of asyncio have in common: the requests."""

    device_id: ClassVar[DeviceId] = DeviceId.INPUT

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:  # noqa: ARG002 - two queues, whatever the link
        return (EVENT_BUFFERS, EVENT_BUFFERS)

    @staticmethod
    def event_request() -> Request[InputEvent]:
        """A buffer for one event."""

        def parse(answer: Answer) -> InputEvent:
            if answer.used != InputEvent.size():
                raise ResponseError(f"the input device wrote {answer.used} bytes as an event of 8")
            return InputEvent.from_bytes(answer.buffers[0])

        return Request(EVENT_QUEUE, (), (InputEvent.size(),), parse, "event of the input device")

    @staticmethod
    def status_request(event: InputEvent) -> Request[None]:
        """Sends an event to the device, for instance to a light."""
        return Request(STATUS_QUEUE, (event.to_bytes(),), (), lambda _: None, f"status {event}")

    @staticmethod
    def _window(select: int, subsel: int, space: bytes) -> bytes:
        """What the configuration space shows."""
        config = InputConfig.from_bytes(space)
        if config.length > len(config.data):
            raise ResponseError(
                f"the input device shows {config.length} bytes of at most {len(config.data)} for select "
                f"{select:#x}, subsel {subsel:#x}"
            )
        return config.data[: config.length]


def _bits(data: bytes) -> set[int]:
    mask = int.from_bytes(data, "little")
    return {bit for bit in range(mask.bit_length()) if mask >> bit & 1}


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


class InputDriver(InputCore, Driver):
    """Reads the events of a keyboard, a mouse or any other input device, and asks what it is.

    ::

        with connect("input.sock0") as link, InputDriver(link) as keyboard:
            print(keyboard.name(), sorted(keyboard.event_codes(1)))
            for event in keyboard.receive_report():
                print(event)

    Types and codes of events are those of Linux (linux/input-event-codes.h).

    Raises, in each operation:
        ResponseError: the answer makes no sense.
        LinkTimeoutError: there was none in time.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._events = Receiver(link, self.event_request, EVENT_BUFFERS)
        self._report: list[InputEvent] = []

    def query(self, select: int, subsel: int = 0) -> bytes:
        """What the configuration space shows for a :class:`~xenvirt.virtio.input.ConfigSelect`; nothing if
        the device has nothing to say (section 5.8.5.1).
        """
        self.link.write_config(0, bytes([select, subsel]))
        return self._window(select, subsel, self.link.config(0, InputConfig.size()))

    def name(self) -> str:
        """What the device calls itself."""
        return _text(self.query(ConfigSelect.ID_NAME))

    def serial(self) -> str:
        """Its serial number."""
        return _text(self.query(ConfigSelect.ID_SERIAL))

    def ids(self) -> DeviceIds:
        """Who made it."""
        return DeviceIds.from_bytes(self.query(ConfigSelect.ID_DEVIDS))

    def properties(self) -> set[int]:
        """Its properties (INPUT_PROP_*)."""
        return _bits(self.query(ConfigSelect.PROP_BITS))

    def event_codes(self, event_type: int) -> set[int]:
        """The codes that it can send of a type of events; none if it does not send that type."""
        return _bits(self.query(ConfigSelect.EV_BITS, event_type))

    def abs_info(self, axis: int) -> AbsInfo | None:
        """The range of an absolute axis; None if it has no such axis."""
        data = self.query(ConfigSelect.ABS_INFO, axis)
        return AbsInfo.from_bytes(data) if data else None

    def receive(self, timeout: float | None = LINKS_TIMEOUT) -> InputEvent:
        """Waits for the next event, at most `timeout` seconds; by default as long as the link does."""
        return self._events.get(timeout)

    def receive_report(self, timeout: float | None = LINKS_TIMEOUT) -> list[InputEvent]:
        """Waits for the events that belong together: up to SYN_REPORT, which is left out."""
        while True:
            event = self._events.get(timeout)
            if (event.type, event.code) == (EV_SYN, SYN_REPORT):
                report, self._report = self._report, []
                return report
            self._report.append(event)

    def send(self, event: InputEvent) -> None:
        """Sends an event to the device, for instance to a light; returns when it has taken it."""
        self.link.run(self.status_request(event))


class AsyncInputDriver(InputCore, AsyncDriver):
    """Reads the events of an input device, for asyncio; ``async for event in device`` receives them all."""

    def __init__(self, link: AsyncLink) -> None:
        super().__init__(link)
        self._report: list[InputEvent] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._events = await AsyncReceiver.start(self.link, self.event_request, EVENT_BUFFERS)
        return self

    async def query(self, select: int, subsel: int = 0) -> bytes:
        """As :meth:`InputDriver.query`."""
        await self.link.write_config(0, bytes([select, subsel]))
        return self._window(select, subsel, await self.link.config(0, InputConfig.size()))

    async def name(self) -> str:
        """As :meth:`InputDriver.name`."""
        return _text(await self.query(ConfigSelect.ID_NAME))

    async def serial(self) -> str:
        """As :meth:`InputDriver.serial`."""
        return _text(await self.query(ConfigSelect.ID_SERIAL))

    async def ids(self) -> DeviceIds:
        """As :meth:`InputDriver.ids`."""
        return DeviceIds.from_bytes(await self.query(ConfigSelect.ID_DEVIDS))

    async def properties(self) -> set[int]:
        """As :meth:`InputDriver.properties`."""
        return _bits(await self.query(ConfigSelect.PROP_BITS))

    async def event_codes(self, event_type: int) -> set[int]:
        """As :meth:`InputDriver.event_codes`."""
        return _bits(await self.query(ConfigSelect.EV_BITS, event_type))

    async def abs_info(self, axis: int) -> AbsInfo | None:
        """As :meth:`InputDriver.abs_info`."""
        data = await self.query(ConfigSelect.ABS_INFO, axis)
        return AbsInfo.from_bytes(data) if data else None

    async def receive(self, timeout: float | None = LINKS_TIMEOUT) -> InputEvent:
        """As :meth:`InputDriver.receive`."""
        return await self._events.get(timeout)

    async def receive_report(self, timeout: float | None = LINKS_TIMEOUT) -> list[InputEvent]:
        """As :meth:`InputDriver.receive_report`."""
        while True:
            event = await self._events.get(timeout)
            if (event.type, event.code) == (EV_SYN, SYN_REPORT):
                report, self._report = self._report, []
                return report
            self._report.append(event)

    async def send(self, event: InputEvent) -> None:
        """As :meth:`InputDriver.send`."""
        await self.link.run(self.status_request(event))

    async def __aiter__(self) -> AsyncIterator[InputEvent]:
        while True:
            yield await self._events.get(None)
