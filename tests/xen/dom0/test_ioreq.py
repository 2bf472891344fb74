"""An IOREQ server on Xen, real or simulated: a bare guest accesses what is no memory, in all ways it can."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from xenvirt.errors import ForkError, XenCallError
from xenvirt.testing import SimulatedXen
from xenvirt.xen import ForeignMapping, ForeignMemory, IoreqServer, IoRequest

from .bare_guest import BASE, BUFFER, FRAMES, RESULTS, Program
from .simulated_bare_guest import bare_guest

pytestmark = pytest.mark.hypervisor("pv", "pvh")

MMIO, MMIO_SIZE = 0xD000_0000, 0x1000
PORTS, PORTS_SIZE = 0x5600, 0x40
DONE = PORTS + 0x3C
"""A write to this port ends the session."""
TIMEOUT = 60.0


def byte_at(address: int) -> int:
    """What the registers hold: another byte at each address."""
    return (7 * address + 3) & 0xFF


def bytes_at(addresses: Iterable[int]) -> bytes:
    return bytes(map(byte_at, addresses))


class Registers:
    """Answers reads by `byte_at`, and keeps a log of all."""

    def __init__(self, server: IoreqServer, memory: ForeignMapping) -> None:
        self.server = server
        self.memory = memory
        self.requests: list[IoRequest] = []
        self.written: list[tuple[str, int, int, int]] = []
        """Kind, address, size and value of each write."""

    def run(self, until: Callable[[IoRequest], bool]) -> IoRequest:
        """Answers requests until there is one that is not answered: gives it."""
        while True:
            requests = self.server.requests(TIMEOUT)
            assert requests, f"no request in {TIMEOUT} s; so far {self.requests}"
            for request in requests:
                if until(request):
                    return request
                self.requests.append(request)
                request.answer(self.perform(request))

    def perform(self, request: IoRequest) -> int:
        value = 0
        for address, place in request.accesses():
            if request.is_read:
                data = bytes_at(range(address, address + request.size))
                value = int.from_bytes(data, "little")
                if place is not None:
                    self.memory.write(place - BASE, data)
            else:
                if place is not None:
                    value = int.from_bytes(self.memory.read(place - BASE, request.size), "little")
                else:
                    assert request.value is not None
                    value = request.value
                self.written.append((request.kind, address, request.size, value))
        return value


def is_done(request: IoRequest) -> bool:
    return request.kind == "port" and request.address == DONE


def session(
    hypervisor: SimulatedXen | None, program: Program, folder: Path, name: str
) -> tuple[Registers, bytes, bytes]:
    """Runs a program until it writes to DONE; gives what it did, its results and its buffer."""
    program.write_port(1, DONE).stop()
    with (
        bare_guest(hypervisor, folder, name, program) as guest,
        ForeignMemory(hypervisor=hypervisor) as foreign,
        foreign.map(guest.domid, FRAMES, writable=True) as memory,
        IoreqServer(guest.domid, hypervisor=hypervisor) as server,
    ):
        server.map_memory(MMIO, MMIO_SIZE)
        server.map_ports(PORTS, PORTS_SIZE)
        guest.unpause()
        registers = Registers(server, memory)
        registers.run(is_done).answer()
        return registers, memory.read(RESULTS - BASE, 0x1000), memory.read(BUFFER - BASE, 0x1000)


def test_memory_is_read_and_written_in_every_size(hypervisor: SimulatedXen | None, tmp_path: Path) -> None:
    program = Program()
    for size in (1, 2, 4, 8):
        program.read(size, MMIO + 0x10 * size).keep(size)
    for size in (8, 1, 2, 4):  # mm0 holds what was read last
        if size < 8:
            program.set(0x8765_4321)
        program.write(size, MMIO + 0x100 * size)
    registers, results, _ = session(hypervisor, program, tmp_path, "sizes")
    for index, size in enumerate((1, 2, 4, 8)):
        address = MMIO + 0x10 * size
        assert results[8 * index : 8 * index + size] == bytes_at(range(address, address + size))
    last = int.from_bytes(bytes_at(range(MMIO + 0x80, MMIO + 0x88)), "little")
    assert registers.written == [
        ("memory", MMIO + 0x800, 8, last),
        ("memory", MMIO + 0x100, 1, 0x21),
        ("memory", MMIO + 0x200, 2, 0x4321),
        ("memory", MMIO + 0x400, 4, 0x8765_4321),
    ]
    accesses = [one for one in registers.requests if one.kind == "memory"]
    assert [(one.size, one.count, one.vcpu) for one in accesses] == [
        (size, 1, 0) for size in (1, 2, 4, 8, 8, 1, 2, 4)
    ]


def test_ports_are_read_and_written_in_every_size(hypervisor: SimulatedXen | None, tmp_path: Path) -> None:
    program = Program()
    for size in (1, 2, 4):
        program.read_port(size, PORTS + 4 * size).keep(size)
        program.set(0x1234_5678).write_port(size, PORTS + 4 * size)
    registers, results, _ = session(hypervisor, program, tmp_path, "ports")
    for index, size in enumerate((1, 2, 4)):
        port = PORTS + 4 * size
        assert results[8 * index : 8 * index + size] == bytes_at(range(port, port + size))
    assert registers.written == [
        ("port", PORTS + 4, 1, 0x78),
        ("port", PORTS + 8, 2, 0x5678),
        ("port", PORTS + 16, 4, 0x1234_5678),
    ]


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_string_instruction_is_one_request_with_a_count(
    hypervisor: SimulatedXen | None, tmp_path: Path, down: bool, size: int
) -> None:
    """rep movs both ways, with the direction flag set and not: values are in guest memory."""
    count = 8
    end = (count - 1) * size if down else 0  # where the first access is
    program = Program().direction(down)
    program.copy(size, count, MMIO + 0x200 + end, BUFFER + 0x100 + end)
    program.copy(size, count, BUFFER + 0x100 + end, MMIO + 0x600 + end)
    registers, _, buffer = session(hypervisor, program, tmp_path, "string")
    assert buffer[0x100 : 0x100 + count * size] == bytes_at(range(MMIO + 0x200, MMIO + 0x200 + count * size))
    order = reversed(range(count)) if down else range(count)
    assert registers.written == [
        (
            "memory",
            MMIO + 0x600 + index * size,
            size,
            int.from_bytes(buffer[0x100 + index * size :][:size], "little"),
        )
        for index in order
    ]
    strings = [one for one in registers.requests if one.data_address is not None]
    assert [(one.is_read, one.size, one.count, one.backwards, one.value) for one in strings] == [
        (True, size, count, down, None),
        (False, size, count, down, None),
    ]
    assert strings[0].data_address == BUFFER + 0x100 + end


def test_a_string_instruction_on_a_port_stays_there(hypervisor: SimulatedXen | None, tmp_path: Path) -> None:
    program = Program().direction(False)
    program.port_to_memory(2, 4, PORTS + 8, BUFFER).memory_to_port(1, 6, BUFFER, PORTS + 1)
    registers, _, buffer = session(hypervisor, program, tmp_path, "port-string")
    assert buffer[:8] == bytes_at([PORTS + 8, PORTS + 9] * 4)
    assert registers.written == [("port", PORTS + 1, 1, byte) for byte in buffer[:6]]
    strings = [one for one in registers.requests if one.data_address is not None]
    assert [(one.kind, one.address, one.count) for one in strings] == [
        ("port", PORTS + 8, 4),
        ("port", PORTS + 1, 6),
    ]


def test_who_is_not_answered_is_answered_as_an_empty_bus_would(
    hypervisor: SimulatedXen | None, tmp_path: Path
) -> None:
    """A request that is dropped, one of a server that is closed, and an address that nobody serves."""
    program = Program()
    program.read(4, MMIO).keep(4).read(2, MMIO + 4).keep(2).read(4, MMIO + 8).keep(4)
    program.write_port(1, DONE).stop()
    with (
        bare_guest(hypervisor, tmp_path, "unanswered", program, processors=2) as guest,
        ForeignMemory(hypervisor=hypervisor) as foreign,
        foreign.map(guest.domid, FRAMES) as memory,
        IoreqServer(guest.domid, hypervisor=hypervisor) as last,
    ):
        last.map_ports(PORTS, PORTS_SIZE)
        with IoreqServer(guest.domid, hypervisor=hypervisor) as server:
            assert (server.vcpus, server.domid) == (2, guest.domid)
            assert server.number != last.number
            server.map_memory(MMIO, MMIO_SIZE)
            guest.unpause()
            registers = Registers(server, memory)
            dropped = registers.run(lambda one: one.address == MMIO)
            del dropped
            pending = registers.run(lambda one: one.address == MMIO + 4)
        with pytest.raises(ValueError, match="closed"):
            pending.answer(1)
        end = Registers(last, memory).run(is_done)
        end.answer()
        with pytest.raises(ValueError, match="already"):
            end.answer()
        results = memory.read(RESULTS - BASE, 24)
    assert (results[:4], results[8:10], results[16:20]) == (b"\xff" * 4, b"\xff" * 2, b"\xff" * 4)


def test_the_page_is_a_resource_and_no_frame_of_a_pvh_guest(
    hypervisor: SimulatedXen | None, tmp_path: Path
) -> None:
    """xl leaves room for the page in the memory of an HVM guest, and none in that of a PVH guest."""
    with bare_guest(hypervisor, tmp_path, "resource", Program().stop()) as guest:
        before = open_files()
        with pytest.raises(XenCallError, match="asking for the frame of IOREQ server") as caught:
            IoreqServer(guest.domid, page="frame", hypervisor=hypervisor)
        assert caught.value.errno == errno.ENOMEM
        with IoreqServer(guest.domid, page="resource", hypervisor=hypervisor) as server:
            assert server.vcpus == 1
        assert open_files() == before


def test_a_server_gives_up_its_ranges_and_leaves_nothing(
    hypervisor: SimulatedXen | None, tmp_path: Path
) -> None:
    with bare_guest(hypervisor, tmp_path, "ranges", Program().stop()) as guest:
        before = open_files()
        for _ in range(20):  # a domain has eight at a time
            with IoreqServer(guest.domid, hypervisor=hypervisor) as server:
                server.map_memory(MMIO, MMIO_SIZE)
                with pytest.raises(XenCallError, match="giving memory 0xd0000800"):
                    server.map_memory(MMIO + 0x800, 16)
                server.unmap_memory(MMIO, MMIO_SIZE)
                with pytest.raises(XenCallError, match="taking memory 0xd0000000"):
                    server.unmap_memory(MMIO, MMIO_SIZE)
                server.map_ports(PORTS, 4)
                server.unmap_ports(PORTS, 4)
                assert server.requests() == []
        assert open_files() == before
        with pytest.raises(ValueError, match="closed"):
            server.requests()


@pytest.mark.parametrize(("first", "size"), [(0, 0), (2**64 - 1, 2), (2**16, 1)])
def test_ranges_that_cannot_be_are_refused(
    hypervisor: SimulatedXen | None, tmp_path: Path, first: int, size: int
) -> None:
    with (
        bare_guest(hypervisor, tmp_path, "no-range", Program().stop()) as guest,
        IoreqServer(guest.domid, hypervisor=hypervisor) as server,
    ):
        with pytest.raises(ValueError, match="at least one is wanted"):
            server.map_ports(first, size)
        if first != 2**16:
            with pytest.raises(ValueError, match="at least one is wanted"):
                server.map_memory(first, size)


def test_a_child_does_not_have_the_server(hypervisor: SimulatedXen | None, tmp_path: Path) -> None:
    with (
        bare_guest(hypervisor, tmp_path, "forked", Program().stop()) as guest,
        IoreqServer(guest.domid, hypervisor=hypervisor) as server,
    ):
        child = os.fork()
        if child == 0:
            try:
                server.requests()
            except ForkError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        server.map_memory(MMIO, MMIO_SIZE)


def open_files() -> tuple[int, int]:
    """Descriptors, and mappings of Xen's devices."""
    return len(list(Path("/proc/self/fd").iterdir())), Path("/proc/self/maps").read_text().count("/dev/xen/")
