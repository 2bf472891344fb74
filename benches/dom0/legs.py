"""What runs in dom0 for benches/legs.py: guests and their devices, a JSON object of medians as result.

`python3 legs.py GUEST_PROGRAM REQUESTS` with a program made of legs_guest.c. As a daemon it is
`python3 legs.py --daemon SOCKET STAMPS`.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.xen.dom0.guest_place import at, place
from tests.xen.dom0.linux_guest import LinuxGuest
from xenvirt import Daemon, Device, DeviceId, RemoteDevice, Server, VhostUserSocket, VirtQueue, serve
from xenvirt.virtio.block import BlockConfig
from xenvirt.xen import ForeignMemory

BLOCK = 4096
SECTORS = 8192
HEADER = 16

TURN, COMMAND, COUNT, DONE, STAMP, IDLE = range(6)
END, PING, KICK, READ_REGISTER, REQUEST = range(5)
"""As legs_guest.c has them."""
BATCH = 128
PINGS = 300
IDLE_SECONDS = 0.002
PATIENCE = 30e9
"""Nanoseconds for an answer of the guest's program."""

LOG_SIZE = 1 << 20
ENTERED, POPPED, HANDLED, COMPLETED, MARKS = range(5)


class Log:
    """Stamps in a file that two processes share: a count, then four for each waking of the device."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), LOG_SIZE)
        self.words = memoryview(self._map).cast("Q")

    def add(self, entered: int, popped: int, handled: int, completed: int) -> None:
        """One wake-up, in nanoseconds; zeroes where there was no request."""
        count = self.words[0]
        for index, stamp in enumerate((entered, popped, handled, completed), 1 + MARKS * count):
            self.words[index] = stamp
        self.words[0] = count + 1

    def take(self) -> list[tuple[int, ...]]:
        """All wake-ups since the last time."""
        words = self.words[1 : 1 + MARKS * self.words[0]].tolist()
        self.words[0] = 0
        return [tuple(words[start : start + MARKS]) for start in range(0, len(words), MARKS)]


class StampedDisk(Device):
    """A disk of zeroes that says when it did what."""

    device_id = DeviceId.BLOCK
    queue_sizes = (128,)
    config = BlockConfig(capacity=SECTORS)

    def __init__(self, log: Log) -> None:
        self._log = log
        self._zeroes = bytes(BLOCK)

    def process(self, queue: VirtQueue) -> None:
        clock = time.perf_counter_ns
        entered = clock()
        if (chain := queue.pop()) is None:
            self._log.add(entered, 0, 0, 0)
        while chain is not None:
            popped = clock()
            chain.read(HEADER)
            chain.write(self._zeroes[: chain.writable - 1])
            chain.write(b"\0")
            handled = clock()
            chain.complete()
            self._log.add(entered, popped, handled, clock())
            chain = queue.pop()


class GuestProgram:
    """The program in the guest, by the two pages that it shares."""

    def __init__(self, guest: LinuxGuest, foreign: ForeignMemory, idle: float) -> None:
        found = guest.wait_for(r"([0-9a-f]{16})\s+([0-9a-f]{16})\s")
        self._mapping = foreign.map(guest.domid, [int(word, 16) for word in found.groups()], writable=True)
        self._words = memoryview(self._mapping.view(0, 8192)).cast("Q")
        self.tick = 1e9 / self._words[STAMP]
        """Nanoseconds from one count of its clock to the next."""
        self._words[IDLE] = int(idle * self._words[STAMP])

    def close(self) -> None:
        """Ends it."""
        self._words[COMMAND] = END
        self._words[TURN] += 1
        self._words.release()
        self._mapping.close()

    def ahead(self) -> float:
        """By how many nanoseconds our clock is ahead of its own, as the quickest of many answers says."""
        words, clock = self._words, time.perf_counter_ns
        low, high = float("-inf"), float("inf")
        words[COMMAND] = PING
        for _ in range(PINGS):
            turn = words[TURN] + 1
            before = clock()
            words[TURN] = turn
            while words[DONE] != turn:
                if clock() - before > PATIENCE:
                    raise TimeoutError("the guest's program answers no more")
            after = clock()
            its = words[STAMP] * self.tick
            low, high = max(low, before - its), min(high, after - its)
        return (low + high) / 2

    def run(self, command: int, count: int) -> list[list[float]]:
        """The four stamps of each request, by our clock."""
        ahead, words = self.ahead(), self._words
        words[COMMAND], words[COUNT] = command, count
        turn = words[TURN] + 1
        words[TURN] = turn
        until = time.perf_counter_ns() + PATIENCE
        while words[DONE] != turn:
            if time.perf_counter_ns() > until:
                raise TimeoutError(f"the guest's program has not ended command {command}")
            time.sleep(0.005)
        ahead = (ahead + self.ahead()) / 2
        return [
            [stamp * self.tick + ahead for stamp in words[512 + 4 * index : 516 + 4 * index]]
            for index in range(count)
        ]


def legs_of(program: GuestProgram, log: Log, requests: int) -> dict[str, float]:
    """The median of each leg, in microseconds."""
    taken: dict[str, list[float]] = {}

    def keep(name: str, nanoseconds: float) -> None:
        taken.setdefault(name, []).append(nanoseconds / 1000)

    program.run(REQUEST, BATCH)  # warms up
    log.take()
    for _ in range(-(-requests // BATCH)):
        for before, after, *_ in program.run(READ_REGISTER, BATCH):
            keep("a register read", after - before)
        stamps = program.run(KICK, BATCH)
        woken = log.take()
        for before, after, *_ in stamps:
            keep("a kick, until the vCPU goes on", after - before)
            entered = [one[ENTERED] for one in woken if before < one[ENTERED] < before + IDLE_SECONDS * 1e9]
            if entered:
                keep("kick trapped -> process", entered[0] - before)
        stamps = program.run(REQUEST, BATCH)
        requested = [one for one in log.take() if one[POPPED]]
        if len(requested) != len(stamps):
            raise RuntimeError(f"{len(stamps)} requests of the guest, {len(requested)} of the device")
        for (submitted, returned, interrupted, through), one in zip(stamps, requested, strict=True):
            keep("submitted -> process", one[ENTERED] - submitted)
            keep("submitted -> the guest's call returns", returned - submitted)
            keep("pop", one[POPPED] - one[ENTERED])
            keep("process", one[HANDLED] - one[POPPED])
            keep("complete and call", one[COMPLETED] - one[HANDLED])
            # The call comes before the clock is read again.
            keep("processed -> guest's handler", interrupted - one[HANDLED])
            keep("guest's handler", through - interrupted)
            keep("all of it", through - submitted)
    return {name: statistics.median(values) for name, values in taken.items()}


@contextlib.contextmanager
def served(guest: LinuxGuest, device: object, log: Path, daemon: bool) -> Iterator[None]:
    """The disk in this process, or in one of its own."""
    where = at(guest, device)  # type: ignore[arg-type]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server())
        if daemon:
            command = (sys.executable, __file__, "--daemon", "{socket}", log)
            started = stack.enter_context(Daemon(*command, timeout=300))
            stack.enter_context(server)
            server.add(RemoteDevice(started.socket, DeviceId.BLOCK, timeout=60), where, poll=0)
        else:
            server.add(StampedDisk(Log(log)), where, poll=0)
        yield


def measure(program: bytes, requests: int, *, grants: bool, daemon: bool) -> dict[str, float]:
    """The legs of one way to serve."""
    device = place(grants=grants)
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(LOG_SIZE)
        log = Path(file.name)
        with (
            LinuxGuest("/legs", devices=[device], files={"/legs": program}) as guest,
            served(guest, device, log, daemon),
            ForeignMemory() as foreign,
        ):
            guest.unpause()
            its = GuestProgram(guest, foreign, IDLE_SECONDS)
            try:
                return legs_of(its, Log(log), requests)
            finally:
                its.close()


def main() -> None:
    """Prints the medians, by the way that the disk is served."""
    if sys.argv[1] == "--daemon":
        serve(StampedDisk(Log(Path(sys.argv[3]))), VhostUserSocket(sys.argv[2]), poll=0)
        return
    program, requests = Path(sys.argv[1]).read_bytes(), int(sys.argv[2])
    found = {}
    for memory in ("foreign", "grants"):
        for where in ("in process", "daemon"):
            way = f"{memory}, {where}"
            print(way, file=sys.stderr, flush=True)
            found[way] = measure(program, requests, grants=memory == "grants", daemon=where == "daemon")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
