"""Grants on Xen, real or simulated: between dom0 and itself, from a domU, bad ones, copies, nothing left."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirt.errors import ForkError, GuestAddressError, ReadOnlyMemoryError
from xenvirt.memory import FileRegion, GuestMemory
from xenvirt.testing import SimulatedXen
from xenvirt.xen import (
    AttachedGrants,
    EventChannels,
    ForeignMemory,
    GrantAllocator,
    GrantCopyError,
    GrantMapError,
    GrantMapping,
    GrantShare,
    GrantTable,
)

from .conftest import Guest
from .linux_guest import LinuxGuest, xl

pytestmark = pytest.mark.hypervisor("pv", "pvh", "aarch64")
with_itself = pytest.mark.hypervisor("pv", "aarch64")
"""What dom0 grants to dom0: on x86 a PVH dom0 must not map that."""

PAGE = 4096
DOM0 = 0
NO_DOMAIN, DOMID_SELF = 0x7000, 0x7FF0
NO_REFERENCE = 0xFFFFF0
CONSOLE, XENSTORE = 0, 1
"""What each guest of xl's grants to dom0: its console's page and its xenstore page (GNTTAB_RESERVED_*)."""

GNTST_GENERAL_ERROR, GNTST_BAD_GNTREF = -1, -3


@pytest.fixture
def grants(hypervisor: SimulatedXen | None) -> Iterator[GrantTable]:
    with GrantTable(hypervisor=hypervisor) as table:
        yield table


@pytest.fixture
def allocator(hypervisor: SimulatedXen | None) -> Iterator[GrantAllocator]:
    with GrantAllocator(hypervisor=hypervisor) as device:
        yield device


@pytest.fixture(scope="module")
def paused(hypervisor: SimulatedXen | None) -> Iterator[int]:
    """A guest that never ran. When all is done nothing holds it: it would stay in the list, nameless."""
    if hypervisor is not None:
        simulated = hypervisor.create_domain()
        yield simulated.domid
        simulated.destroy()
        return
    with LinuxGuest("true") as guest:
        yield guest.domid
        guest.destroy()
        assert str(guest.domid) not in [line.split()[1] for line in xl("list").splitlines()]


@with_itself
def test_pages_are_shared_and_seen_both_ways(grants: GrantTable, allocator: GrantAllocator) -> None:
    with allocator.share(DOM0, 3) as share, grants.map(DOM0, share.references, writable=True) as mapping:
        assert (len(share.references), mapping.pages) == (3, 3)
        assert [region.kind for region in (*share.regions, *mapping.regions)] == ["share", "grant"]
        assert mapping.read(0, 3 * PAGE) == bytes(3 * PAGE)
        share.write(PAGE - 4, b"who shares")
        assert mapping.read(PAGE - 4, 10) == b"who shares"
        with mapping.view(2 * PAGE, 8) as view:
            memoryview(view)[:] = b"who maps"
        assert share.read(2 * PAGE, 8) == b"who maps"
        with pytest.raises(GuestAddressError):
            mapping.read(3 * PAGE - 1, 2)


def test_what_a_domain_grants_is_memory_at_its_references(grants: GrantTable, paused: int) -> None:
    console = AttachedGrants.ADDRESS | CONSOLE << 12
    with grants.attach(paused) as memory, grants.map(paused, [CONSOLE, XENSTORE]) as alone:
        assert (memory.domid, memory.mapped_pages) == (paused, 0)
        assert [region.kind for region in memory.regions] == ["grant"]
        assert memory.read(console, 2 * PAGE) == alone.read(0, 2 * PAGE)
        before = alone.read(2048, 8)
        memory.write(console + 2048, b"by dom0!")
        assert alone.read(2048, 8) == b"by dom0!"
        memory.write(console + 2048, before)
        assert memory.mapped_pages == 0
        with memory.view(console, PAGE):
            assert memory.mapped_pages == 1
        with pytest.raises(GrantMapError, match=f"reference {NO_REFERENCE} of domain {paused}"):
            memory.read(AttachedGrants.ADDRESS | NO_REFERENCE << 12, 1)
        with pytest.raises(GuestAddressError):
            memory.read(console & ~AttachedGrants.ADDRESS, 1)
    with pytest.raises(ValueError, match="closed"):
        assert memory.mapped_pages


def test_foreign_memory_files_and_grants_are_one_table(
    hypervisor: SimulatedXen | None, dom0: str, grants: GrantTable, paused: int
) -> None:
    ram = range(0x4000_0000, 0x4100_0000) if dom0 == "aarch64" else range(0x100_0000)
    fd = os.memfd_create("file")
    os.ftruncate(fd, PAGE)
    with (
        ForeignMemory(hypervisor=hypervisor) as foreign,
        foreign.attach(paused, [ram]) as windows,
        grants.attach(paused) as granted,
        GuestMemory([*windows.regions, FileRegion(fd, 1 << 40, PAGE), *granted.regions]) as memory,
    ):
        os.close(fd)
        assert [region.kind for region in memory.regions] == ["foreign", "file", "grant"]
        assert memory.read(ram.start + 5, 7) == windows.read(ram.start + 5, 7)
        memory.write(1 << 40, b"in the file")
        assert memory.read(1 << 40, 11) == b"in the file"
        assert len(memory.read(AttachedGrants.ADDRESS, PAGE)) == PAGE


@with_itself
def test_one_page_of_many_is_mapped_by_its_reference(grants: GrantTable, allocator: GrantAllocator) -> None:
    with allocator.share(DOM0, 4) as share:
        for page in range(4):
            share.write(page * PAGE, bytes([page + 1]))
        with grants.map(DOM0, share.references[2]) as mapping:
            assert mapping.read(0, 1) == b"\x03"
        with grants.map(DOM0, [share.references[3], share.references[0]]) as mapping:
            assert mapping.read(0, 1) + mapping.read(PAGE, 1) == b"\x04\x01"


def test_a_domus_page_is_mapped_and_written(grants: GrantTable, paused: int) -> None:
    """xenstored maps the same page: what is written is put back. The ring's indexes are left alone."""
    with grants.map(paused, XENSTORE, writable=True) as page, grants.map(paused, XENSTORE) as again:
        # struct xenstore_domain_interface: two rings of 1024 bytes, then four indexes.
        before = page.read(2000, 8)
        page.write(2000, b"by dom0!")
        assert again.read(2000, 8) == b"by dom0!"
        page.write(2000, before)


@with_itself
def test_pages_of_several_domains_are_one_mapping(
    grants: GrantTable, allocator: GrantAllocator, paused: int
) -> None:
    with allocator.share(DOM0) as share, grants.map(paused, [CONSOLE, XENSTORE]) as alone:
        share.write(0, b"of dom0")
        references = [XENSTORE, share.references[0], CONSOLE]
        with grants.map([paused, DOM0, paused], references) as mapping:
            assert mapping.read(PAGE, 7) == b"of dom0"
            assert mapping.read(0, PAGE) == alone.read(PAGE, PAGE)
            assert mapping.read(2 * PAGE, PAGE) == alone.read(0, PAGE)
    with pytest.raises(ValueError, match="2 domains for 3 references"):
        grants.map([paused, DOM0], references)


@pytest.mark.parametrize("writable", [False, True])
def test_a_bad_reference_is_named(grants: GrantTable, paused: int, writable: bool) -> None:
    before = mappings()
    with pytest.raises(GrantMapError, match=f"reference {NO_REFERENCE} of domain {paused}:") as caught:
        grants.map(paused, NO_REFERENCE, writable=writable)
    assert caught.value.errno == errno.EINVAL
    [failure] = caught.value.failures
    assert (failure.index, failure.domid, failure.reference) == (0, paused, NO_REFERENCE)
    assert "not granted to this domain" in failure.reason
    assert mappings() == before


def test_a_batch_with_bad_references_names_each_and_maps_nothing(grants: GrantTable, paused: int) -> None:
    before = mappings()
    with pytest.raises(GrantMapError, match="2 of 5 grants") as caught:
        grants.map(paused, [CONSOLE, NO_REFERENCE, XENSTORE, CONSOLE, NO_REFERENCE + 1])
    failures = [(one.index, one.reference, one.errno) for one in caught.value.failures]
    assert failures == [(1, NO_REFERENCE, errno.EINVAL), (4, NO_REFERENCE + 1, errno.EINVAL)]
    assert mappings() == before
    with grants.map(paused, [CONSOLE, XENSTORE]) as mapping:  # the good ones are none the worse
        assert mapping.pages == 2


def test_a_domain_that_is_not_there_is_a_bad_grant(grants: GrantTable) -> None:
    with pytest.raises(GrantMapError, match=f"of domain {NO_DOMAIN}") as caught:
        grants.map(NO_DOMAIN, 8)
    assert caught.value.errno == errno.EINVAL


@with_itself
def test_what_is_granted_for_reading_only_is_not_mapped_for_writing(
    grants: GrantTable, allocator: GrantAllocator
) -> None:
    with allocator.share(DOM0, 1, writable=False) as share:
        share.write(0, b"to be read")
        with grants.map(DOM0, share.references) as mapping:
            assert mapping.read(0, 10) == b"to be read"
            with pytest.raises(ReadOnlyMemoryError):
                mapping.write(0, b"x")
            assert memoryview(mapping.view(0, 1)).readonly
        with pytest.raises(GrantMapError, match="for reading only") as caught:
            grants.map(DOM0, share.references, writable=True)
        assert caught.value.errno == errno.EINVAL


def test_bytes_are_copied_both_ways(grants: GrantTable, allocator: GrantAllocator) -> None:
    with allocator.share(DOM0, 3) as share:
        data = bytes(range(251)) * 40
        assert grants.copy_to(DOM0, share.references, data, offset=1000) == len(data)
        assert share.read(1000, len(data)) == data
        share.write(5000, b"changed")
        expected = share.read(999, len(data))
        assert grants.copy_from(DOM0, share.references, len(data), offset=999) == expected
        assert grants.copy_from(DOM0, share.references[1], 7, offset=5000 - PAGE) == b"changed"
        assert grants.copy_from(DOM0, [], 0) == b""
        with pytest.raises(ValueError, match="do not lie in 3 pages"):
            grants.copy_from(DOM0, share.references, PAGE, offset=2 * PAGE + 1)


def test_a_domus_page_is_copied(grants: GrantTable, paused: int) -> None:
    with grants.map(paused, CONSOLE) as mapping:
        assert grants.copy_from(paused, CONSOLE, PAGE) == mapping.read(0, PAGE)


def test_a_page_that_cannot_be_copied_is_named_with_its_status(
    grants: GrantTable, allocator: GrantAllocator
) -> None:
    with allocator.share(DOM0) as good, allocator.share(DOM0, writable=False) as read_only:
        references = [good.references[0], NO_REFERENCE, read_only.references[0]]
        with pytest.raises(GrantCopyError, match="2 of 3 pages") as caught:
            grants.copy_to(DOM0, references, bytes(3 * PAGE))
        failures = [(one.index, one.reference, one.status) for one in caught.value.failures]
        assert failures == [
            (1, NO_REFERENCE, GNTST_BAD_GNTREF),
            (2, read_only.references[0], GNTST_GENERAL_ERROR),
        ]
        assert caught.value.errno == errno.EINVAL
        assert "for reading only" in caught.value.failures[1].reason
        assert grants.copy_from(DOM0, read_only.references, 4) == bytes(4)


def test_a_byte_is_cleared_when_its_page_is_unmapped(grants: GrantTable, paused: int) -> None:
    """Offset 2048 is in the console's ring for output, which a guest that never ran has not used."""
    with grants.map(paused, CONSOLE, writable=True) as other_side:
        with grants.map(paused, [XENSTORE, CONSOLE], writable=True, clear_byte=PAGE + 2049) as mapping:
            mapping.write(PAGE + 2048, b"\x01\x01\x01")
            assert other_side.read(2048, 3) == b"\x01\x01\x01"
        assert other_side.read(2048, 3) == b"\x01\x00\x01"
        other_side.write(2048, bytes(3))


@pytest.mark.dom0("pv", "pvh", "aarch64")
def test_a_program_that_dies_leaves_the_byte_cleared(grants: GrantTable, paused: int) -> None:
    with grants.map(paused, CONSOLE, writable=True) as other_side:
        other_side.write(2048, b"\x01")
        program = f"""
import os, signal
from xenvirt.xen import GrantTable
mapping = GrantTable().map({paused}, {CONSOLE}, writable=True, clear_byte=2048)
assert mapping.read(2048, 1) == b"\\x01"
os.kill(os.getpid(), signal.SIGKILL)
"""
        died = subprocess.run(["python3", "-c", program], check=False)
        assert died.returncode == -9
        assert other_side.read(2048, 1) == b"\x00"


@with_itself
def test_who_maps_sees_a_byte_cleared_when_the_share_is_closed(
    grants: GrantTable, allocator: GrantAllocator
) -> None:
    share = allocator.share(DOM0, clear_byte=5)
    share.write(4, b"\x01\x01")
    with grants.map(DOM0, share.references) as mapping:
        share.close()
        assert mapping.read(4, 2) == b"\x01\x00"


def test_a_byte_outside_of_the_pages_cannot_be_cleared(
    grants: GrantTable, allocator: GrantAllocator, paused: int
) -> None:
    for writable, byte in ((True, PAGE), (False, 0)):
        with pytest.raises(ValueError, match="cannot be cleared"):
            grants.map(paused, CONSOLE, writable=writable, clear_byte=byte)
    with pytest.raises(ValueError, match="cannot be cleared"):
        allocator.share(DOM0, clear_byte=PAGE)


def test_an_event_channel_is_notified_when_pages_are_unmapped_or_go(
    hypervisor: SimulatedXen | None, grants: GrantTable, allocator: GrantAllocator, paused: int
) -> None:
    with EventChannels(hypervisor=hypervisor) as channels:
        told = channels.bind_unbound(DOM0)
        tells = channels.bind_interdomain(DOM0, told)
        assert channels.pending(60.0) == [tells]  # a port that is bound is pending at once
        with grants.map(paused, CONSOLE, notify_port=tells):
            assert channels.pending() == []
        assert channels.pending(60.0) == [told]
        channels.unmask(told)
        share = allocator.share(paused, notify_port=tells)
        assert channels.pending() == []
        share.close()
        assert channels.pending(60.0) == [told]


def test_a_port_that_is_not_bound_is_refused_and_nothing_stays(grants: GrantTable, paused: int) -> None:
    before = mappings()
    with pytest.raises(GrantMapError) as caught:
        grants.map(paused, CONSOLE, notify_port=0x7FFFFFF0)
    assert (caught.value.errno, caught.value.failures) == (errno.EINVAL, ())
    assert mappings() == before


@with_itself
def test_a_page_outlives_its_share_while_it_is_mapped(grants: GrantTable, allocator: GrantAllocator) -> None:
    share = allocator.share(DOM0)
    share.write(0, b"kept")
    references = share.references
    with grants.map(DOM0, references) as mapping:
        share.close()
        assert mapping.read(0, 4) == b"kept"


def test_mappings_and_shares_outlive_their_devices(hypervisor: SimulatedXen | None, paused: int) -> None:
    with GrantAllocator(hypervisor=hypervisor) as allocator, GrantTable(hypervisor=hypervisor) as grants:
        share = allocator.share(paused)
        mapping = grants.map(paused, CONSOLE)
    with share, mapping:
        share.write(0, b"alive")
        assert share.read(0, 5) == b"alive"
        assert len(mapping.read(0, PAGE)) == PAGE
    with pytest.raises(ValueError, match="grant table is closed"):
        grants.map(paused, CONSOLE)
    with pytest.raises(ValueError, match="grant allocator is closed"):
        allocator.share(DOM0)


def test_a_mapping_with_a_live_view_is_not_closed(grants: GrantTable, paused: int) -> None:
    mapping = grants.map(paused, CONSOLE)
    view = mapping.view(0, 8)
    with pytest.raises(BufferError):
        mapping.close()
    view.release()
    mapping.close()


def test_a_child_after_fork_is_told_and_takes_nothing(
    grants: GrantTable, allocator: GrantAllocator, paused: int
) -> None:
    """A child has the same open devices: what it drops must not be taken from its parent."""
    with allocator.share(paused) as share, grants.map(paused, CONSOLE) as mapping:
        content = mapping.read(0, PAGE)
        share.write(0, b"still here")
        child = os.fork()
        if child == 0:
            os._exit(told_in_a_child(grants, allocator, share, mapping))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert mapping.read(0, PAGE) == content
        assert share.read(0, 10) == b"still here"


def told_in_a_child(
    grants: GrantTable, allocator: GrantAllocator, share: GrantShare, mapping: GrantMapping
) -> int:
    attempts = (
        lambda: share.read(0, 1),
        lambda: mapping.read(0, 1),
        lambda: grants.map(DOM0, share.references),
        lambda: grants.copy_from(DOM0, share.references, 1),
        lambda: allocator.share(DOM0),
    )
    told = 0
    for attempt in attempts:
        try:
            attempt()
        except ForkError:
            told += 1
    share.close()
    mapping.close()
    return 0 if told == len(attempts) and not mappings() else 1


def test_a_domain_that_is_destroyed_while_mapped_takes_nobody_down(
    grants: GrantTable, doomed: Guest, paused: int
) -> None:
    domains = [doomed.domid, paused, doomed.domid]
    with grants.map(domains, [CONSOLE, CONSOLE, XENSTORE]) as mapping:
        content = mapping.read(0, 3 * PAGE)
        doomed.destroy()
        assert mapping.read(0, 3 * PAGE) == content  # the pages live as long as they are mapped
    with pytest.raises(GrantMapError):
        grants.map(doomed.domid, CONSOLE)


@pytest.mark.hypervisor("pvh")
def test_a_pvh_dom0_does_not_map_its_own_grants(grants: GrantTable, allocator: GrantAllocator) -> None:
    """Xen would take the page away from where dom0's kernel has it. Copies are another matter."""
    with allocator.share(DOM0) as share:
        share.write(0, b"kept")
        for domain in (DOM0, DOMID_SELF):
            with pytest.raises(ValueError, match="must not map its own grants"):
                grants.map(domain, share.references)
        assert grants.copy_from(DOM0, share.references, 4) == share.read(0, 4) == b"kept"


def test_thousands_of_maps_leave_nothing_behind(grants: GrantTable, paused: int) -> None:
    gc.collect()
    before = mappings(), descriptors()
    for _ in range(10_000):
        with grants.map(paused, CONSOLE) as mapping:
            assert len(mapping.read(0, 4)) == 4
    assert (mappings(), descriptors()) == before


def test_thousands_of_shares_leave_no_grant_behind(allocator: GrantAllocator, paused: int) -> None:
    """The kernel allows 1024 pages at a time, for all programs."""
    gc.collect()
    before = mappings(), descriptors()
    used: set[int] = set()
    for _ in range(1100):
        with allocator.share(paused) as share:
            used.update(share.references)
    assert (mappings(), descriptors()) == before
    assert len(used) < 100


@pytest.mark.parametrize("references", [[], range(0)])
def test_no_references_are_refused(grants: GrantTable, references: list[int]) -> None:
    with pytest.raises(ValueError, match="0 grants"):
        grants.map(NO_DOMAIN, references)


def test_no_pages_are_refused(allocator: GrantAllocator) -> None:
    with pytest.raises(ValueError, match="0 pages"):
        allocator.share(DOM0, 0)


@pytest.mark.parametrize("reference", [-1, 1 << 32])
def test_a_number_that_is_no_reference_is_refused(grants: GrantTable, reference: int) -> None:
    with pytest.raises(OverflowError):
        grants.map(NO_DOMAIN, [reference])


def mappings() -> int:
    maps = Path("/proc/self/maps").read_text()
    return sum(maps.count(name) for name in ("/dev/xen/gntdev", "/dev/xen/gntalloc", "xenvirt-simulated"))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
