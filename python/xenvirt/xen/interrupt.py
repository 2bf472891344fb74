"""What an interrupt's number means in a guest, and whether it can be raised there at all."""

from __future__ import annotations

import os
from typing import Literal

from xenvirt.errors import NegotiationError

from .ram import guest_kind


def guest_interrupt(
    domid: int, irq: int, *, hvm: bool = False, machine: str | None = None
) -> tuple[Literal["spi", "gsi"], int]:
    """The interrupt `irq` of a guest: an SPI, or an input of an I/O APIC ("gsi").

    On x86 only an HVM guest has an I/O APIC. Nothing of the kind is asked of Xen for another one:
    set_isa_irq_level for a PVH guest panics Xen 4.17.

    Args:
        domid: the guest.
        irq: the number.
        hvm: what to believe of a guest of whose kind the xenstore says nothing.
        machine: "x86_64" or "aarch64"; this one's, if not given.

    Raises:
        NegotiationError: the guest is not HVM, or nobody says that it is.
        XenStoreError: the xenstore cannot be reached (it is asked on x86).
    """
    if (machine or os.uname().machine) != "x86_64":
        return "spi", irq
    kind = guest_kind(domid) or ("hvm" if hvm else "")
    if kind == "hvm":
        return "gsi", irq
    if kind:
        raise NegotiationError(
            f"irq={irq}: domain {domid} is a {kind.upper()} guest and has no I/O APIC, so that no interrupt "
            "of a virtio-mmio device can be raised there. Make it an HVM guest (xl: type = 'hvm'), or serve "
            "it without irq if its driver polls"
        )
    raise NegotiationError(
        f"irq={irq}: the xenstore does not say what kind of guest domain {domid} is (/libxl/{domid}/type), "
        "and only an HVM guest has an I/O APIC: say hvm=True if you know it to be one"
    )
