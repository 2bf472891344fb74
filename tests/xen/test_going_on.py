"""A device goes on in another process: here the first one leaves, and its locks are opened by hand."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xenvirt import Device, Server, _native
from xenvirt.devices import BlockDevice, EntropyDevice
from xenvirt.drivers import BlockDriver, EntropyDriver
from xenvirt.testing import SimulatedDomain, SimulatedXen
from xenvirt.xen import XenGuest
from xenvirt.xen.attach.records import GuestRecords

from .simulated_driver import DRIVER_OK, STATUS, GuestDriver

BASE = 0xD000_0000
NEEDS_RESET = 64


@pytest.fixture
def xen() -> SimulatedXen:
    return SimulatedXen("aarch64")


@pytest.fixture
def guest(xen: SimulatedXen) -> SimulatedDomain:
    return xen.create_domain(memory=64 << 20)


class Process:
    """What a process of `xenvirt attach` has of a guest."""

    def __init__(self, xen: SimulatedXen, guest: SimulatedDomain, root: Path) -> None:
        self.records = GuestRecords(root, guest.domid, "/vm/some-uuid")
        self.bus = _native.GuestBus(guest.domid, guest.ram, hypervisor=xen)
        self.server = Server()
        self._xen, self._guest = xen, guest

    def serve(self, device: Device, base: int = BASE) -> None:
        place = XenGuest(self._guest.domid, base=base, hypervisor=self._xen)
        take = self.records.take
        place.outlive(lambda bus: take(base, bus.server), in_turn=isinstance(device, BlockDevice))
        self.server.add(device, place)

    def end(self) -> None:
        self.bus.leave()
        self.server.close()
        self.bus.close()
        for lock in self.records._own.values():
            os.close(lock)


@contextmanager
def process(xen: SimulatedXen, guest: SimulatedDomain, root: Path) -> Iterator[Process]:
    made = Process(xen, guest, root)
    try:
        yield made
    finally:
        made.end()


def test_the_driver_does_not_notice(xen: SimulatedXen, guest: SimulatedDomain, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    found = []
    with BlockDevice(image) as disk, process(xen, guest, tmp_path) as first:
        first.serve(disk)
        link = GuestDriver(xen, guest, BASE)
        driver = BlockDriver(link)
        driver.write(0, b"first".ljust(512, b"."))
    waiting = threading.Thread(target=lambda: found.append(guest.load(BASE + STATUS)))
    waiting.start()
    with BlockDevice(image) as disk, process(xen, guest, tmp_path) as second:
        second.serve(disk)
        assert second.records.left() == []
        second.records.take_over(second.bus)
        waiting.join()
        assert found[0] & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
        assert driver.read(0, 512).startswith(b"first")
        driver.write(512, b"second".ljust(512, b"."))
        link.close()
    assert image.read_bytes()[512:].startswith(b"second")
    assert [path.name for path in tmp_path.glob("*/*")] == ["server-1"]


def test_a_request_that_was_begun_is_begun_anew(
    xen: SimulatedXen, guest: SimulatedDomain, tmp_path: Path
) -> None:
    with process(xen, guest, tmp_path) as first:
        first.serve(Idle())
        link = GuestDriver(xen, guest, BASE)
        entropy = EntropyDriver(link)
        read = threading.Thread(target=lambda: found.append(entropy.read(16)))
        found: list[bytes] = []
        read.start()
        assert Idle.got.wait(20)
    with process(xen, guest, tmp_path) as second:
        second.serve(EntropyDevice())
        second.records.take_over(second.bus)
        read.join()
        assert len(found[0]) == 16
        link.close()


class Idle(EntropyDevice):
    """Takes requests, and answers none."""

    got = threading.Event()

    def process(self, queue: _native.VirtQueue) -> None:
        self.kept = list(queue)
        self.got.set()


def test_a_device_of_another_kind_needs_a_reset(
    xen: SimulatedXen, guest: SimulatedDomain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(512))
    with process(xen, guest, tmp_path) as first:
        first.serve(EntropyDevice())
        EntropyDriver(GuestDriver(xen, guest, BASE)).read(16)
    with BlockDevice(image) as disk, process(xen, guest, tmp_path) as second:
        second.serve(disk)
        second.records.take_over(second.bus)
        assert guest.load(BASE + STATUS) == NEEDS_RESET
        guest.store(BASE + STATUS, 0)
        with GuestDriver(xen, guest, BASE) as link:
            assert BlockDriver(link).config.capacity == 1
    assert "a device of id 4, and this is one of id 2" in caplog.text


def test_what_nobody_takes_up_is_known(xen: SimulatedXen, guest: SimulatedDomain, tmp_path: Path) -> None:
    with process(xen, guest, tmp_path) as first:
        first.serve(EntropyDevice())
        first.serve(EntropyDevice(), BASE + 0x200)
    with process(xen, guest, tmp_path) as second:
        second.serve(EntropyDevice())
        assert second.records.left() == [BASE + 0x200]


def test_a_process_that_lives_keeps_what_it_has(
    xen: SimulatedXen, guest: SimulatedDomain, tmp_path: Path
) -> None:
    with process(xen, guest, tmp_path) as first:
        first.serve(EntropyDevice())
        other = GuestRecords(tmp_path, guest.domid, "some-uuid")
        assert other.left() == []
        other.take_over(first.bus)
        assert guest.load(BASE) == 0x7472_6976
        first.records.forget(BASE)
    assert list(tmp_path.iterdir()) == []
