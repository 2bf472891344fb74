"""rust-vmm's own daemons, in processes of their own, serve Linux domUs: by foreign memory and by grants."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from xenvirt import Daemon, DeviceId, RemoteDevice, Server, _native
from xenvirt.errors import DisconnectedError
from xenvirt.xen import GrantAllocator, GrantShare, XenGuest

from . import daemons
from .device_tree import MmioDevice
from .granted_ring import (
    AVAILABLE,
    DOM0,
    GRANT,
    GRANT_ADDRESS,
    NOT_IN_ADVANCE,
    PAGE,
    SHARED,
    SIZE,
    USED,
    address,
    choose,
    offer,
    wait_for,
)
from .linux_guest import LinuxGuest

pytestmark = pytest.mark.dom0("aarch64")

BASE, IRQ = 0x200_0000, 33
PORT = 12345
BOTH_MEMORIES = pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])


@pytest.fixture
def root(request: pytest.FixtureRequest) -> Path:
    return request.config.rootpath


@BOTH_MEMORIES
def test_rust_vmms_entropy_reaches_the_guest(root: Path, grants: bool) -> None:
    device = MmioDevice(BASE, IRQ, grants=grants)
    script = """
        cat /sys/class/misc/hw_random/rng_current
        head -c 32 /dev/hwrng | od -An -tx1
        echo got $(head -c 512 /dev/hwrng | wc -c)
        read line < /dev/hvc0
        cd /sys/bus/virtio/drivers/virtio_rng
        echo virtio0 > unbind
        echo virtio0 > bind
        echo again $(head -c 256 /dev/hwrng | wc -c)
        echo in use: $(dmesg | grep -c "still in use")
    """
    with daemons.rng(root) as daemon, LinuxGuest(script, devices=[device]) as guest, Server() as server:
        remote = RemoteDevice(daemon.socket, DeviceId.ENTROPY)
        served = server.add(remote, XenGuest(guest.domid, base=BASE, irq=IRQ))
        guest.unpause()
        said = guest.wait_for("(?s)virtio_rng.*got 512").group()
        assert len(set(re.findall(r"\b[0-9a-f]{2}\b", said))) > 8
        assert served.counters.chains == 0, "not a request went through this process"
        assert served.counters.calls > 0
        guest.send("on")
        if not grants:
            guest.wait_for("again 256\nin use: 0")
            return
        # vm-memory 0.12 closes /dev/xen/gntdev before it unmaps the rings, and unwraps what the kernel says
        # to that. The guest finds its grants in use.
        daemon.wait_for_output("panicked at .*vm-memory-0.12.*\n.*Bad file descriptor", 60)
        guest.wait_for("again 0\nin use: [1-9]")


@BOTH_MEMORIES
def test_rust_vmms_console_carries_lines_both_ways(root: Path, grants: bool) -> None:
    """Four queues, two of them with messages of the control plane."""
    device = MmioDevice(BASE, IRQ, grants=grants)
    script = """
        cat /sys/class/virtio-ports/*/name
        exec 3<>/dev/hvc1
        stty raw -echo <&3
        echo first line >&3
        echo typed: $(dd bs=1 count=1 <&3 2>/dev/null)
        echo second line >&3
        echo done
        read line < /dev/hvc0
    """
    with (
        daemons.console(root, port=PORT) as daemon,
        LinuxGuest(script, devices=[device]) as guest,
        Server() as server,
    ):
        remote = RemoteDevice(daemon.socket, DeviceId.CONSOLE)
        served = server.add(remote, XenGuest(guest.domid, base=BASE, irq=IRQ))
        guest.unpause()
        with socket.create_connection(("127.0.0.1", PORT), 60) as host:
            assert line_of(host) == b"first line"
            host.sendall(b"x")
            guest.wait_for("(?s)org.test.foo!.*\ntyped: x\n")
            assert line_of(host) == b"second line"
        guest.wait_for("done")
        assert served.counters.errors == 0


def line_of(host: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = host.recv(64)
        assert part, f"the end after {data!r}"
        data += part
    return data.rstrip()


def test_rust_vmms_entropy_is_dead_after_a_reference_that_nobody_granted(root: Path) -> None:
    """vm-memory unwraps what the kernel answers: the thread of the rings panics. The process lives on until
    the next message, which aborts it. dom0 is the guest here, and grants to itself: Linux as a guest makes no
    such mistake, a hostile one does."""
    gntdev = os.open("/dev/xen/gntdev", os.O_RDWR | os.O_CLOEXEC)
    kick, call = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
    with daemons.rng(root) as daemon, GrantAllocator() as allocator, allocator.share(DOM0, SHARED) as share:
        frontend = granted(daemon.socket, share, gntdev, kick, call)
        pages = choose(share)
        buffer = address(share, pages.first)
        offer(share, pages.ring, 0, buffer + PAGE - 64, 128)
        os.eventfd_write(kick, 1)
        wait_for(share, pages.ring, 1)
        assert any(share.read(pages.second * PAGE, 64))
        offer(share, pages.ring, 1, buffer + 1000 * PAGE, 64)
        os.eventfd_write(kick, 1)
        said = daemon.wait_for_output(r"panicked at .*vm-memory.*\n.*", 60)
        assert "Result::unwrap" in said.group()
        with pytest.raises(DisconnectedError):
            frontend.barrier()
        frontend.close()
        assert daemon.wait(60) == -signal.SIGABRT
    for fd in gntdev, kick, call:
        os.close(fd)


def granted(path: str, share: GrantShare, gntdev: int, kick: int, call: int) -> _native.Frontend:
    """A connection whose only queue runs, with all that is granted behind it."""
    frontend = _native.Frontend(path, timeout=60)
    frontend.set_features(frontend.offered_features & (1 << 32 | 1 << 30))
    pages = choose(share)
    ring, buffer = address(share, pages.ring), address(share, pages.first)
    regions = [(ring, PAGE, GRANT), (buffer, (GRANT_ADDRESS + (PAGE << 32)) - buffer, GRANT | NOT_IN_ADVANCE)]
    frontend.set_memory(
        [
            _native.SharedRegion(gntdev, at, size, xen_flags=flags, xen_domain=DOM0)
            for at, size, flags in regions
        ]
    )
    frontend.set_queue(
        0, SIZE, descriptors=ring, available=ring + AVAILABLE, used=ring + USED, kick=kick, call=call
    )
    frontend.enable_queue(0)
    return frontend


def test_a_daemon_that_tries_another_domain_is_refused(root: Path, guest: int) -> None:
    """What it is given is restricted to its guest: every other way out of it ends in EPERM."""
    command = (sys.executable, "-m", "tests.xen.dom0.trying_daemon", "{socket}", str(guest))
    script = "echo up; read line < /dev/hvc0"
    with (
        Daemon(
            *command, env={"PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}, timeout=60
        ) as daemon,
        LinuxGuest(script, devices=[MmioDevice(BASE, IRQ)]) as served,
        Server() as server,
    ):
        remote = RemoteDevice(daemon.socket, DeviceId.ENTROPY)
        server.add(remote, XenGuest(served.domid, base=BASE, irq=IRQ))
        served.unpause()
        daemon.wait_for_output("end of attempts", 120)
        assert daemon.output().splitlines() == [
            "map its own guest 0",
            "map another guest EPERM",
            "map dom0 EPERM",
            "restrict to another guest EINVAL",
            "hypercall EPERM",
            "device model EPERM",
            "end of attempts",
        ]
