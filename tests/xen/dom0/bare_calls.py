"""The bare calls of privcmd, by the kernel or by a simulated Xen: what test_measured asks of both."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, Protocol, TypeVar

from xenvirt._native import SimulatedPrivcmd
from xenvirt.testing import SimulatedXen
from xenvirt.testing.measured import Answer, simulated
from xenvirt.xen import GrantMapError, GrantTable

from . import privcmd_calls as kernel
from .privcmd_calls import FRAME, MAP_FIXED, UNTOUCHED, attempted

MAP_GRANT_REF = 0x0018_4700
"""Linux's include/uapi/xen/gntdev.h."""

D = TypeVar("D")


class BareCalls(Protocol, Generic[D]):
    """What test_measured does to a device `D`."""

    def device(self) -> AbstractContextManager[D]:
        """An open one."""

    def map_pages(self, device: D, pages: int = 1) -> int:
        """A fresh range; gives its address."""

    def unmap(self, address: int, pages: int) -> None:
        """Unmaps a range, whatever came of it."""

    def map_batch(
        self,
        device: D,
        domain: int,
        address: int,
        frames: Sequence[int],
        *,
        number: int | None = None,
        no_list: bool = False,
        no_errors: bool = False,
    ) -> tuple[int, list[int]]:
        """As `privcmd_calls.map_batch`."""

    def restrict(self, device: D, domain: int) -> None:
        """OSError if it fails."""

    def touch(self, address: int) -> str:
        """As `privcmd_calls.touch`."""

    def map_grant(self, domain: int, reference: int) -> int:
        """The errno of mapping it."""

    def expected(self, answer: Answer) -> Answer:
        """What is expected where this was measured."""


class KernelCalls:
    """Those of the kernel."""

    def device(self) -> AbstractContextManager[int]:
        return kernel.device()

    def map_pages(self, device: int, pages: int = 1) -> int:
        return kernel.map_pages(device, pages)

    def unmap(self, address: int, pages: int) -> None:
        with (
            kernel.device() as fd,
            kernel.mapped(fd, pages, flags=mmap.MAP_SHARED | MAP_FIXED, at=address),
        ):
            pass

    def map_batch(
        self,
        device: int,
        domain: int,
        address: int,
        frames: Sequence[int],
        *,
        number: int | None = None,
        no_list: bool = False,
        no_errors: bool = False,
    ) -> tuple[int, list[int]]:
        return kernel.map_batch(
            device, domain, address, frames, number=number, no_list=no_list, no_errors=no_errors
        )

    def restrict(self, device: int, domain: int) -> None:
        kernel.restrict(device, domain)

    def touch(self, address: int) -> str:
        return kernel.touch(address)

    def map_grant(self, domain: int, reference: int) -> int:
        with kernel.device("/dev/xen/gntdev") as fd:
            request = bytearray(struct.pack("=IIQII", 1, 0, 0, domain, reference))
            fcntl.ioctl(fd, MAP_GRANT_REF, request)
            index = struct.unpack_from("=Q", request, 8)[0]
            return attempted(lambda: os.close(kernel.map_pages(fd, offset=index)))

    def expected(self, answer: Answer) -> Answer:
        return answer


class SimulatedCalls:
    """Those of a simulated Xen."""

    def __init__(self, hypervisor: SimulatedXen) -> None:
        self.hypervisor = hypervisor

    @contextmanager
    def device(self) -> Iterator[SimulatedPrivcmd]:
        yield SimulatedPrivcmd(self.hypervisor)

    def map_pages(self, device: SimulatedPrivcmd, pages: int = 1) -> int:
        return device.reserve(pages)

    def unmap(self, address: int, pages: int) -> None:
        kernel.libc.munmap(address, pages * FRAME)
        SimulatedPrivcmd(self.hypervisor).forget(address, pages)

    def map_batch(
        self,
        device: SimulatedPrivcmd,
        domain: int,
        address: int,
        frames: Sequence[int],
        *,
        number: int | None = None,
        no_list: bool = False,
        no_errors: bool = False,
    ) -> tuple[int, list[int]]:
        before = [UNTOUCHED] * max(len(frames), 1)
        call, errors = device.map_batch(
            domain,
            address,
            len(frames) if number is None else number,
            None if no_list else list(frames),
            None if no_errors else before,
        )
        return call, before if errors is None else errors

    def restrict(self, device: SimulatedPrivcmd, domain: int) -> None:
        device.restrict(domain)

    def touch(self, address: int) -> str:
        byte = ctypes.c_uint8.from_address(address + 0x123)
        is_hole = byte.value == 0xFF  # no memory of these tests is
        what = kernel.touch(address)
        return "reads 0xff, writes stay" if is_hole and what == "memory" else what

    def map_grant(self, domain: int, reference: int) -> int:
        with GrantTable(hypervisor=self.hypervisor) as grants:
            try:
                grants.map(domain, reference).close()
            except GrantMapError as error:
                return error.errno or 0
        return 0

    def expected(self, answer: Answer) -> Answer:
        return simulated(answer)
