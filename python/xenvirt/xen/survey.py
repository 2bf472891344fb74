"""A look at all of a guest's memory: what is there, what is not, and why not."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from .foreign import ForeignMemory

FRAME = 4096
BATCH = 1024
"""Frames that are mapped at a time."""
_ZERO_FRAME = bytes(FRAME)


class Content(Enum):
    """What is found in a frame."""

    DATA = "data"
    ZEROES = "zeroes"
    HOLE = "hole"
    """Nothing is there: the hypervisor knows no such frame of the guest."""
    FAILED = "failed"
    """It may be there, and could not be mapped."""


@dataclass(frozen=True)
class Stretch:
    """Neighbouring frames in which the same is found."""

    addresses: range
    """Guest physical addresses, in bytes."""
    content: Content
    reason: str = ""
    """Why it could not be mapped."""
    errno: int = 0


def survey(foreign: ForeignMemory, domid: int, ranges: Iterable[range]) -> Iterator[Stretch]:
    """Looks at ranges of a guest's addresses, a few MiB at a time; gives what is found, by address.

    The guest runs on meanwhile: what is found is of no single moment.

    Raises:
        ForeignMapError: the call as a whole was refused, for instance to a restricted device.
    """
    parts = (part for addresses in ranges for part in _parts(addresses))
    return joined(stretch for part in parts for stretch in _look(foreign, domid, part))


def joined(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Puts neighbours together that differ in nothing but their addresses."""
    last: Stretch | None = None
    for one in stretches:
        if last is None:
            last = one
        elif one.addresses.start == last.addresses.stop and _found(one) == _found(last):
            last = replace(last, addresses=range(last.addresses.start, one.addresses.stop))
        else:
            yield last
            last = one
    if last is not None:
        yield last


def _found(stretch: Stretch) -> tuple[Content, int]:
    return stretch.content, stretch.errno


def _parts(addresses: range) -> Iterator[range]:
    for start in range(addresses.start, addresses.stop, BATCH * FRAME):
        yield range(start, min(start + BATCH * FRAME, addresses.stop))


def _look(foreign: ForeignMemory, domid: int, addresses: range) -> Iterator[Stretch]:
    frames = range(addresses.start // FRAME, addresses.stop // FRAME)
    with foreign.map(domid, frames, partial=True) as memory:
        failed = {one.index: one for one in memory.failures}
        mapped = {
            region.guest_address: memory.read(region.guest_address, region.size) for region in memory.regions
        }
    data, begin = b"", 0
    for index in range(len(frames)):
        at = index * FRAME
        if at in mapped:
            data, begin = mapped[at], at
        here = range(addresses.start + at, addresses.start + at + FRAME)
        failure = failed.get(index)
        if failure is None:
            zeroes = data.startswith(_ZERO_FRAME, at - begin)
            yield Stretch(here, Content.ZEROES if zeroes else Content.DATA)
        else:
            content = Content.HOLE if failure.errno == errno.EINVAL else Content.FAILED
            yield Stretch(here, content, failure.reason, failure.errno)
