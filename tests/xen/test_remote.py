"""What a daemon is told of a Xen guest's memory."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

from xenvirt._native import HandedOver
from xenvirt.xen import remote
from xenvirt.xen.remote import FOREIGN, GRANT, GRANT_ADDRESS, GRANT_END, NOT_IN_ADVANCE, PAGE, DaemonMemory


def queue(size: int, *addresses: int) -> HandedOver:
    return cast("HandedOver", SimpleNamespace(size=size, addresses=addresses))


def contiguous(start: int, size: int = 128) -> HandedOver:
    """A ring as Linux lays it out."""
    available = start + 16 * size
    return queue(size, start, available, available + PAGE // 2)


def test_ring_pages_are_joined_and_in_order() -> None:
    assert remote.ring_pages({0: contiguous(0x5000), 1: contiguous(0x3000)}) == [
        range(0x3000, 0x7000)  # each has a page and a half
    ]
    assert remote.ring_pages({0: queue(8, 0x1FF0, 0x5000, 0x9FF0)}) == [
        range(0x1000, 0x3000),
        range(0x5000, 0x6000),
        range(0x9000, 0xB000),
    ]


def test_granted_regions_are_all_addresses_once_and_rings_come_in_advance(monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "open", lambda *_: os.memfd_create("gntdev"))
    memory = DaemonMemory(7, [range(PAGE)])
    ring = GRANT_ADDRESS + 8 * PAGE
    regions = memory.regions(cast("Any", None), {0: contiguous(ring)})
    assert [(one.guest_address, one.size, one.xen_flags) for one in regions] == [
        (GRANT_ADDRESS, 8 * PAGE, GRANT | NOT_IN_ADVANCE),
        (ring, 2 * PAGE, GRANT),
        (ring + 2 * PAGE, GRANT_END - ring - 2 * PAGE, GRANT | NOT_IN_ADVANCE),
    ]
    assert all(one.user_address == one.guest_address and one.xen_domain == 7 for one in regions)
    memory.close()


def test_foreign_regions_are_the_banks_by_a_restricted_device(monkeypatch: Any) -> None:
    restricted: list[int] = []

    class Device:
        def __init__(self) -> None:
            self.fd: int = os.memfd_create("privcmd")

        def restrict(self, domid: int) -> None:
            restricted.append(domid)

        def fileno(self) -> int:
            assert restricted == [7]
            return self.fd

        def close(self) -> None:
            os.close(self.fd)

    monkeypatch.setattr(remote, "ForeignMemory", Device)
    banks = [range(0x4000_0000, 0x4800_0000), range(0x2_0000_0000, 0x2_0800_0000)]
    memory = DaemonMemory(7, banks)
    for _ in range(2):  # a driver that comes again
        regions = memory.regions(cast("Any", None), {0: contiguous(0x4000_0000)})
        assert [(one.guest_address, one.size, one.xen_flags) for one in regions] == [
            (bank.start, len(bank), FOREIGN) for bank in banks
        ]
    memory.close()
