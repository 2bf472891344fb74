"""A daemon in a process of its own serves a Linux domU: `serve(RemoteDevice(socket), XenGuest(domid))`."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from xenvirt import Daemon, DeviceId, RemoteDevice, Server, VhostUserSocket
from xenvirt.devices import NetDevice

from .guest_place import BASE, at, place
from .host_tap import HOST, UP, tap_of_dom0
from .linux_guest import LinuxGuest

pytestmark = pytest.mark.dom0("aarch64")

MIB = 1 << 20
SCRIPT = """
head -c 1048576 /dev/urandom > /tmp/written
echo wrote $(sha256sum < /tmp/written | cut -d ' ' -f 1)
dd if=/tmp/written of=/dev/vda bs=64k oflag=direct 2>/dev/null
sync
echo read $(dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)
echo kernel $(dmesg | grep -c 'still in use')
echo done
"""


@pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])
def test_a_disk_of_another_process_keeps_what_a_guest_writes(grants: bool, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(4 * MIB))
    device = place(grants=grants)
    command = (sys.executable, "-m", "xenvirt", "serve", "blk", image, "--socket={socket}")
    with (
        Daemon(*command, timeout=300) as daemon,
        LinuxGuest(SCRIPT, devices=[device]) as guest,
        Server() as server,
    ):
        remote = RemoteDevice(daemon.socket, DeviceId.BLOCK, timeout=60)
        served = server.add(remote, at(guest, device))
        guest.unpause()
        written = guest.wait_for("wrote ([0-9a-f]{64})").group(1)
        assert guest.wait_for("read ([0-9a-f]{64})").group(1) == written
        assert guest.wait_for("kernel ([0-9]+)").group(1) == "0"
        guest.wait_for("done")
        # Not a request went through this process.
        assert (served.counters.chains, served.counters.errors) == (0, 0)
        assert served.counters.calls > 0
    assert hashlib.sha256(image.read_bytes()[:MIB]).hexdigest() == written
    assert os.path.getsize(image) == 4 * MIB  # noqa: PTH202


QUEUE_SEL, QUEUE_READY = 0x30, 0x44
"""Registers (virtio 1.3, section 4.2.2)."""
TRANSMIT = 1
# Linux never stops a single queue of virtio-mmio. While the interface is down nothing was sent on this
# one, so the ring may begin anew.
STOPPED = f"""
devmem {BASE + QUEUE_SEL} 32 {TRANSMIT}
devmem {BASE + QUEUE_READY} 32 0
echo stopped
read line < /dev/hvc0
devmem {BASE + QUEUE_READY} 32 1
{UP}
ping -c 3 -i 0.1 {HOST} | grep received
echo done
"""


@pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])
def test_a_daemon_serves_a_queue_that_was_stopped_and_started(grants: bool, tmp_path: Path) -> None:
    device, path = place(grants=grants), tmp_path / "net.sock"
    with tap_of_dom0() as tap, LinuxGuest(STOPPED, devices=[device]) as guest, Server() as server:
        daemon = server.add(NetDevice(tap, queue_size=1024), VhostUserSocket(path))
        server.add(RemoteDevice(path, DeviceId.NET, timeout=60), at(guest, device))
        queue = daemon._endpoint.queues[TRANSMIT]
        guest.unpause()
        guest.wait_for("stopped")
        assert not queue.running
        guest.send("on")
        guest.wait_for("done")
        assert "3 packets received" in guest.console
        assert queue.running
        assert daemon.counters.errors == 0
