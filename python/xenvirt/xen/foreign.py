"""Foreign memory, with what Python knows of guests beside what the kernel knows of frames."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache

from xenvirt import _native
from xenvirt.errors import ForeignMapError, XenCallError

from .placeholders import take_ram
from .ram import guest_ram

log = logging.getLogger("xenvirt")


class ForeignMemory(_native.ForeignMemory):
    __doc__ = _native.ForeignMemory.__doc__
    __slots__ = ()

    def attach(
        self,
        domid: int,
        ranges: Iterable[range] | None = None,
        *,
        writable: bool = False,
        limit: int | None = None,
    ) -> _native.AttachedMemory:
        """Attaches to a guest's memory, at its own addresses. Nothing is mapped until it is touched.

        ::

            with ForeignMemory() as foreign, foreign.attach(domid, limit=256 << 20) as memory:
                print(memory.read(0x100_0000, 64))

        Where this dom0's kernel takes its own RAM for what it maps, a warning is logged once.

        Args:
            domid: the domain; not a PV one, whose frame numbers are the machine's.
            ranges: where its RAM is, or may be: guest physical addresses, whole frames. Without them the
                xenstore is asked for its size (see :func:`xenvirt.xen.ram.guest_ram`).
            writable: for writing too.
            limit: how many bytes may stay mapped; None for as many as are touched. What is used at a time
                may exceed it.

        Raises:
            MemoryTableError: a range is empty, not of whole frames, or overlaps another.
            ForeignMapError: without `ranges`: there is no such domain, or it is a PV domain. With them you do
                not get it for a domain that is not there: that is found when the memory is touched. This
                process has not the addresses for so much (ENOMEM).
            XenStoreError: without `ranges`: the xenstore cannot be reached.
            ValueError: no ranges, or one with a step.
        """
        if ranges is None:
            ranges = self.guest_ram(domid)
        attached = super().attach(domid, ranges, writable=writable, limit=limit)
        if self._simulated_ram(0) is None:
            _warn_of_cost()
        return attached

    def guest_ram(self, domid: int) -> tuple[range, ...]:
        """Where a guest has its RAM: guest physical addresses, in bytes; there may be holes in them.

        The xenstore is asked (see :func:`xenvirt.xen.ram.guest_ram`), or the simulated hypervisor.

        Raises:
            ForeignMapError: there is no such domain, or it is a PV domain.
            XenStoreError: the xenstore cannot be reached.
        """
        try:
            simulated = self._simulated_ram(domid)
        except XenCallError as error:
            raise ForeignMapError(str(error), error.errno or 0) from None
        return guest_ram(domid).ranges() if simulated is None else simulated


@cache
def _warn_of_cost() -> None:
    if take_ram():
        log.warning(
            "this dom0's kernel has no CONFIG_XEN_UNPOPULATED_ALLOC, or Xen gives it no addresses for it: it "
            "gives up RAM of its own for all that is mapped; a limit= on attached memory bounds that"
        )
