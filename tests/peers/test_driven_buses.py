"""Our drivers of I2C, SPI, CAN and input, with rust-vmm's daemons on hardware that the test plays.

Both ends are looked at: what the hardware got, and what came back. Buffers begin as 0xA5, so bytes that
nobody wrote would be seen. A second client does the same.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest

from xenvirt import connect, connect_async
from xenvirt.drivers import (
    AsyncCanDriver,
    AsyncI2cDriver,
    AsyncInputDriver,
    CanDriver,
    CanFrame,
    I2cDriver,
    InputDriver,
    SpiDriver,
)
from xenvirt.drivers.i2c import Message, Read, Write
from xenvirt.errors import (
    LinkTimeoutError,
    RequestFailedError,
    RequestUnsupportedError,
)
from xenvirt.virtio.input import DeviceIds, InputEvent
from xenvirt.virtio.spi import Mode

from . import crates, rust_vmm
from .buses import I2C_RDWR, I2cMemory, Keyboard, SpiInverter
from .conftest import need
from .hardware import Hardware, Stream

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def _built() -> None:
    for crate in (crates.I2C, crates.SPI, crates.CAN, crates.INPUT):
        need(crate.program.exists(), f"{crate.name} {crate.version}")


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


def test_asyncio_reads_and_writes_on_i2c(hardware: Callable[..., Hardware]) -> None:
    memory = I2cMemory(0x50)

    async def use(socket: str) -> None:
        async with await connect_async(socket, timeout=PATIENCE) as link, AsyncI2cDriver(link) as bus:
            await bus.write(0x50, b"\x10hello")
            assert await bus.write_read(0x50, b"\x10", 5) == b"hello"
            with pytest.raises(RequestFailedError):
                await bus.transfer([Write(0x33, b"x"), Read(0x50, 1)])

    with rust_vmm.i2c(hardware(memory), address=0x50) as daemon:
        asyncio.run(use(daemon.socket))
    assert memory.content[0x10:0x15] == b"hello"


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


def test_asyncio_receives_frames(hardware: Callable[..., Hardware]) -> None:
    daemon, bus = rust_vmm.can(hardware())

    async def use() -> None:
        async with await connect_async(daemon.socket, timeout=PATIENCE) as link, AsyncCanDriver(link) as can:
            await can.start()
            await can.send(CanFrame(1, b"out"))
            assert CAN_FRAME.unpack((await asyncio.to_thread(bus.wait_for, 1))[0])[2] == b"out\0\0\0\0\0"
            for _ in range(100):  # see wait_for_reader
                bus.send(CAN_FRAME.pack(2, 2, b"in"))
                with suppress(LinkTimeoutError):
                    assert await can.receive(0.2) == CanFrame(2, b"in")
                    return
            raise AssertionError("the daemon does not read the bus")

    with daemon:
        asyncio.run(use())


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


def test_asyncio_hears_a_keyboard(hardware: Callable[..., Hardware]) -> None:
    daemon, events = rust_vmm.input_device(hardware(Keyboard([KEY_A])))

    async def use() -> None:
        async with (
            await connect_async(daemon.socket, timeout=PATIENCE) as link,
            AsyncInputDriver(link) as keyboard,
        ):
            assert await keyboard.name() == "keyboard of the tests"
            pressed = INPUT_EVENT.pack(1, 2, EV_KEY, KEY_A, 1)
            events.send(pressed + INPUT_EVENT.pack(1, 2, EV_SYN, 0, 0))
            assert await keyboard.receive_report() == [InputEvent(EV_KEY, KEY_A, 1)]

    with daemon:
        asyncio.run(use())
