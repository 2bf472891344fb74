"""A bare guest's program on a simulated Xen: the same instructions, carried out by a thread for a vCPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from xenvirt.errors import XenCallError
from xenvirt.testing import SimulatedXen

from .bare_guest import BareGuest, Program

MEMORY = 32 << 20
TIMEOUT = 60.0


def bare_guest(
    hypervisor: SimulatedXen | None, folder: Path, name: str, program: Program, *, processors: int = 1
) -> BareGuest | SimulatedBareGuest:
    """A domain with a program, paused, on real Xen or on a simulated one."""
    if hypervisor is None:
        return BareGuest(folder, name, program, processors=processors)
    return SimulatedBareGuest(hypervisor, program, processors=processors)


class SimulatedBareGuest:
    """What `BareGuest` is on real Xen."""

    def __init__(self, hypervisor: SimulatedXen, program: Program, *, processors: int) -> None:
        self._domain = hypervisor.create_domain(MEMORY, vcpus=processors)
        self.domid = self._domain.domid
        self._program = program
        self._thread = threading.Thread(target=self._run)
        self._accumulator = self._wide = 0
        """eax, and mm0."""
        self._down = False

    def unpause(self) -> None:
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._domain.destroy()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        instructions: dict[str, Callable[..., None]] = {
            "read": self._read,
            "write": self._write,
            "set": self._set,
            "read_port": self._read_port,
            "write_port": self._write_port,
            "repeat": self._repeat,
            "direction": self._direction,
        }
        with suppress(XenCallError):  # the domain is destroyed while the program runs
            for name, arguments in self._program.steps:
                instructions[name](*arguments)

    def _load(self, size: int, value: int) -> None:
        if size == 8:
            self._wide = value
        else:
            kept = self._accumulator >> 8 * size << 8 * size
            self._accumulator = kept | value

    def _stored(self, size: int) -> int:
        return self._wide if size == 8 else self._accumulator & ((1 << 8 * size) - 1)

    def _read(self, size: int, address: int) -> None:
        if address < MEMORY:
            self._load(size, int.from_bytes(self._domain.read(address, size), "little"))
        else:
            self._load(size, self._domain.load(address, size, timeout=TIMEOUT))

    def _write(self, size: int, address: int) -> None:
        if address < MEMORY:
            self._domain.write(address, self._stored(size).to_bytes(size, "little"))
        else:
            self._domain.store(address, self._stored(size), size, timeout=TIMEOUT)

    def _set(self, value: int) -> None:
        self._accumulator = value

    def _read_port(self, size: int, port: int) -> None:
        self._load(size, self._domain.load(port, size, port=True, timeout=TIMEOUT))

    def _write_port(self, size: int, port: int) -> None:
        self._domain.store(port, self._stored(size), size, port=True, timeout=TIMEOUT)

    def _direction(self, down: bool) -> None:
        self._down = down

    def _repeat(self, opcode: int, size: int, count: int, source: int, target: int, port: int) -> None:
        is_port = opcode != Program.MOVS
        reads = opcode == Program.INS or (opcode == Program.MOVS and source >= MEMORY)
        start = self._domain.start_load if reads else self._domain.start_store
        outside = port if is_port else max(source, target)
        inside = target if reads else source
        access = start(
            outside, size=size, port=is_port, count=count, backwards=self._down, data_address=inside
        )
        access.result(TIMEOUT)
