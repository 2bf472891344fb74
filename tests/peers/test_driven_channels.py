"""Our drivers of entropy, console and sockets, with rust-vmm's daemons and with their builds for Xen.

Each does its one useful thing, and so does a second client.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xenvirt import Daemon, Link, connect, connect_async
from xenvirt.drivers import (
    AsyncVsockDriver,
    ConsoleDriver,
    EntropyDriver,
    VsockDriver,
)
from xenvirt.errors import (
    LinkTimeoutError,
    NegotiationError,
)

from . import crates, rust_vmm
from .conftest import need
from .workloads import MiB

PATIENCE = 20.0
BOTH_BUILDS = pytest.mark.parametrize("xen", [False, True], ids=["plain", "xen"])


@pytest.fixture(autouse=True)
def _built() -> None:
    plain = (crates.RNG, crates.CONSOLE, crates.VSOCK)
    for crate in (*plain, crates.RNG_XEN, crates.CONSOLE_XEN, crates.VSOCK_XEN):
        need(crate.program.exists(), f"{crate.name} {crate.version} {crate.arguments}")


# ---- entropy


@BOTH_BUILDS
def test_the_entropy_driver_draws_from_vhost_device_rng(xen: bool) -> None:
    drawn = []
    with rust_vmm.rng(crates.RNG_XEN if xen else crates.RNG) as daemon:
        for _ in range(2):
            with connect(daemon.socket, timeout=PATIENCE) as link, EntropyDriver(link) as rng:
                drawn += [rng.read(64) for _ in range(4)]
    assert all(len(data) == 64 for data in drawn)
    assert len(set(drawn)) == 8


# ---- console


@BOTH_BUILDS
def test_the_console_driver_talks_to_the_host(xen: bool, tcp_port: int) -> None:
    with rust_vmm.console(crates.CONSOLE_XEN if xen else crates.CONSOLE, tcp_port=tcp_port) as daemon:
        for line in (b"first client\n", b"second client\n"):
            with connect(daemon.socket, timeout=PATIENCE) as link, console_driver(link) as console:
                console.port()
                with socket.create_connection(("127.0.0.1", tcp_port), timeout=PATIENCE) as host:
                    console.write(b"out: " + line)
                    assert received(host, len(line) + 5) == b"out: " + line
                    host.sendall(b"in: " + line)
                    assert console.read_exactly(len(line) + 4) == b"in: " + line


def console_driver(link: Link) -> ConsoleDriver:
    # It gives a buffer back once for each byte that it put there, and loses the buffers that it has no byte
    # for: so one buffer of one byte, while we wait, is all that it can have.
    return ConsoleDriver(link, buffers=0, buffer_size=1)


def received(host: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = host.recv(size - len(data))
        assert part, f"the end after {data!r}"
        data += part
    return data


# ---- vsock


@contextmanager
def host_listener(daemon: Daemon, port: int) -> Iterator[socket.socket]:
    """The host's end of a port: a Unix socket beside the daemon's."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{daemon.dir}/vm.vsock_{port}")
        listener.listen()
        listener.settimeout(PATIENCE)
        yield listener


@contextmanager
def host_connection(daemon: Daemon, port: int) -> Iterator[socket.socket]:
    """The host connects to a port of the guest; "OK" comes first when it was accepted."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(f"{daemon.dir}/vm.vsock")
        connection.sendall(f"CONNECT {port}\n".encode())
        yield connection


def accepted(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(PATIENCE)
    return connection


@BOTH_BUILDS
def test_the_socket_driver_connects_listens_and_comes_again(xen: bool) -> None:
    with rust_vmm.vsock(crates.VSOCK_XEN if xen else crates.VSOCK, guest_cid=7) as daemon:
        for _ in range(2):
            with connect(daemon.socket, timeout=PATIENCE) as link, VsockDriver(link) as vsock:
                assert vsock.guest_cid == 7
                with host_listener(daemon, 1234) as listener, vsock.connect(1234) as stream:
                    with accepted(listener) as host:
                        stream.sendall(b"from the guest")
                        assert received(host, 14) == b"from the guest"
                        host.sendall(b"from the host")
                        assert stream.recv(100) == b"from the host"
                    assert stream.recv(100) == b""
                Path(f"{daemon.dir}/vm.vsock_1234").unlink()
                with vsock.listen(5000) as listening, host_connection(daemon, 5000) as host:
                    stream, (cid, _) = listening.accept()
                    assert cid == 2
                    assert received(host, 8) == b"OK 5000\n"
                    host.sendall(b"hello guest")
                    assert stream.recv(100) == b"hello guest"
                    stream.close()
                    vsock.pump()
                    assert host.recv(1) == b""


@BOTH_BUILDS
def test_a_stream_carries_more_than_the_credit_of_both_ends(xen: bool) -> None:
    content = os.urandom(2 * MiB)
    program = crates.VSOCK_XEN if xen else crates.VSOCK
    with rust_vmm.vsock(program) as daemon, host_listener(daemon, 99) as listener:

        async def talk() -> None:
            async with (
                await connect_async(daemon.socket, timeout=PATIENCE) as link,
                AsyncVsockDriver(link) as vsock,
            ):
                reader, writer = await vsock.open_connection(99)
                with accepted(listener) as host:
                    got = asyncio.create_task(asyncio.to_thread(received, host, len(content)))
                    writer.write(content)
                    await writer.drain()
                    assert await got == content
                    sent = asyncio.create_task(asyncio.to_thread(host.sendall, content))
                    assert await reader.readexactly(len(content)) == content
                    await sent
                    writer.close()
                    await writer.wait_closed()
                    assert await asyncio.to_thread(host.recv, 1) == b""

        asyncio.run(talk())


@BOTH_BUILDS
def test_asyncio_serves_the_host(xen: bool) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
        writer.close()

    def ask(daemon: Daemon) -> bytes:
        with host_connection(daemon, 7) as host:
            assert received(host, 5) == b"OK 7\n"
            host.sendall(b"louder\n")
            return received(host, 7)

    async def serve(daemon: Daemon) -> bytes:
        async with (
            await connect_async(daemon.socket, timeout=PATIENCE) as link,
            AsyncVsockDriver(link) as vsock,
            await vsock.start_server(shout, 7),
        ):
            return await asyncio.to_thread(ask, daemon)

    with rust_vmm.vsock(crates.VSOCK_XEN if xen else crates.VSOCK) as daemon:
        assert asyncio.run(serve(daemon)) == b"LOUDER\n"


def test_vhost_device_vsock_is_silent_where_nobody_listens() -> None:
    # Its enq_rst is not written yet: no RST comes, so our timeout has to end the waiting.
    with (
        rust_vmm.vsock() as daemon,
        connect(daemon.socket, timeout=PATIENCE) as link,
        VsockDriver(link) as vsock,
        pytest.raises(LinkTimeoutError, match="connection to port 77 of CID 2"),
    ):
        vsock.connect(77, timeout=0.2)


# ---- the Xen builds


@pytest.mark.parametrize("program", ["rng", "console", "vsock"])
def test_a_xen_build_without_xen_mmap_is_our_error_and_the_daemon_lives(program: str, tcp_port: int) -> None:
    start: dict[str, Callable[[], Daemon]] = {
        "rng": lambda: rust_vmm.rng(crates.RNG_XEN),
        "console": lambda: rust_vmm.console(crates.CONSOLE_XEN, tcp_port=tcp_port),
        "vsock": lambda: rust_vmm.vsock(crates.VSOCK_XEN),
    }
    mq = 1 << 0
    with start[program]() as daemon:
        with pytest.raises(NegotiationError, match="XEN_MMAP"):
            connect(daemon.socket, timeout=PATIENCE, protocol_features=mq)
        with connect(daemon.socket, timeout=PATIENCE) as link:
            assert link.protocol_features >> 17 & 1
