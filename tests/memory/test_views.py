"""Views of guest memory: their leases, and what becomes of them when the table changes."""

import gc
import os
import threading
from pathlib import Path

import pytest

from xenvirt.errors import GuestAddressError
from xenvirt.memory import FileRegion, GuestMemory, MemoryView

from .conftest import PAGE, MakeMemfd, MakeMemory


def mappings_of(fd: int) -> int:
    """How often a file is mapped in this process."""
    inode = str(os.fstat(fd).st_ino)
    return sum(line.split()[4] == inode for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_view_is_the_memory_itself(make_memory: MakeMemory) -> None:
    memory = make_memory((0x1000, PAGE))
    view = memory.view(0x1010, 8)
    assert (len(view), view.readonly) == (8, False)
    with memoryview(view) as buffer:
        assert (buffer.format, buffer.shape, buffer.nbytes) == ("B", (8,), 8)
        buffer[0:5] = b"hello"
        assert memory.read(0x1010, 8) == b"hello\0\0\0"
        memory.write(0x1010, b"J")
        assert bytes(buffer[:5]) == b"Jello"
        with buffer.cast("Q") as words:
            assert words[0] == int.from_bytes(b"Jello\0\0\0", "little")


def test_a_view_needs_one_region(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE), (PAGE, PAGE))
    with pytest.raises(GuestAddressError, match="crosses from one region into the next"):
        memory.view(PAGE - 1, 2)


def test_memory_with_a_live_view_cannot_be_closed(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE))
    view = memory.view(0, 8)
    other = memory.view(0, 8)
    with pytest.raises(BufferError, match="2 live views"):
        memory.close()
    assert memory.read(0, 1) == b"\0", "nothing was changed"
    view.release()
    del other
    gc.collect()
    memory.close()


def test_a_view_with_a_live_buffer_cannot_be_released(make_memory: MakeMemory) -> None:
    view = make_memory((0, PAGE)).view(0, 8)
    buffer = memoryview(view)
    part = buffer[2:4]
    buffer.release()
    with pytest.raises(BufferError, match="1 buffers of the view are still in use"):
        view.release()
    part.release()
    view.release()
    view.release()
    with pytest.raises(ValueError, match="released"):
        memoryview(view)
    with pytest.raises(ValueError, match="released"):
        len(view)
    assert repr(view) == "<MemoryView, released>"


def test_a_buffer_keeps_its_view_and_its_memory(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE))
    memory.write(0, b"kept")
    buffer = memoryview(memory.view(0, 4))
    del memory
    gc.collect()
    assert bytes(buffer) == b"kept"


def test_a_region_that_left_the_table_is_unmapped_with_its_last_lease(memfd: MakeMemfd) -> None:
    fd = memfd(PAGE)
    memory = GuestMemory([FileRegion(fd, 0, PAGE)])
    view, other = memory.view(0, 4), memory.view(100, 4)
    memory.write(0, b"stay")
    memory.replace([])
    assert mappings_of(fd) == 1
    with memoryview(view) as buffer:
        assert bytes(buffer) == b"stay"
        buffer[:] = b"here"
    assert os.pread(fd, 4, 0) == b"here"
    with pytest.raises(GuestAddressError):
        memory.read(0, 1)
    other.release()
    assert mappings_of(fd) == 1
    view.release()
    assert mappings_of(fd) == 0


def test_leaving_a_with_block_closes(memfd: MakeMemfd) -> None:
    fd = memfd(PAGE)
    with GuestMemory([FileRegion(fd, 0, PAGE)]) as memory:
        assert mappings_of(fd) == 1
    assert memory.closed
    assert mappings_of(fd) == 0


def test_leaving_a_with_block_with_a_live_view_is_an_error(make_memory: MakeMemory) -> None:
    views: list[MemoryView] = []
    with pytest.raises(BufferError, match="1 live views"), make_memory((0, PAGE)) as memory:
        views.append(memory.view(0, 4))
    assert not memory.closed


def test_an_exception_in_a_with_block_defers_the_unmap_and_is_seen(memfd: MakeMemfd) -> None:
    fd = memfd(PAGE)
    views: list[MemoryView] = []
    with pytest.raises(ZeroDivisionError), GuestMemory([FileRegion(fd, 0, PAGE)]) as memory:  # noqa: PT012
        views.append(memory.view(0, 4))
        raise ZeroDivisionError
    assert memory.closed
    assert (bytes(views[0]), mappings_of(fd)) == (bytes(4), 1)
    views.pop().release()
    assert mappings_of(fd) == 0


def test_the_with_block_of_a_view_releases_it(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE))
    with memory.view(0, 4) as view:
        assert bytes(view) == bytes(4)
    memory.close()


def test_an_exception_in_the_with_block_of_a_view_is_seen(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE))
    buffers: list[memoryview] = []
    with pytest.raises(ZeroDivisionError), memory.view(0, 4) as view:  # noqa: PT012
        buffers.append(memoryview(view))
        raise ZeroDivisionError
    assert bytes(buffers[0]) == bytes(4)


def test_a_table_is_replaced_at_once_while_threads_read(memfd: MakeMemfd) -> None:
    """Two regions always hold the same byte: who saw half of a change would read two."""
    size = 5 * PAGE  # long enough for reads without the GIL

    def regions(byte: int) -> list[FileRegion]:
        fd = memfd(2 * size)
        os.pwrite(fd, bytes([byte]) * (2 * size), 0)
        return [FileRegion(fd, 0, size), FileRegion(fd, size, size, offset=size)]

    memory = GuestMemory(regions(0))
    started, stop = threading.Barrier(3), threading.Event()
    torn: list[set[int]] = []

    def read() -> None:
        started.wait()
        while not stop.is_set():
            data = memory.read(0, 2 * size)
            if data.count(data[:1]) != len(data):
                torn.append(set(data))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    started.wait()
    for byte in range(1, 61):
        memory.replace(regions(byte))
    stop.set()
    for thread in threads:
        thread.join()
    assert torn == []
    assert set(memory.read(0, 2 * size)) == {60}
