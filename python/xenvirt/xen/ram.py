"""Where a guest has its RAM: what there is to attach to."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from xenvirt.errors import ForeignMapError

from .xenstore import XenStore

GIB = 1 << 30

ARM_BANKS = (range(0x4000_0000, 0x1_0000_0000), range(0x2_0000_0000, 0x100_0000_0000))
"""GUEST_RAM0 and GUEST_RAM1 (xen/include/public/arch-arm.h)."""
X86_BELOW_4G = 0xF000_0000
"""From here to 4 GiB an x86 guest has devices, unless told otherwise (HVM_BELOW_4G_RAM_END, xl's
`mmio_hole`)."""


@dataclass(frozen=True)
class GuestRam:
    """What the toolstack says of a guest's memory."""

    name: str
    kind: str
    """"pvh", "hvm", "pv", or "" where nobody has said."""
    size: int
    """Bytes that it may have at most. A balloon in the guest may have given some of them back."""

    def ranges(self, machine: str | None = None) -> tuple[range, ...]:
        """Guest physical addresses, in bytes, that hold all of its RAM; there may be holes in them.

        Args:
            machine: "x86_64" or "aarch64"; this one's, if not given.
        """
        return ram_ranges(self.size, machine)


def ram_ranges(size: int, machine: str | None = None) -> tuple[range, ...]:
    """Where a guest with `size` bytes of memory has them: on Arm two banks, on x86 one range with holes."""
    machine = machine or os.uname().machine
    if machine == "aarch64":
        ranges = []
        for bank in ARM_BANKS:
            part = min(size, len(bank))
            size -= part
            if part:
                ranges.append(range(bank.start, bank.start + part))
        return tuple(ranges)
    if size > X86_BELOW_4G:
        size += 4 * GIB - X86_BELOW_4G
    return (range(size),)


def guest_kind(domid: int) -> str:
    """What libxl wrote of the kind of a guest: "hvm", "pvh" or "pv"; "" where nobody has said.

    Raises:
        XenStoreError: the xenstore cannot be reached.
    """
    with XenStore() as store:
        return store.get(f"/libxl/{domid}/type") or ""


def guest_ram(domid: int) -> GuestRam:
    """Asks the xenstore what the toolstack (libxl) has written of a guest.

    Raises:
        XenStoreError: it cannot be reached.
        ForeignMapError: it says nothing of the domain (ESRCH), or that it is a PV domain, whose frame numbers
            are the machine's (EOPNOTSUPP).
    """
    with XenStore() as store:
        path = store.domain_path(domid)
        size = store.get(f"{path}/memory/static-max")
        kind = store.get(f"/libxl/{domid}/type") or ""
        name = store.get(f"{path}/name") or ""
    if size is None:
        raise ForeignMapError(
            f"the xenstore has no {path}/memory/static-max: there is no domain {domid}, or it was not made "
            "by xl; for such a one say the ranges of its RAM",
            errno.ESRCH,
        )
    if kind == "pv":
        raise ForeignMapError(
            f"domain {domid} is a PV domain: its frame numbers are the machine's, not addresses of its own",
            errno.EOPNOTSUPP,
        )
    return GuestRam(name, kind, int(size) * 1024)
