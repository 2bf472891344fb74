"""A daemon in a process of its own serves a Linux domU: `serve(RemoteDevice(socket), XenGuest(domid))`."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from xenvirt import Daemon, DeviceId, RemoteDevice, Server
from xenvirt.xen import XenGuest

from .device_tree import MmioDevice
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
    device = MmioDevice(0x200_0000, 33, grants=grants)
    command = (sys.executable, "-m", "xenvirt", "serve", "blk", image, "--socket={socket}")
    with (
        Daemon(*command, timeout=300) as daemon,
        LinuxGuest(SCRIPT, devices=[device]) as guest,
        Server() as server,
    ):
        remote = RemoteDevice(daemon.socket, DeviceId.BLOCK, timeout=60)
        served = server.add(remote, XenGuest(guest.domid, base=device.address, irq=device.interrupt))
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
