"""The walk of `ring-core` from Python, by the batch, against the same native rust-vmm."""

import os
import statistics
import struct
import time
from array import array
from collections.abc import Iterator
from functools import partial

from xenvirt import VirtQueue
from xenvirt._native import DriverQueue, Endpoint, FileRegion, GuestMemory
from xenvirt.virtio.features import Feature

from .rig import DRIVER_CORE, Row, output_of, pinned, rust_bench, take_turns

AIM = 0.35
SIZE = 256
ROUNDS = 10
TABLES, BUFFERS, STRIDE = 0x40000, 0x200000, 0x2000
MEMORY = 64 << 20
NEXT, WRITE, INDIRECT = 1, 2, 4


class Ring:
    """A ring that a driver fills with the same chains again and again, and the device's queue on it."""

    def __init__(self, descriptors: int, indirect: bool) -> None:
        fd = os.memfd_create("ring-batch", os.MFD_CLOEXEC)
        os.ftruncate(fd, MEMORY)
        self._memory = GuestMemory([FileRegion(fd, 0, MEMORY)])
        os.close(fd)
        self._stride = 1 if indirect else descriptors
        self.chains = SIZE // self._stride
        features = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC
        self._driver = DriverQueue(0, SIZE, self._memory, 0, TABLES, event_idx=True, indirect=True)
        self._endpoint = Endpoint(features, (SIZE,), b"", in_process=True)
        self._endpoint.start(features, self._memory, [self._driver])
        while self._endpoint.poll() is not None:
            pass
        self.queue: VirtQueue = self._endpoint.queues[0]
        table, available, used = self._driver.addresses
        for chain in range(self.chains):
            buffers = self._buffers(chain, descriptors)
            first = chain * self._stride
            if indirect:
                self._table(TABLES + chain * 64, 0, buffers)
                pointer = struct.pack("<QIHH", TABLES + chain * 64, 16 * len(buffers), INDIRECT, 0)
                self._memory.write(table + 16 * first, pointer)
            else:
                self._table(table, first, buffers)
        self.bytes = self.chains * sum(size for _, size, _ in self._buffers(0, descriptors))
        self._entries = memoryview(self._memory.view(available, 2 * (2 + SIZE + 1))).cast("B").cast("H")
        self._used = memoryview(self._memory.view(used, 4)).cast("B").cast("H")
        self._heads = memoryview(array("H", (chain * self._stride for chain in range(self.chains))))
        self._next = 0

    @staticmethod
    def _buffers(chain: int, descriptors: int) -> list[tuple[int, int, int]]:
        header = BUFFERS + chain * STRIDE
        data = (header + 0x1000, 4096, WRITE)
        return [data] if descriptors == 1 else [(header, 16, 0), data, (header + 0x20, 1, WRITE)]

    def _table(self, table: int, first: int, buffers: list[tuple[int, int, int]]) -> None:
        for index, (address, size, flags) in enumerate(buffers, first):
            last = index - first + 1 == len(buffers)
            more, following = (0, 0) if last else (NEXT, index + 1)
            self._memory.write(
                table + 16 * index, struct.pack("<QIHH", address, size, flags | more, following)
            )

    def refill(self) -> None:
        """Offers all chains again. It asks for no call: the peer's time has no system call in it either."""
        first = self._next % SIZE
        until_end = min(self.chains, SIZE - first)
        self._entries[2 + first : 2 + first + until_end] = self._heads[:until_end]
        self._entries[2 : 2 + self.chains - until_end] = self._heads[until_end:]
        self._next = (self._next + self.chains) & 0xFFFF
        self._entries[2 + SIZE] = self._next
        self._entries[1] = self._next

    def check(self) -> None:
        """Everything was given back."""
        assert self._used[1] == self._next, f"used index {self._used[1]}, not {self._next}"


def _walk(queue: VirtQueue) -> int:
    chains = 0
    while batch := queue.pop_batch(limit=SIZE):
        chains += len(batch)
        batch.complete()
    return chains


def _sample(ring: Ring, pieces: int) -> float:
    """Nanoseconds a chain: the median of short pieces, as in the peer's program."""
    return statistics.median(_piece(ring) for _ in range(pieces))


def _piece(ring: Ring) -> float:
    elapsed = 0
    for _ in range(ROUNDS):
        ring.refill()
        start = time.perf_counter_ns()
        chains = _walk(ring.queue)
        elapsed += time.perf_counter_ns() - start
        assert chains == ring.chains, f"{chains} chains, not {ring.chains}"
    ring.check()
    return elapsed / ROUNDS / ring.chains


def _peer_sample(command: list[str]) -> float:
    return float(output_of(command))


def _check_bytes(ring: Ring) -> None:
    ring.refill()
    batch = ring.queue.pop_batch(limit=SIZE)
    assert batch is not None
    assert sum(batch.readable) + sum(batch.writable) == ring.bytes
    batch.complete()


def run(name: str, quick: bool) -> Iterator[Row]:
    """A row for each kind of chain."""
    peer = rust_bench("ring")
    turns, pieces = (5, 5) if quick else (31, 101)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {DRIVER_CORE})
    try:
        for descriptors, indirect in ((1, False), (3, False), (1, True), (3, True)):
            kind = f"{descriptors}-{'indirect' if indirect else 'direct'}"
            ring = Ring(descriptors, indirect)
            _check_bytes(ring)
            native = pinned(DRIVER_CORE, peer, "--peer", kind, str(pieces))
            ours, theirs = take_turns(
                turns,
                partial(_sample, ring, pieces),
                partial(_peer_sample, native),
            )
            yield Row(f"{name}/{kind}", ours, theirs, "ns", "lower", AIM)
    finally:
        os.sched_setaffinity(0, before)
