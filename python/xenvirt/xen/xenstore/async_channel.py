"""The way to the xenstore on asyncio: many requests at once, and events whenever they come."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TypeVar

from xenvirt.errors import ForkError, XenStoreError

from .connection import Connection
from .events import Pending
from .operations import Call, Request
from .protocol import Fired, Protocol, failure

T = TypeVar("T")


class AsyncChannel:
    """A connection of one event loop, what was asked on it, and who is told of events.

    Attributes:
        timeout: seconds that an answer may take.
        watches: who is told of events, by token.
        broken: why the connection is of no use any more.
    """

    def __init__(self, path: str | os.PathLike[str] | None, timeout: float) -> None:
        self.timeout = timeout
        self.watches: dict[str, Pending] = {}
        self.broken: XenStoreError | None = None
        self._given = path
        self._open: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._protocol = Protocol()
        self._turn = asyncio.Lock()
        self._turns: set[asyncio.Task[bytes]] = set()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._unsent: list[memoryview] = []
        self._pid = os.getpid()

    @property
    def path(self) -> str | os.PathLike[str] | None:
        """What it is connected to, or will be."""
        return self._open.path if self._open else self._given

    def open(self) -> None:
        """Connects.

        Raises:
            XenStoreError: the xenstore cannot be reached.
        """
        self._open = Connection(self._given, self.timeout)
        self._protocol = Protocol(self._open.payload_max)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._open.fileno(), self._receive)

    def close(self) -> None:
        """Closes the connection: who waits gets an error."""
        if self._open is not None and self.broken is None:
            self._break("it was closed")
        self._open = None

    async def run(self, call: Call[T]) -> T:
        """Runs an operation."""
        try:
            request = next(call)
            while True:
                try:
                    payload = await self._exchange(request)
                except XenStoreError as error:
                    request = call.throw(error)
                else:
                    request = call.send(payload)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _exchange(self, request: Request) -> bytes:
        """Sends one request and waits for its reply.

        The kernel's device has room for one request only, and the next one overwrites it while it waits to be
        sent (as seen with Linux 6.1): there each has its turn, until its reply is there, also when who asked
        is cancelled.
        """
        connection, loop = self.check(request)
        if connection.is_socket:
            return await self._exchanged(request)
        turn = loop.create_task(self._in_turn(request))
        self._turns.add(turn)
        turn.add_done_callback(self._turn_ended)
        return await asyncio.shield(turn)

    async def _in_turn(self, request: Request) -> bytes:
        async with self._turn:
            try:
                return await self._exchanged(request)
            except XenStoreError as error:
                if error.errno == errno.ETIMEDOUT and self.broken is None:
                    self._break("a request was given up, and the kernel may still have it")
                raise

    def _turn_ended(self, turn: asyncio.Task[bytes]) -> None:
        self._turns.discard(turn)
        if not turn.cancelled():
            turn.exception()  # seen, also where who asked was cancelled

    async def _exchanged(self, request: Request) -> bytes:
        connection, loop = self.check(request)
        number, data = self._protocol.ask(request)
        future: asyncio.Future[bytes] = loop.create_future()
        self._waiting[number] = future
        try:
            self._unsent.append(memoryview(data))
            self._flush(connection, loop, request)
            async with asyncio.timeout(self.timeout):
                payload = await future
        except TimeoutError as error:
            raise XenStoreError(
                f"{request.operation.name} of {request.subject}: no answer from {connection.path} in "
                f"{self.timeout} s",
                errno.ETIMEDOUT,
                request.subject,
            ) from error
        finally:
            self._waiting.pop(number, None)
        return payload

    def _flush(
        self, connection: Connection, loop: asyncio.AbstractEventLoop, request: Request | None = None
    ) -> None:
        """Sends what can be sent; the rest when there is room."""
        while self._unsent:
            try:
                sent = connection.send(self._unsent[0])
            except BlockingIOError:
                loop.add_writer(connection.fileno(), self._flush, connection, loop)
                return
            except OSError as error:
                if request is None or error.errno in (errno.EPIPE, errno.ECONNRESET):
                    self._break("the daemon hung up")
                    return
                # The kernel's device refuses some requests itself, by an errno of write().
                self._unsent.clear()
                raise failure(request, error.errno or errno.EIO) from error
            self._unsent[0] = self._unsent[0][sent:]
            if not self._unsent[0]:
                self._unsent.pop(0)
        loop.remove_writer(connection.fileno())

    def _receive(self) -> None:
        assert self._open is not None
        try:
            data = self._open.receive()
        except BlockingIOError:
            return
        except OSError as error:
            self._break(f"the connection failed: {error.strerror}")
            return
        if not data:
            self._break("the daemon hung up")
            return
        try:
            for came in self._protocol.receive(data):
                if isinstance(came, Fired):
                    if (pending := self.watches.get(came.token)) is not None:
                        pending.put(came.path)
                elif (future := self._waiting.get(came.request)) is not None and not future.done():
                    if came.error is not None:
                        future.set_exception(came.error)
                    else:
                        future.set_result(came.payload)
        except XenStoreError as error:
            self._break(str(error))

    def _break(self, why: str) -> None:
        """The connection is of no use any more; who waits is told."""
        assert self._open is not None
        assert self._loop is not None
        path, fd = self._open.path, self._open.fileno()
        self.broken = XenStoreError(
            f"the connection to the xenstore at {path} is lost: {why}", errno.ECONNRESET, path
        )
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)
        self._open.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._lost(path))
        for pending in self.watches.values():
            pending.wake()

    def _lost(self, subject: str | None) -> XenStoreError:
        return XenStoreError(str(self.broken), errno.ECONNRESET, subject)

    def check(self, request: Request | None = None) -> tuple[Connection, asyncio.AbstractEventLoop]:
        """The connection and its loop; raises what keeps them from being used, if anything does."""
        if os.getpid() != self._pid:
            raise ForkError("this AsyncXenStore belongs to the parent process: make a new one after fork")
        if self.broken is not None and self._open is not None:
            raise self._lost(request.subject if request else None)
        if self._open is None or self._loop is None:
            raise ValueError("this AsyncXenStore is closed, or not open yet: use it in its async with block")
        return self._open, self._loop
