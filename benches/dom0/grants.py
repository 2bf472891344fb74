"""What runs in dom0 for `grant-cache`: ours and the peer by turns, a JSON object as result.

`python3 grants.py KIND CORE PEER TURNS`, with the paths of the Rust bench and of the C program. The driver is
here: it offers chains in pages that this dom0 grants to itself.
"""

from __future__ import annotations

import json
import struct
import sys
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.dom0.programs import Program, Side, take_turns
from xenvirt.xen import GrantAllocator, GrantShare

PAGE = 4096
GRANT_ADDRESS = 1 << 63
NEXT, WRITE, NO_INTERRUPT = 1, 2, 1
SIZE = 128
CHAINS = 32
"""Offered at once. Each has pages of its own."""
FILLING = 0x5A
THIS_DOMAIN = 0

KINDS = {"1-buffer": 1, "3-buffers": 3}
"""Buffers of a chain: 64 bytes that the device fills; or a header, 4 KiB to be filled, and a status byte, as
a disk has them."""


class Driver:
    """Offers the same chains again and again, and looks at what came back."""

    def __init__(self, ring: GrantShare, buffers: GrantShare, descriptors: int) -> None:
        self._ring = ring
        self._buffers = buffers
        self._descriptors = descriptors
        self._next = 0
        for chain in range(CHAINS):
            first = chain * descriptors
            for index, (page, length, flags) in enumerate(self._of(chain), first):
                last = index == first + descriptors - 1
                address = GRANT_ADDRESS | buffers.references[page] << 12
                flags |= 0 if last else NEXT
                ring.write(16 * index, struct.pack("<QIHH", address, length, flags, index + 1))
        ring.write(PAGE, struct.pack("<H", NO_INTERRUPT))

    def _of(self, chain: int) -> list[tuple[int, int, int]]:
        """The page, the length and the flags of each buffer of a chain."""
        page = chain * self._descriptors
        if self._descriptors == 1:
            return [(page, 64, WRITE)]
        return [(page, 16, 0), (page + 1, PAGE, WRITE), (page + 2, 1, WRITE)]

    def served_by(self, device: Program, *command: str) -> tuple[float, int]:
        """Offers all chains to the device; the time for one, and how many came back as they should."""
        for chain in range(CHAINS):
            entry = (self._next + chain) % SIZE
            self._ring.write(PAGE + 4 + 2 * entry, struct.pack("<H", chain * self._descriptors))
            for page, _, flags in self._of(chain):
                if flags & WRITE:
                    self._buffers.write(page * PAGE, bytes(1))
        first, self._next = self._next, (self._next + CHAINS) % (1 << 16)
        self._ring.write(PAGE + 2, struct.pack("<H", self._next))
        taken, chains = device.ask(*command, THIS_DOMAIN, SIZE, *self._ring.references, first)
        assert struct.unpack("<H", self._ring.read(2 * PAGE + 2, 2)) == (self._next,)
        for chain in range(CHAINS):
            for page, _, flags in self._of(chain):
                assert not flags & WRITE or self._buffers.read(page * PAGE, 1)[0] == FILLING
        return taken, chains


def measure(kind: str, core: Program, peer: Program, turns: int) -> dict[str, float]:
    """The medians, in nanoseconds for a chain."""
    descriptors = KINDS[kind]
    with (
        GrantAllocator() as allocator,
        allocator.share(THIS_DOMAIN, 3) as ring,
        allocator.share(THIS_DOMAIN, CHAINS * descriptors) as buffers,
    ):
        driver = Driver(ring, buffers, descriptors)
        sides: dict[str, Side] = {
            "core": lambda: driver.served_by(core, "ring"),
            "peer": lambda: driver.served_by(peer),
        }
        return take_turns(turns, sides)


if __name__ == "__main__":
    with closing(Program(sys.argv[2])) as core, closing(Program(sys.argv[3])) as peer:
        print(json.dumps(measure(sys.argv[1], core, peer, int(sys.argv[4]))))
