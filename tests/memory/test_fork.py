"""A forked child does not have the mappings, is told so, and cannot disturb its parent."""

import faulthandler
import os
import signal
from collections.abc import Callable

import pytest

from xenvirt.errors import ForkError
from xenvirt.memory import FileRegion, GuestMemory

from .conftest import PAGE, MakeMemfd

# Python 3.12 and later warn of forks in processes with threads; these children only look and leave.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(run: Callable[[], None]) -> int:
    """Runs it in a forked child; its exit status is 0 if nothing was raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_use_in_a_child_raises(memfd: MakeMemfd) -> None:
    fd = memfd(PAGE)
    region = FileRegion(fd, 0, PAGE)
    memory = GuestMemory([region])
    view = memory.view(0, 8)

    def use() -> None:
        for use in (
            lambda: memory.read(0, 8),
            lambda: memory.readinto(0, bytearray(8)),
            lambda: memory.write(0, b"child"),
            lambda: memory.view(0, 8),
            lambda: memory.regions,
            lambda: memory.replace([]),
            lambda: GuestMemory([region]),
            lambda: memoryview(view),
            lambda: view.release(),
        ):
            with pytest.raises(ForkError, match=rf"of process {os.getppid()} used in process {os.getpid()}"):
                use()

    assert in_child(use) == 0
    assert memory.read(0, 8) == bytes(8)


def test_a_child_may_have_memory_of_its_own(memfd: MakeMemfd) -> None:
    fd = memfd(PAGE)
    parents = GuestMemory([FileRegion(fd, 0, PAGE)])
    parents.write(0, b"parent")

    def use() -> None:
        memory = GuestMemory([FileRegion(fd, 0, PAGE)])
        assert memory.read(0, 6) == b"parent"
        memory.write(0, b"child!")
        other = os.memfd_create("other")
        os.ftruncate(other, PAGE)
        gone = GuestMemory([FileRegion(other, 0, PAGE)])
        os.ftruncate(other, 0)
        with pytest.raises(OSError, match="is gone"):
            gone.read(0, 1)

    assert in_child(use) == 0
    assert parents.read(0, 6) == b"child!"


def test_what_a_child_lets_go_of_stays_the_parents(memfd: MakeMemfd) -> None:
    """The child drops and closes what it inherited, while its own memory may stand at the same addresses."""
    fd = memfd(PAGE)
    memories = [GuestMemory([FileRegion(fd, 0, PAGE)])]

    def use() -> None:
        own = GuestMemory([FileRegion(fd, 0, PAGE)])
        memories[0].close()
        memories.clear()
        own.write(0, b"own")
        assert own.read(0, 3) == b"own"

    assert in_child(use) == 0
    assert memories[0].read(0, 3) == b"own"


def test_a_buffer_touched_in_a_child_ends_the_child_only(memfd: MakeMemfd) -> None:
    memory = GuestMemory([FileRegion(memfd(PAGE), 0, PAGE)])
    with memory.view(0, 8) as view, memoryview(view) as buffer:

        def touch() -> None:
            faulthandler.disable()
            print(buffer[0])

        assert in_child(touch) == -signal.SIGSEGV
        assert buffer[0] == 0
    memory.close()
