"""A split ring of one buffer at a time in granted pages: the driver's hand."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

PAGE = 4096
DOM0 = 0
GRANT_ADDRESS = 1 << 63
GRANT, NOT_IN_ADVANCE = 2, 8
SHARED = 32
"""Pages of the share, of which three are used."""
SIZE, AVAILABLE, USED = 8, 0x100, 0x200
WRITE = 2


class Granted(Protocol):
    """Pages that somebody granted, as seen from where they are granted."""

    @property
    def references(self) -> Sequence[int]: ...
    def read(self, offset: int, length: int, /) -> bytes: ...
    def write(self, offset: int, data: bytes, /) -> object: ...


class Pages(NamedTuple):
    """Which pages of a share are used, by number; the kernel gives references in any order."""

    ring: int
    """Its reference is below those of the buffer, which a region without an end begins with."""
    first: int
    second: int
    """The buffer's two, with references one after the other."""


def choose(share: Granted) -> Pages:
    page_of = {reference: page for page, reference in enumerate(share.references)}
    lowest, *others = sorted(page_of)
    first = next(reference for reference in others if reference + 1 in page_of)
    return Pages(page_of[lowest], page_of[first], page_of[first + 1])


def address(share: Granted, page: int) -> int:
    """Where a guest says that a page is."""
    return GRANT_ADDRESS | share.references[page] << 12


def offer(share: Granted, ring: int, index: int, buffer: int, length: int) -> None:
    """What a driver does with one buffer for the device to write to."""
    share.write(ring * PAGE, struct.pack("<QIHH", buffer, length, WRITE, 0))
    share.write(ring * PAGE + AVAILABLE + 4 + 2 * (index % SIZE), struct.pack("<H", 0))
    share.write(ring * PAGE + AVAILABLE + 2, struct.pack("<H", index + 1))


def used(share: Granted, ring: int) -> int:
    index: int = struct.unpack("<H", share.read(ring * PAGE + USED + 2, 2))[0]
    return index


def wait_for(share: Granted, ring: int, index: int) -> None:
    deadline = time.monotonic() + 60
    while used(share, ring) != index and time.monotonic() < deadline:
        time.sleep(0.001)
    assert used(share, ring) == index
