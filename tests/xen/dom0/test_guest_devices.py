"""Python devices serve a Linux domU, by foreign memory and by grants: its own drivers are the judge."""

from __future__ import annotations

import re

import pytest

from xenvirt import Server
from xenvirt.devices import EntropyDevice
from xenvirt.xen import XenGuest

from .device_tree import MmioDevice
from .linux_guest import LinuxGuest

pytestmark = pytest.mark.dom0("aarch64")

BASE, IRQ = 0x200_0000, 33


def place(index: int = 0, grants: bool = False) -> MmioDevice:
    """Where the device of this number is."""
    return MmioDevice(BASE + 0x200 * index, IRQ + index, grants=grants)


def at(guest: LinuxGuest, device: MmioDevice) -> XenGuest:
    return XenGuest(guest.domid, base=device.address, irq=device.interrupt)


@pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])
def test_entropy_reaches_the_guest(grants: bool) -> None:
    device = place(grants=grants)
    script = "cat /sys/class/misc/hw_random/rng_current; head -c 32 /dev/hwrng | od -An -tx1; echo done"
    with LinuxGuest(script, devices=[device]) as guest, Server() as server:
        served = server.add(EntropyDevice(), at(guest, device))
        guest.unpause()
        said = guest.wait_for("(?s)virtio_rng.*done").group()
        assert len(set(re.findall(r"\b[0-9a-f]{2}\b", said))) > 8
        assert served.counters.chains >= 1
        assert served.counters.bytes_written >= 32
        assert bool(served.features & 1 << 33)
