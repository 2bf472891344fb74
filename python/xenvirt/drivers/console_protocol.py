"""What the drivers of the console have in common: the ports, and what is said about them (virtio 1.3,
section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from xenvirt.errors import ResponseError
from xenvirt.virtio.console import (
    BAD_ID,
    ConsoleConfig,
    ConsoleFeature,
    Control,
    ControlEvent,
    ControlResize,
)
from xenvirt.virtio.ids import DeviceId

from .driver import DriverCore, Plan
from .request import Answer, LinkInfo, Request

if TYPE_CHECKING:
    from typing_extensions import Buffer

CONTROL_RECEIVE: Final = 2
CONTROL_TRANSMIT: Final = 3
RING: Final = 64
"""Descriptors of each queue."""
BUFFERS: Final = 16
"""How many buffers a port's input, or the control messages, find at a time."""
BUFFER: Final = 4096
"""The size of one in bytes, and the most that is written at once."""


@dataclass
class ConsolePort:
    """What the device has said of a port."""

    number: int
    name: str = ""
    console: bool = False
    """A console, and not a plain channel."""
    open: bool = False
    """The device's end is open."""
    size: tuple[int, int] | None = None
    """Columns and rows, once the device has told them."""


class ConsoleProtocol(DriverCore):
    """The requests, and what is known of the ports.

    Attributes:
        ports: the ports by number; port 0 alone without MULTIPORT. They come as the device tells of them.
    """

    device_id: ClassVar[DeviceId] = DeviceId.CONSOLE
    wanted_features: ClassVar[int] = (
        ConsoleFeature.SIZE | ConsoleFeature.MULTIPORT | ConsoleFeature.EMERG_WRITE
    )
    config_structure = ConsoleConfig

    ports: dict[int, ConsolePort]

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:
        """Two queues; with MULTIPORT two more for the control messages, and two for each further port."""
        if link.offered_features & ConsoleFeature.MULTIPORT:
            return (RING,) * max(link.queue_count & ~1, 4)
        return (RING, RING)

    def _started(self, link: LinkInfo, space: bytes) -> None:
        super()._started(link, space)
        self.ports = {}
        self._sizes_given: dict[int, tuple[int, int]] = {}
        self.config = ConsoleConfig.from_bytes(space)

    @property
    def multiport(self) -> bool:
        """There are several ports, and control messages."""
        return bool(self.features & ConsoleFeature.MULTIPORT)

    def _find(self, number: int, name: str | None) -> ConsolePort | None:
        """An open port, by its number or by its name."""
        for port in self.ports.values():
            if port.open and (port.number == number if name is None else port.name == name):
                return port
        return None

    def _size(self, port: int) -> tuple[int, int] | None:
        return self.ports[port].size if port in self.ports else None

    def _has_other_size(self, port: int, known: tuple[int, int] | None) -> bool:
        return self._size(port) != known

    def _new_size(self, port: int) -> tuple[int, int] | None:
        """The size of a port, if it was not given to the caller yet."""
        size = self._size(port)
        if size is None or size == self._sizes_given.get(port):
            return None
        self._sizes_given[port] = size
        return size

    def _need_control(self) -> None:
        if not self.multiport:
            raise ValueError("this console has one port, number 0, without a name (no MULTIPORT)")

    def _sized(self, space: bytes) -> tuple[int, int] | None:
        """The size that the configuration space tells."""
        config = ConsoleConfig.from_bytes(space)
        return (config.cols, config.rows) if self.features & ConsoleFeature.SIZE else None

    @staticmethod
    def receive_request(port: int, size: int = BUFFER) -> Request[bytes]:
        """Gives the device a buffer of `size` bytes for input from a port."""

        def parse(answer: Answer) -> bytes:
            if not 1 <= answer.used <= size:
                raise ResponseError(
                    f"port {port} gave back a buffer of {size} with {answer.used} bytes of input"
                )
            return answer.data()

        return Request(_queue(port), (), (size,), parse, f"input from port {port}")

    @staticmethod
    def transmit_request(port: int, data: Buffer) -> Request[None]:
        """Output to a port."""
        return Request(_queue(port) + 1, (data,), (), lambda _: None, f"output to port {port}")

    @staticmethod
    def control_buffer() -> Request[bytes]:
        """Gives the device a buffer for a control message."""
        return Request(CONTROL_RECEIVE, (), (BUFFER,), lambda answer: answer.data(), "control message")

    @staticmethod
    def control_request(port: int, event: ControlEvent, value: int) -> Request[None]:
        """A control message to the device."""
        message = Control(port, event, value).to_bytes()
        return Request(CONTROL_TRANSMIT, (message,), (), lambda _: None, f"{event.name} of port {port}")

    def ready_request(self) -> Request[None]:
        """Says that the driver is there; the device tells of its ports then."""
        return self.control_request(BAD_ID, ControlEvent.DEVICE_READY, 1)

    def _heard(self, message: bytes) -> ConsolePort | None:
        """Takes a control message in. Gives a port that is new, and which the driver has to answer for.

        Raises:
            ResponseError: it is too short, or speaks of a port that there is not.
        """
        if len(message) < Control.size():
            raise ResponseError(f"a control message has {Control.size()} bytes or more, not {len(message)}")
        control, more = Control.from_bytes(message), message[Control.size() :]
        if control.event == ControlEvent.PORT_ADD:
            new = control.id not in self.ports
            port = self.ports.setdefault(control.id, ConsolePort(control.id))
            return port if new else None
        if control.id not in self.ports:
            raise ResponseError(
                f"a control message ({control.event}) speaks of port {control.id}, which was not added"
            )
        port = self.ports[control.id]
        match control.event:
            case ControlEvent.PORT_REMOVE:
                del self.ports[control.id]
            case ControlEvent.CONSOLE_PORT:
                port.console = True
            case ControlEvent.PORT_OPEN:
                port.open = bool(control.value)
            case ControlEvent.PORT_NAME:
                port.name = more.rstrip(b"\0").decode(errors="replace")
            case ControlEvent.RESIZE:
                size = ControlResize.from_bytes(more)
                port.size = (size.cols, size.rows)
        return None

    def _write(self, port: int, data: Buffer) -> Plan[None]:
        view = memoryview(data).cast("B")
        while view:
            # As many side by side as the ring has room for; the rest when they are through.
            some = view[: BUFFER * RING]
            pieces = [some[start : start + BUFFER] for start in range(0, len(some), BUFFER)]
            yield [self.transmit_request(port, piece) for piece in pieces]
            view = view[len(some) :]


def _queue(port: int) -> int:
    """The receive queue of a port; the next one transmits."""
    return 0 if port == 0 else 2 * port + 2
