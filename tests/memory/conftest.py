"""Files that guest memory is made of."""

import os
from collections.abc import Callable, Iterator

import pytest

from xenvirt.memory import FileRegion, GuestMemory

PAGE = os.sysconf("SC_PAGESIZE")

MakeMemfd = Callable[[int], int]
MakeMemory = Callable[..., GuestMemory]


@pytest.fixture
def memfd() -> Iterator[MakeMemfd]:
    """Makes memfds of a given size, and closes them in the end."""
    made: list[int] = []

    def make(size: int) -> int:
        fd = os.memfd_create("guest")
        made.append(fd)
        os.ftruncate(fd, size)
        return fd

    yield make
    for fd in made:
        os.close(fd)


@pytest.fixture
def make_memory(memfd: MakeMemfd) -> MakeMemory:
    """Makes memory of regions (guest address, size), each with a memfd of its own."""

    def make(*regions: tuple[int, int]) -> GuestMemory:
        return GuestMemory(FileRegion(memfd(size), address, size) for address, size in regions)

    return make
