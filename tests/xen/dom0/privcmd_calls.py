"""The bare calls of /dev/xen/privcmd, without anything of ours between a test and the kernel.

The structures are those of Linux's include/uapi/xen/privcmd.h.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import fcntl
import mmap
import os
import re
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FRAME = 4096
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
MAP_FIXED = 0x10
MADV_DONTFORK, MADV_DONTDUMP = 10, 16
"""The same on x86 and Arm: include/uapi/asm-generic/mman-common.h."""
MMAPBATCH_V2, RESTRICT = 0x0020_5004, 0x0002_5006
UNTOUCHED = -12345
"""What each place of the list of errors holds before the call."""

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@contextmanager
def device(path: str = "/dev/xen/privcmd") -> Iterator[int]:
    """A descriptor of it."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def mapped(
    fd: int, frames: int = 1, *, flags: int = mmap.MAP_SHARED, at: int = 0, offset: int = 0
) -> Iterator[int]:
    """The address of so many pages of a descriptor (-1: of memory), readable and writable."""
    address = map_pages(fd, frames, flags=flags, at=at, offset=offset)
    try:
        yield address
    finally:
        libc.munmap(address, frames * FRAME)


def map_pages(fd: int, frames: int = 1, *, flags: int = mmap.MAP_SHARED, at: int = 0, offset: int = 0) -> int:
    """mmap. OSError if it fails."""
    if fd < 0:
        flags |= mmap.MAP_ANONYMOUS
    address: int | None = libc.mmap(at, frames * FRAME, READ_WRITE, flags, fd, offset)
    if address is None or address == ctypes.c_size_t(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return address


def advise(address: int, frames: int, advice: int) -> None:
    """madvise. OSError if it fails."""
    if libc.madvise(address, frames * FRAME, advice):
        raise OSError(ctypes.get_errno(), "madvise")


def map_batch(
    fd: int,
    domain: int,
    address: int,
    frames: Sequence[int],
    *,
    number: int | None = None,
    no_list: bool = False,
    no_errors: bool = False,
) -> tuple[int, list[int]]:
    """IOCTL_PRIVCMD_MMAPBATCH_V2: errno of the call, and what it left in the list of errors."""
    list_of_frames = (ctypes.c_uint64 * max(len(frames), 1))(*frames)
    errors = (ctypes.c_int * max(len(frames), 1))(*[UNTOUCHED] * max(len(frames), 1))
    request = struct.pack(
        "=IHxxQQQ",
        len(frames) if number is None else number,
        domain,
        address,
        0 if no_list else ctypes.addressof(list_of_frames),
        0 if no_errors else ctypes.addressof(errors),
    )
    return attempted(lambda: fcntl.ioctl(fd, MMAPBATCH_V2, request)), list(errors)


def restrict(fd: int, domain: int) -> None:
    """IOCTL_PRIVCMD_RESTRICT."""
    fcntl.ioctl(fd, RESTRICT, struct.pack("=H", domain))


def attempted(call: Callable[[], object]) -> int:
    """0, or the errno with which it fails."""
    try:
        call()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def touch(address: int) -> str:
    """What memory it is: "memory" keeps what is written to it. It may be the end of this process."""
    byte = ctypes.c_uint8.from_address(address + 0x123)
    before = byte.value
    byte.value = before ^ 0x5A
    after, byte.value = byte.value, before
    return "memory" if after == before ^ 0x5A else f"reads {before:#x}, writes vanish"


def in_child(work: Callable[[], str]) -> str:
    """What a function says in a child, or the name of the signal that the child dies of."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            faulthandler.disable()
            for number in (signal.SIGBUS, signal.SIGSEGV):
                signal.signal(number, signal.SIG_DFL)
            os.write(sender, work().encode())
            status = 0
        except BaseException as error:  # it must not come back into pytest
            os.write(sender, repr(error).encode())
        finally:
            os._exit(status)
    os.close(sender)
    with os.fdopen(receiver, "rb") as file:
        said = file.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return signal.Signals(-status).name if status < 0 else said


def flags_of(address: int) -> set[str]:
    """VmFlags of the range that begins at an address (Documentation/filesystems/proc.rst)."""
    text = Path("/proc/self/smaps").read_text()
    found = re.search(rf"^{address:0{8}x}-.*?^VmFlags:([a-z ?]*)$", text, re.DOTALL | re.MULTILINE)
    assert found, f"no range begins at {address:#x}"
    return set(found[1].split())


def name_of(number: int) -> str:
    """An errno in words, "0" for none."""
    return errno.errorcode[abs(number)] if number else "0"
