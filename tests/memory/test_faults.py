"""Memory that goes away under us, and everybody else's SIGBUS."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from xenvirt.errors import GuestMemoryError, GuestMemoryFault
from xenvirt.memory import FileRegion, GuestMemory

from .conftest import PAGE, MakeMemfd


def test_truncated_memory_raises_and_the_process_lives(memfd: MakeMemfd) -> None:
    fd = memfd(4 * PAGE)
    memory = GuestMemory([FileRegion(fd, 0x1000, 4 * PAGE)])
    memory.write(0x1000, b"x" * 4 * PAGE)
    os.ftruncate(fd, PAGE)
    with pytest.raises(GuestMemoryFault, match="is gone: what backed its region was truncated") as fault:
        memory.read(0x1000 + 2 * PAGE, 8)
    assert fault.value.errno == errno.EFAULT
    assert isinstance(fault.value, GuestMemoryError)


@pytest.mark.parametrize("size", [8, 3 * PAGE, 40 * PAGE], ids=["short", "pages", "without the GIL"])
def test_every_access_to_the_region_raises_from_then_on(memfd: MakeMemfd, size: int) -> None:
    fd, other = memfd(64 * PAGE), memfd(PAGE)
    memory = GuestMemory([FileRegion(fd, 0, 64 * PAGE), FileRegion(other, 64 * PAGE, PAGE)])
    os.ftruncate(fd, 8 * PAGE)
    with pytest.raises(GuestMemoryFault):
        memory.write(20 * PAGE, b"x" * size)
    for use in (
        lambda: memory.read(0, 8),
        lambda: memory.readinto(0, bytearray(8)),
        lambda: memory.write(0, b"x"),
        lambda: memory.view(0, 8),
        lambda: memory.read(64 * PAGE - 1, 2),
    ):
        with pytest.raises(GuestMemoryFault):
            use()
    memory.write(64 * PAGE, b"the other region is whole")
    memory.replace([FileRegion(fd, 0, 8 * PAGE)])
    assert memory.read(0, 8) == bytes(8), "mapped anew"


def test_a_view_of_memory_that_went_away_reads_zeroes_and_says_so_in_the_end(memfd: MakeMemfd) -> None:
    fd = memfd(2 * PAGE)
    memory = GuestMemory([FileRegion(fd, 0, 2 * PAGE)])
    memory.write(0, b"x" * 2 * PAGE)
    view = memory.view(PAGE, PAGE)
    buffer = memoryview(view)
    os.ftruncate(fd, PAGE)
    assert not any(buffer)
    buffer[0] = 1
    with pytest.raises(GuestMemoryFault, match="the memory of the view is gone"):
        memoryview(view)
    buffer.release()
    with pytest.raises(GuestMemoryFault):
        view.release()
    view.release()
    memory.close()


def test_the_error_of_a_with_block_comes_before_the_fault(memfd: MakeMemfd) -> None:
    fd = memfd(PAGE)
    memory = GuestMemory([FileRegion(fd, 0, PAGE)])
    with pytest.raises(ZeroDivisionError), memory.view(0, 8) as view:  # noqa: PT012
        os.ftruncate(fd, 0)
        assert bytes(view) == bytes(8)
        raise ZeroDivisionError


def test_many_threads_fault_at_once(memfd: MakeMemfd) -> None:
    fd = memfd(256 * PAGE)
    memory = GuestMemory([FileRegion(fd, 0, 256 * PAGE)])
    os.ftruncate(fd, 0)
    faults: list[GuestMemoryFault] = []
    start = threading.Barrier(4)

    def touch() -> None:
        start.wait()
        try:
            memory.read(0, 256 * PAGE)
        except GuestMemoryFault as fault:
            faults.append(fault)

    threads = [threading.Thread(target=touch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(faults) == 4


# ---- other people's SIGBUS, each in a process of its own

PREAMBLE = """
import ctypes, faulthandler, mmap, os, signal, sys, threading
from xenvirt.errors import GuestMemoryFault
from xenvirt.memory import FileRegion, GuestMemory

PAGE = os.sysconf("SC_PAGESIZE")
libc = ctypes.CDLL(None)

def make():
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    return fd, GuestMemory([FileRegion(fd, 0, PAGE)])

def ours():
    "A fault in memory of ours: survived."
    fd, memory = make()
    os.ftruncate(fd, 0)
    try:
        memory.read(0, 8)
    except GuestMemoryFault:
        print("survived", flush=True)

def theirs():
    "A fault in somebody else's memory: for whoever stood there before us."
    fd = os.memfd_create("other")
    os.ftruncate(fd, PAGE)
    mapping = mmap.mmap(fd, PAGE)
    os.ftruncate(fd, 0)
    return mapping[0]
"""


def run(script: str, *options: str) -> "subprocess.CompletedProcess[str]":
    code = PREAMBLE + textwrap.dedent(script)
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_fault_of_others_ends_the_process_as_ever() -> None:
    ended = run("ours(); theirs(); print('not reached')")
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, "survived\n")


def test_a_sigbus_that_was_sent_ends_the_process_as_ever() -> None:
    ended = run("ours(); os.kill(os.getpid(), signal.SIGBUS); print('not reached')")
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, "survived\n")


def test_an_ignored_sigbus_is_still_ignored_when_it_was_sent() -> None:
    ended = run("""
        signal.signal(signal.SIGBUS, signal.SIG_IGN)
        ours(); os.kill(os.getpid(), signal.SIGBUS); ours(); theirs()
    """)
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, "survived\nsurvived\n")


@pytest.mark.parametrize(
    "script",
    [
        "ours(); ours(); theirs()",
        "faulthandler.enable(); ours(); ours(); theirs()",
        "make(); faulthandler.enable(); ours(); ours(); theirs()",
        "faulthandler.enable(); ours(); faulthandler.disable(); faulthandler.enable(); ours(); theirs()",
        "make(); faulthandler.enable(); ours(); faulthandler.enable(); ours(); theirs()",
    ],
    ids=["by option", "before us", "after us", "before and after us", "after us and again"],
)
def test_faulthandler_reports_the_faults_that_are_not_ours(script: str) -> None:
    ended = run(script, *(["-X", "faulthandler"] if "enable" not in script else []))
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, "survived\nsurvived\n"), ended.stderr
    assert ended.stderr.count("Fatal Python error: Bus error") == 1, ended.stderr
    assert "in theirs" in ended.stderr


def test_a_python_handler_is_still_called_when_the_signal_was_sent() -> None:
    ended = run("""
        signal.signal(signal.SIGBUS, lambda number, frame: print("handled", number, flush=True))
        ours(); os.kill(os.getpid(), signal.SIGBUS); ours()
    """)
    assert (ended.returncode, ended.stdout) == (0, f"survived\nhandled {int(signal.SIGBUS)}\nsurvived\n")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["plain", "with information"])
def test_a_native_handler_gets_the_faults_that_are_not_ours(kind: str, when: str) -> None:
    """It puts memory where there is none, as we do, and the program goes on."""
    ended = run(f"""
        SA_SIGINFO = 4 if {kind == "with information"} else 0

        class Action(ctypes.Structure):
            _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_uint8 * 128),
                        ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]

        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        other = os.memfd_create("other")
        os.ftruncate(other, PAGE)
        address = libc.mmap(None, PAGE, 3, 1, other, 0)
        os.ftruncate(other, 0)

        def handle(number, information=None, context=None):
            # Address of the fault: behind signal number, errno, code and four bytes of nothing.
            at = ctypes.c_uint64.from_address(information + 16).value if SA_SIGINFO else address
            fixed_private_anonymous = 0x32
            assert at == address and libc.mmap(address, PAGE, 3, fixed_private_anonymous, -1, 0) == address
            print("theirs", flush=True)

        arguments = [ctypes.c_void_p] * 2 if SA_SIGINFO else []
        function = ctypes.CFUNCTYPE(None, ctypes.c_int, *arguments)(handle)
        action = Action(ctypes.cast(function, ctypes.c_void_p).value, flags=SA_SIGINFO)
        if {when == "before"}:
            libc.sigaction(signal.SIGBUS, ctypes.byref(action), None)
            ours()
        else:
            ours()
            libc.sigaction(signal.SIGBUS, ctypes.byref(action), None)
            make()
        print(ctypes.c_uint8.from_address(address).value, flush=True)
        ours()
    """)
    assert (ended.returncode, ended.stdout) == (0, "survived\ntheirs\n0\nsurvived\n"), ended.stderr


def test_handlers_that_call_each_other_end() -> None:
    """Over us stands one that passes everything on to us: a fault of nobody's must not go round for ever."""
    ended = run("""
        class Action(ctypes.Structure):
            _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_uint8 * 128),
                        ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]
        make()
        old = Action()
        libc.sigaction(signal.SIGBUS, None, ctypes.byref(old))
        passed = []
        Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

        def handle(number, information, context):
            passed.append(number)
            print("passed on", flush=True)
            Handler(old.handler)(number, information, context)

        function = Handler(handle)
        new = Action(ctypes.cast(function, ctypes.c_void_p).value, flags=4)
        libc.sigaction(signal.SIGBUS, ctypes.byref(new), None)
        make()
        theirs()
    """)
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, "passed on\n"), ended.stderr


def test_more_ranges_than_one_table_holds_are_all_guarded(memfd: MakeMemfd) -> None:
    fds = [memfd(PAGE) for _ in range(300)]
    memory = GuestMemory(FileRegion(fd, n * PAGE, PAGE) for n, fd in enumerate(fds))
    for n in (0, 63, 64, 128, 299):
        os.ftruncate(fds[n], 0)
        with pytest.raises(GuestMemoryFault):
            memory.read(n * PAGE, 1)
    memory.read(100 * PAGE, PAGE)
