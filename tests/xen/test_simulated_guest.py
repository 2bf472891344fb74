"""Devices served to a simulated guest, as to a real one: `serve(device, XenGuest(domid, hypervisor=...))`."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from xenvirt import RemoteDevice, Server
from xenvirt.devices import BlockDevice, EntropyDevice
from xenvirt.drivers import BlockDriver, EntropyDriver
from xenvirt.errors import NegotiationError, XenCallError
from xenvirt.testing import SimulatedDomain, SimulatedXen
from xenvirt.testing.simulated_xen import Kind
from xenvirt.xen import XenGuest

from .simulated_driver import DEVICE_ID, MAGIC, GuestDriver

BASE = 0xD000_0000


@pytest.fixture(params=["pv", "pvh", "aarch64"])
def xen(request: pytest.FixtureRequest) -> SimulatedXen:
    kind: Kind = request.param
    return SimulatedXen(kind)


@pytest.fixture
def guest(xen: SimulatedXen) -> SimulatedDomain:
    return xen.create_domain(memory=64 << 20)


def test_entropy_reaches_the_guest(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with Server() as server:
        served = server.add(EntropyDevice(), XenGuest(guest.domid, base=BASE, hypervisor=xen))
        with GuestDriver(xen, guest, BASE) as link:
            assert link.device_id == 4
            entropy = EntropyDriver(link)
            assert len(set(entropy.read(256))) > 64
        assert served.counters.chains >= 1


def test_a_disk_keeps_what_the_guest_writes(
    xen: SimulatedXen, guest: SimulatedDomain, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with BlockDevice(image) as disk, Server() as server:
        server.add(disk, XenGuest(guest.domid, base=BASE, hypervisor=xen))
        with GuestDriver(xen, guest, BASE) as link:
            driver = BlockDriver(link)
            assert driver.config.capacity == 2048
            driver.write(7 * 512, b"by the guest".ljust(512, b"."))
            driver.flush()
            assert driver.read(7 * 512, 512).startswith(b"by the guest.")
    assert image.read_bytes()[7 * 512 :].startswith(b"by the guest.")


def test_two_devices_share_the_bus(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with Server() as server:
        for base in (BASE, BASE + 0x200):
            server.add(EntropyDevice(), XenGuest(guest.domid, base=base, hypervisor=xen))
        assert [guest.load(base + DEVICE_ID) for base in (BASE, BASE + 0x200)] == [4, 4]
        with pytest.raises(ValueError, match="already"):
            server.add(EntropyDevice(), XenGuest(guest.domid, base=BASE, hypervisor=xen))


def test_guests_of_two_machines_with_the_same_number_are_two(guest: SimulatedDomain) -> None:
    machines = [SimulatedXen("pvh"), SimulatedXen("pvh")]
    guests = [machine.create_domain(memory=1 << 20) for machine in machines]
    assert guests[0].domid == guests[1].domid
    with Server() as server:
        server.add(EntropyDevice(), XenGuest(guests[0].domid, base=BASE, hypervisor=machines[0]))
        assert guests[0].load(BASE + MAGIC) == 0x7472_6976
        assert guests[1].load(BASE + MAGIC) == 0xFFFF_FFFF
    assert guest.exists


class Watched(EntropyDevice):
    """Says when its session is over."""

    def __init__(self) -> None:
        super().__init__()
        self.is_over = threading.Event()

    def reset(self) -> None:
        super().reset()
        self.is_over.set()


def test_a_destroyed_guest_ends_its_device(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    device = Watched()
    with Server() as server:
        server.add(device, XenGuest(guest.domid, base=BASE, hypervisor=xen))
        with GuestDriver(xen, guest, BASE) as link:
            assert len(EntropyDriver(link).read(16)) == 16
            guest.destroy()
            assert device.is_over.wait(20.0)
        with pytest.raises(XenCallError):
            guest.load(BASE + MAGIC)


def test_an_interrupt_by_its_number_is_for_arm(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with Server() as server:
        place = XenGuest(guest.domid, base=BASE, irq=33, hypervisor=xen)
        if xen.kind != "aarch64":
            with pytest.raises(ValueError, match="in an Arm guest only"):
                server.add(EntropyDevice(), place)
            return
        server.add(EntropyDevice(), place)
        with GuestDriver(xen, guest, BASE) as link:
            EntropyDriver(link).read(16)
        assert ("spi", 33, 1) in guest.interrupts()


def test_a_place_is_to_be_said(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    with pytest.raises(ValueError, match="no xenstore"):
        XenGuest(guest.domid, hypervisor=xen)


def test_a_daemon_has_no_way_to_it(xen: SimulatedXen, guest: SimulatedDomain) -> None:
    place = XenGuest(guest.domid, base=BASE, hypervisor=xen)
    with Server() as server, pytest.raises(NegotiationError, match="simulated guest"):
        server.add(RemoteDevice("/nobody/listens", 4), place)
