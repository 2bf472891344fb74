"""A connection of the socket driver as a transport of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from xenvirt.virtio.vsock import ShutdownFlag

from .vsock_core import Connection
from .vsock_stream import REASONS

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .vsock_asyncio import AsyncVsockDriver

READ_SIZE = 65536
"""How many bytes the protocol gets at once."""


class VsockTransport(asyncio.Transport):
    """A stream transport. While reading is paused the other end runs out of credit, and waits.

    Extra information: ``peername`` and ``sockname``, each a CID and a port.
    """

    def __init__(
        self, driver: AsyncVsockDriver, connection: Connection, protocol: asyncio.BaseProtocol
    ) -> None:
        super().__init__({"peername": connection.peer, "sockname": (driver.guest_cid, connection.local_port)})
        self._driver = driver
        self._connection = connection
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._low, self._high = 16 * 1024, 64 * 1024
        self._reading = True
        self._writing_paused = False
        self._end_told = self._end_wanted = self._closing = self._lost = False
        connection.changed = self._changed
        protocol.connection_made(self)
        self._loop.call_soon(self._changed)

    # ---- reading

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._loop.call_soon(self._changed)

    # ---- writing

    def write(self, data: Buffer) -> None:
        """Sends what there is credit for, and keeps the rest until there is more."""
        if self._end_wanted:
            raise RuntimeError("cannot write after write_eof()")
        if self._closing or not self._connection.may_send:
            return  # as asyncio's own transports: connection_lost has told, or will
        self._buffer += memoryview(data).cast("B")
        self._flush()

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        self.write(b"".join(map(bytes, list_of_data)))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Tells the other end, after what was written, that nothing follows. Reading goes on."""
        if not self._end_wanted:
            self._end_wanted = True
            self._flush()

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = 64 * 1024 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be at least low ({low}), and low at least 0")
        self._low, self._high = low, high
        self._tell_protocol()

    # ---- the end

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Sends what is written, and then closes the connection in order."""
        if not self._closing:
            self._closing = True
            self._flush()

    def abort(self) -> None:
        """Breaks the connection: RST. What was written and not sent is dropped."""
        self._connection.reset()
        self._driver.kick()
        self.lose(None)

    def lose(self, error: Exception | None) -> None:
        """The connection has ended, or broken."""
        if not self._lost:
            self._lost = self._closing = True
            self._buffer.clear()
            self._connection.changed = None
            self._driver.transport_closed(self)
            self._loop.call_soon(self._protocol.connection_lost, error)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    # ---- inside

    def _changed(self) -> None:
        """Something came from the other end, or the protocol wants to read again."""
        if self._lost:
            return
        connection, protocol = self._connection, self._protocol
        while connection.received and self.is_reading():
            data = connection.take(READ_SIZE)
            if isinstance(protocol, asyncio.Protocol):
                protocol.data_received(data)
        self._driver.kick()
        if connection.error is not None and not connection.received:
            self.lose(connection.error(f"{self!r}: {REASONS[connection.error]}"))
            return
        if connection.at_end and not connection.received and not self._end_told and not self._closing:
            self._end_told = True
            keep_open: Any = isinstance(protocol, asyncio.Protocol) and protocol.eof_received()
            if not keep_open:
                self.close()
        self._flush()

    def _flush(self) -> None:
        connection = self._connection
        if self._lost:
            return
        if self._buffer:
            # One byte more than there is credit for, so that more is asked for.
            part = bytes(self._buffer[: connection.credit + 1])
            sent = connection.send(memoryview(part))
            del self._buffer[:sent]
        if self._buffer and not connection.may_send:
            self._buffer.clear()  # nobody reads it any more
        if not self._buffer and self._closing:
            connection.close()
            self._driver.expect_end()
            self.lose(None)
        elif not self._buffer and self._end_wanted:
            connection.shutdown(ShutdownFlag.SEND)
        self._driver.kick()
        self._tell_protocol()

    def _tell_protocol(self) -> None:
        if not self._writing_paused and len(self._buffer) > self._high:
            self._writing_paused = True
            self._protocol.pause_writing()
        elif self._writing_paused and len(self._buffer) <= self._low:
            self._writing_paused = False
            self._protocol.resume_writing()

    def __repr__(self) -> str:
        return (
            f"<VsockTransport {self.get_extra_info('sockname')} to {self.get_extra_info('peername')}: "
            f"{self._connection.state.value}>"
        )
