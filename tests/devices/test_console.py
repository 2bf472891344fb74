"""The console device, driven in process by our driver."""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from xenvirt import connect, connect_async
from xenvirt.devices import ConsoleDevice, Port, Pty, Stdio
from xenvirt.drivers import AsyncConsoleDriver, ConsoleDriver
from xenvirt.drivers.request import Request
from xenvirt.errors import LinkTimeoutError
from xenvirt.in_process import InProcessLink

PATTERN = bytes(range(251)) * 4001


class Wire(Port):
    """A port whose other end the test holds."""

    def __init__(self, *, name: str = "", console: bool = True) -> None:
        self.far, self._near = socket.socketpair()
        super().__init__(self._near.fileno(), self._near.fileno(), name=name, console=console)

    def close(self) -> None:
        self.far.close()
        self._near.close()
        super().close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def wire(stack: ExitStack, *, name: str = "", console: bool = True) -> Wire:
    made = Wire(name=name, console=console)
    stack.callback(made.close)
    return made


def drive(stack: ExitStack, device: ConsoleDevice, timeout: float = 5.0) -> ConsoleDriver:
    return ConsoleDriver(stack.enter_context(connect(device, timeout=timeout)))


def look(console: ConsoleDriver, timeout: float = 0) -> None:
    """Lets the device, which is in this process, deal with what is there."""
    assert isinstance(console.link, InProcessLink)
    console.link.attend(timeout)
    console.link.collect()


def test_what_is_typed_and_what_is_printed_cross(stack: ExitStack) -> None:
    port = wire(stack)
    console = drive(stack, ConsoleDevice(port))
    assert not console.multiport
    console.write(b"login: ")
    assert port.far.recv(100) == b"login: "
    port.far.sendall(b"root\n")
    assert console.read() == b"root\n"


def test_input_waits_outside_until_the_driver_has_buffers(stack: ExitStack) -> None:
    port = wire(stack)
    port.far.setblocking(False)
    console = drive(stack, ConsoleDevice(port))
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += port.far.send(PATTERN[sent : sent + 4096])
            look(console)
    # The driver reads nothing: its buffers are full, and so is the socket. Nothing is lost.
    assert sent > 16 * 4096
    assert console.read_exactly(sent) == PATTERN[:sent]


def test_output_waits_in_the_ring_while_nobody_takes_it(stack: ExitStack) -> None:
    port = wire(stack)
    console = drive(stack, ConsoleDevice(port), timeout=0.2)
    submitted, pending = 0, []
    with suppress(LinkTimeoutError):
        while True:
            piece = PATTERN[submitted : submitted + 4096]
            pending.append(console.link.submit(console.transmit_request(0, piece)))
            submitted += len(piece)
    port.far.settimeout(5)
    taken = bytearray()
    while len(taken) < submitted:
        look(console)
        taken += port.far.recv(65536)
    assert taken == PATTERN[:submitted]
    for one in pending:
        one.result()


def test_a_slow_port_delays_no_other(stack: ExitStack) -> None:
    slow, quick = wire(stack), wire(stack, name="quick", console=False)
    console = drive(stack, ConsoleDevice(slow, quick), timeout=0.2)
    with pytest.raises(LinkTimeoutError):
        console.write(PATTERN)
    console.port(name="quick")
    console.write(b"still here", port=1)
    assert quick.far.recv(100) == b"still here"
    quick.far.sendall(b"and back")
    assert console.read(port=1) == b"and back"


def test_the_device_tells_of_its_ports(stack: ExitStack) -> None:
    ports = [wire(stack), wire(stack, name="agent", console=False), wire(stack, name="log", console=False)]
    console = drive(stack, ConsoleDevice(*ports, size=(132, 43)))
    assert (console.multiport, console.config.max_nr_ports) == (True, 3)
    first, agent, log = console.port(0), console.port(name="agent"), console.port(name="log")
    assert [port.number for port in (first, agent, log)] == [0, 1, 2]
    assert [port.console for port in (first, agent, log)] == [True, False, False]
    assert console.next_size() == (132, 43)
    console.write(b"hello", port=2)
    assert ports[2].far.recv(100) == b"hello"


def test_a_port_that_the_guest_closed_gets_no_input(stack: ExitStack) -> None:
    ports = [wire(stack), wire(stack, name="agent", console=False)]
    console = drive(stack, ConsoleDevice(*ports), timeout=0.2)
    console.port(name="agent")
    console.close_port(1)
    ports[1].far.sendall(b"too early")
    with pytest.raises(LinkTimeoutError):
        console.read(port=1)
    console.open_port(1)
    assert console.read(port=1) == b"too early"


def test_the_end_of_a_channel_closes_its_port(stack: ExitStack) -> None:
    ports = [wire(stack), wire(stack, name="agent", console=False)]
    console = drive(stack, ConsoleDevice(*ports))
    agent = console.port(name="agent")
    ports[1].far.close()
    while agent.open:
        look(console, 5)
        console.port(0)


def test_a_resize_is_seen_in_the_configuration_space(stack: ExitStack) -> None:
    device = ConsoleDevice(wire(stack))
    console = drive(stack, device)
    assert console.next_size() == (80, 25)
    device.resize(100, 40)
    assert console.next_size() == (100, 40)


def test_a_resize_is_said_to_a_driver_of_several_ports(stack: ExitStack) -> None:
    device = ConsoleDevice(wire(stack), wire(stack))
    console = drive(stack, device)
    console.port(1)
    assert console.next_size(1) == (80, 25)
    device.resize(100, 40, port=1)
    assert console.next_size(1) == (100, 40)
    assert console.ports[0].size == (80, 25)


def test_an_emergency_character_is_printed(stack: ExitStack) -> None:
    port = wire(stack)
    console = drive(stack, ConsoleDevice(port))
    console.emergency_write(ord("!"))
    assert port.far.recv(100) == b"!"


def test_a_pty_does_not_echo_and_follows_its_terminal(stack: ExitStack) -> None:
    pty = Pty()
    stack.callback(pty.close)
    console = drive(stack, ConsoleDevice(pty))
    terminal = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
    stack.callback(os.close, terminal)
    console.write(b"\r\nlogin: ")
    assert os.read(terminal, 100) == b"\r\nlogin: "
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, array.array("H", [50, 120, 0, 0]))
    os.write(terminal, b"x")
    assert console.read() == b"x"
    assert (console.next_size(), console.next_size()) == ((80, 25), (120, 50))


def test_a_file_can_be_the_input_and_a_file_the_output(stack: ExitStack, tmp_path: Path) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    source.write_bytes(PATTERN[:100_000])
    with source.open("rb") as reader, sink.open("wb") as writer:
        console = drive(stack, ConsoleDevice(Port(reader.fileno(), writer.fileno())))
        assert console.read_exactly(100_000) == PATTERN[:100_000]
        console.write(PATTERN)
    assert sink.read_bytes() == PATTERN


def test_output_that_nobody_can_get_any_more_is_dropped(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = os.pipe()
    stack.callback(os.close, writer)
    console = drive(stack, ConsoleDevice(Port(None, writer)))
    os.close(reader)
    console.write(PATTERN)
    assert "output is lost" in caplog.text


def test_standard_input_in_raw_mode_is_left_by_ctrl_bracket(stack: ExitStack) -> None:
    master, slave = os.openpty()
    stack.callback(os.close, master)
    stack.callback(os.close, slave)
    left: list[bool] = []
    before = termios.tcgetattr(slave)
    stdio = Stdio(lambda: left.append(True), source=slave, sink=slave)
    stack.callback(stdio.close)
    console = drive(stack, ConsoleDevice(stdio))
    os.write(master, b"\x03ls\r")
    assert console.read_exactly(4) == b"\x03ls\r"
    os.write(master, b"\x1d")
    console.link.wait_for(lambda: bool(left), "the escape")
    stdio.close()
    assert termios.tcgetattr(slave) == before


def test_a_second_driver_goes_on_where_the_first_one_stopped(stack: ExitStack) -> None:
    port = wire(stack)
    device = ConsoleDevice(port)
    for number in range(3):
        with connect(device) as link, ConsoleDriver(link) as console:
            console.write(b"driver %d" % number)
            assert port.far.recv(100) == b"driver %d" % number
            port.far.sendall(b"answer %d" % number)
            assert console.read() == b"answer %d" % number


def test_buffers_without_room_are_given_back_and_input_survives_them(stack: ExitStack) -> None:
    port = wire(stack)
    console = drive(stack, ConsoleDevice(port))
    # Only readable: there is no room for input in it.
    odd = console.link.submit(Request(0, [b"odd"], [], lambda answer: answer.used, "buffer without room"))
    port.far.sendall(b"x" * (17 * 4096))
    assert console.read_exactly(17 * 4096) == b"x" * (17 * 4096)
    assert odd.result() == 0


def test_a_control_message_that_is_cut_short_or_nonsense_is_ignored(stack: ExitStack) -> None:
    console = drive(stack, ConsoleDevice(wire(stack), wire(stack)))
    for message in (b"", b"\0\0\0", struct.pack("<IHH", 77, 6, 1), struct.pack("<IHH", 0, 999, 1)):
        console.link.run(Request(3, [message or b"\0"], [], lambda _: None, "nonsense"))
    console.port(1)
    console.write(b"fine", port=1)


def test_a_console_without_ports_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one port"):
        ConsoleDevice()


def test_on_asyncio_ports_and_sizes_are_the_same(stack: ExitStack) -> None:
    ports = [wire(stack), wire(stack, name="agent", console=False)]
    device = ConsoleDevice(*ports)

    async def talk() -> None:
        async with await connect_async(device) as link, AsyncConsoleDriver(link) as console:
            agent = await console.port(name="agent")
            reading = asyncio.create_task(console.read(port=agent.number))
            await console.write(b"to the agent", port=1)
            assert ports[1].far.recv(100) == b"to the agent"
            ports[1].far.sendall(b"from the agent")
            assert await reading == b"from the agent"
            assert await console.next_size() == (80, 25)
            device.resize(90, 30)
            assert await console.next_size() == (90, 30)

    asyncio.run(talk())


def test_on_asyncio_a_simple_console_tells_its_size(stack: ExitStack) -> None:
    port = wire(stack)
    device = ConsoleDevice(port)

    async def talk() -> None:
        async with await connect_async(device) as link, AsyncConsoleDriver(link) as console:
            await console.write(b"out")
            assert port.far.recv(100) == b"out"
            port.far.sendall(b"in")
            assert await console.read() == b"in"
            assert await console.next_size() == (80, 25)
            device.resize(90, 30)
            assert await console.next_size() == (90, 30)

    asyncio.run(talk())
