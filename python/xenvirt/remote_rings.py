"""Split rings that a daemon left behind when it died (virtio 1.3, section 2.7)."""

from __future__ import annotations

from xenvirt import _native
from xenvirt.errors import DisconnectedError


def resumption(index: int, queue: _native.HandedOver, memory: _native.GuestMemory) -> int:
    """The available index at which the next daemon is to go on with a queue, which nobody serves at present:
    the used index, if what was used is what was available before.

    Raises:
        DisconnectedError: requests were answered out of their order, nobody knows which are still to be done.
        GuestMemoryError: the ring cannot be read.
    """
    _, available, used = queue.addresses
    size = queue.size
    base = int.from_bytes(memory.read(used + 2, 2), "little")
    added = int.from_bytes(memory.read(available + 2, 2), "little")
    ring = memory.read(available + 4, 2 * size)
    used_ring = memory.read(used + 4, 8 * size)
    # Of what was used, those whose place in the available ring was not written anew.
    count = min(size - ((added - base) & 0xFFFF), base if base < size else size)
    places = [(base - 1 - back) % size for back in range(count)]
    heads = sorted(ring[2 * place : 2 * place + 2] for place in places)
    if heads != sorted(used_ring[8 * place : 8 * place + 2] for place in places):
        raise DisconnectedError(
            f"the daemon hung up, and had answered requests of queue {index} out of their order: "
            "nobody knows which are still to be done"
        )
    return base
