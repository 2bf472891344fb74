"""Our backend as the daemon of a guest that grants its memory; its driver is here, in dom0."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirt import Server, VhostUserSocket, _native
from xenvirt.devices import EntropyDevice
from xenvirt.errors import RequestRefusedError
from xenvirt.vhost_user.protocol import ProtocolFeature

from .granted_pages import GrantedPages, granted_pages
from .granted_ring import (
    AVAILABLE,
    GRANT,
    GRANT_ADDRESS,
    NOT_IN_ADVANCE,
    PAGE,
    SHARED,
    SIZE,
    USED,
    address,
    choose,
    offer,
    used,
    wait_for,
)

pytestmark = pytest.mark.dom0("pv", "pvh", "aarch64")


@pytest.fixture
def share(guest: int, frame: int) -> Iterator[GrantedPages]:
    with granted_pages(guest, frame, SHARED) as pages:
        yield pages


def test_a_device_reaches_its_ring_and_its_buffers_by_grants(share: GrantedPages, tmp_path: Path) -> None:
    path = str(tmp_path / "device.sock")
    gntdev = os.open("/dev/xen/gntdev", os.O_RDWR | os.O_CLOEXEC)
    kick, call = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
    with Server() as server:
        served = server.add(EntropyDevice(), VhostUserSocket(path))
        frontend = _native.Frontend(path, timeout=60)
        pages = choose(share)
        assert frontend.protocol_features & ProtocolFeature.XEN_MMAP
        frontend.set_features(frontend.offered_features & (1 << 32))
        ring, buffer = address(share, pages.ring), address(share, pages.first)
        frontend.set_memory(
            [
                _native.SharedRegion(gntdev, ring, PAGE, xen_flags=GRANT, xen_domain=share.domid),
                # As a frontend says it that cannot know what the guest will grant: all that lies behind.
                _native.SharedRegion(
                    gntdev, buffer, 1 << 40, xen_flags=GRANT | NOT_IN_ADVANCE, xen_domain=share.domid
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


def test_a_ring_that_was_not_granted_is_refused(guest: int, tmp_path: Path) -> None:
    path = str(tmp_path / "device.sock")
    gntdev = os.open("/dev/xen/gntdev", os.O_RDWR | os.O_CLOEXEC)
    with Server() as server:
        server.add(EntropyDevice(), VhostUserSocket(path))
        frontend = _native.Frontend(path, timeout=60)
        nowhere = GRANT_ADDRESS | 0xFFFFF0 << 12
        region = _native.SharedRegion(gntdev, nowhere, PAGE, xen_flags=GRANT, xen_domain=guest)
        with pytest.raises(RequestRefusedError, match="SET_MEM_TABLE"):
            frontend.set_memory([region])
        frontend.barrier()  # it lives
        frontend.close()
    os.close(gntdev)
