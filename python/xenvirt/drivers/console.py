"""The driver of the console device (virtio 1.3, section 5.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Self

from xenvirt.virtio.console import ConsoleConfig, ControlEvent

from .console_protocol import BUFFER, BUFFERS, ConsolePort, ConsoleProtocol
from .driver import AsyncDriver, Driver
from .receiver import AsyncReceiver, Receiver
from .request import AsyncLink, Link

if TYPE_CHECKING:
    from typing_extensions import Buffer

LOOK = 0.02
"""How often asyncio looks whether the configuration space changed, in seconds: no descriptor tells."""


class ConsoleDriver(ConsoleProtocol, Driver):
    """Types at a console, and reads what it prints.

    ::

        with connect("console.sock") as link, ConsoleDriver(link) as console:
            console.write(b"uname\\n")
            print(console.read())

    With MULTIPORT every port that the device adds is opened. A device that is not read from waits: nothing
    is lost.

    Args:
        link: what :func:`xenvirt.connect` gave.
        buffers: how many buffers the device has for each port's input, and for control messages.
            0: one, while somebody waits.
        buffer_size: the size of each for input, in bytes. vhost-device-console 0.1.0 wants no buffers but
            that one, and of one byte: it gives a buffer back once for each byte in it, and loses those that
            it has no byte for.

    Raises, in each operation:
        LinkTimeoutError: nothing came in time, or nobody took the output.
        ResponseError: the device answered something that makes no sense.
        DisconnectedError: the backend went away.
    """

    def __init__(self, link: Link, *, buffers: int = BUFFERS, buffer_size: int = BUFFER) -> None:
        super().__init__(link)
        self._buffers, self._buffer_size = buffers, buffer_size
        self._inputs: dict[int, Receiver[bytes]] = {}
        self._left: dict[int, bytes] = {}
        self._changes = link.config_changes
        if self.multiport:
            self._control = Receiver(link, self.control_buffer, self._buffers)
            link.run(self.ready_request())
        else:
            self.ports[0] = ConsolePort(0, console=True, open=True, size=self._sized(self.config_space))
            self._inputs[0] = Receiver(
                link, partial(self.receive_request, 0, self._buffer_size), self._buffers
            )

    def port(self, number: int = 0, *, name: str | None = None) -> ConsolePort:
        """Waits until the device has opened a port, found by its number or by its name."""

        while (found := self._find(number, name)) is None or self._control_ready():
            self._hear()
        return found

    def write(self, data: Buffer, *, port: int = 0) -> None:
        """Writes all of `data`; returns when the device has taken it."""
        self.port(port)
        self._perform(self._write(port, data))

    def read(self, size: int = 65536, *, port: int = 0) -> bytes:
        """What comes from the device: waits for something, and gives at most `size` bytes."""
        self.port(port)
        data = self._left.pop(port, b"") or self._inputs[port].get()
        if data[size:]:
            self._left[port] = data[size:]
        return data[:size]

    def read_exactly(self, size: int, *, port: int = 0) -> bytes:
        """Exactly `size` bytes. After an error those that came are still there to be read."""
        data = bytearray()
        try:
            while len(data) < size:
                data += self.read(size - len(data), port=port)
        except BaseException:
            self._left[port] = bytes(data) + self._left.get(port, b"")
            raise
        return bytes(data)

    def close_port(self, port: int) -> None:
        """Tells the device that nobody uses the port at our end (MULTIPORT)."""
        self.link.run(self.control_request(port, ControlEvent.PORT_OPEN, 0))

    def open_port(self, port: int) -> None:
        """Tells the device that the port is in use again."""
        self.link.run(self.control_request(port, ControlEvent.PORT_OPEN, 1))

    def emergency_write(self, character: int) -> None:
        """Has the device print a character at once (EMERG_WRITE)."""
        self.link.write_config(ConsoleConfig.offset("emerg_wr"), character.to_bytes(4, "little"))

    def next_size(self, port: int = 0) -> tuple[int, int]:
        """The size of a console in columns and rows: waits until there is one that this has not given yet."""
        while (size := self._new_size(port)) is None:
            if self.multiport:
                self._hear()
            else:
                self.link.wait_for(self._changed, "change of the configuration space")
                self.config_space = self.link.config(0, ConsoleConfig.size())
                self.ports[0].size = self._sized(self.config_space)
        return size

    def _changed(self) -> bool:
        before, self._changes = self._changes, self.link.config_changes
        return self._changes != before

    def _control_ready(self) -> bool:
        return self.multiport and self._control.ready

    def _hear(self) -> None:
        """Waits for a control message."""
        self._need_control()
        new = self._heard(self._control.get())
        if new is not None:
            self._inputs[new.number] = Receiver(
                self.link, partial(self.receive_request, new.number, self._buffer_size), self._buffers
            )
            self.link.run(self.control_request(new.number, ControlEvent.PORT_READY, 1))
            self.link.run(self.control_request(new.number, ControlEvent.PORT_OPEN, 1))


class AsyncConsoleDriver(ConsoleProtocol, AsyncDriver):
    """Types at a console, and reads what it prints, for asyncio. Writing, reading one port and waiting for a
    resize may each be done by one task at a time.

    Raises, in each operation: as :class:`ConsoleDriver`.
    """

    def __init__(self, link: AsyncLink, *, buffers: int = BUFFERS, buffer_size: int = BUFFER) -> None:
        super().__init__(link)
        self._buffers, self._buffer_size = buffers, buffer_size
        self._inputs: dict[int, AsyncReceiver[bytes]] = {}
        self._left: dict[int, bytes] = {}
        self._hearing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._changes = self.link.config_changes
        if self.multiport:
            self._control = await AsyncReceiver.start(self.link, self.control_buffer, self._buffers)
            await self.link.run(self.ready_request())
        else:
            self.ports[0] = ConsolePort(0, console=True, open=True, size=self._sized(self.config_space))
            self._inputs[0] = await AsyncReceiver.start(
                self.link, partial(self.receive_request, 0, self._buffer_size), self._buffers
            )
        return self

    async def port(self, number: int = 0, *, name: str | None = None) -> ConsolePort:
        """As :meth:`ConsoleDriver.port`."""
        while (found := self._find(number, name)) is None or self._control_ready():
            await self._hear(lambda: self._find(number, name) is not None)
        return found

    async def write(self, data: Buffer, *, port: int = 0) -> None:
        """As :meth:`ConsoleDriver.write`."""
        await self.port(port)
        await self._perform(self._write(port, data))

    async def read(self, size: int = 65536, *, port: int = 0) -> bytes:
        """As :meth:`ConsoleDriver.read`; if it is cancelled nothing is lost."""
        await self.port(port)
        data = self._left.pop(port, b"") or await self._inputs[port].get()
        if data[size:]:
            self._left[port] = data[size:]
        return data[:size]

    async def next_size(self, port: int = 0) -> tuple[int, int]:
        """As :meth:`ConsoleDriver.next_size`."""
        while (size := self._new_size(port)) is None:
            if self.multiport:
                await self._hear(partial(self._has_other_size, port, self._size(port)))
                continue
            while self.link.config_changes == self._changes:
                await asyncio.sleep(LOOK)
            self._changes = self.link.config_changes
            self.config_space = await self.link.config(0, ConsoleConfig.size())
            self.ports[0].size = self._sized(self.config_space)
        return size

    def _control_ready(self) -> bool:
        return self.multiport and self._control.ready

    async def _hear(self, heard: Callable[[], bool]) -> None:
        """Waits for a control message, or until another task that does so has heard what is wanted."""
        self._need_control()
        async with self._hearing:
            if heard() and not self._control.ready:
                return
            new = self._heard(await self._control.get())
            if new is not None:
                self._inputs[new.number] = await AsyncReceiver.start(
                    self.link, partial(self.receive_request, new.number, self._buffer_size), self._buffers
                )
                await self.link.run(self.control_request(new.number, ControlEvent.PORT_READY, 1))
                await self.link.run(self.control_request(new.number, ControlEvent.PORT_OPEN, 1))
