"""Our backend as the daemon of a guest that grants its memory: dom0 is the guest, and grants to itself."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from xenvirt import Server, VhostUserSocket, _native
from xenvirt.devices import EntropyDevice
from xenvirt.errors import RequestRefusedError
from xenvirt.vhost_user.protocol import ProtocolFeature
from xenvirt.xen import GrantAllocator, GrantShare

pytestmark = pytest.mark.dom0("pv", "aarch64")

PAGE = 4096
DOM0 = 0
GRANT_ADDRESS = 1 << 63
GRANT, NOT_IN_ADVANCE = 2, 8
SHARED = 32
"""Pages of the share, of which three are used."""
SIZE, AVAILABLE, USED = 8, 0x100, 0x200
WRITE = 2


class Pages(NamedTuple):
    """Which pages of a share are used, by number; the kernel gives references in any order."""

    ring: int
    """Its reference is below those of the buffer, which a region without an end begins with."""
    first: int
    second: int
    """The buffer's two, with references one after the other."""


def choose(share: GrantShare) -> Pages:
    page_of = {reference: page for page, reference in enumerate(share.references)}
    lowest, *others = sorted(page_of)
    first = next(reference for reference in others if reference + 1 in page_of)
    return Pages(page_of[lowest], page_of[first], page_of[first + 1])


def address(share: GrantShare, page: int) -> int:
    """Where a guest says that a page is."""
    return GRANT_ADDRESS | share.references[page] << 12


def offer(share: GrantShare, ring: int, index: int, buffer: int, length: int) -> None:
    """What a driver does with one buffer for the device to write to."""
    share.write(ring * PAGE, struct.pack("<QIHH", buffer, length, WRITE, 0))
    share.write(ring * PAGE + AVAILABLE + 4 + 2 * (index % SIZE), struct.pack("<H", 0))
    share.write(ring * PAGE + AVAILABLE + 2, struct.pack("<H", index + 1))


def used(share: GrantShare, ring: int) -> int:
    index: int = struct.unpack("<H", share.read(ring * PAGE + USED + 2, 2))[0]
    return index


def wait_for(share: GrantShare, ring: int, index: int) -> None:
    deadline = time.monotonic() + 60
    while used(share, ring) != index and time.monotonic() < deadline:
        time.sleep(0.001)
    assert used(share, ring) == index


def test_a_device_reaches_its_ring_and_its_buffers_by_grants(tmp_path: Path) -> None:
    path = str(tmp_path / "device.sock")
    gntdev = os.open("/dev/xen/gntdev", os.O_RDWR | os.O_CLOEXEC)
    kick, call = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
    with Server() as server, GrantAllocator() as allocator, allocator.share(DOM0, SHARED) as share:
        served = server.add(EntropyDevice(), VhostUserSocket(path))
        frontend = _native.Frontend(path, timeout=60)
        pages = choose(share)
        assert frontend.protocol_features & ProtocolFeature.XEN_MMAP
        frontend.set_features(frontend.offered_features & (1 << 32))
        ring, buffer = address(share, pages.ring), address(share, pages.first)
        frontend.set_memory(
            [
                _native.SharedRegion(gntdev, ring, PAGE, xen_flags=GRANT, xen_domain=DOM0),
                # As a frontend says it that cannot know what the guest will grant: all that lies behind.
                _native.SharedRegion(
                    gntdev, buffer, 1 << 40, xen_flags=GRANT | NOT_IN_ADVANCE, xen_domain=DOM0
                ),
            ]
        )
        frontend.set_queue(
            0, SIZE, descriptors=ring, available=ring + AVAILABLE, used=ring + USED, kick=kick, call=call
        )
        frontend.enable_queue(0)
        for index in range(50):
            # Across two pages: two references, mapped for this request alone.
            offer(share, pages.ring, index, buffer + PAGE - 64, 128)
            os.eventfd_write(kick, 1)
            wait_for(share, pages.ring, index + 1)
            for place in pages.first * PAGE + PAGE - 64, pages.second * PAGE:
                assert any(share.read(place, 64))
                share.write(place, bytes(64))
        # A reference that nobody granted is the driver's mistake: the queue stops, and nobody dies of it.
        offer(share, pages.ring, 50, buffer + 1000 * PAGE, 64)
        os.eventfd_write(kick, 1)
        deadline = time.monotonic() + 60
        while not served.counters.errors and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (served.counters.errors, used(share, pages.ring)) == (1, 50)
        frontend.close()
    os.close(gntdev)
    os.close(kick)
    os.close(call)


def test_a_ring_that_was_not_granted_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "device.sock")
    gntdev = os.open("/dev/xen/gntdev", os.O_RDWR | os.O_CLOEXEC)
    with Server() as server:
        server.add(EntropyDevice(), VhostUserSocket(path))
        frontend = _native.Frontend(path, timeout=60)
        nowhere = GRANT_ADDRESS | 0xFFFFF0 << 12
        region = _native.SharedRegion(gntdev, nowhere, PAGE, xen_flags=GRANT, xen_domain=DOM0)
        with pytest.raises(RequestRefusedError, match="SET_MEM_TABLE"):
            frontend.set_memory([region])
        frontend.barrier()  # it lives
        frontend.close()
    os.close(gntdev)
