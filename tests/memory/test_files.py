"""What guest memory is mapped from: memfds, plain files, huge pages, and what cannot be mapped."""

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirt.errors import GuestMemoryFault, MapError
from xenvirt.memory import FileRegion, GuestMemory

from .conftest import PAGE, MakeMemfd

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture(scope="module")
def huge_page() -> Iterator[int]:
    """Two free huge pages in the system's pool; gives their size."""
    if not HUGE_PAGES.exists():
        pytest.skip("this kernel has no huge pages")
    before = int(HUGE_PAGES.read_text())
    if not os.access(HUGE_PAGES, os.W_OK):
        pytest.skip("reserving huge pages needs root")
    HUGE_PAGES.write_text(str(before + 2))
    try:
        if int(HUGE_PAGES.read_text()) < before + 2:
            pytest.skip("the kernel has no room for two huge pages")
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        yield int(facts["Hugepagesize"].split()[0]) * 1024
    finally:
        HUGE_PAGES.write_text(str(before))


def test_a_plain_file_is_mapped_from_an_offset_within_a_page(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(n % 251 for n in range(3 * PAGE)))
    with path.open("r+b") as file:
        region = FileRegion(file.fileno(), 0x8000, PAGE + 100, offset=PAGE + 17)
    with GuestMemory([region]) as memory:
        assert memory.read(0x8000, PAGE + 100) == path.read_bytes()[PAGE + 17 : 2 * PAGE + 117]
        memory.write(0x8000 + 3, b"written")
    assert path.read_bytes()[PAGE + 20 : PAGE + 27] == b"written"


def test_a_file_open_for_reading_is_mapped_read_only(tmp_path: Path) -> None:
    path = tmp_path / "rom"
    path.write_bytes(b"firmware")
    with path.open("rb") as file:
        memory = GuestMemory([FileRegion(file.fileno(), 0, 8, writable=False)])
        with pytest.raises(MapError) as refused:
            FileRegion(file.fileno(), 0, 8)
    assert refused.value.errno == errno.EACCES
    assert memory.read(0, 8) == b"firmware"


@pytest.mark.parametrize(("offset", "size"), [(0, PAGE + 1), (1, PAGE), (PAGE, 1), (2**63, 2**63)])
def test_a_file_that_is_too_short_is_refused(memfd: MakeMemfd, offset: int, size: int) -> None:
    with pytest.raises(
        MapError, match=rf"{size} bytes at offset {offset:#x} of the file: it has {PAGE} bytes"
    ):
        FileRegion(memfd(PAGE), 0, size, offset=offset)


def test_an_empty_region_is_refused(memfd: MakeMemfd) -> None:
    with pytest.raises(MapError, match="cannot map 0 bytes"):
        FileRegion(memfd(PAGE), 0, 0)


def test_what_is_no_file_is_refused() -> None:
    with pytest.raises(OSError, match="-1 is not a file descriptor"):
        FileRegion(-1, 0, PAGE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        FileRegion(10**6, 0, PAGE)
    reader, writer = os.pipe()
    with pytest.raises(MapError) as refused:
        FileRegion(reader, 0, PAGE)
    assert refused.value.errno in {errno.ENODEV, errno.EACCES}
    os.close(reader)
    os.close(writer)


def test_no_descriptor_and_no_mapping_stays_behind(memfd: MakeMemfd) -> None:
    fd = memfd(PAGE)

    def resources() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("memfd:guest")  # noqa: PTH208

    gc.collect()  # what earlier tests left goes now, not while we count
    before = resources()
    for _ in range(300):
        with GuestMemory([FileRegion(fd, 0, PAGE)]) as memory:
            memory.write(0, b"x")
            memory.replace([FileRegion(fd, 0, PAGE)])
    del memory
    assert resources() == before


def test_huge_pages_are_mapped_also_from_an_offset_within_one(huge_page: int) -> None:
    fd = os.memfd_create("guest", os.MFD_HUGETLB)
    try:
        os.ftruncate(fd, 2 * huge_page)
        whole = GuestMemory([FileRegion(fd, 0, 2 * huge_page)])
        part = GuestMemory([FileRegion(fd, 0, PAGE, offset=huge_page + 100)])
        whole.write(huge_page - 2, b"across")
        part.write(8, b"inside")
        assert whole.read(huge_page - 2, 6) == b"across"
        assert whole.read(huge_page + 108, 6) == b"inside"
        part.close()
        whole.close()
    finally:
        os.close(fd)


def test_huge_pages_that_go_away_are_a_fault(huge_page: int) -> None:
    fd = os.memfd_create("guest", os.MFD_HUGETLB)
    try:
        os.ftruncate(fd, 2 * huge_page)
        memory = GuestMemory([FileRegion(fd, 0, 2 * huge_page)])
        memory.write(0, b"there")
        view = memory.view(huge_page + 5, 4)
        os.ftruncate(fd, huge_page)
        assert bytes(view) == bytes(4)
        with pytest.raises(GuestMemoryFault):
            view.release()
        with pytest.raises(GuestMemoryFault):
            memory.read(0, 5)
        memory.close()
    finally:
        os.close(fd)
