"""What the kernel answers to bare calls in each kind of dom0: each row of `xenvirt.testing.measured`."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from xenvirt.testing.measured import MEASURED, Answer

from .conftest import make_guest, xl
from .privcmd_calls import (
    FRAME,
    MAP_FIXED,
    UNTOUCHED,
    attempted,
    device,
    flags_of,
    in_child,
    map_batch,
    map_pages,
    mapped,
    restrict,
    touch,
)

pytestmark = pytest.mark.dom0("pv", "pvh", "aarch64")

NO_FRAME = 0xFFFFF0
NO_DOMAIN = 0x7000
DOMID_SELF, DOMID_IO = 0x7FF0, 0x7FF1
"""xen/include/public/xen.h."""
MAP_GRANT_REF = 0x0018_4700
"""Linux's include/uapi/xen/gntdev.h."""

Case = Callable[[int, int], Answer]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Names a function that measures: it takes a domain and a frame of it."""

    def named(function: Case) -> Case:
        CASES[name] = function
        return function

    return named


def batch(domain: int, frames: list[int], *, room: int | None = None, number: int | None = None) -> Answer:
    """One call over a fresh range; the first page that failed, or else the first, is touched."""
    size = len(frames) if room is None else room
    with device() as fd, mapped(fd, size) as address:
        call, errors = map_batch(fd, domain, address, frames, number=number)

    def again() -> str:
        with device() as fd, mapped(fd, size) as address:
            _, errors = map_batch(fd, domain, address, frames, number=number)
            bad = next((index for index, error in enumerate(errors) if error), 0)
            return touch(address + min(bad, size - 1) * FRAME)

    return Answer(call, tuple(-error for error in errors if error != UNTOUCHED), in_child(again))


@case("frames that exist")
def frames_that_exist(domain: int, frame: int) -> Answer:
    return batch(domain, [frame, frame + 2])


@case("a frame that does not exist")
def no_such_frame(domain: int, frame: int) -> Answer:
    return batch(domain, [frame, NO_FRAME, frame])


@case("a domain that does not exist")
def no_such_domain(_domain: int, frame: int) -> Answer:
    return batch(NO_DOMAIN, [frame])


@case("dom0 by its number")
def dom0_by_number(_domain: int, frame: int) -> Answer:
    return batch(0, [frame])


@case("dom0 as DOMID_SELF")
def dom0_as_self(_domain: int, frame: int) -> Answer:
    with device() as fd, mapped(fd) as address:  # not touched: it would be memory of this dom0's own
        call, errors = map_batch(fd, DOMID_SELF, address, [frame])
    return Answer(call, tuple(-error for error in errors))


@case("DOMID_IO")
def domid_io(_domain: int, frame: int) -> Answer:
    return batch(DOMID_IO, [frame])


@case("fewer frames than the range has")
def too_few(domain: int, frame: int) -> Answer:
    return batch(domain, [frame], room=2)


@case("more frames than the range has")
def too_many(domain: int, frame: int) -> Answer:
    return batch(domain, [frame, frame], room=1)


@case("no frames")
def none_at_all(domain: int, frame: int) -> Answer:
    return batch(domain, [frame], number=0)


@case("the second half of a range")
def half_a_range(domain: int, frame: int) -> Answer:
    with device() as fd, mapped(fd, 2) as address:
        call, errors = map_batch(fd, domain, address + FRAME, [frame])
    return Answer(call, tuple(-error for error in errors))


@case("frames over frames that are mapped")
def twice(domain: int, frame: int) -> Answer:
    with device() as fd, mapped(fd) as address:
        assert map_batch(fd, domain, address, [frame]) == (0, [0])
        call, errors = map_batch(fd, domain, address, [frame])
    return Answer(call, tuple(-error for error in errors))


@case("a frame in place of one that failed")
def in_place_of_a_failed_one(domain: int, frame: int) -> Answer:
    def attempt() -> tuple[int, list[int], int]:
        address = map_pages(fd, 2)
        map_batch(fd, domain, address, [frame, NO_FRAME])
        return *map_batch(fd, domain, address + FRAME, [frame]), address

    with device() as fd:
        call, errors, address = attempt()
        with mapped(fd, 2, flags=mmap.MAP_SHARED | MAP_FIXED, at=address):  # in its place, and gone with it
            pass
        return Answer(call, tuple(-error for error in errors), in_child(lambda: touch(attempt()[2] + FRAME)))


@case("a range that is not the device's")
def ordinary_memory(domain: int, frame: int) -> Answer:
    with device() as fd, mapped(-1, flags=mmap.MAP_PRIVATE) as address:
        call, errors = map_batch(fd, domain, address, [frame])
        return Answer(call, tuple(-error for error in errors), touch(address))


@case("an address inside a page")
def unaligned(domain: int, frame: int) -> Answer:
    with device() as fd, mapped(fd) as address:
        call, errors = map_batch(fd, domain, address + 1, [frame])
    return Answer(call, tuple(-error for error in errors))


@case("no list of frames")
def no_list_of_frames(domain: int, frame: int) -> Answer:
    with device() as fd, mapped(fd) as address:
        return Answer(map_batch(fd, domain, address, [frame], no_list=True)[0])


@case("no list of errors")
def no_list_of_errors(domain: int, frame: int) -> Answer:
    with device() as fd, mapped(fd) as address:
        return Answer(map_batch(fd, domain, address, [frame], no_errors=True)[0])


@case("touched before the call")
def touched_before(_domain: int, _frame: int) -> Answer:
    def work() -> str:
        with device() as fd, mapped(fd) as address:
            return touch(address)

    return Answer(touch=in_child(work))


@case("touched by a child")
def touched_by_a_child(domain: int, frame: int) -> Answer:
    with device() as fd, mapped(fd) as address:
        call, errors = map_batch(fd, domain, address, [frame])
        return Answer(call, tuple(-error for error in errors), in_child(lambda: touch(address)))


@case("touched after the device was closed")
def touched_after_close(domain: int, frame: int) -> Answer:
    def work() -> str:
        with device() as fd:
            address = map_pages(fd)
            map_batch(fd, domain, address, [frame])
        return touch(address)

    return Answer(touch=in_child(work))


@case("another domain after RESTRICT")
def restricted(domain: int, frame: int) -> Answer:
    with device() as fd, mapped(fd) as address:
        restrict(fd, domain)
        assert map_batch(fd, domain, address, [frame]) == (0, [0])
        with mapped(fd) as other:
            return Answer(map_batch(fd, domain + 1, other, [frame])[0])


@case("RESTRICT to another domain")
def restricted_again(domain: int, _frame: int) -> Answer:
    with device() as fd:
        restrict(fd, domain)
        return Answer(attempted(lambda: restrict(fd, domain + 1)))


@case("VmFlags of the range")
def flags_of_the_range(domain: int, frame: int) -> Answer:
    with device() as fd, mapped(fd) as address:
        before = flags_of(address)
        assert map_batch(fd, domain, address, [frame]) == (0, [0])
        assert flags_of(address) == before
    return Answer(touch=" ".join(sorted(before & {"pf", "io", "mm", "dc", "de", "dd", "lo"})))


@case("mmap of a grant that does not exist")
def no_such_grant(domain: int, _frame: int) -> Answer:
    with device("/dev/xen/gntdev") as fd:
        request = bytearray(struct.pack("=IIQII", 1, 0, 0, domain, 0xFFFFF0))
        fcntl.ioctl(fd, MAP_GRANT_REF, request)
        index = struct.unpack_from("=Q", request, 8)[0]
        return Answer(attempted(lambda: os.close(map_pages(fd, offset=index))))


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_answers_as_measured(name: str, dom0: str, guest: int, frame: int) -> None:
    assert CASES[name](guest, frame) == MEASURED[name][dom0]


def test_every_row_is_measured() -> None:
    assert list(MEASURED) == list(CASES)


@pytest.mark.dom0("pv", "pvh")
def test_frames_of_a_pv_guest_are_the_machines(tmp_path: Path) -> None:
    """Its console's page is a frame of the machine's, beyond its own 128 MiB; 0x1000 is not its own."""
    domain = make_guest(tmp_path, "paravirtual", "pv")
    try:
        path = ["xenstore-read", f"/local/domain/{domain}/console/ring-ref"]
        console = int(subprocess.run(path, check=True, capture_output=True, text=True).stdout)
        assert console > 128 << 20 >> 12
        with device() as fd, mapped(fd, 2) as address:
            call, (own, another) = map_batch(fd, domain, address, [console, 0x1000])
        assert (call, own) == (0, 0)
        assert another < 0
    finally:
        xl("destroy", str(domain))
