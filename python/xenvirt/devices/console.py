"""The console device (virtio 1.3, section 5.3): terminals and channels of a guest."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import deque
from typing import ClassVar

from xenvirt import Chain, Device, Session, VirtQueue
from xenvirt.errors import RingError, StaleChainError
from xenvirt.virtio import DeviceId
from xenvirt.virtio.console import (
    ConsoleConfig,
    ConsoleFeature,
    Control,
    ControlEvent,
    ControlResize,
)

from .console_port import Port
from .readiness import IN, OUT, Readiness

log = logging.getLogger("xenvirt")

CHUNK = 4096
"""Bytes of output that are taken from the guest at once."""
BURST = 64
"""Steps on one port before the others get their turn."""
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3


class ConsoleDevice(Device):
    """Connects the consoles and channels of a guest with descriptors of this process.

    Input is read only when the driver has an empty buffer for it, and output is taken from the driver only as
    fast as it can be written: nothing is lost, and a slow port delays no other.

    Args:
        ports: what stands behind each port. With one nameless console the device is a simple one, else it has
            control queues (MULTIPORT); a driver that knows no such thing uses the first port.
        size: columns and rows of the consoles, until a port's terminal or :meth:`resize` says otherwise.
        queue_size: the largest ring that a driver may have; User-Mode Linux wants 256 of every device.

    The ports stay the caller's: close them after the device.
    """

    device_id: ClassVar[DeviceId] = DeviceId.CONSOLE

    def __init__(self, *ports: Port, size: tuple[int, int] = (80, 25), queue_size: int = 256) -> None:
        if not ports:
            raise ValueError("a console has at least one port")
        self.ports = ports
        self.multiport = len(ports) > 1 or bool(ports[0].name) or not ports[0].console
        self.features = ConsoleFeature.SIZE | ConsoleFeature.EMERG_WRITE
        if self.multiport:
            self.features |= ConsoleFeature.MULTIPORT
        self.queue_sizes = (queue_size,) * (2 + 2 * len(ports) if self.multiport else 2)
        self.sizes = [port.window_size() or size for port in ports]
        cols, rows = self.sizes[0]
        self.config = self._space = ConsoleConfig(cols, rows, len(ports) if self.multiport else 0)
        self._lines: list[_Line] = []
        self._control: _Control | None = None
        self._readiness: Readiness | None = None
        # For `resize`, which may come from another thread, and for what it reaches.
        self._lock = threading.RLock()

    def activate(self, session: Session) -> None:
        self._readiness = readiness = Readiness(session, self._ready)
        multiport = bool(session.features & ConsoleFeature.MULTIPORT)
        queues = session.queues
        ports = self.ports if multiport else self.ports[:1]
        # Port 0 has the queues 0 and 1, 2 and 3 are the control queues, port 1 has 4 and 5.
        starts = [0, *range(4, 2 + 2 * len(ports), 2)]
        with self._lock:
            self._control = _Control(queues[CONTROL_RECEIVE]) if multiport else None
            self._lines = [
                _Line(port, queues[start], queues[start + 1], readiness, is_open=not multiport)
                for port, start in zip(ports, starts, strict=True)
            ]
        for line in self._lines:
            line.attend()

    def reset(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
            self._control = None
        for line in lines:
            line.end()
        if self._readiness is not None:
            self._readiness.close()
            self._readiness = None

    def process(self, queue: VirtQueue) -> None:
        """The driver gave buffers for input, or output."""
        control = self._control
        if control is not None and queue.index in (CONTROL_RECEIVE, CONTROL_TRANSMIT):
            if queue.index == CONTROL_RECEIVE:
                with self._lock:
                    control.send()
                return
            for chain in queue:
                message = chain.read(Control.size())
                chain.complete()
                if len(message) == Control.size():
                    self._controlled(Control.from_bytes(message))
            return
        for line in self._lines:
            if queue.index == line.receive.index:
                line.starved = False
                line.attend()
            elif queue.index == line.transmit.index and not line.blocked:
                line.write()

    def config_written(self, offset: int, data: bytes) -> None:
        """A character to be printed at once, also before the driver is set up (EMERG_WRITE)."""
        if offset == ConsoleConfig.offset("emerg_wr") and data:
            self.ports[0].pending += data[:1]
            self.ports[0].flush()

    def resize(self, cols: int, rows: int, *, port: int = 0) -> None:
        """Tells the driver that a console has another size now. May be called from any thread.

        Raises:
            IndexError: there is no such port.
        """
        with self._lock:
            if self.sizes[port] == (cols, rows):
                return
            self.sizes[port] = (cols, rows)
            if port == 0:
                self._space = dataclasses.replace(self._space, cols=cols, rows=rows)
                self.update_config(self._space)
            if self._control is not None and self.ports[port].console:
                self._say_size(port)

    def _ready(self, fd: int, events: int) -> None:
        """A descriptor of a port has input, or room for output."""
        for number, line in enumerate(self._lines):
            if events & OUT and fd == line.port.sink:
                line.write()
            if events & IN and fd == line.port.source:
                if line.read() and (size := line.port.window_size()):
                    self.resize(*size, port=number)
                if line.ended and line.port.one_way:
                    self._say(number, ControlEvent.PORT_OPEN, 0)

    def _controlled(self, message: Control) -> None:
        """A control message of the driver (virtio 1.3, section 5.3.6.2)."""
        if message.event == ControlEvent.DEVICE_READY and message.value:
            for number in range(len(self.ports)):
                self._say(number, ControlEvent.PORT_ADD, 0)
        elif message.id >= len(self._lines):
            log.warning("the driver of a console speaks of port %d: there is none", message.id)
        elif message.event == ControlEvent.PORT_READY and message.value:
            port = self.ports[message.id]
            if port.console:
                self._say(message.id, ControlEvent.CONSOLE_PORT, 1)
            if port.name:
                self._say(message.id, ControlEvent.PORT_NAME, 1, port.name.encode())
            self._say(message.id, ControlEvent.PORT_OPEN, 1)
            if port.console:
                self._say_size(message.id)
        elif message.event == ControlEvent.PORT_OPEN:
            line = self._lines[message.id]
            line.is_open = bool(message.value)
            line.attend()

    def _say(self, port: int, event: ControlEvent, value: int, more: bytes = b"") -> None:
        with self._lock:
            if self._control is not None:
                self._control.messages.append(Control(port, event, value).to_bytes() + more)
                self._control.send()

    def _say_size(self, port: int) -> None:
        self._say(port, ControlEvent.RESIZE, 0, ControlResize(*self.sizes[port]).to_bytes())


class _Control:
    """The control messages to the driver, which wait for its buffers."""

    def __init__(self, queue: VirtQueue) -> None:
        self.queue = queue
        self.messages: deque[bytes] = deque()

    def send(self) -> None:
        """Sends as many as there are buffers for."""
        try:
            while self.messages and (chain := self.queue.pop()) is not None:
                message = self.messages.popleft()
                if chain.writable >= len(message):
                    chain.write(message)
                else:
                    text = "a control message of %d bytes is dropped: the console's driver gave room for %d"
                    log.warning(text, len(message), chain.writable)
                chain.complete()
        except (RingError, StaleChainError):
            # Whose thread this is may have nothing to do with the queue; who serves it hears of it.
            self.messages.clear()


class _Line:
    """A port while a driver uses it."""

    def __init__(
        self, port: Port, receive: VirtQueue, transmit: VirtQueue, readiness: Readiness, *, is_open: bool
    ) -> None:
        self.port = port
        self.receive = receive
        self.transmit = transmit
        self.is_open = is_open
        """The driver's end is open: what comes for a closed one, Linux throws away."""
        self.starved = False
        """The driver has no buffer for input; it kicks when it has."""
        self.blocked = False
        """Output waits for room, and the driver's ring with it."""
        self.ended = port.source is None
        self._readiness = readiness
        self._empty: Chain | None = None
        self._chain: Chain | None = None

    def attend(self) -> None:
        """Waits for what can be dealt with now."""
        wants_input = self.is_open and not self.starved and not self.ended
        source, sink = self.port.source, self.port.sink
        wants_output = OUT if self.blocked else 0
        if source is not None and source != sink:
            self._readiness.want(source, IN if wants_input else 0)
        elif wants_input:
            wants_output |= IN
        self._readiness.want(sink, wants_output)

    def read(self) -> bool:
        """Moves some input to the driver, if it has a buffer for it. True if there was some."""
        chain = self._empty or self.receive.pop()
        self._empty = None
        while chain is not None and chain.writable == 0:
            chain.complete()
            chain = self.receive.pop()
        if chain is None:
            self.starved = True
            self.attend()
            return False
        try:
            data = self.port.read(min(chain.writable, CHUNK))
        except BlockingIOError:
            self._empty = chain
            return False
        except OSError as error:
            log.info("a console's input ended: %s", error.strerror)
            data = b""
        if not data:
            self._empty = chain
            self.ended = True
            self.attend()
            return False
        chain.write(data)
        chain.complete()
        return True

    def write(self) -> None:
        """Moves output from the driver until there is none, or no room for it, or others are to have their
        turn."""
        self.blocked = False
        for _ in range(BURST):
            if not self._flush():
                break
            if self._chain is None and (chain := self.transmit.pop()) is not None:
                self._chain = chain
            if self._chain is None:
                self.attend()
                return
            self.port.pending = self._chain.read(CHUNK)
            if not self.port.pending:
                self._chain.complete()
                self._chain = None
        self.blocked = True
        self.attend()

    def end(self) -> None:
        """The driver is gone. What it gave out before is still to be written, now or by the next session."""
        self._flush()

    def _flush(self) -> bool:
        try:
            return self.port.flush()
        except OSError as error:
            log.warning("a console's output is lost from now on: %s", error.strerror)
            self._readiness.want(self.port.sink, 0)
            self.port.give_up()
            return True
