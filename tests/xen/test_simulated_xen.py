"""What only a simulated Xen can be made to do: frames go and come back, and the test plays the guest."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator

import pytest

from xenvirt.errors import ForeignMapError, GrantMapError, XenCallError
from xenvirt.testing import SimulatedDomain, SimulatedXen
from xenvirt.testing.simulated_xen import Kind
from xenvirt.xen import (
    DeviceModel,
    EventChannels,
    ForeignMemory,
    GrantAllocator,
    GrantTable,
    IoreqServer,
)

PAGE = 4096
MMIO, NOBODYS = 0xD000_0000, 0xD100_0000


@pytest.fixture(params=["pv", "pvh", "aarch64"])
def xen(request: pytest.FixtureRequest) -> SimulatedXen:
    kind: Kind = request.param
    return SimulatedXen(kind)


@pytest.fixture
def guest(xen: SimulatedXen) -> SimulatedDomain:
    return xen.create_domain(memory=16 << 20, vcpus=2)


@pytest.fixture
def first(guest: SimulatedDomain) -> int:
    """The first frame of its RAM."""
    return guest.ram[0].start // PAGE


@pytest.fixture
def foreign(xen: SimulatedXen) -> Iterator[ForeignMemory]:
    with ForeignMemory(hypervisor=xen) as device:
        yield device


def test_a_frame_that_is_paged_out_comes_back(
    foreign: ForeignMemory, guest: SimulatedDomain, first: int
) -> None:
    guest.write(first * PAGE + PAGE, b"was away")
    guest.page_out(first + 1, tries=3)
    guest.page_out(range(first + 4, first + 6), tries=5)
    with foreign.map(guest.domid, range(first, first + 8)) as memory:
        assert memory.read(PAGE, 8) == b"was away"


def test_one_that_stays_away_is_named_when_the_patience_ends(
    xen: SimulatedXen, guest: SimulatedDomain, first: int
) -> None:
    guest.page_out(first + 1)
    with ForeignMemory(patience=0.01, hypervisor=xen) as foreign:
        with pytest.raises(ForeignMapError, match="paged out") as caught:
            foreign.map(guest.domid, [first, first + 1])
        assert [(one.index, one.errno) for one in caught.value.failures] == [(1, errno.ENOENT)]


def test_frames_that_are_given_back_stay_where_they_are_mapped(
    foreign: ForeignMemory, guest: SimulatedDomain, first: int
) -> None:
    guest.write(first * PAGE, b"before")
    with foreign.map(guest.domid, [first]) as memory:
        guest.balloon_out(first)
        with pytest.raises(ForeignMapError):
            foreign.map(guest.domid, [first])
        with pytest.raises(XenCallError) as caught:
            guest.read(first * PAGE, 1)
        assert caught.value.errno == errno.EFAULT
        guest.populate(first)
        guest.write(first * PAGE, b"after!")
        assert memory.read(0, 6) == b"before"
    with foreign.map(guest.domid, [first]) as memory:
        assert memory.read(0, 6) == b"after!"


def test_a_frame_is_given_back_once(guest: SimulatedDomain, first: int) -> None:
    guest.balloon_out(range(first + 1, first + 3))
    with pytest.raises(XenCallError, match="giving back frames") as caught:
        guest.balloon_out(range(first, first + 2))
    assert caught.value.errno == errno.EINVAL
    assert guest.read(first * PAGE, 1) == b"\0"


def test_windows_that_are_invalidated_find_the_new_frame(
    foreign: ForeignMemory, guest: SimulatedDomain, first: int
) -> None:
    with foreign.attach(guest.domid) as memory:
        assert memory.read(first * PAGE, 4) == bytes(4)
        guest.populate(first)
        guest.write(first * PAGE, b"new!")
        memory.invalidate()
        assert memory.read(first * PAGE, 4) == b"new!"
    assert memory.domid == guest.domid


def test_attaching_asks_the_machine_where_the_ram_is(foreign: ForeignMemory, guest: SimulatedDomain) -> None:
    with foreign.attach(guest.domid) as memory:
        assert [range(one.guest_address, one.guest_address + one.size) for one in memory.regions] == [
            *guest.ram
        ]
    with pytest.raises(ForeignMapError, match="no such domain"):
        foreign.attach(0x7000)


@pytest.mark.parametrize("size", [5 << 30, 64 << 30])
def test_a_large_guest_costs_what_is_touched(xen: SimulatedXen, size: int) -> None:
    guest = xen.create_domain(memory=size)
    assert sum(map(len, guest.ram)) == size
    last = guest.ram[-1].stop
    assert last >= (0x2_0000_0000 if xen.kind == "aarch64" else 4 << 30)
    guest.write(last - 3, b"end")
    with ForeignMemory(hypervisor=xen) as foreign, foreign.attach(guest.domid) as memory:
        assert memory.read(last - 3, 3) == b"end"


def test_a_guest_grants_and_takes_back(xen: SimulatedXen, guest: SimulatedDomain, first: int) -> None:
    guest.write(first * PAGE, b"granted")
    reference = guest.grant(first, writable=False)
    with GrantTable(hypervisor=xen) as grants:
        with grants.map(guest.domid, reference) as mapping:
            assert mapping.read(0, 7) == b"granted"
            with pytest.raises(XenCallError, match=f"ending grant {reference}") as caught:
                guest.end_grant(reference)
            assert caught.value.errno == errno.EBUSY
        guest.end_grant(reference)
        with pytest.raises(GrantMapError):
            grants.map(guest.domid, reference)
        with pytest.raises(XenCallError) as caught:
            guest.end_grant(reference)
        assert caught.value.errno == errno.ENOENT


def test_a_grant_whose_page_is_away_is_tried_again(
    xen: SimulatedXen, guest: SimulatedDomain, first: int
) -> None:
    reference = guest.grant(first)
    with GrantTable(hypervisor=xen) as grants:
        guest.page_out_grant(reference, tries=3)
        grants.map(guest.domid, reference).close()
    guest.page_out_grant(reference)
    with GrantTable(patience=0.01, hypervisor=xen) as grants:
        with pytest.raises(GrantMapError, match="did not come back in time") as caught:
            grants.map(guest.domid, reference)
        assert caught.value.errno == errno.EAGAIN


def test_a_grant_is_for_one_domain(xen: SimulatedXen, guest: SimulatedDomain, first: int) -> None:
    other = xen.create_domain(memory=1 << 20)
    reference = guest.grant(first, other.domid)
    with GrantTable(hypervisor=xen) as grants, pytest.raises(GrantMapError):
        grants.map(guest.domid, reference)
    with GrantTable(hypervisor=other) as grants, grants.map(guest.domid, reference) as mapping:
        assert mapping.pages == 1


def test_a_guest_shares_pages_with_dom0_by_its_own_kernel(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with (
        GrantAllocator(hypervisor=guest) as inside,
        inside.share(0, 2) as share,
        GrantTable(hypervisor=xen) as grants,
        grants.map(guest.domid, share.references, writable=True) as mapping,
    ):
        mapping.write(PAGE, b"by dom0")
        assert share.read(PAGE, 7) == b"by dom0"


def test_a_guest_has_no_right_to_foreign_memory(
    xen: SimulatedXen, guest: SimulatedDomain, first: int
) -> None:
    other = xen.create_domain(memory=1 << 20)
    with ForeignMemory(hypervisor=other) as foreign, pytest.raises(ForeignMapError) as caught:
        foreign.map(guest.domid, [first])
    assert caught.value.errno == errno.EPERM
    with DeviceModel(guest.domid, hypervisor=other) as model, pytest.raises(XenCallError) as refused:
        model.create_ioreq_server()
    assert refused.value.errno == errno.EPERM


def test_a_guest_and_dom0_wake_each_other(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with EventChannels(hypervisor=xen) as dom0, EventChannels(hypervisor=guest) as inside:
        port = dom0.bind_unbound(guest.domid)
        theirs = inside.bind_interdomain(0, port)
        assert inside.pending() == [theirs]  # by the binding
        inside.notify(theirs)
        assert dom0.pending(60.0) == [port]
        inside.unmask(theirs)
        dom0.notify(port)
        assert inside.pending(60.0) == [theirs]
        guest.destroy()
        dom0.notify(port)  # to nobody


def test_a_register_is_read_and_written_in_every_size(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with IoreqServer(guest.domid, hypervisor=xen) as server:
        assert server.vcpus == 2
        server.map_memory(MMIO, 0x1000)
        for size in (1, 2, 4, 8):
            access = guest.start_load(MMIO + size, size, vcpu=1)
            [request] = server.requests(60.0)
            assert (request.vcpu, request.address, request.size) == (1, MMIO + size, size)
            assert request.is_read
            assert not access.done
            request.answer(0x8877_6655_4433_2211)
            assert access.result() == 0x8877_6655_4433_2211 & ((1 << 8 * size) - 1)
        access = guest.start_store(MMIO, 0x1234, 2)
        [request] = server.requests(60.0)
        assert (request.is_read, request.value) == (False, 0x1234)
        request.answer()
        access.result()


def test_a_vcpu_waits_while_another_thread_answers(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with IoreqServer(guest.domid, hypervisor=xen) as server:
        server.map_memory(MMIO, 0x1000)

        def answer() -> None:
            for _ in range(2):
                [request] = server.requests(60.0)
                request.answer(0x5A)

        answering = threading.Thread(target=answer)
        answering.start()
        assert guest.load(MMIO, 1) == 0x5A
        guest.store(MMIO, 1)
        answering.join()


def test_a_string_instruction_has_its_values_in_memory(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    buffer = guest.ram[0].start
    with IoreqServer(guest.domid, hypervisor=xen) as server:
        server.map_memory(MMIO, 0x1000)
        access = guest.start_load(MMIO + 12, 4, count=4, backwards=True, data_address=buffer + 12)
        [request] = server.requests(60.0)
        assert (request.count, request.backwards, request.data_address) == (4, True, buffer + 12)
        assert request.accesses() == [(MMIO + at, buffer + at) for at in (12, 8, 4, 0)]
        request.answer()
        access.result()
        guest.start_load(MMIO + 0xFFE, 4)  # it leaves the range
        assert server.requests() == []


def test_an_address_that_nobody_serves(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    """An empty bus on x86, a data abort on Arm."""
    if xen.kind == "aarch64":
        with pytest.raises(XenCallError, match="data abort"):
            guest.load(NOBODYS)
    else:
        assert guest.load(NOBODYS, 2) == 0xFFFF
    assert guest.load(0x5600, 1, port=True) == 0xFF


def test_who_is_not_answered_waits_and_a_vcpu_waits_for_one_thing(
    xen: SimulatedXen, guest: SimulatedDomain
) -> None:
    with IoreqServer(guest.domid, hypervisor=xen) as server:
        server.map_memory(MMIO, 0x1000)
        access = guest.start_load(MMIO)
        with pytest.raises(TimeoutError, match="0xd0000000 by a vCPU was not answered"):
            access.result(timeout=0.0)
        with pytest.raises(XenCallError) as caught:
            guest.start_load(MMIO)
        assert caught.value.errno == errno.EBUSY
        guest.start_load(MMIO, vcpu=1)
    assert access.result() == 0xFFFF_FFFF  # the server closed, and answered as an empty bus would


def test_the_end_of_the_domain_ends_the_wait(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with IoreqServer(guest.domid, hypervisor=xen) as server:
        server.map_memory(MMIO, 0x1000)
        access = guest.start_load(MMIO)
        guest.destroy()
        with pytest.raises(XenCallError, match="destroyed") as caught:
            access.result()
        assert caught.value.errno == errno.ESRCH
    assert not guest.exists
    assert xen.domids == [0]


def test_an_invalidation_reaches_the_server(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with IoreqServer(guest.domid, hypervisor=xen) as server:
        access = guest.start_invalidate()
        [request] = server.requests(60.0)
        assert request.kind == "invalidate"
        request.answer()
        access.result()


def test_interrupts_are_kept_for_the_test(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with DeviceModel(guest.domid, hypervisor=xen) as model:
        if xen.kind == "aarch64":
            model.set_irq_level(33, True)
            model.set_irq_level(33, False)
            assert guest.interrupts() == [("spi", 33, 1), ("spi", 33, 0)]
        else:
            model.inject_msi(0xFEE0_0000, 0x41)
            assert guest.interrupts() == [("msi", 0xFEE0_0000, 0x41)]
        assert guest.interrupts() == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda xen: xen.create_domain(memory=5000), "whole pages"),
        (lambda xen: xen.create_domain(memory=0), "at least one"),
        (lambda xen: xen.create_domain(vcpus=0), "0 vCPUs"),
        (lambda xen: xen.create_domain(vcpus=129), "129 vCPUs"),
        (lambda xen: xen.create([range(8192), range(4096, 16384)], 1), "in order"),
        (lambda xen: xen.create([range(1, 4097)], 1), "whole frames"),
        (lambda xen: xen.domain(5), "no such domain"),
        (lambda xen: xen.domain(0).destroy(), "dom0 cannot be destroyed"),
        (lambda xen: xen.create_domain().load(0, 3), "3 bytes"),
        (lambda xen: xen.create_domain().load(0, 8, port=True), "8 bytes"),
        (lambda xen: xen.create_domain().load(0, vcpu=1), "vCPU 1"),
        (lambda xen: xen.create_domain().load(0x10000, port=True), "address 0x10000"),
        (lambda xen: xen.create_domain().start_load(0, count=0), "0 accesses"),
        (lambda xen: xen.create_domain().balloon_out(range(0, 8, 2)), "no step"),
        (lambda xen: xen.create_domain().populate(range(1 << 50)), "can be populated at once"),
    ],
)
def test_what_cannot_be_is_refused(xen: SimulatedXen, call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=words):
        call(xen)


@pytest.mark.parametrize("size", [1 << 40, 1 << 62])
def test_more_than_a_guest_has_is_not_read(guest: SimulatedDomain, size: int) -> None:
    with pytest.raises(XenCallError) as caught:
        guest.read(guest.ram[0].start, size)
    assert caught.value.errno == errno.EFAULT


def test_a_kind_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="'pv', 'pvh' or 'aarch64'"):
        SimulatedXen("hvm")  # type: ignore[arg-type]


def test_something_else_is_no_hypervisor() -> None:
    with pytest.raises(TypeError, match="hypervisor"):
        ForeignMemory(hypervisor="xen")  # type: ignore[arg-type]


def test_a_simulated_device_has_no_descriptor(foreign: ForeignMemory) -> None:
    with pytest.raises(ValueError, match="no descriptor"):
        foreign.fileno()


def test_threads_do_not_stand_in_each_others_way(
    xen: SimulatedXen, guest: SimulatedDomain, first: int
) -> None:
    """Mapping, granting, waking and accessing at the same time, each to its own end."""
    failures: list[BaseException] = []

    def map_and_give_back(own: int) -> None:
        with ForeignMemory(hypervisor=xen) as foreign:
            for turn in range(100):
                guest.balloon_out(own)
                guest.populate(own)
                guest.write(own * PAGE, bytes([turn]))
                with foreign.map(guest.domid, [own]) as memory:
                    assert memory.read(0, 1) == bytes([turn])

    def grant_and_take_back(own: int) -> None:
        with GrantTable(hypervisor=xen) as grants:
            for _ in range(100):
                reference = guest.grant(own)
                grants.map(guest.domid, reference).close()
                guest.end_grant(reference)

    def wake(_own: int) -> None:
        with EventChannels(hypervisor=xen) as dom0, EventChannels(hypervisor=guest) as inside:
            for _ in range(100):
                port = dom0.bind_unbound(guest.domid)
                inside.notify(inside.bind_interdomain(0, port))
                assert dom0.pending(60.0) == [port]
                dom0.unbind(port)

    def access(_own: int) -> None:
        with IoreqServer(guest.domid, hypervisor=xen) as server:
            server.map_memory(MMIO, 0x1000)
            for turn in range(100):
                read = guest.start_load(MMIO)
                [request] = server.requests(60.0)
                request.answer(turn)
                assert read.result() == turn

    def kept(work: Callable[[int], None], own: int) -> None:
        try:
            work(own)
        except BaseException as error:
            failures.append(error)

    works = [map_and_give_back, map_and_give_back, grant_and_take_back, grant_and_take_back, wake, access]
    threads = [
        threading.Thread(target=kept, args=(work, first + 16 + index)) for index, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
