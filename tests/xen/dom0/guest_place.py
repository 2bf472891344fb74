"""Where the devices of these tests are in a Linux domU, and how a transport reaches them there."""

from __future__ import annotations

from xenvirt.xen import XenGuest

from .device_tree import MmioDevice
from .linux_guest import LinuxGuest

BASE, IRQ = 0x200_0000, 33


def place(index: int = 0, grants: bool = False) -> MmioDevice:
    """Where the device of this number is."""
    return MmioDevice(BASE + 0x200 * index, IRQ + index, grants=grants)


def at(guest: LinuxGuest, device: MmioDevice, *, kernel_kicks: bool = False) -> XenGuest:
    """A device of a guest, for `serve`."""
    return XenGuest(guest.domid, base=device.address, irq=device.interrupt, kernel_kicks=kernel_kicks)
