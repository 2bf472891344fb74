"""A guest's whole memory on Xen, real or simulated: attached at once, mapped by windows when touched."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirt._native import DriverQueue, Endpoint
from xenvirt.errors import ForkError, GuestAddressError, MemoryTableError, ReadOnlyMemoryError
from xenvirt.memory import FileRegion, GuestMemory
from xenvirt.testing import SimulatedXen
from xenvirt.virtio.features import Feature
from xenvirt.xen import AttachedMemory, ForeignMapError, ForeignMemory

from .conftest import Guest, xl

pytestmark = pytest.mark.hypervisor("pv", "pvh", "aarch64")

FRAME = 4096
MIB = 1 << 20
WINDOW = AttachedMemory.WINDOW
ADDRESS_SPACE = 64 << 30


@pytest.fixture
def foreign(hypervisor: SimulatedXen | None) -> Iterator[ForeignMemory]:
    with ForeignMemory(hypervisor=hypervisor) as device:
        yield device


@pytest.fixture
def ram(dom0: str) -> range:
    """Of the guest: on Arm its first bank."""
    start = 0x4000_0000 if dom0 == "aarch64" else 0
    return range(start, start + 128 * MIB)


@pytest.fixture
def memory(foreign: ForeignMemory, guest: int, ram: range) -> Iterator[AttachedMemory]:
    with foreign.attach(guest, [ram], writable=True) as attached:
        yield attached


def mappings() -> int:
    """Windows that are mapped in this process. (Of a simulated Xen's, neighbours are one line.)"""
    size = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/dev/xen/privcmd" in line or "xenvirt-simulated" in line:
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            size += end - start
    assert size % WINDOW == 0
    return size // WINDOW


def address_of(view: memoryview) -> int:
    """Where it is in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_attaching_maps_nothing_and_a_touch_maps_one_window(
    memory: AttachedMemory, guest: int, ram: range
) -> None:
    assert (memory.domid, memory.mapped_bytes, mappings()) == (guest, 0, 0)
    memory.read(ram.start + 5 * WINDOW + 7, 1)
    assert (memory.mapped_bytes, mappings()) == (WINDOW, 1)
    memory.read(ram.start + 6 * WINDOW - 1, 1)
    assert (memory.mapped_bytes, mappings()) == (WINDOW, 1)


def test_it_is_the_memory_that_a_mapping_of_frames_shows(
    foreign: ForeignMemory, memory: AttachedMemory, guest: int, ram: range
) -> None:
    at = ram.start + 48 * MIB - 3
    before = memory.read(at, 6)
    memory.write(at, b"abcdef")  # across windows
    frame = at // FRAME
    with foreign.map(guest, [frame, frame + 1], writable=True) as frames:
        assert frames.read(FRAME - 3, 6) == b"abcdef"
        frames.write(FRAME - 3, before)
    assert memory.read(at, 6) == before


def test_all_of_a_guest_is_read_through_few_windows(memory: AttachedMemory, ram: range) -> None:
    memory.limit = 4 * WINDOW
    for at in range(ram.start, ram.stop - 16 * MIB, MIB):  # the end of it is the toolstack's
        assert len(memory.read(at, FRAME)) == FRAME
        assert memory.mapped_bytes <= 4 * WINDOW
    assert mappings() == 4


def test_what_was_used_last_stays_under_the_limit(memory: AttachedMemory, ram: range) -> None:
    memory.limit = 2 * WINDOW
    first, second, third = (ram.start + index * WINDOW for index in (20, 21, 22))
    held = memory.view(first, 8)
    memory.read(second, 1)
    memory.read(third, 1)
    assert memory.mapped_bytes == 2 * WINDOW
    assert bytes(memoryview(held)) == memory.read(first, 8)
    memory.limit = 0
    assert memory.mapped_bytes == WINDOW, "what is viewed stays"
    held.release()
    assert (memory.mapped_bytes, memory.limit, mappings()) == (0, 0, 0)
    memory.limit = None
    memory.read(first, 1)
    assert (memory.mapped_bytes, memory.limit) == (WINDOW, None)


def test_a_window_that_comes_again_is_at_its_address(memory: AttachedMemory, ram: range) -> None:
    def where() -> int:
        with memory.view(ram.start + 9 * WINDOW + 5, 16) as view:
            return address_of(memoryview(view))

    before = where()
    memory.invalidate()
    assert (memory.mapped_bytes, mappings()) == (0, 0)
    memory.read(ram.start, 1)
    assert where() == before


def test_a_window_in_use_is_given_back_after_its_last_view(memory: AttachedMemory, ram: range) -> None:
    view = memory.view(ram.start + WINDOW, 8)
    memory.invalidate()
    assert memory.mapped_bytes == WINDOW
    memoryview(view)[:4] = b"view"
    assert memory.read(ram.start + WINDOW, 4) == b"view", "mapped for this access alone"
    assert memory.mapped_bytes == WINDOW
    view.release()
    assert (memory.mapped_bytes, mappings()) == (0, 0)


def test_a_hole_raises_and_names_its_frames(foreign: ForeignMemory, guest: int, ram: range) -> None:
    beyond = range(ram.stop, ram.stop + 16 * MIB)  # nothing is there
    with foreign.attach(guest, [ram, beyond], writable=True) as memory:
        accesses: list[Callable[[], object]] = [
            lambda: memory.read(beyond.start + 3 * MIB + 1, FRAME),
            lambda: memory.write(beyond.start + 3 * MIB + 1, bytes(FRAME)),
            lambda: memory.view(beyond.start + 3 * MIB + 1, FRAME),
        ]
        for access in accesses:
            with pytest.raises(ForeignMapError, match="no such frame") as caught:
                access()
            first = (beyond.start + 3 * MIB) // FRAME
            failed = [(one.frame, one.errno) for one in caught.value.failures]
            assert failed == [(first, errno.EINVAL), (first + 1, errno.EINVAL)]
        assert (memory.mapped_bytes, mappings()) == (0, 0), "nothing is kept of it"
        assert memory.read(ram.start, 1)


def test_between_the_ranges_there_is_nothing(foreign: ForeignMemory, guest: int, ram: range) -> None:
    far = range(0x2_0000_0000, 0x2_0000_0000 + 64 * MIB)
    with foreign.attach(guest, [far, ram]) as memory:
        assert [(one.guest_address, one.size) for one in memory.regions] == [
            (ram.start, 128 * MIB),
            (far.start, 64 * MIB),
        ]
        assert {one.kind for one in memory.regions} == {"foreign"}
        with pytest.raises(GuestAddressError):
            memory.read(ram.stop, 1)
        with pytest.raises(GuestAddressError):
            memory.read(ram.stop - 1, 2)


def test_a_guest_of_any_size_is_attached_at_once(foreign: ForeignMemory, guest: int, ram: range) -> None:
    huge = range(ram.start, ram.start + ADDRESS_SPACE)
    with foreign.attach(guest, [huge], writable=True) as memory:
        assert (memory.mapped_bytes, mappings()) == (0, 0)
        assert len(memory.read(ram.start + 16 * MIB, 64)) == 64
        with pytest.raises(ForeignMapError):
            memory.read(huge.stop - 1, 1)


def test_it_stands_in_a_table_beside_a_shared_file(memory: AttachedMemory, ram: range) -> None:
    fd = os.memfd_create("beside", os.MFD_CLOEXEC)
    os.ftruncate(fd, MIB)
    at = 0x8000_0000_0000
    with GuestMemory([*memory.regions, FileRegion(fd, at, MIB)]) as both:
        os.close(fd)
        both.write(at, b"in the file")
        both.write(ram.start + 32 * MIB, b"in the guest")
        assert both.read(at, 11) == b"in the file"
        assert memory.read(ram.start + 32 * MIB, 12) == b"in the guest"


def test_without_writable_it_is_only_read(foreign: ForeignMemory, guest: int, ram: range) -> None:
    with foreign.attach(guest, [ram]) as memory:
        assert memoryview(memory.view(ram.start, 1)).readonly
        with pytest.raises(ReadOnlyMemoryError):
            memory.write(ram.start, b"x")


def test_a_domain_that_is_destroyed_while_attached_takes_nobody_down(
    hypervisor: SimulatedXen | None, foreign: ForeignMemory, doomed: Guest, ram: range
) -> None:
    with foreign.attach(doomed.domid, [ram]) as memory:
        content = memory.read(ram.start + 16 * MIB, FRAME)
        doomed.destroy()
        assert memory.read(ram.start + 16 * MIB, FRAME) == content, "what is mapped stays"
        with pytest.raises(ForeignMapError):
            memory.read(ram.start + 64 * MIB, 1)
        memory.invalidate()
        with pytest.raises(ForeignMapError) as caught:
            memory.read(ram.start + 16 * MIB, 1)
        assert caught.value.errno == errno.ESRCH
        assert (memory.mapped_bytes, mappings()) == (0, 0)
    if hypervisor is None:
        assert f" {doomed.domid} " not in xl("list"), "nothing of ours keeps it"


def test_a_domain_that_is_not_there_is_found_when_it_is_touched(foreign: ForeignMemory, ram: range) -> None:
    with foreign.attach(0x7000, [ram]) as memory:
        with pytest.raises(ForeignMapError, match="no such domain") as caught:
            memory.read(ram.start, 1)
        assert caught.value.errno == errno.ESRCH


def test_a_restricted_device_attaches_to_its_own_domain_alone(
    foreign: ForeignMemory, guest: int, ram: range
) -> None:
    foreign.restrict(guest)
    with foreign.attach(guest, [ram]) as memory:
        assert memory.read(ram.start, 1)
    with foreign.attach(0, [ram]) as other, pytest.raises(ForeignMapError) as caught:
        other.read(ram.start, 1)
    assert caught.value.errno == errno.EPERM


def test_it_outlives_its_device_and_a_view_keeps_it_open(
    hypervisor: SimulatedXen | None, guest: int, ram: range
) -> None:
    with ForeignMemory(hypervisor=hypervisor) as foreign:
        memory = foreign.attach(guest, [ram])
    view = memory.view(ram.start + 2 * WINDOW, 8)
    with pytest.raises(BufferError):
        memory.close()
    view.release()
    memory.close()
    assert mappings() == 0
    for use in (lambda: memory.read(ram.start, 1), lambda: memory.mapped_bytes, memory.invalidate):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_a_child_after_fork_is_told_that_it_has_no_memory(memory: AttachedMemory, ram: range) -> None:
    memory.read(ram.start, 1)
    child = os.fork()
    if child == 0:
        status = 0
        for use in (lambda: memory.read(ram.start, 1), memory.invalidate):
            try:
                use()
            except ForkError:
                continue
            status = 1
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_windows_that_come_and_go_leave_nothing_behind(
    hypervisor: SimulatedXen | None, guest: int, ram: range
) -> None:
    gc.collect()
    before = mappings(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with (
            ForeignMemory(hypervisor=hypervisor) as foreign,
            foreign.attach(guest, [ram], limit=8 * WINDOW) as memory,
        ):
            for index in range(20):
                memory.read(ram.start + index * WINDOW, 1)
    assert (mappings(), len(list(Path("/proc/self/fd").iterdir()))) == before


def test_ranges_that_are_none_are_refused(foreign: ForeignMemory, guest: int, ram: range) -> None:
    for ranges in ([range(1, FRAME)], [range(0)], [ram, ram]):
        with pytest.raises(MemoryTableError):
            foreign.attach(guest, ranges)
    with pytest.raises(ValueError, match="no ranges"):
        foreign.attach(guest, [])
    with pytest.raises(ValueError, match="no step"):
        foreign.attach(guest, [range(0, 16 * FRAME, FRAME)])


@pytest.mark.dom0("pv")
def test_without_ranges_the_xenstore_says_where_its_ram_is(
    foreign: ForeignMemory, guest: int, ram: range
) -> None:
    with foreign.attach(guest) as memory:
        assert [(one.guest_address, one.size) for one in memory.regions] == [(ram.start, len(ram))]
        assert memory.read(ram.start + 16 * MIB, 1)
    with pytest.raises(ForeignMapError, match="there is no domain 28672") as caught:
        foreign.attach(0x7000)
    assert caught.value.errno == errno.ESRCH


def test_a_virtqueue_runs_in_a_guests_memory(memory: AttachedMemory, ram: range) -> None:
    """The ring code is the same on windows: a driver and a device in one process, the ring in the guest."""
    size, tables = 8, ram.start + 100 * MIB
    features = Feature.VERSION_1 | Feature.EVENT_IDX
    driver = DriverQueue(0, size, memory, tables, tables + MIB, event_idx=True)
    endpoint = Endpoint(features, (size,), b"", in_process=True)
    endpoint.start(features, memory, [driver])
    while endpoint.poll() is not None:
        pass
    device = endpoint.queues[0]
    for turn in range(3 * size):
        driver.submit([b"ask", bytes([turn])], [4])
        chain = device.pop()
        assert chain is not None
        assert chain.read() == b"ask" + bytes([turn])
        chain.write(bytes([turn]) * 4)
        chain.complete()
        assert driver.completed()[0][1:] == ([bytes([turn]) * 4], 4)
        if turn % 5 == 0:
            memory.invalidate()  # also of windows in which the ring is
