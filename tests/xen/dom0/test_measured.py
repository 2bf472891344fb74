"""What is answered to bare calls in each kind of dom0: each row of `xenvirt.testing.measured`, by the kernel
and by a simulated Xen."""

from __future__ import annotations

import mmap
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from xenvirt.testing import SimulatedXen
from xenvirt.testing.measured import MEASURED, Answer

from . import privcmd_calls as kernel
from .bare_calls import BareCalls, KernelCalls, SimulatedCalls
from .conftest import make_guest, xl
from .privcmd_calls import FRAME, UNTOUCHED, attempted, flags_of, in_child

pytestmark = pytest.mark.hypervisor("pv", "pvh", "aarch64")

NO_FRAME = 0xFFFFF0
NO_DOMAIN = 0x7000
DOMID_SELF, DOMID_IO = 0x7FF0, 0x7FF1
"""xen/include/public/xen.h."""

Calls = BareCalls[Any]
Case = Callable[[Calls, int, int], Answer]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Names a function that measures: it takes calls, a domain and a frame of it."""

    def named(function: Case) -> Case:
        CASES[name] = function
        return function

    return named


@contextmanager
def mapped(calls: Calls, device: Any, pages: int = 1) -> Iterator[int]:
    """The address of a fresh range."""
    address = calls.map_pages(device, pages)
    try:
        yield address
    finally:
        calls.unmap(address, pages)


def batch(
    calls: Calls, domain: int, frames: list[int], *, room: int | None = None, number: int | None = None
) -> Answer:
    """One call over a fresh range; the first page that failed, or else the first, is touched."""
    size = len(frames) if room is None else room
    with calls.device() as fd, mapped(calls, fd, size) as address:
        call, errors = calls.map_batch(fd, domain, address, frames, number=number)

    def again() -> str:
        with calls.device() as fd, mapped(calls, fd, size) as address:
            _, errors = calls.map_batch(fd, domain, address, frames, number=number)
            bad = next((index for index, error in enumerate(errors) if error), 0)
            return calls.touch(address + min(bad, size - 1) * FRAME)

    return Answer(call, tuple(-error for error in errors if error != UNTOUCHED), in_child(again))


@case("frames that exist")
def frames_that_exist(calls: Calls, domain: int, frame: int) -> Answer:
    return batch(calls, domain, [frame, frame + 2])


@case("a frame that does not exist")
def no_such_frame(calls: Calls, domain: int, frame: int) -> Answer:
    return batch(calls, domain, [frame, NO_FRAME, frame])


@case("a domain that does not exist")
def no_such_domain(calls: Calls, _domain: int, frame: int) -> Answer:
    return batch(calls, NO_DOMAIN, [frame])


@case("dom0 by its number")
def dom0_by_number(calls: Calls, _domain: int, frame: int) -> Answer:
    return batch(calls, 0, [frame])


@case("dom0 as DOMID_SELF")
def dom0_as_self(calls: Calls, _domain: int, frame: int) -> Answer:
    with calls.device() as fd, mapped(calls, fd) as address:  # not touched: it is dom0's own
        call, errors = calls.map_batch(fd, DOMID_SELF, address, [frame])
    return Answer(call, tuple(-error for error in errors))


@case("DOMID_IO")
def domid_io(calls: Calls, _domain: int, frame: int) -> Answer:
    return batch(calls, DOMID_IO, [frame])


@case("fewer frames than the range has")
def too_few(calls: Calls, domain: int, frame: int) -> Answer:
    return batch(calls, domain, [frame], room=2)


@case("more frames than the range has")
def too_many(calls: Calls, domain: int, frame: int) -> Answer:
    return batch(calls, domain, [frame, frame], room=1)


@case("no frames")
def none_at_all(calls: Calls, domain: int, frame: int) -> Answer:
    return batch(calls, domain, [frame], number=0)


@case("the second half of a range")
def half_a_range(calls: Calls, domain: int, frame: int) -> Answer:
    with calls.device() as fd, mapped(calls, fd, 2) as address:
        call, errors = calls.map_batch(fd, domain, address + FRAME, [frame])
    return Answer(call, tuple(-error for error in errors))


@case("frames over frames that are mapped")
def twice(calls: Calls, domain: int, frame: int) -> Answer:
    with calls.device() as fd, mapped(calls, fd) as address:
        assert calls.map_batch(fd, domain, address, [frame]) == (0, [0])
        call, errors = calls.map_batch(fd, domain, address, [frame])
    return Answer(call, tuple(-error for error in errors))


@case("a frame in place of one that failed")
def in_place_of_a_failed_one(calls: Calls, domain: int, frame: int) -> Answer:
    def attempt() -> tuple[int, list[int], int]:
        address = calls.map_pages(fd, 2)
        calls.map_batch(fd, domain, address, [frame, NO_FRAME])
        return *calls.map_batch(fd, domain, address + FRAME, [frame]), address

    with calls.device() as fd:
        call, errors, address = attempt()
        calls.unmap(address, 2)
        return Answer(
            call, tuple(-error for error in errors), in_child(lambda: calls.touch(attempt()[2] + FRAME))
        )


@case("a range that is not the device's")
def ordinary_memory(calls: Calls, domain: int, frame: int) -> Answer:
    with calls.device() as fd, kernel.mapped(-1, flags=mmap.MAP_PRIVATE) as address:
        call, errors = calls.map_batch(fd, domain, address, [frame])
        return Answer(call, tuple(-error for error in errors), calls.touch(address))


@case("an address inside a page")
def unaligned(calls: Calls, domain: int, frame: int) -> Answer:
    with calls.device() as fd, mapped(calls, fd) as address:
        call, errors = calls.map_batch(fd, domain, address + 1, [frame])
    return Answer(call, tuple(-error for error in errors))


@case("no list of frames")
def no_list_of_frames(calls: Calls, domain: int, frame: int) -> Answer:
    with calls.device() as fd, mapped(calls, fd) as address:
        return Answer(calls.map_batch(fd, domain, address, [frame], no_list=True)[0])


@case("no list of errors")
def no_list_of_errors(calls: Calls, domain: int, frame: int) -> Answer:
    with calls.device() as fd, mapped(calls, fd) as address:
        return Answer(calls.map_batch(fd, domain, address, [frame], no_errors=True)[0])


@case("touched before the call")
def touched_before(calls: Calls, _domain: int, _frame: int) -> Answer:
    def work() -> str:
        with calls.device() as fd, mapped(calls, fd) as address:
            return calls.touch(address)

    return Answer(touch=in_child(work))


@case("touched by a child")
def touched_by_a_child(calls: Calls, domain: int, frame: int) -> Answer:
    with calls.device() as fd, mapped(calls, fd) as address:
        call, errors = calls.map_batch(fd, domain, address, [frame])
        return Answer(call, tuple(-error for error in errors), in_child(lambda: calls.touch(address)))


@case("touched after the device was closed")
def touched_after_close(calls: Calls, domain: int, frame: int) -> Answer:
    def work() -> str:
        with calls.device() as fd:
            address = calls.map_pages(fd)
            calls.map_batch(fd, domain, address, [frame])
        return calls.touch(address)

    return Answer(touch=in_child(work))


@case("another domain after RESTRICT")
def restricted(calls: Calls, domain: int, frame: int) -> Answer:
    with calls.device() as fd, mapped(calls, fd) as address:
        calls.restrict(fd, domain)
        assert calls.map_batch(fd, domain, address, [frame]) == (0, [0])
        with mapped(calls, fd) as other:
            return Answer(calls.map_batch(fd, domain + 1, other, [frame])[0])


@case("RESTRICT to another domain")
def restricted_again(calls: Calls, domain: int, _frame: int) -> Answer:
    with calls.device() as fd:
        calls.restrict(fd, domain)
        return Answer(attempted(lambda: calls.restrict(fd, domain + 1)))


@case("VmFlags of the range")
def flags_of_the_range(calls: Calls, domain: int, frame: int) -> Answer:
    with calls.device() as fd, mapped(calls, fd) as address:
        before = flags_of(address)
        assert calls.map_batch(fd, domain, address, [frame]) == (0, [0])
        assert flags_of(address) == before
    return Answer(touch=" ".join(sorted(before & {"pf", "io", "mm", "dc", "de", "dd", "lo"})))


@case("mmap of a grant that does not exist")
def no_such_grant(calls: Calls, domain: int, _frame: int) -> Answer:
    return Answer(calls.map_grant(domain, 0xFFFFF0))


@pytest.mark.parametrize("name", CASES)
def test_bare_calls_are_answered_as_measured(
    name: str, hypervisor: SimulatedXen | None, dom0: str, guest: int, frame: int
) -> None:
    calls: Calls = KernelCalls() if hypervisor is None else SimulatedCalls(hypervisor)
    assert CASES[name](calls, guest, frame) == calls.expected(MEASURED[name][dom0])


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
        with kernel.device() as fd, kernel.mapped(fd, 2) as address:
            call, (own, another) = kernel.map_batch(fd, domain, address, [console, 0x1000])
        assert (call, own) == (0, 0)
        assert another < 0
    finally:
        xl("destroy", str(domain))
