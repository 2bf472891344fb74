"""What mapping costs a dom0: the pages that stand for the frames of others.

On a dom0 with translated addresses (PVH, Arm) each mapped frame needs a page of dom0's own addresses. Linux
takes addresses where there is no RAM (CONFIG_XEN_UNPOPULATED_ALLOC, drivers/xen/unpopulated-alloc.c); where
it cannot, it gives RAM of dom0 back to Xen, as much as is mapped.
"""

from __future__ import annotations

from pathlib import Path

ALLOCATOR = b" xen_alloc_unpopulated_pages"
"""A function of the kernel only where it is configured."""
ONE_REGION = 16
"""Bytes of the device tree's description of a region; the first one is for the grant table."""


def take_ram(root: Path = Path("/")) -> bool:
    """Whether dom0 pays with its RAM for what it maps. False where nothing says so."""
    if _read(root / "sys/hypervisor/guest_type").strip() == b"PV":
        return False  # its page tables name the frames themselves
    if b"Xen scratch" in _read(root / "proc/iomem"):
        return False  # it has done so already
    symbols = _read(root / "proc/kallsyms")
    if symbols and ALLOCATOR not in symbols:
        return True
    # On Arm it takes what Xen offers (extended regions), and Xen may offer none.
    regions = _read(root / "proc/device-tree/hypervisor/reg")
    return 0 < len(regions) <= ONE_REGION


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
