"""Frontends that come and go, half of them in mid-request: nothing of them stays behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

from xenvirt import Server, VhostUserSocket, VirtQueue

from .conftest import echo, echo_request, started
from .devices import Keeper

ROUNDS = 1000


class Sometimes(Keeper):
    """Keeps the chains whose text says so, echoes the others."""

    def process(self, queue: VirtQueue) -> None:
        for chain in queue:
            text = chain.read()
            if text == b"keep":
                self.kept.append(chain)
            else:
                chain.write(text)
                chain.complete()

    def reset(self) -> None:
        self.kept.clear()


def open_things() -> tuple[int, int, int]:
    """Descriptors, mappings of shared files, and threads."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().count("memfd:")
    return len(list(Path("/proc/self/fd").iterdir())), maps, threading.active_count()


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_thousand_frontends_leave_nothing_behind(server: Server, path: str) -> None:
    server.add(Sometimes(), VhostUserSocket(path))

    def visit(number: int) -> None:
        with started(path) as link:
            if number % 2:
                for _ in range(3):
                    link.submit(echo_request(b"keep"))
            assert echo(link) == b"hello"

    for number in range(100):  # what is made once is made now
        visit(number)
    with started(path):
        before = open_things()
    memory = resident_mib()
    for number in range(ROUNDS):
        visit(number)
    with started(path):
        # What the last frontend had goes on the server's own thread.
        deadline = time.monotonic() + 10
        while open_things() != before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert open_things() == before
    assert resident_mib() - memory < 1.0
