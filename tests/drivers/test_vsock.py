"""The streams of the socket driver, blocking and on asyncio. The host's end is a second core of the protocol,
whose packets test_vsock_core.py holds against the specification."""

from __future__ import annotations

import asyncio
import errno
import http.client
import io
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from xenvirt.drivers import AsyncVsockDriver, Request, VsockDriver, VsockStream
from xenvirt.drivers.vsock_core import BUFFER, Connection, VsockCore
from xenvirt.errors import DisconnectedError, LinkTimeoutError
from xenvirt.virtio import Feature
from xenvirt.virtio.vsock import PacketHeader, VsockConfig

from .fake_link import FakeAsyncLink, FakeLink, FakePending

T = TypeVar("T")


class PromptLink(FakeLink):
    """The device looks at its queues as soon as something is submitted."""

    def submit(self, request: Request[T]) -> FakePending[T]:
        pending = super().submit(request)
        self.collect()
        return pending


class Host:
    """The device and the host behind it."""

    def __init__(self) -> None:
        self.core = VsockCore(2)
        self.link = PromptLink(self, Feature.VERSION_1, space=bytearray(VsockConfig(3).to_bytes()))
        self.link.timeout = 5.0
        self.events: list[int] = []

    def __call__(self, queue: int, readable: bytes, writable: list[bytearray]) -> int | None:
        if queue == 1:
            self.core.heard(readable)
            return 0
        if queue == 2:
            return self._put(writable[0], self.events.pop(0).to_bytes(4, "little")) if self.events else None
        return self._put(writable[0], self._next(len(writable[0]))) if self.core.outgoing else None

    def _put(self, target: bytearray, data: bytes) -> int:
        target[: len(data)] = data
        return len(data)

    def _next(self, room: int) -> bytes:
        """The next packet; one that does not fit the buffer is cut in two."""
        front, data = self.core.outgoing.popleft()
        most = room - len(front)
        header = PacketHeader.from_bytes(front)
        if data[most:]:
            self.core.outgoing.appendleft((replaced(header, len(data) - most), data[most:]))
            front = replaced(header, most)
        return front + data[:most]

    def driver(self) -> VsockDriver:
        return VsockDriver(self.link)

    def connected(self) -> tuple[VsockStream, Connection]:
        """Both ends of a connection to port 80 of the host."""
        listener = self.core.listen(80)
        stream = self.driver().connect(80)
        return stream, listener.waiting.popleft()


def replaced(header: PacketHeader, length: int) -> bytes:
    raw = bytearray(header.to_bytes())
    at = PacketHeader.offset("len")
    raw[at : at + 4] = length.to_bytes(4, "little")
    return bytes(raw)


def test_a_stream_goes_both_ways_and_ends() -> None:
    host = Host()
    stream, there = host.connected()
    with stream:
        assert (stream.getsockname(), stream.getpeername()) == ((3, 49152), (2, 80))
        stream.sendall(b"ping")
        assert there.take(100) == b"ping"
        there.send(memoryview(b"pong"))
        assert (stream.recv(2), stream.recv(100)) == (b"po", b"ng")
        there.shutdown(2)
        assert stream.recv(1) == b""
        assert stream.recv(0) == b""
    assert there.at_end
    with pytest.raises(OSError, match="closed") as caught:
        stream.recv(1)
    assert caught.value.errno == errno.EBADF


def test_a_sender_waits_for_credit() -> None:
    host = Host()
    stream, there = host.connected()
    data = bytes(range(256)) * (BUFFER // 128)
    got = bytearray()
    host.link.later = [lambda: got.extend(there.take(BUFFER)) for _ in range(4)]
    stream.sendall(data)
    got += there.take(BUFFER)
    assert got == data


def test_a_receiver_gives_credit_back() -> None:
    host = Host()
    stream, there = host.connected()
    data = memoryview(bytes(range(256)) * (BUFFER // 64))
    got = bytearray()
    while len(got) < len(data):
        there_sent = there.send(data[len(got) + len(there.received) :][:BUFFER])
        got += stream.makefile("rb").read(there_sent)
    assert got == data


def test_nobody_there_is_refused_and_silence_times_out() -> None:
    host = Host()
    with pytest.raises(ConnectionRefusedError, match="port 81 of CID 2: nobody listens there"):
        host.driver().connect(81)
    deaf = Host()
    driver = deaf.driver()
    deaf.core.heard = lambda _: None  # type: ignore[method-assign, assignment]
    with pytest.raises(LinkTimeoutError, match=r"within 0.05 s: connection to port 80 of CID 2"):
        driver.connect(80, timeout=0.05)


def test_the_guest_listens() -> None:
    host = Host()
    driver = host.driver()
    with driver.listen(5000) as listener:
        there = host.core.connect(5000, cid=3)
        stream, peer = listener.accept()
        assert (listener.port, peer, stream.getsockname()) == (5000, (2, there.local_port), (3, 5000))
        stream.sendall(b"welcome")
        assert there.take(10) == b"welcome"
        listener.settimeout(0.01)
        with pytest.raises(LinkTimeoutError, match="connection to our port 5000"):
            listener.accept()
    late = host.core.connect(5000, cid=3)
    driver.pump()
    driver.pump()
    assert late.error is ConnectionRefusedError


def test_a_reset_raises_after_the_data_that_came_before() -> None:
    host = Host()
    stream, there = host.connected()
    there.send(memoryview(b"last"))
    there.reset()
    assert stream.recv(100) == b"last"
    with pytest.raises(ConnectionResetError, match=r"\(3, 49152\) to \(2, 80\).*: the other end reset"):
        stream.recv(100)
    with pytest.raises(ConnectionResetError):
        stream.send(b"x")


def test_sending_after_a_shutdown_is_a_broken_pipe() -> None:
    host = Host()
    stream, there = host.connected()
    stream.shutdown(socket.SHUT_WR)
    assert there.at_end
    with pytest.raises(BrokenPipeError, match="shut down"):
        stream.send(b"x")
    there.send(memoryview(b"still there"))
    assert stream.recv(20) == b"still there"


def test_timeouts_are_as_with_sockets() -> None:
    host = Host()
    stream, _ = host.connected()
    assert stream.gettimeout() == host.link.timeout
    stream.settimeout(0.01)
    with pytest.raises(TimeoutError, match=r"within 0.01 s: data on <VsockStream"):
        stream.recv(1)
    stream.setblocking(False)
    with pytest.raises(BlockingIOError, match="no data at the moment"):
        stream.recv(1)
    with pytest.raises(ValueError, match="timeout of -1"):
        stream.settimeout(-1)


def test_files_made_of_a_stream_keep_it_open() -> None:
    host = Host()
    stream, there = host.connected()
    with stream.makefile("rwb") as file:
        stream.close()
        file.write(b"line\n")
        file.flush()
        assert there.take(10) == b"line\n"
        there.send(memoryview(b"one\ntwo"))
        assert file.readline() == b"one\n"
        assert not there.at_end
    assert there.at_end
    with pytest.raises(ValueError, match='"rb", "wb" and "rwb"'):
        Host().connected()[0].makefile("r")


def test_a_client_of_the_standard_library_speaks_through_it() -> None:
    host = Host()
    stream, there = host.connected()
    connection = http.client.HTTPConnection("guest")
    connection.sock = stream
    connection.request("GET", "/")
    assert there.take(1000).startswith(b"GET / HTTP/1.1\r\nHost: guest")
    there.send(memoryview(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"))
    assert connection.getresponse().read() == b"hi"
    connection.close()
    assert there.at_end


def test_a_reset_of_the_transport_is_heard_and_the_new_address_read() -> None:
    host = Host()
    stream, _ = host.connected()
    host.events.append(0)
    host.link.space[:] = VsockConfig(9).to_bytes()
    with pytest.raises(ConnectionResetError):
        stream.recv(1)
    assert stream.getsockname()[0] == 9


def test_closing_after_the_link_is_no_error() -> None:
    host = Host()
    stream, _ = host.connected()

    def gone(_: object) -> Any:
        raise DisconnectedError("the backend went away")

    host.link.submit = gone  # type: ignore[method-assign, assignment]
    stream.close()


def run(body: Callable[[Host, AsyncVsockDriver], Awaitable[None]]) -> None:
    async def use() -> None:
        host = Host()
        async with AsyncVsockDriver(FakeAsyncLink(host.link)) as driver:
            await body(host, driver)

    asyncio.run(use())


async def settle(driver: AsyncVsockDriver) -> None:
    """Lets everything that can happen without time passing happen."""
    for _ in range(30):
        driver.kick()
        await asyncio.sleep(0)


def test_streams_of_asyncio_go_both_ways_and_end() -> None:
    async def body(host: Host, driver: AsyncVsockDriver) -> None:
        listener = host.core.listen(80)
        reader, writer = await driver.open_connection(80)
        there = listener.waiting.popleft()
        assert writer.get_extra_info("peername") == (2, 80)
        writer.write(b"ping")
        await writer.drain()
        await settle(driver)
        assert there.take(10) == b"ping"
        there.send(memoryview(b"pong\nrest"))
        await settle(driver)
        assert await reader.readline() == b"pong\n"
        writer.write_eof()
        await settle(driver)
        assert there.at_end
        there.shutdown(3)
        await settle(driver)
        assert await reader.read() == b"rest"
        writer.close()
        await writer.wait_closed()

    run(body)


def test_on_asyncio_writing_waits_for_credit_and_reading_gives_it() -> None:
    async def body(host: Host, driver: AsyncVsockDriver) -> None:
        listener = host.core.listen(80)
        reader, writer = await driver.open_connection(80)
        there = listener.waiting.popleft()
        data = bytes(range(256)) * (BUFFER // 64)
        writer.write(data)
        draining = asyncio.ensure_future(writer.drain())
        await settle(driver)
        assert len(there.received) == BUFFER
        assert not draining.done()
        got = bytearray()
        while len(got) < len(data):
            got += there.take(BUFFER)
            await settle(driver)
        await draining
        assert got == data

        waiting = memoryview(data)
        back = bytearray()
        while len(back) < len(data):
            waiting = waiting[there.send(waiting) :]
            await settle(driver)
            assert len(there._core.outgoing) == 0
            back += await reader.read(100_000)
        assert back == data
        writer.close()

    run(body)


def test_on_asyncio_the_guest_serves() -> None:
    async def body(host: Host, driver: AsyncVsockDriver) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(line.upper())
            writer.close()

        async with await driver.start_server(echo, 7) as server:
            assert server.port == 7
            there = host.core.connect(7, cid=3)
            await settle(driver)
            there.send(memoryview(b"hello\n"))
            await settle(driver)
            assert there.take(10) == b"HELLO\n"
            there.shutdown(2)
            await settle(driver)
            assert there.at_end
        late = host.core.connect(7, cid=3)
        await settle(driver)
        assert late.error is ConnectionRefusedError

    run(body)


def test_on_asyncio_errors_come_out_of_what_waits() -> None:
    async def body(host: Host, driver: AsyncVsockDriver) -> None:
        with pytest.raises(ConnectionRefusedError, match="port 81 of CID 2"):
            await driver.open_connection(81)
        listener = host.core.listen(80)
        reader, writer = await driver.open_connection(80)
        listener.waiting.popleft().reset()
        await settle(driver)
        with pytest.raises(ConnectionResetError, match="the other end reset"):
            await reader.read()
        with pytest.raises(ConnectionResetError):
            await writer.drain()
        host.link.timeout = 0.05
        host.core.heard = lambda _: None  # type: ignore[method-assign, assignment]
        with pytest.raises(LinkTimeoutError, match="connection to port 80"):
            await driver.open_connection(80)

    run(body)


def test_on_asyncio_a_backend_that_goes_away_breaks_every_stream() -> None:
    async def body(host: Host, driver: AsyncVsockDriver) -> None:
        host.core.listen(80)
        reader, writer = await driver.open_connection(80)

        def gone(_: object) -> Any:
            raise DisconnectedError("the backend went away")

        host.link.submit_all = gone  # type: ignore[method-assign, assignment]
        driver.kick()
        with pytest.raises(DisconnectedError, match="went away"):
            await reader.read()
        with pytest.raises(DisconnectedError):
            await driver.open_connection(80)
        writer.close()

    run(body)


def test_reading_from_a_file_of_a_stream_is_buffered_as_usual() -> None:
    host = Host()
    stream, there = host.connected()
    there.send(memoryview("zweite Zeile\nsüß\n".encode()))
    there.shutdown(3)
    with io.TextIOWrapper(stream.makefile("rb"), encoding="utf-8") as text:
        assert text.readlines() == ["zweite Zeile\n", "süß\n"]
