"""The questions of docs/the-thread.md, each put to a real Xen with bare calls."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import time
from pathlib import Path

import pytest

from .conftest import make_guest, xl
from .privcmd_calls import (
    FRAME,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MAP_FIXED,
    advise,
    device,
    flags_of,
    in_child,
    libc,
    map_batch,
    map_pages,
    mapped,
    restrict,
    touch,
)

pytestmark = pytest.mark.dom0("pv", "pvh", "aarch64")

PRIVCMD_FLAGS = {"io", "dc", "de", "dd"}
"""VM_IO, VM_DONTCOPY, VM_DONTEXPAND, VM_DONTDUMP."""
NO_FRAME = 0xFFFFF0


def test_mmap_makes_the_range_that_the_ioctl_wants(guest: int, frame: int) -> None:
    """Nothing is mapped after mmap, but the range has its flags; the ioctl changes none of them."""
    with device() as fd, mapped(fd) as address:
        before = flags_of(address)
        assert before >= PRIVCMD_FLAGS
        assert in_child(lambda: touch_fresh(fd)) == "SIGBUS"
        assert map_batch(fd, guest, address, [frame]) == (0, [0])
        assert flags_of(address) == before
        assert touch(address) == "memory"


def test_the_range_undoes_what_the_ioctl_did(tmp_path: Path, frame: int) -> None:
    """A domain stays, as a dead one, while its frame is mapped; munmap alone lets it go."""
    domain = make_guest(tmp_path, "held")
    with device() as fd:
        address = map_pages(fd)
        assert map_batch(fd, domain, address, [frame]) == (0, [0])
        xl("destroy", str(domain))
        assert f"(null) {domain} " in " ".join(xl("list").split())
        assert touch(address) == "memory"
        libc.munmap(address, FRAME)
        assert wait_until_gone(domain)


def test_the_address_may_be_anywhere(guest: int, frame: int) -> None:
    """In the middle of a range that we reserved ourselves."""
    with device() as fd, mapped(-1, 64, flags=mmap.MAP_PRIVATE) as reserved:
        wanted = reserved + 17 * FRAME
        with mapped(fd, 2, flags=mmap.MAP_SHARED | MAP_FIXED, at=wanted) as address:
            assert address == wanted
            assert map_batch(fd, guest, address, [frame, frame + 1]) == (0, [0, 0])
            assert flags_of(address) >= PRIVCMD_FLAGS
            assert touch(address + FRAME) == "memory"
            assert touch(reserved) == "memory"


def test_one_mmap_has_no_room_for_the_frames_nor_for_their_errors(guest: int, frame: int) -> None:
    """One call takes frames in any order and tells which of them failed; the others are mapped."""
    with device() as fd, mapped(fd, 4) as address:
        frames = [frame + 9, NO_FRAME, frame, frame + 4]
        assert map_batch(fd, guest, address, frames) == (0, [0, -errno.EINVAL, 0, 0])
        assert [touch(address + index * FRAME) for index in (0, 2, 3)] == ["memory"] * 3


def test_the_ioctl_takes_no_memory_that_is_not_the_devices(guest: int, frame: int) -> None:
    with device() as fd, mapped(-1, flags=mmap.MAP_PRIVATE) as address:
        assert map_batch(fd, guest, address, [frame])[0] == errno.EINVAL
        assert touch(address) == "memory"  # what was there is still there


def test_mlock_does_not_do(guest: int, frame: int) -> None:
    """Locked memory is refused as any other is; and there is nothing to lock in a range of the device."""
    with device() as fd:
        with mapped(-1, flags=mmap.MAP_PRIVATE) as address:
            assert libc.mlock(address, FRAME) == 0
            assert "lo" in flags_of(address)
            assert map_batch(fd, guest, address, [frame])[0] == errno.EINVAL
        with mapped(fd) as address:
            assert map_batch(fd, guest, address, [frame]) == (0, [0])
            libc.mlock(address, FRAME)
            assert "lo" not in flags_of(address)


def test_dontfork_on_ordinary_memory_does_not_do(guest: int, frame: int) -> None:
    """It sets one flag of four, and the ioctl refuses the range."""
    with device() as fd, mapped(-1, flags=mmap.MAP_PRIVATE) as address:
        advise(address, 1, MADV_DONTFORK)
        assert flags_of(address) & PRIVCMD_FLAGS == {"dc"}
        assert map_batch(fd, guest, address, [frame])[0] == errno.EINVAL
        assert in_child(lambda: touch(address)) == "SIGSEGV"  # this is what the flag is for, and it does that


def test_the_flags_alone_do_not_make_the_range(guest: int, frame: int) -> None:
    """A range of /dev/xen/hypercall can be given all four flags; the ioctl refuses it all the same.

    Would it look at the flags only, it would put frames into a range whose own close knows nothing of them.
    """
    with device("/dev/xen/hypercall") as buffers, device() as fd, mapped(buffers) as address:
        advise(address, 1, MADV_DONTFORK)
        advise(address, 1, MADV_DONTDUMP)
        assert flags_of(address) >= PRIVCMD_FLAGS
        assert map_batch(fd, guest, address, [frame])[0] == errno.EINVAL
        assert touch(address) == "memory"


def test_any_privcmd_range_will_do_whoever_opened_it(guest: int, frame: int) -> None:
    """The ioctl looks at the range, not at the descriptor that made it."""
    with device() as first, device() as second, mapped(first) as address:
        assert map_batch(second, guest, address, [frame]) == (0, [0])


def test_memory_shared_as_with_kvm_is_ordinary() -> None:
    """A memfd, as a VMM hands it to vhost-user daemons: none of the flags, and a child shares it."""
    fd = os.memfd_create("guest")
    try:
        os.ftruncate(fd, FRAME)
        with mapped(fd) as ours, mapped(fd) as daemons:
            assert flags_of(ours) & PRIVCMD_FLAGS == set()
            assert in_child(lambda: touch(ours)) == "memory"
            assert in_child(lambda: set_byte(ours, 7)) == "set"
            assert (byte_at(ours), byte_at(daemons)) == (7, 7)
    finally:
        os.close(fd)


def test_a_daemon_maps_by_itself_with_the_masters_descriptor(guest: int, frame: int) -> None:
    """The master opens the device, restricts it and passes it on; the daemon does both calls."""
    ours, theirs = socket.socketpair()

    def daemon() -> str:
        _, fds, _, _ = socket.recv_fds(theirs, 16, 1)
        with mapped(fds[0]) as address, mapped(fds[0]) as other:
            assert map_batch(fds[0], guest, address, [frame]) == (0, [0])
            refused = map_batch(fds[0], guest + 1, other, [frame])[0]
            return f"{byte_at(address)} {errno.errorcode[refused]}"

    with ours, theirs, device() as fd, mapped(fd) as address:
        assert map_batch(fd, guest, address, [frame]) == (0, [0])
        before = byte_at(address)
        set_byte(address, 0x42)
        restrict(fd, guest)
        socket.send_fds(ours, [b"memory"], [fd])
        said = in_child(daemon)
        set_byte(address, before)
    assert said == f"{0x42} EPERM"


def touch_fresh(fd: int) -> str:
    with mapped(fd) as address:
        return touch(address)


def byte_at(address: int) -> int:
    return ctypes.c_uint8.from_address(address).value


def set_byte(address: int, value: int) -> str:
    ctypes.c_uint8.from_address(address).value = value
    return "set"


def wait_until_gone(domain: int) -> bool:
    """Xen gives a dead domain's last pages back in its own time."""
    deadline = time.monotonic() + 60
    while any(line.split()[1] == str(domain) for line in xl("list").splitlines()[1:]):
        if time.monotonic() > deadline:
            return False
    return True
