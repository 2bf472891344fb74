"""Foreign memory on Xen, real or simulated: what is mapped, what is not, and each failed frame is known."""

from __future__ import annotations

import array
import errno
import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirt.errors import ForkError, GuestAddressError, ReadOnlyMemoryError
from xenvirt.testing import SimulatedXen
from xenvirt.xen import ForeignMapError, ForeignMemory

from .conftest import Guest

pytestmark = pytest.mark.hypervisor("pv", "pvh", "aarch64")
on_real_xen = pytest.mark.dom0("pv", "pvh", "aarch64")

FRAME = 4096
NO_FRAME = 0xFFFFF0
NO_DOMAIN = 0x7000


@pytest.fixture
def kernel(dom0: str) -> range:
    """Frames of a guest into which its kernel was loaded: about 16 MiB, on Arm 1 GiB and 4 MiB."""
    first = 0x4_0400 if dom0 == "aarch64" else 0x1000
    return range(first, first + 16)


@pytest.fixture
def foreign(hypervisor: SimulatedXen | None) -> Iterator[ForeignMemory]:
    with ForeignMemory(hypervisor=hypervisor) as device:
        yield device


def test_a_guests_memory_is_read_and_written(foreign: ForeignMemory, guest: int, kernel: range) -> None:
    with foreign.map(guest, kernel, writable=True) as memory:
        assert (memory.mapped_frames, memory.holes, memory.failures) == (16, (), ())
        before = memory.read(0, 16 * FRAME)
        assert any(before)
        memory.write(5 * FRAME + 7, b"from dom0")
        with foreign.map(guest, kernel[5:6]) as again:
            assert again.read(7, 9) == b"from dom0"
            assert bytes(memoryview(again.view(7, 9))) == b"from dom0"
        memory.write(0, before)


@pytest.mark.parametrize("make", [list, tuple, lambda frames: array.array("Q", frames)])
def test_frames_come_in_the_order_that_is_asked_for(
    foreign: ForeignMemory, guest: int, make: type[list[int]], kernel: range
) -> None:
    with foreign.map(guest, kernel) as memory:
        wanted = memory.read(9 * FRAME, FRAME) + memory.read(2 * FRAME, FRAME)
    with foreign.map(guest, make([kernel[9], kernel[2]])) as memory:
        assert memory.read(0, 2 * FRAME) == wanted


def test_a_failed_frame_leaves_nothing_mapped_and_each_is_named(
    foreign: ForeignMemory, guest: int, kernel: range
) -> None:
    before = mappings()
    with pytest.raises(ForeignMapError, match="2 of 4 frames") as caught:
        foreign.map(guest, [kernel[0], NO_FRAME, kernel[1], NO_FRAME + 1])
    failures = [(one.index, one.frame, one.errno) for one in caught.value.failures]
    assert failures == [(1, NO_FRAME, errno.EINVAL), (3, NO_FRAME + 1, errno.EINVAL)]
    assert caught.value.errno == errno.EINVAL
    assert caught.value.failures[0].reason == "there is no such frame in the domain"
    assert mappings() == before


def test_a_hole_of_a_partial_mapping_raises_on_every_kind_of_dom0(
    foreign: ForeignMemory, guest: int, kernel: range
) -> None:
    frames = [kernel[0], NO_FRAME, NO_FRAME, kernel[1]]
    with foreign.map(guest, frames, writable=True, partial=True) as memory:
        assert (memory.mapped_frames, memory.holes) == (2, (range(FRAME, 3 * FRAME),))
        assert [one.index for one in memory.failures] == [1, 2]
        assert len(memory.read(3 * FRAME, FRAME)) == FRAME
        for access in (
            lambda: memory.read(FRAME, 1),
            lambda: memory.read(0, 4 * FRAME),
            lambda: memory.write(2 * FRAME, b"x"),
            lambda: memory.view(FRAME - 1, 2),
        ):
            with pytest.raises(GuestAddressError):
                access()


def test_a_mapping_without_a_single_frame_is_all_hole(foreign: ForeignMemory, guest: int) -> None:
    with foreign.map(guest, [NO_FRAME], partial=True) as memory:
        assert (memory.mapped_frames, memory.holes) == (0, (range(FRAME),))


def test_a_domain_that_is_not_there_is_said_so(foreign: ForeignMemory) -> None:
    with pytest.raises(ForeignMapError, match="no such domain") as caught:
        foreign.map(NO_DOMAIN, [0])
    assert caught.value.errno == errno.ESRCH


def test_a_read_only_mapping_is_not_written(foreign: ForeignMemory, guest: int, kernel: range) -> None:
    with foreign.map(guest, kernel) as memory:
        with pytest.raises(ReadOnlyMemoryError):
            memory.write(0, b"x")
        assert memoryview(memory.view(0, 1)).readonly


def test_a_restricted_device_maps_its_own_domain_alone(
    foreign: ForeignMemory, guest: int, kernel: range
) -> None:
    foreign.restrict(guest)
    with foreign.map(guest, kernel) as memory:
        assert memory.mapped_frames == 16
    with pytest.raises(ForeignMapError, match="restricted to another domain") as caught:
        foreign.map(0, [0])
    assert caught.value.errno == errno.EPERM


def test_a_mapping_outlives_its_device(hypervisor: SimulatedXen | None, guest: int, kernel: range) -> None:
    with ForeignMemory(hypervisor=hypervisor) as foreign:
        memory = foreign.map(guest, kernel)
    with memory:
        assert len(memory.read(0, FRAME)) == FRAME
    with pytest.raises(ValueError, match="is closed"):
        foreign.map(guest, kernel)


def test_a_mapping_with_a_live_view_is_not_closed(foreign: ForeignMemory, guest: int, kernel: range) -> None:
    memory = foreign.map(guest, kernel)
    view = memory.view(0, 8)
    with pytest.raises(BufferError):
        memory.close()
    view.release()
    memory.close()


def test_a_child_after_fork_is_told_that_it_has_no_mapping(
    foreign: ForeignMemory, guest: int, kernel: range
) -> None:
    with foreign.map(guest, kernel) as memory:
        child = os.fork()
        if child == 0:
            try:
                memory.read(0, 1)
            except ForkError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@on_real_xen
def test_the_kernel_marks_the_range_as_not_ours_to_copy(
    foreign: ForeignMemory, guest: int, kernel: range
) -> None:
    """VM_IO, VM_DONTCOPY, VM_DONTEXPAND, VM_DONTDUMP: set by the device's mmap, before the ioctl."""
    with foreign.map(guest, kernel):
        smaps = Path("/proc/self/smaps").read_text()
    flags = smaps.partition("/dev/xen/privcmd")[2].partition("VmFlags:")[2].splitlines()[0].split()
    assert {"io", "dc", "de", "dd"} <= set(flags)


def test_a_domain_that_is_destroyed_while_mapped_takes_nobody_down(
    foreign: ForeignMemory, doomed: Guest, kernel: range
) -> None:
    with foreign.map(doomed.domid, kernel) as memory:
        content = memory.read(0, 16 * FRAME)
        doomed.destroy()
        assert memory.read(0, 16 * FRAME) == content  # the frames live as long as they are mapped
    with pytest.raises(ForeignMapError):
        foreign.map(doomed.domid, kernel)


def test_thousands_of_maps_leave_nothing_behind(foreign: ForeignMemory, guest: int, kernel: range) -> None:
    gc.collect()
    before = mappings(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10_000):
        with foreign.map(guest, kernel[:1]) as memory:
            assert len(memory.read(0, 4)) == 4
    assert (mappings(), len(list(Path("/proc/self/fd").iterdir()))) == before


@pytest.mark.parametrize("frames", [[], range(0)])
def test_no_frames_are_refused(foreign: ForeignMemory, guest: int, frames: list[int]) -> None:
    with pytest.raises(ValueError, match="0 frames"):
        foreign.map(guest, frames)


def test_a_negative_frame_is_refused(foreign: ForeignMemory, guest: int) -> None:
    with pytest.raises(ValueError, match="not negative"):
        foreign.map(guest, range(-2, 2))


def test_the_grant_table_is_a_resource(foreign: ForeignMemory, guest: int) -> None:
    assert foreign.resource_size(guest, "grant_table", 0) > 0
    with foreign.map_resource(guest, "grant_table", 0) as table:
        assert len(table.read(0, FRAME)) == FRAME
    with pytest.raises(ValueError, match="'ioreq_server'"):
        foreign.resource_size(guest, "cookies", 0)


@on_real_xen
def test_map_guest_runs_as_it_is(guest: int, kernel: range) -> None:
    """examples/map_guest.py: whole where it can, and with holes."""
    program = str(Path(__file__).parents[3] / "examples" / "map_guest.py")
    whole = subprocess.run(
        ["python3", program, str(guest), hex(kernel[0]), "4"], capture_output=True, text=True, check=True
    )
    assert "4 of 4 frames mapped, holes: ()" in whole.stdout
    holed = subprocess.run(
        ["python3", program, str(guest), hex(NO_FRAME), "2"], capture_output=True, text=True, check=True
    )
    assert f"frame {NO_FRAME:#x}: there is no such frame in the domain" in holed.stdout
    assert "0 of 2 frames mapped, holes: (range(0, 8192),)" in holed.stdout


def mappings() -> int:
    maps = Path("/proc/self/maps").read_text()
    return maps.count("/dev/xen/privcmd") + maps.count("xenvirt-simulated")
