"""Event channels on Xen, real or simulated: dom0 with itself and with a domU, both ways."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from pathlib import Path

import pytest

from xenvirt.errors import ForkError, XenCallError
from xenvirt.testing import SimulatedXen
from xenvirt.xen import EventChannels, ForeignMemory

from .bare_guest import BASE, BUFFER, FRAMES, SHARED, BareGuest, Program
from .linux_guest import LinuxGuest
from .linux_program import LinuxProgram

pytestmark = pytest.mark.hypervisor("pv", "pvh", "aarch64")

DOM0 = 0
TIMEOUT = 60.0
VIRQ_TBUF = 4
"""The virtual interrupt of Xen's trace buffer, which nobody here has."""
NO_PORT = 1_000_000


def pair(first: EventChannels, second: EventChannels) -> tuple[int, int]:
    """A channel between two files of dom0, both ends quiet."""
    one = first.bind_unbound(DOM0)
    other = second.bind_interdomain(DOM0, one)
    assert second.pending(TIMEOUT) == [other]  # by the binding
    second.unmask(other)
    return one, other


def test_dom0_wakes_itself_both_ways(hypervisor: SimulatedXen | None) -> None:
    with EventChannels(hypervisor=hypervisor) as first, EventChannels(hypervisor=hypervisor) as second:
        one, other = pair(first, second)
        for _ in range(3):
            first.notify(one)
            assert second.pending(TIMEOUT) == [other]
            second.unmask(other)
            second.notify(other)
            assert first.pending(TIMEOUT) == [one]
            first.unmask(one)
        assert (first.pending(), second.pending()) == ([], [])


def test_what_comes_while_a_port_is_masked_is_told_after_it(hypervisor: SimulatedXen | None) -> None:
    with EventChannels(hypervisor=hypervisor) as first, EventChannels(hypervisor=hypervisor) as second:
        one, other = pair(first, second)
        first.notify(one)
        first.notify(one)
        assert second.pending(TIMEOUT) == [other]
        first.notify(one)
        first.notify(one)
        assert second.pending() == []
        second.unmask(other)
        assert second.pending(TIMEOUT) == [other]
        second.unmask(other)
        second.unmask(other)
        second.unmask(NO_PORT)
        assert second.pending() == []


def test_several_ports_are_told_together(hypervisor: SimulatedXen | None) -> None:
    with EventChannels(hypervisor=hypervisor) as first, EventChannels(hypervisor=hypervisor) as second:
        pairs = [pair(first, second) for _ in range(5)]
        for one, _ in pairs:
            first.notify(one)
        told: list[int] = []
        while len(told) < len(pairs):
            told += second.pending(TIMEOUT)
        assert sorted(told) == sorted(other for _, other in pairs)


def test_asyncio_waits_for_the_descriptor(hypervisor: SimulatedXen | None) -> None:
    async def ping_pong(first: EventChannels, second: EventChannels) -> list[int]:
        one, other = pair(first, second)
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[int] = asyncio.Queue()

        def ready() -> None:
            for port in second.pending():
                told.put_nowait(port)
                second.unmask(port)

        loop.add_reader(second.fileno(), ready)
        seen = []
        for _ in range(3):
            first.notify(one)
            seen.append(await asyncio.wait_for(told.get(), TIMEOUT) - other)
        loop.remove_reader(second.fileno())
        return seen

    with EventChannels(hypervisor=hypervisor) as first, EventChannels(hypervisor=hypervisor) as second:
        assert asyncio.run(ping_pong(first, second)) == [0, 0, 0]


def test_a_port_that_is_not_bound_here_is_refused(hypervisor: SimulatedXen | None) -> None:
    with EventChannels(hypervisor=hypervisor) as first, EventChannels(hypervisor=hypervisor) as second:
        one, _ = pair(first, second)
        for call in (second.notify, second.unbind):
            with pytest.raises(XenCallError, match=rf"port {one}: .*no such port is bound here") as caught:
                call(one)
            assert caught.value.errno == errno.ENOTCONN
        first.unbind(one)
        with pytest.raises(XenCallError, match="no such port"):
            first.notify(one)


def test_what_xen_refuses_names_what_was_asked(hypervisor: SimulatedXen | None) -> None:
    with EventChannels(hypervisor=hypervisor) as channels:
        with pytest.raises(XenCallError, match=r"port 1 of domain 28672: .*no such domain") as caught:
            channels.bind_interdomain(0x7000, 1)
        assert caught.value.errno == errno.ESRCH
        with pytest.raises(XenCallError, match=f"binding to port {NO_PORT} of domain 0") as caught:
            channels.bind_interdomain(DOM0, NO_PORT)
        assert caught.value.errno == errno.EINVAL


def test_a_virtual_interrupt_has_one_port(hypervisor: SimulatedXen | None) -> None:
    with EventChannels(hypervisor=hypervisor) as channels, EventChannels(hypervisor=hypervisor) as other:
        assert channels.bind_virq(VIRQ_TBUF) > 0
        with pytest.raises(XenCallError, match="virtual interrupt 4") as caught:
            other.bind_virq(VIRQ_TBUF)
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(XenCallError, match="virtual interrupt 99"):
            channels.bind_virq(99)
    with EventChannels(hypervisor=hypervisor) as channels:
        channels.bind_virq(VIRQ_TBUF)


def test_closing_takes_the_ports_along(hypervisor: SimulatedXen | None) -> None:
    with EventChannels(hypervisor=hypervisor) as first:
        with EventChannels(hypervisor=hypervisor) as second:
            one, _ = pair(first, second)
        first.notify(one)  # to nobody
        with EventChannels(hypervisor=hypervisor) as third, pytest.raises(XenCallError):
            third.notify(one)
        with pytest.raises(ValueError, match="closed"):
            second.pending()


def test_a_child_does_not_have_them(hypervisor: SimulatedXen | None) -> None:
    with EventChannels(hypervisor=hypervisor) as first, EventChannels(hypervisor=hypervisor) as second:
        one, other = pair(first, second)
        first.notify(one)
        child = os.fork()
        if child == 0:
            try:
                second.pending()
            except ForkError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert second.pending(TIMEOUT) == [other]


GUESTS_PORT, EVENT_LEFT = BUFFER, BUFFER + 0x100
"""Where a guest finds the port in dom0, and where Xen puts its own."""
EVENT_CHANNEL_OP, MEMORY_OP, BIND_INTERDOMAIN, SEND, ADD_TO_PHYSMAP = 32, 12, 0, 4, 7
PENDING = SHARED + 0x800
"""evtchn_pending in struct shared_info of a 32-bit domain."""


def echo_of_bare_guest() -> Program:
    """Binds to dom0's port, notifies, waits to be notified, notifies again."""
    program = Program().enable_hypercalls()
    add = BUFFER + 0x80
    for offset, value in enumerate([0x7FF0, 0, 0, SHARED >> 12]):  # DOMID_SELF, XENMAPSPACE_shared_info
        program.set(value).write(4, add + 4 * offset)
    program.hypercall(MEMORY_OP, ADD_TO_PHYSMAP, add)
    # struct evtchn_bind_interdomain {u16 domain; u32 port; u32 OUT local_port} is there but for the last
    program.hypercall(EVENT_CHANNEL_OP, BIND_INTERDOMAIN, GUESTS_PORT)
    program.read(4, GUESTS_PORT + 8).write(4, EVENT_LEFT)
    program.emit(b"\x8b\x0d", struct.pack("<I", EVENT_LEFT))  # mov ecx, [port]
    program.emit(b"\xf0\x0f\xb3\x0d", struct.pack("<I", PENDING))  # lock btr [pending], ecx: by the binding
    program.hypercall(EVENT_CHANNEL_OP, SEND, EVENT_LEFT)
    program.emit(b"\x8b\x0d", struct.pack("<I", EVENT_LEFT))
    program.emit(b"\xf3\x90\x0f\xa3\x0d", struct.pack("<I", PENDING), b"\x73\xf5")  # pause; bt; jnc back
    return program.hypercall(EVENT_CHANNEL_OP, SEND, EVENT_LEFT).stop()


@pytest.mark.dom0("pv", "pvh")
def test_a_bare_guest_and_dom0_wake_each_other(tmp_path: Path) -> None:
    with (
        BareGuest(tmp_path, "echo", echo_of_bare_guest()) as guest,
        ForeignMemory() as foreign,
        EventChannels() as channels,
    ):
        port = channels.bind_unbound(guest.domid)
        with foreign.map(guest.domid, FRAMES[:3], writable=True) as memory:
            memory.write(GUESTS_PORT - BASE, struct.pack("<III", DOM0, port, 0))
        assert channels.pending() == []
        guest.unpause()
        assert channels.pending(TIMEOUT) == [port]
        channels.unmask(port)
        assert channels.pending() == []
        channels.notify(port)
        assert channels.pending(TIMEOUT) == [port]


def echo_of_linux_guest() -> LinuxProgram:
    """The same, by /dev/xen/evtchn of the guest; the port is in /port."""
    program = LinuxProgram()
    bind, port, told = program.room(8), program.room(4), program.room(4)
    program.open("/port", os.O_RDONLY).read(3, bind + 4, 4)
    program.open("/dev/xen/evtchn", os.O_RDWR).ioctl(4, 0x0008_4501, bind).keep(port)
    program.read(4, told, 4).write(4, port, 4)  # by the binding
    program.ioctl(4, 0x0004_4504, port).read(4, told, 4).ioctl(4, 0x0004_4504, port)
    return program.exit()


@pytest.mark.dom0("aarch64")
def test_a_linux_guest_and_dom0_wake_each_other() -> None:
    script = 'echo ready; read line < /dev/hvc0; printf "$line" > /port; /echo; echo "ended with $?"'
    with (
        LinuxGuest(script, files={"/echo": echo_of_linux_guest().elf()}) as guest,
        EventChannels() as channels,
    ):
        port = channels.bind_unbound(guest.domid)
        guest.unpause()
        guest.wait_for("ready")
        guest.send("".join(f"\\{byte:03o}" for byte in struct.pack("<I", port)).replace("\\", "\\\\"))
        assert channels.pending(TIMEOUT) == [port]
        channels.unmask(port)
        assert channels.pending() == []
        channels.notify(port)
        assert channels.pending(TIMEOUT) == [port]
        guest.wait_for("ended with 0")
        assert guest.domid > 0


def test_a_restricted_file_binds_no_other_domain(hypervisor: SimulatedXen | None) -> None:
    some_domain = 0x123
    with EventChannels(hypervisor=hypervisor) as channels:
        channels.restrict(some_domain)
        with pytest.raises(XenCallError, match="making a port for domain 0") as caught:
            channels.bind_unbound(DOM0)
        assert caught.value.errno == errno.EACCES
        with pytest.raises(XenCallError) as caught:
            channels.bind_virq(VIRQ_TBUF)
        assert caught.value.errno == errno.EACCES
        with pytest.raises(XenCallError, match="restricting event channels to domain 292"):
            channels.restrict(some_domain + 1)
