"""A Xen guest's memory as a vhost-user daemon is told of it, which then maps it itself (XEN_MMAP)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from xenvirt._native import ForeignMemory, Frontend, HandedOver, SharedRegion
from xenvirt.device import Session
from xenvirt.errors import NegotiationError
from xenvirt.vhost_user.protocol import ProtocolFeature

FOREIGN, GRANT, NOT_IN_ADVANCE = 1, 2, 8
"""How a region is mapped (vhost-user, "Xen mmap flags"). The specification says bit 8 for the last; rust-vmm,
whose daemons are all that there are, means the number 8."""

PAGE = 4096
GRANT_ADDRESS = 1 << 63
"""What marks an address as made of a grant reference (Linux, drivers/xen/grant-dma-ops.c)."""
GRANT_END = GRANT_ADDRESS + (PAGE << 32)
"""Behind the address of the last reference: those have 32 bits."""


class DaemonMemory:
    """What a daemon is given of a guest.

    The device of foreign memory is restricted to the guest before it goes out of hand. User addresses are the
    guest's own, so that a daemon that mixes the two up works all the same.

    Each daemon gets devices that nobody has opened before, once :meth:`close` was called for the one before:
    what a daemon that was killed had mapped by a device for grants stays mapped until nobody has it open any
    more (Linux, drivers/xen/gntdev.c, where a domain's memory is auto-translated), and a guest that finds its
    grants in use does without the device from then on.

    Args:
        domid: the guest.
        ram: where it has RAM. Daemons of rust-vmm map all of it, so no more should be said than there is.
    """

    def __init__(self, domid: int, ram: Sequence[range]) -> None:
        self._domid = domid
        self._ram = ram
        self._gntdev: int | None = None
        self._foreign: ForeignMemory | None = None

    def regions(self, _session: Session, queues: Mapping[int, HandedOver]) -> list[SharedRegion]:
        """The regions for these rings: grants where they lie in grants, else the guest's RAM."""
        if any(part >= GRANT_ADDRESS for queue in queues.values() for part in queue.addresses):
            return list(self._granted(queues))
        if self._foreign is None:
            foreign = ForeignMemory()
            foreign.restrict(self._domid)
            self._foreign = foreign
        fd = self._foreign.fileno()
        return [
            SharedRegion(fd, bank.start, len(bank), xen_flags=FOREIGN, xen_domain=self._domid)
            for bank in self._ram
        ]

    def no_regions(self) -> list[SharedRegion]:
        """What leaves nothing mapped where rings were granted: a guest takes its grants back when its device
        is reset, and may not find them in use. Empty where nothing was granted."""
        if self._gntdev is None:
            return []
        return [self._grants(range(GRANT_ADDRESS, GRANT_END), NOT_IN_ADVANCE)]

    def _granted(self, queues: Mapping[int, HandedOver]) -> Iterator[SharedRegion]:
        if self._gntdev is None:
            self._gntdev = os.open("/dev/xen/gntdev", os.O_RDWR | os.O_CLOEXEC)
        # Rings are mapped for as long as they run, in pieces that touch no other; what lies between them is
        # mapped for each request.
        next_free = GRANT_ADDRESS
        for ring in ring_pages(queues):
            if next_free < ring.start:
                yield self._grants(range(next_free, ring.start), NOT_IN_ADVANCE)
            yield self._grants(ring, 0)
            next_free = ring.stop
        if next_free < GRANT_END:
            yield self._grants(range(next_free, GRANT_END), NOT_IN_ADVANCE)

    def _grants(self, addresses: range, flags: int) -> SharedRegion:
        assert self._gntdev is not None
        size = addresses.stop - addresses.start  # too long for len()
        return SharedRegion(
            self._gntdev, addresses.start, size, xen_flags=GRANT | flags, xen_domain=self._domid
        )

    def close(self) -> None:
        """Closes the devices, until they are needed again. What a daemon has mapped stays its own."""
        if self._foreign is not None:
            self._foreign.close()
            self._foreign = None
        if self._gntdev is not None:
            os.close(self._gntdev)
            self._gntdev = None


def ring_pages(queues: Mapping[int, HandedOver]) -> list[range]:
    """The pages that the rings lie in, in order, neighbours joined (virtio 1.3, section 2.7)."""
    pages: list[range] = []
    for queue in queues.values():
        descriptors, available, used = queue.addresses
        for start, length in (
            (descriptors, 16 * queue.size),
            (available, 6 + 2 * queue.size),
            (used, 6 + 8 * queue.size),
        ):
            pages.append(range(start // PAGE * PAGE, -(-(start + length) // PAGE) * PAGE))
    joined: list[range] = []
    for one in sorted(pages, key=lambda one: one.start):
        if joined and one.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, one.stop))
        else:
            joined.append(one)
    return joined


def need_xen_mmap(daemon: Frontend) -> None:
    """Refuses a daemon that cannot map a guest's memory.

    Raises:
        NegotiationError: with what can be done about it.
    """
    if not daemon.protocol_features & ProtocolFeature.XEN_MMAP:
        raise NegotiationError(
            "the daemon does not offer the protocol feature XEN_MMAP: it cannot map the memory of a Xen "
            "guest. rust-vmm's are built for it by `cargo install vhost-device-... --features xen`; ours "
            "offer it where /dev/xen/privcmd is"
        )
