"""Pages of a guest that was never started, granted to dom0 or to another domain.

Dom0 writes the guest's table of grants, as the toolstack does. On x86 a PVH dom0 must not map what it grants
to itself; these it may, as every dom0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from xenvirt.xen import ForeignMapping, ForeignMemory

PAGE = 4096
DOM0 = 0
FIRST_REFERENCE = 8
"""Those before are reserved (xen/include/public/grant_table.h, GNTTAB_NR_RESERVED_ENTRIES)."""
PERMIT_ACCESS = 1
"""GTF_permit_access: may be mapped, for writing too."""


class GrantedPages:
    """As `GrantShare`, with references one after the other."""

    def __init__(self, domid: int, pages: ForeignMapping, count: int) -> None:
        self.domid = domid
        self.references = range(FIRST_REFERENCE, FIRST_REFERENCE + count)
        self._pages = pages

    def read(self, offset: int, length: int) -> bytes:
        return self._pages.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        self._pages.write(offset, data)


@contextmanager
def granted_pages(domid: int, first_frame: int, count: int, to: int = DOM0) -> Iterator[GrantedPages]:
    """Frames of the guest, zeroed for the block; their grants end with it: let nobody map them then."""
    with (
        ForeignMemory() as foreign,
        foreign.map(domid, range(first_frame, first_frame + count), writable=True) as pages,
        foreign.map_resource(domid, "grant_table", 0, writable=True) as table,
    ):
        granted = GrantedPages(domid, pages, count)
        before = pages.read(0, count * PAGE)
        pages.write(0, bytes(count * PAGE))
        for reference, frame in zip(granted.references, range(first_frame, first_frame + count), strict=True):
            # struct grant_entry_v1; the flags last, so that the entry is whole when it counts.
            table.write(8 * reference + 2, struct.pack("<HI", to, frame))
            table.write(8 * reference, struct.pack("<H", PERMIT_ACCESS))
        try:
            yield granted
        finally:
            for reference in granted.references:
                table.write(8 * reference, bytes(8))
            pages.write(0, before)
