"""Streams and listeners of the socket driver, as Python's sockets are."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from contextlib import suppress
from socket import AF_VSOCK, SHUT_RD, SHUT_WR, SOCK_STREAM
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, overload

from xenvirt.errors import XenvirtError
from xenvirt.virtio.vsock import ShutdownFlag

from .vsock_core import Connection, Listener, State

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .vsock import VsockDriver

ErrorClass: TypeAlias = type[OSError]
ExceptionClass: TypeAlias = type[BaseException]

REASONS: dict[ErrorClass, str] = {
    ConnectionRefusedError: "nobody listens there (RST)",
    ConnectionResetError: "the other end reset the connection",
    ConnectionAbortedError: "the other end sent more than there was room for",
}


class VsockStream:
    """A connection, with the methods of a :class:`socket.socket`; files of :meth:`makefile` too.

    Timeouts are as there, but the first one is the link's: None waits for ever, 0 does not wait and raises
    ``BlockingIOError``, and what takes longer raises :class:`~xenvirt.errors.LinkTimeoutError`, which is a
    ``TimeoutError``.

    Raises, in each operation:
        ConnectionResetError: the other end broke the connection; what it had sent before is read first.
        OSError: (EBADF) the stream is closed.
        DisconnectedError: the backend went away.
    """

    family = AF_VSOCK
    type = SOCK_STREAM
    proto = 0

    def __init__(self, driver: VsockDriver, connection: Connection) -> None:
        self._driver = driver
        self._connection = connection
        self._timeout = driver.link.timeout
        self._files = 0
        self._closed = False

    def recv(self, size: int) -> bytes:
        """Waits for data and gives at most `size` bytes; none at the end of the stream."""
        self._check()
        connection = self._connection
        if size and not connection.received:
            self._wait(lambda: bool(connection.received) or connection.at_end, "data")
        data = connection.take(size)
        self._driver.pump()
        if size and not data and connection.error is not None:
            raise self._broken(connection.error)
        return data

    def recv_into(self, buffer: Buffer, nbytes: int = 0) -> int:
        """As :meth:`recv`, into a buffer; gives the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.recv(min(nbytes, len(view)) if nbytes else len(view))
        view[: len(data)] = data
        return len(data)

    def send(self, data: Buffer) -> int:
        """Sends as much as the other end has room for, and waits until that is at least one byte; gives the
        number of bytes.

        Raises:
            BrokenPipeError: the other end does not read any more, or we have said that we send no more.
        """
        self._check()
        connection = self._connection
        view = memoryview(data).cast("B")
        sent = connection.send(view)
        while view and not sent:
            if not connection.may_send:
                raise self._broken(connection.error or BrokenPipeError)
            self._wait(lambda: connection.credit > 0 or not connection.may_send, "room to send")
            sent = connection.send(view)
        self._driver.pump()
        return sent

    def sendall(self, data: Buffer) -> None:
        """Sends all of it."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view) :]

    def shutdown(self, how: int) -> None:
        """SHUT_RD: we receive no more; SHUT_WR: we send no more; SHUT_RDWR: both."""
        self._check()
        flags = {SHUT_RD: ShutdownFlag.RECEIVE, SHUT_WR: ShutdownFlag.SEND}.get(
            how, ShutdownFlag.RECEIVE | ShutdownFlag.SEND
        )
        self._connection.shutdown(flags)
        self._driver.pump()

    def close(self) -> None:
        """Closes the stream, once the files made of it are closed too. What was not read is dropped."""
        self._closed = True
        self._close_if_unused()

    def reset(self) -> None:
        """Breaks the connection: RST, whatever is on its way."""
        self._closed = True
        self._connection.reset()
        self._driver.pump()

    def settimeout(self, timeout: float | None) -> None:
        """How long each operation may take, in seconds; None: for ever, 0: no time at all."""
        if timeout is not None and timeout < 0:
            raise ValueError(f"a timeout of {timeout} s")
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """As it was set; in the beginning it is the link's."""
        return self._timeout

    def setblocking(self, blocking: bool) -> None:
        """True: wait for ever; False: not at all."""
        self.settimeout(None if blocking else 0.0)

    def getsockname(self) -> tuple[int, int]:
        """Our CID and port."""
        return self._driver.guest_cid, self._connection.local_port

    def getpeername(self) -> tuple[int, int]:
        """The other end's CID and port."""
        return self._connection.peer

    def fileno(self) -> int:
        """A descriptor to be polled: readable while anything came from the device, for this stream or not."""
        return self._driver.link.fileno()

    @overload
    def makefile(self, mode: Literal["rb"], buffering: int | None = None) -> io.BufferedReader: ...
    @overload
    def makefile(self, mode: Literal["wb"], buffering: int | None = None) -> io.BufferedWriter: ...
    @overload
    def makefile(self, mode: Literal["rwb"], buffering: int | None = None) -> io.BufferedRWPair: ...
    def makefile(self, mode: str = "rb", buffering: int | None = None) -> io.BufferedIOBase:
        """A binary file over the stream: "rb", "wb" or "rwb". It has to be closed too."""
        self._check()
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering <= 1 else buffering
        self._files += 1
        raw = _StreamFile(self)
        if mode == "rb":
            return io.BufferedReader(raw, size)
        if mode == "wb":
            return io.BufferedWriter(raw, size)
        if mode == "rwb":
            return io.BufferedRWPair(raw, raw, size)
        self._files -= 1
        raise ValueError(f'mode {mode!r}: there are "rb", "wb" and "rwb"')

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: ExceptionClass | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self._connection.state.value
        return f"<VsockStream {self.getsockname()} to {self.getpeername()}: {state}>"

    def file_closed(self) -> None:
        """A file made of the stream is closed."""
        self._files -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self._closed or self._files or self._connection.state in (State.CLOSING, State.CLOSED):
            return
        self._connection.close()
        with suppress(XenvirtError):  # closing what is broken already is no error
            self._driver.wait(lambda: not self._driver.core.outgoing, -1, "room for the last packets")

    def _check(self) -> None:
        if self._closed and not self._files:
            raise OSError(errno.EBADF, "the stream is closed")

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        if self._timeout == 0:
            self._driver.pump()
            if not done():
                raise BlockingIOError(errno.EAGAIN, f"no {what} at the moment")
            return
        self._driver.wait(done, self._timeout, f"{what} on {self!r}")

    def _broken(self, error: ErrorClass) -> OSError:
        reason = REASONS.get(error, "nothing can be sent any more: one of the two ends has shut down")
        return error(f"{self!r}: {reason}")


class _StreamFile(io.RawIOBase):
    def __init__(self, stream: VsockStream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        return self._stream.recv_into(buffer)

    def write(self, data: Buffer) -> int:
        return self._stream.send(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._stream.file_closed()


class VsockListener:
    """A port of the guest that takes connections."""

    def __init__(self, driver: VsockDriver, listener: Listener) -> None:
        self._driver = driver
        self._listener = listener
        self._timeout = driver.link.timeout

    @property
    def port(self) -> int:
        """Its number."""
        return self._listener.port

    def accept(self) -> tuple[VsockStream, tuple[int, int]]:
        """Waits for a connection; gives it, and the CID and port it comes from.

        Raises:
            LinkTimeoutError: none came in time.
        """
        waiting = self._listener.waiting
        self._driver.wait(lambda: bool(waiting), self._timeout, f"connection to our port {self.port}")
        connection = waiting.popleft()
        return VsockStream(self._driver, connection), connection.peer

    def settimeout(self, timeout: float | None) -> None:
        """How long :meth:`accept` may take, in seconds; None: for ever."""
        self._timeout = timeout

    def close(self) -> None:
        """Takes no more; connections that nobody accepted are refused."""
        self._listener.close()
        with suppress(XenvirtError):  # closing what is broken already is no error
            self._driver.pump()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: ExceptionClass | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
