"""Virtio devices as libxl announces them and takes them away: on Arm, and disks, which is all of 4.17."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.xenstore.toolstack import Toolstack
from xenvirt.virtio.ids import DeviceId
from xenvirt.xen.hotplug import HotplugEvent, HotplugWatch, Plugged, Unplugged
from xenvirt.xen.xenbus import XenbusState
from xenvirt.xen.xenstore import XenStore

from .conftest import make_guest, xl
from .linux_guest import LinuxGuest

DISK = (
    '"format=raw, vdev={vdev}, access={access}, backendtype=standalone, specification=virtio, '
    'target={folder}/{vdev}.img"'
)


class Backend:
    """What a backend does of a device's life, without a device; and what it has seen."""

    def __init__(self) -> None:
        self.events: list[HotplugEvent] = []
        self._store = XenStore()
        self._devices = HotplugWatch(self._store)
        self._thread = threading.Thread(target=self._run)
        self._stopping = False

    def _run(self) -> None:
        while not self._stopping:
            event = self._devices.wait(1)
            if event is None:
                continue
            self.events.append(event)
            self._devices.advance(
                event.node, XenbusState.INIT_WAIT if isinstance(event, Plugged) else XenbusState.CLOSED
            )

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.events) < count:
            assert time.monotonic() < deadline, self.events
            self._thread.join(0.05)
            assert self._thread.is_alive()


@contextmanager
def backend() -> Iterator[Backend]:
    made = Backend()
    made._thread.start()
    try:
        yield made
    finally:
        made._stopping = True
        made._thread.join()
        made._store.close()


@pytest.mark.dom0("aarch64")
def test_disks_of_xl_come_and_go_with_their_guest(tmp_path: Path) -> None:
    """xl create waits for state 2 and xl destroy for state 6."""
    disks = ", ".join(
        DISK.format(vdev=vdev, access=access, folder=tmp_path)
        for vdev, access in (("xvda", "rw"), ("xvdb", "ro"))
    )
    for vdev in ("xvda", "xvdb"):
        (tmp_path / f"{vdev}.img").write_bytes(bytes(4096))  # libxl looks whether it is there
    with backend() as seen, XenStore() as store:
        with LinuxGuest("", configuration=f"disk = [{disks}]\n") as guest:
            seen.wait_for(2)
            first, second = sorted((event.node for event in seen.events), key=lambda node: node.devid)
            assert {type(event) for event in seen.events} == {Plugged}
            assert (first.domid, first.devid, second.devid) == (guest.domid, 51712, 51728)
            assert (first.kind, first.device_id) == ("virtio_disk", DeviceId.BLOCK)
            assert (first.base, first.irq) == (0x200_0000, 33)
            assert (second.base, second.irq) == (0x200_0200, 34)
            assert (first.read_only, second.read_only) == (False, True)
            assert first.target == f"{tmp_path}/xvda.img"
            assert first.uuid is not None
            assert first.uuid.startswith("/vm/")
            assert store.read(f"{first.path}/state") == "2"
        seen.wait_for(4)
        assert {type(event) for event in seen.events[2:]} == {Unplugged}
        assert store.get(first.path) is None


@pytest.mark.dom0("pv", "aarch64")
def test_a_domain_that_is_destroyed_takes_devices_along_that_libxl_knows_nothing_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with backend() as seen, XenStore() as store:
        tools = Toolstack(store)
        domid = make_guest(tmp_path_factory.mktemp("guest"), "announced")
        path = tools.add(domid)
        seen.wait_for(1)
        assert isinstance(seen.events[0], Plugged)
        xl("destroy", str(domid))
        seen.wait_for(2)
        gone = seen.events[1]
        assert isinstance(gone, Unplugged)
        assert gone.node.domid == domid
        store.rm(path)


@pytest.mark.dom0("pv", "aarch64")
def test_a_device_comes_and_goes_while_its_guest_stays(guest: int) -> None:
    with backend() as seen, XenStore() as store:
        tools = Toolstack(store)
        path = tools.add(guest, 7)
        for number in range(3):
            seen.wait_for(2 * number + 1)
            tools.take_away(path)
            seen.wait_for(2 * number + 2)
            with store.watch(f"{path}/state") as state:
                while tools.state(path) != XenbusState.CLOSED:
                    assert state.wait(30)
            tools.remove(path)
            path = tools.add(guest, 7)
        tools.remove(path)
