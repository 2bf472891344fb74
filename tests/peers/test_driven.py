"""Our drivers do their one useful thing with each of rust-vmm's daemons, and so does a second client.

Where hardware is played both ends are looked at: what it got, and what came back. Buffers begin as 0xA5, so
bytes that nobody wrote would be seen.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from xenvirt import Daemon, Link, connect, connect_async
from xenvirt.drivers import (
    AsyncVsockDriver,
    CanDriver,
    CanFrame,
    ConsoleDriver,
    EntropyDriver,
    I2cDriver,
    InputDriver,
    ScsiDriver,
    SoundDriver,
    SpiDriver,
    VsockDriver,
)
from xenvirt.drivers.i2c import Message, Read, Write
from xenvirt.drivers.sound import formats_of, is_playback, rates_of
from xenvirt.errors import (
    CheckConditionError,
    LinkTimeoutError,
    NegotiationError,
    RequestFailedError,
    RequestUnsupportedError,
)
from xenvirt.virtio.input import DeviceIds, InputEvent
from xenvirt.virtio.sense import SenseKey
from xenvirt.virtio.sound import Format, Rate
from xenvirt.virtio.spi import Mode

from . import crates, rust_vmm
from .buses import I2C_RDWR, I2cMemory, Keyboard, SpiInverter
from .conftest import need
from .hardware import Hardware, Stream
from .workloads import MiB, new_image

PATIENCE = 20.0
BOTH_BUILDS = pytest.mark.parametrize("xen", [False, True], ids=["plain", "xen"])


@pytest.fixture(autouse=True)
def _built() -> None:
    for crate in crates.CRATES:
        need(crate.program.exists(), f"{crate.name} {crate.version}")


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


def test_a_stream_carries_more_than_the_credit_of_both_ends() -> None:
    content = os.urandom(2 * MiB)
    with rust_vmm.vsock() as daemon, host_listener(daemon, 99) as listener:

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


def test_asyncio_serves_the_host() -> None:
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

    with rust_vmm.vsock() as daemon:
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


# ---- I2C


def test_the_i2c_driver_reads_and_writes_a_memory(hardware: Callable[..., Hardware]) -> None:
    memory = I2cMemory(0x50)
    played = hardware(memory)
    with rust_vmm.i2c(played, address=0x50) as daemon:
        with connect(daemon.socket, timeout=PATIENCE) as link, I2cDriver(link) as bus:
            bus.write(0x50, b"\x10hello")
            assert memory.content[0x10:0x15] == b"hello"
            assert bus.write_read(0x50, b"\x0e", 8) == bytes([241, 240]) + b"hello" + bytes([234])
            assert bus.read(0x50, 2) == bytes([233, 232])
        with connect(daemon.socket, timeout=PATIENCE) as link, I2cDriver(link) as bus:
            assert bus.write_read(0x50, b"\x10", 5) == b"hello", "a second client"
    transfers = [asked.parts for asked in played.ioctls if asked.number == I2C_RDWR]
    assert [[(part.address, part.is_read, len(part.data)) for part in parts] for parts in transfers] == [
        [(0x50, False, 6)],
        [(0x50, False, 1), (0x50, True, 8)],
        [(0x50, True, 2)],
        [(0x50, False, 1), (0x50, True, 5)],
    ]


def test_a_combined_i2c_transfer_is_one_on_the_bus(hardware: Callable[..., Hardware]) -> None:
    played = hardware(I2cMemory(0x50))
    messages: list[Message] = [Write(0x50, b"\0"), Read(0x50, 1), Write(0x50, b"\x20"), Read(0x50, 3)]
    with (
        rust_vmm.i2c(played, address=0x50) as daemon,
        connect(daemon.socket, timeout=PATIENCE) as link,
        I2cDriver(link) as bus,
    ):
        for _ in range(50):
            assert bus.transfer(messages) == [b"", b"\xff", b"", bytes([223, 222, 221])]
    transfers = [asked.parts for asked in played.ioctls if asked.number == I2C_RDWR]
    assert [len(parts) for parts in transfers] == [4] * 50


def test_an_i2c_chip_that_is_not_there_is_an_error(hardware: Callable[..., Hardware]) -> None:
    with (
        rust_vmm.i2c(hardware(I2cMemory(0x51)), address=0x50) as daemon,
        connect(daemon.socket, timeout=PATIENCE) as link,
        I2cDriver(link) as bus,
    ):
        with pytest.raises(RequestFailedError, match="read of 4 bytes from I2C address 0x50"):
            bus.read(0x50, 4)
        with pytest.raises(RequestFailedError, match="0x33"):
            bus.read(0x33, 4)


# ---- SPI


def test_the_spi_driver_sends_and_receives_at_once(hardware: Callable[..., Hardware]) -> None:
    chip = SpiInverter()
    data = bytes(range(256)) * 16
    with rust_vmm.spi(hardware(chip)) as daemon:
        with connect(daemon.socket, timeout=PATIENCE) as link, SpiDriver(link) as bus:
            assert (bus.config.cs_max_number, bus.config.max_freq_hz) == (1, chip.max_speed)
            assert bus.transfer(data, speed=1_000_000, mode=Mode.CPOL) == bytes(~byte & 0xFF for byte in data)
            bus.write(b"only sent", speed=1_000_000)
            assert bus.read(5, speed=1_000_000) == bytes(range(5))
            with pytest.raises(RequestUnsupportedError, match="PARAM_ERR"):
                bus.write(b"too fast", speed=chip.max_speed + 1)
        with connect(daemon.socket, timeout=PATIENCE) as link, SpiDriver(link) as bus:
            assert bus.transfer(b"\0\xff", speed=1) == b"\xff\0", "a second client"
    assert chip.sent == [data, b"only sent", b"\0\xff"]


# ---- CAN


CAN_FRAME = struct.Struct("=IB3x8s")  # struct can_frame
CANFD_FRAME = struct.Struct("=IBB2x64s")  # struct canfd_frame
EXTENDED = 1 << 31


HELLO = 0x7FF


def wait_for_reader(can: CanDriver, bus: Stream) -> None:
    """The daemon opens the bus for reading on a thread of its own, some time after it has for writing."""
    for _ in range(100):
        bus.send(CAN_FRAME.pack(HELLO, 0, b""))
        with suppress(LinkTimeoutError):
            assert can.receive(0.2).id == HELLO
            return
    raise AssertionError("the daemon does not read the bus")


def next_frame(can: CanDriver) -> CanFrame:
    # When a frame comes while it deals with the one before, it can lose the buffer: each call lends another.
    for _ in range(20):
        with suppress(LinkTimeoutError):
            while (frame := can.receive(1.0)).id == HELLO:
                pass
            return frame
    return can.receive(PATIENCE)


def test_the_can_driver_sends_and_receives_frames(hardware: Callable[..., Hardware]) -> None:
    daemon, bus = rust_vmm.can(hardware())
    with daemon:
        for client in (b"1", b"2"):
            bus.received.clear()
            with connect(daemon.socket, timeout=PATIENCE) as link, CanDriver(link) as can:
                with pytest.raises(RequestFailedError, match="NOT_OK"):
                    can.send(CanFrame(0x123, b"stopped"))
                can.start()
                can.send(CanFrame(0x123, b"classic" + client))
                can.send(CanFrame(0x1ABCDEF0, bytes(range(48)), extended=True, fd=True))
                classic, fd = bus.wait_for(2)
                assert CAN_FRAME.unpack(classic) == (0x123, 8, b"classic" + client)
                can_id, length, _, data = CANFD_FRAME.unpack(fd)
                assert (can_id, length, data[:48]) == (0x1ABCDEF0 | EXTENDED, 48, bytes(range(48)))

                wait_for_reader(can, bus)
                for number in range(3):
                    bus.send(CAN_FRAME.pack(0x100 + number, 2, b"in"))
                    assert next_frame(can) == CanFrame(0x100 + number, b"in")
                bus.send(CANFD_FRAME.pack(0x1ABCDEF0 | EXTENDED, 64, 0, bytes(range(64))))
                assert next_frame(can) == CanFrame(0x1ABCDEF0, bytes(range(64)), extended=True, fd=True)
                can.stop()


# ---- input


INPUT_EVENT = struct.Struct("=qqHHi")  # struct input_event, 64 bits
EV_SYN, EV_KEY, EV_REL, KEY_A, KEY_B = 0, 1, 2, 30, 48


def test_the_input_driver_hears_a_keyboard(hardware: Callable[..., Hardware]) -> None:
    daemon, events = rust_vmm.input_device(hardware(Keyboard([KEY_A, KEY_B])))
    with daemon:
        for _ in range(2):
            with connect(daemon.socket, timeout=PATIENCE) as link, InputDriver(link) as keyboard:
                assert keyboard.name() == "keyboard of the tests"
                assert keyboard.ids() == DeviceIds(*Keyboard.identity)
                assert keyboard.event_codes(EV_KEY) == {KEY_A, KEY_B}
                assert keyboard.event_codes(EV_REL) == set()
                for value in (1, 0):
                    events.send(
                        INPUT_EVENT.pack(1, 2, EV_KEY, KEY_A, value)
                        + INPUT_EVENT.pack(1, 2, EV_KEY, KEY_B, value)
                        + INPUT_EVENT.pack(1, 2, EV_SYN, 0, 0)
                    )
                    assert keyboard.receive_report(PATIENCE) == [
                        InputEvent(EV_KEY, KEY_A, value),
                        InputEvent(EV_KEY, KEY_B, value),
                    ]


# ---- SCSI


def test_the_scsi_driver_reads_and_writes_a_disk(tmp_path: Path) -> None:
    image = new_image(tmp_path / "disk", 4 * MiB)
    content = os.urandom(MiB + 512)
    with rust_vmm.scsi(image) as daemon:
        with connect(daemon.socket, timeout=PATIENCE) as link, ScsiDriver(link) as scsi:
            scsi.test_unit_ready()
            said = scsi.inquiry()
            assert (said.device_type, said.vendor) == (0, "rust-vmm")
            assert scsi.read_capacity().size == 4 * MiB
            scsi.write(3, content)
            scsi.synchronize_cache()
            assert scsi.read(3, len(content) // 512) == content
            with pytest.raises(CheckConditionError, match="logical block address out of range") as caught:
                scsi.read(4 * MiB // 512, 1)
            assert caught.value.key == SenseKey.ILLEGAL_REQUEST
            with pytest.raises(CheckConditionError, match="invalid command operation code"):
                scsi.read(1 << 32, 1)  # READ(16), which it does not know
            with pytest.raises(RequestFailedError, match=r"target 1, unit 0.*BAD_TARGET"):
                scsi.test_unit_ready(target=1)
        assert daemon.wait() == 0, "it serves one client and quits"
    assert image.read_bytes()[3 * 512 :][: len(content)] == content
    with (
        rust_vmm.scsi(image, read_only=True) as daemon,
        connect(daemon.socket, timeout=PATIENCE) as link,
        ScsiDriver(link) as scsi,
    ):
        assert scsi.read(3, 8) == content[:4096], "a second client"


# ---- sound


def test_the_sound_driver_plays_on_a_device_that_nobody_hears() -> None:
    with rust_vmm.sound() as daemon:
        for _ in range(2):
            with connect(daemon.socket, timeout=PATIENCE) as link, SoundDriver(link) as sound:
                out, back = sound.streams()
                assert (is_playback(out), is_playback(back)) == (True, False)
                assert Format.S16 in formats_of(out)
                assert Rate.HZ_48000 in rates_of(out)
                sound.play(0, bytes(range(256)) * 1024, rate=Rate.HZ_48000, format=Format.S16, channels=2)
                with pytest.raises(RequestFailedError, match=r"PCM_START of stream 2: .*BAD_MSG"):
                    sound.start(2)
