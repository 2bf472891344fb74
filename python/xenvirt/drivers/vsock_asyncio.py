"""The driver of the socket device for asyncio (virtio 1.3, section 5.10), with asyncio's own streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from xenvirt.errors import LinkTimeoutError
from xenvirt.virtio.vsock import HOST_CID, VsockConfig

from .driver import AsyncDriver
from .request import AsyncLink, Request
from .vsock_core import CLOSE_TIMEOUT, Connection, Listener, State
from .vsock_requests import EVENT_BUFFERS, MOST_UNDER_WAY, RECEIVE_BUFFERS, VsockRequests
from .vsock_stream import REASONS
from .vsock_transport import VsockTransport

P = TypeVar("P", bound=asyncio.Protocol)

LIMIT = 65536
"""As asyncio has it for :class:`asyncio.StreamReader`, in bytes."""

ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


class AsyncVsockDriver(VsockRequests, AsyncDriver):
    """Connects to ports of the host, and takes connections from it, for asyncio.

    ::

        async with await connect_async("vsock.sock") as link, AsyncVsockDriver(link) as vsock:
            reader, writer = await vsock.open_connection(1234)
            writer.write(b"hello")
            print(await reader.read(100))

    Leaving its block breaks the connections that are still open.
    """

    def __init__(self, link: AsyncLink) -> None:
        super().__init__(link)
        self._under_way = 0
        self._wanting: list[Request[Any]] = []  # buffers to be lent to the device
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._transports: set[VsockTransport] = set()
        self._failure: Exception | None = None
        self._failed: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._failed = asyncio.get_running_loop().create_future()
        self._wanting += [self.receive_request() for _ in range(RECEIVE_BUFFERS)]
        self._wanting += [self.event_request() for _ in range(EVENT_BUFFERS)]
        self._task = asyncio.create_task(self._serve(), name="vsock")
        self.kick()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for transport in tuple(self._transports):
            transport.abort()
        await asyncio.sleep(0)  # the last packets, and connection_lost
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    # ---- what users call

    async def create_connection(
        self, protocol_factory: Callable[[], P], port: int, *, cid: int = HOST_CID
    ) -> tuple[VsockTransport, P]:
        """Connects to `port` of `cid`; the protocol of asyncio gets what comes.

        Raises:
            ConnectionRefusedError: nobody listens there.
            LinkTimeoutError: no answer came within the link's timeout.
            DisconnectedError: the backend went away.
        """
        connection = self.core.connect(port, cid)
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def changed() -> None:
            if connection.state is not State.CONNECTING and not settled.done():
                settled.set_result(None)

        connection.changed = changed
        self.kick()
        try:
            await self._in_time(settled, f"connection to port {port} of CID {cid}")
        except BaseException:
            connection.reset()
            self.kick()
            raise
        if connection.error is not None:
            raise connection.error(f"port {port} of CID {cid}: {REASONS[connection.error]}")
        protocol = protocol_factory()
        return self._transport(connection, protocol), protocol

    async def open_connection(
        self, port: int, *, cid: int = HOST_CID, limit: int = LIMIT
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connects to `port` of `cid`: the streams of :func:`asyncio.open_connection`.

        Raises: as :meth:`create_connection`.
        """
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        transport, protocol = await self.create_connection(
            lambda: asyncio.StreamReaderProtocol(reader, loop=loop), port, cid=cid
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def start_server(
        self, client_connected: ClientConnected, port: int, *, backlog: int = 8, limit: int = LIMIT
    ) -> AsyncVsockServer:
        """Takes connections on `port`; each is given to `client_connected` as reader and writer, which may be
        a coroutine function, as with :func:`asyncio.start_server`.

        Raises:
            OSError: (EADDRINUSE) that is done already.
        """
        loop = asyncio.get_running_loop()
        listener = self.core.listen(port, backlog)

        def accept() -> None:
            while listener.waiting:
                reader = asyncio.StreamReader(limit=limit, loop=loop)
                protocol = asyncio.StreamReaderProtocol(reader, client_connected, loop=loop)
                self._transport(listener.waiting.popleft(), protocol)

        listener.changed = accept
        return AsyncVsockServer(self, listener)

    # ---- what transports call

    def kick(self) -> None:
        """There may be packets to be sent."""
        self._work.set()

    def expect_end(self) -> None:
        """A connection was closed: break it if the other end does not answer that in time."""
        loop = asyncio.get_running_loop()
        self.core.expire(loop.time())
        loop.call_later(CLOSE_TIMEOUT, self._expire)

    def _expire(self) -> None:
        self.core.expire(asyncio.get_running_loop().time())
        self.kick()

    def transport_closed(self, transport: VsockTransport) -> None:
        """A transport has ended."""
        self._transports.discard(transport)

    # ---- inside

    def _transport(self, connection: Connection, protocol: asyncio.BaseProtocol) -> VsockTransport:
        transport = VsockTransport(self, connection, protocol)
        self._transports.add(transport)
        return transport

    async def _in_time(self, settled: asyncio.Future[None], what: str) -> None:
        assert self._failed is not None
        await asyncio.wait(
            {settled, self._failed}, timeout=self.link.timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if self._failure is not None:
            raise self._failure
        if not settled.done():
            raise LinkTimeoutError(f"nothing came within {self.link.timeout:g} s: {what}")

    async def _serve(self) -> None:
        """Sends, and lends the device buffers. None of it waits for room: the rings are larger than that."""
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                wanting, self._wanting = self._wanting, []
                packets = self._next_packets(MOST_UNDER_WAY - self._under_way)
                self._under_way += len(packets)
                for request, future in zip(wanting, await self.link.submit_all(wanting), strict=True):
                    future.add_done_callback(partial(self._arrived, request))
                for sent in await self.link.submit_all(packets):
                    sent.add_done_callback(self._sent)
                if self.core.outgoing and self._under_way < MOST_UNDER_WAY:
                    self._work.set()
        except Exception as error:
            self._fail(error)

    def _sent(self, future: asyncio.Future[None]) -> None:
        self._under_way -= 1
        if self._good(future):
            self.kick()

    def _arrived(self, request: Request[Any], future: asyncio.Future[Any]) -> None:
        if not self._good(future):
            return
        result = future.result()
        if isinstance(result, bytes):
            self.core.heard(result)
        else:
            self._resetting = asyncio.create_task(self._reset_transport())
        self._wanting.append(request)
        self.kick()

    async def _reset_transport(self) -> None:
        try:
            self._moved(await self.link.config(0, VsockConfig.size()))
        except Exception as error:
            self._fail(error)

    def _good(self, future: asyncio.Future[Any]) -> bool:
        if future.cancelled():
            return False
        error = future.exception()
        if isinstance(error, Exception):
            self._fail(error)
        return error is None

    def _fail(self, error: Exception) -> None:
        if self._failure is not None:
            return
        self._failure = error
        if self._failed is not None:
            self._failed.set_result(None)
        for transport in tuple(self._transports):
            transport.lose(error)


class AsyncVsockServer:
    """A port of the guest that takes connections: an async context manager."""

    def __init__(self, driver: AsyncVsockDriver, listener: Listener) -> None:
        self._driver = driver
        self._listener = listener

    @property
    def port(self) -> int:
        """Its number."""
        return self._listener.port

    def close(self) -> None:
        """Takes no more; what was accepted goes on."""
        self._listener.close()
        self._driver.kick()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
