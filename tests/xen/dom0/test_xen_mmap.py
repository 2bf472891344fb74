"""Our backend as the daemon of a Xen guest: it maps the memory itself, with the device that it is sent."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirt import Daemon, Server, VhostUserSocket, connect
from xenvirt._native import SharedRegion
from xenvirt.devices import BlockDevice, EntropyDevice
from xenvirt.drivers import BlockDriver, EntropyDriver
from xenvirt.errors import RequestRefusedError
from xenvirt.vhost_user.protocol import ProtocolFeature
from xenvirt.xen import ForeignMemory

from .conftest import make_guest, xl
from .guest_link import FIRST_FRAME, FOREIGN, FRAME, GuestLink

pytestmark = pytest.mark.dom0("pv", "pvh")

MEMORY = 128 << 20
KIB = 1 << 10


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "device.sock")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def whole(foreign: ForeignMemory, domid: int, at: int = 0) -> SharedRegion:
    """All of a domain's memory; ring addresses are the domain's own, as XEN_MMAP's frontends have it."""
    return SharedRegion(foreign.fileno(), at, MEMORY - at, xen_flags=FOREIGN, xen_domain=domid)


def test_a_process_of_its_own_serves_a_disk_to_a_domain(guest: int, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    written = os.urandom(256 * KIB)
    command = (sys.executable, "-m", "xenvirt", "serve", "blk", image, "--socket={socket}")
    with (
        Daemon(*command, timeout=120) as daemon,
        ForeignMemory() as foreign,
    ):
        foreign.restrict(guest)  # what a daemon gets can map this domain and nothing else
        with (
            GuestLink(daemon.socket, foreign, guest, [whole(foreign, guest)]) as link,
            BlockDriver(link) as disk,
        ):
            assert link.protocol_features & ProtocolFeature.XEN_MMAP
            disk.write(64 * KIB, written)
            assert disk.read(64 * KIB, len(written)) == written
            # The bytes went through the domain's memory: the ring is there, and its index has moved.
            used = link._memory.queues[0].addresses[2]  # type: ignore[union-attr]
            with foreign.map(guest, [used // FRAME]) as page:
                assert int.from_bytes(page.read(used % FRAME + 2, 2), "little") >= 2
    assert image.read_bytes()[64 * KIB :][: len(written)] == written


def test_the_same_process_serves_files_and_domains(server: Server, path: str, guest: int) -> None:
    served = server.add(EntropyDevice(), VhostUserSocket(path))
    for _ in range(2):
        with connect(path) as link, EntropyDriver(link) as rng:
            assert link.protocol_features & ProtocolFeature.XEN_MMAP
            assert len(rng.read(1000)) == 1000
        with (
            ForeignMemory() as foreign,
            GuestLink(path, foreign, guest, [whole(foreign, guest)]) as link,
            EntropyDriver(link) as rng,
        ):
            assert any(rng.read(1000))
    assert served.counters.errors == 0


def test_memory_is_mapped_where_it_is_touched_alone(server: Server, path: str, guest: int) -> None:
    server.add(EntropyDevice(), VhostUserSocket(path))
    before = mapped_privcmd()
    with (
        ForeignMemory() as foreign,
        GuestLink(path, foreign, guest, [whole(foreign, guest)]) as link,
        EntropyDriver(link) as rng,
    ):
        rng.read(64)
        ours = (FIRST_FRAME + 0x100) * FRAME  # what the driver's end has mapped, in this same process
        assert 0 < mapped_privcmd() - before - ours <= 4 << 20


def test_a_region_that_begins_in_the_middle_of_a_page_is_mapped(
    server: Server, path: str, guest: int
) -> None:
    server.add(EntropyDevice(), VhostUserSocket(path))
    with (
        ForeignMemory() as foreign,
        GuestLink(path, foreign, guest, [whole(foreign, guest, at=FIRST_FRAME * FRAME - 0x30)]) as link,
        EntropyDriver(link) as rng,
    ):
        assert any(rng.read(1000))


def test_a_restricted_device_maps_no_other_domain(
    server: Server, path: str, guest: int, tmp_path: Path
) -> None:
    server.add(EntropyDevice(), VhostUserSocket(path))
    other = make_guest(tmp_path, "other")
    try:
        with ForeignMemory() as foreign:
            foreign.restrict(guest)
            link = GuestLink(path, foreign, guest, [whole(foreign, other)])
            with link, pytest.raises(RequestRefusedError, match="SET_VRING"):
                EntropyDriver(link)  # the ring cannot be reached, and the queue is not started
    finally:
        xl("destroy", str(other))


def test_a_domain_that_is_destroyed_under_load_ends_its_session_alone(
    server: Server, path: str, tmp_path: Path
) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    domid = make_guest(tmp_path, "doomed")
    with BlockDevice(image) as disk:
        served = server.add(disk, VhostUserSocket(path))
        with ForeignMemory() as foreign:
            link = GuestLink(path, foreign, domid, [whole(foreign, domid)])
            with link, BlockDriver(link) as driver:
                for _ in range(50):
                    driver.write(0, bytes(4 * KIB))
                xl("destroy", str(domid))
                # Its pages live on while they are mapped; what is not mapped yet is an error of its request.
                driver.write(0, b"x" * 512)
        with connect(path) as plain, BlockDriver(plain) as driver:
            assert driver.read(0, 512) == b"x" * 512
        assert served.counters.errors == 0


def mapped_privcmd() -> int:
    """How many bytes of /dev/xen/privcmd this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = (line.split()[0].split("-") for line in lines if "/dev/xen/privcmd" in line)
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)
