"""Buffers for hypercalls on real Xen: Xen writes into both kinds."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from xenvirt.errors import ForkError
from xenvirt.xen import HypercallBuffer

pytestmark = pytest.mark.dom0("pv", "pvh", "aarch64")

HYPERCALL = 0x0030_5000
"""IOCTL_PRIVCMD_HYPERCALL, with struct privcmd_hypercall {u64 op; u64 arg[5]}."""
XEN_VERSION, EXTRA_VERSION = 17, 1
"""HYPERVISOR_xen_version, XENVER_extraversion: char[16] (xen/include/public/version.h)."""


@pytest.mark.parametrize("locked", [False, True])
def test_xen_writes_into_it(locked: bool) -> None:
    with HypercallBuffer(16, locked=locked) as buffer:
        assert (buffer.kind, buffer.size) == ("locked" if locked else "kernel", 16)
        privcmd = os.open("/dev/xen/privcmd", os.O_RDWR)
        try:
            call = struct.pack("<6Q", XEN_VERSION, EXTRA_VERSION, buffer.address, 0, 0, 0)
            fcntl.ioctl(privcmd, HYPERCALL, call)
        finally:
            os.close(privcmd)
        extra = buffer.read(0, 16).rstrip(b"\0").decode()
    assert extra == Path("/sys/hypervisor/version/extra").read_text().strip()
    assert extra.startswith(".")


@pytest.mark.parametrize("locked", [False, True])
def test_it_is_as_large_as_was_asked_for(locked: bool) -> None:
    with HypercallBuffer(5000, locked=locked) as buffer:
        assert buffer.read(0, 5000) == bytes(5000)
        assert buffer.write(4990, b"ten bytes.") == 10
        assert buffer.read(4988, 12) == b"\0\0ten bytes."
        for offset, size in [(4991, 10), (5000, 1), (0, 5001)]:
            with pytest.raises(ValueError, match="the hypercall buffer has 5000"):
                buffer.read(offset, size)
        with pytest.raises(ValueError, match="the hypercall buffer has 5000"):
            buffer.write(4991, b"ten bytes.")
    with pytest.raises(ValueError, match="closed"):
        buffer.read(0, 1)
    with pytest.raises(ValueError, match="at least one"):
        HypercallBuffer(0, locked=locked)


@pytest.mark.parametrize("locked", [False, True])
def test_a_child_does_not_have_it(locked: bool) -> None:
    with HypercallBuffer(16, locked=locked) as buffer:
        child = os.fork()
        if child == 0:
            try:
                buffer.read(0, 1)
            except ForkError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nothing_is_left() -> None:
    def left() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), Path("/proc/self/maps").read_text().count(
            "xen/hypercall"
        )

    before = left()
    for locked in (False, True) * 50:
        HypercallBuffer(4096, locked=locked).close()
        HypercallBuffer(4096, locked=locked)
    assert left() == before
