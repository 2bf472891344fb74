"""Device model operations on Xen, real or simulated: interrupts that arrive, and what is refused in words."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirt.errors import ForkError, XenCallError
from xenvirt.testing import SimulatedXen
from xenvirt.xen import DeviceModel, IoreqServer, IoRequest

from .bare_guest import BareGuest, Program
from .linux_guest import LinuxGuest

pytestmark = pytest.mark.hypervisor("pv", "pvh", "aarch64")

TIMEOUT = 60.0
NO_DOMAIN, NO_SERVER = 0x7000, 7
DONE = 0x5600
VECTOR = 0x41
LAPIC = 0xFEE0_0000
SPURIOUS, REQUESTED = LAPIC + 0xF0, LAPIC + 0x200 + 0x10 * (VECTOR // 32)
"""Registers of the local APIC: SVR, whose bit 8 enables it, and the IRR of the vector."""


@pytest.fixture(scope="module")
def domid(
    hypervisor: SimulatedXen | None, tmp_path_factory: pytest.TempPathFactory, dom0: str
) -> Iterator[int]:
    """A domain that is not PV, and does not run."""
    if hypervisor is not None:
        yield hypervisor.create_domain().domid
    elif dom0 == "aarch64":
        with LinuxGuest("true") as linux:
            yield linux.domid
    else:
        with BareGuest(tmp_path_factory.mktemp("model"), "model", Program().stop()) as bare:
            yield bare.domid


def test_vcpus_are_counted(hypervisor: SimulatedXen | None, domid: int) -> None:
    with DeviceModel(domid, hypervisor=hypervisor) as model:
        assert (model.domid, model.vcpus()) == (domid, 1)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (DeviceModel.vcpus, "counting the vCPUs"),
        (DeviceModel.create_ioreq_server, "making an IOREQ server"),
        (lambda model: model.map_memory(NO_SERVER, 0x1000, 0x100), "giving memory 0x1000 to 0x10ff"),
        (lambda model: model.set_ioreq_server_state(NO_SERVER, True), "enabling IOREQ server 7"),
    ],
)
def test_a_domain_that_is_not_there_is_named(
    hypervisor: SimulatedXen | None, call: Callable[[DeviceModel], object], what: str
) -> None:
    with DeviceModel(NO_DOMAIN, hypervisor=hypervisor) as model:
        with pytest.raises(XenCallError, match=rf"{what}.* of domain 28672: .*no such domain") as caught:
            call(model)
        assert caught.value.errno == errno.ESRCH


def test_dom0_is_no_device_model_of_itself(hypervisor: SimulatedXen | None) -> None:
    with DeviceModel(0, hypervisor=hypervisor) as model, pytest.raises(XenCallError, match="of domain 0"):
        model.create_ioreq_server()


def test_a_server_that_is_not_there_is_refused(hypervisor: SimulatedXen | None, domid: int) -> None:
    with DeviceModel(domid, hypervisor=hypervisor) as model:
        with pytest.raises(XenCallError, match="ending IOREQ server 7"):
            model.destroy_ioreq_server(NO_SERVER)
        with pytest.raises(XenCallError, match="disabling IOREQ server 7"):
            model.set_ioreq_server_state(NO_SERVER, False)
        with pytest.raises(XenCallError, match="memory 0x1000 to 0x10ff to IOREQ server 7"):
            model.map_memory(NO_SERVER, 0x1000, 0x100)
        with pytest.raises(XenCallError, match="memory 0x1000 to 0x10ff from IOREQ server 7"):
            model.unmap_memory(NO_SERVER, 0x1000, 0x100)


def test_a_domain_has_eight_servers(hypervisor: SimulatedXen | None, domid: int) -> None:
    with DeviceModel(domid, hypervisor=hypervisor) as model:
        servers = [model.create_ioreq_server() for _ in range(8)]
        try:
            assert len(set(servers)) == 8
            with pytest.raises(XenCallError, match="making an IOREQ server") as caught:
                IoreqServer(domid, hypervisor=hypervisor)
            assert caught.value.errno == errno.ENOSPC
        finally:
            for server in servers:
                model.destroy_ioreq_server(server)
    with IoreqServer(domid, hypervisor=hypervisor):
        pass


def test_interrupts_of_the_other_architecture_are_refused(
    hypervisor: SimulatedXen | None, domid: int, dom0: str
) -> None:
    with DeviceModel(domid, hypervisor=hypervisor) as model:
        call = model.inject_msi if dom0 == "aarch64" else model.set_irq_level
        with pytest.raises(XenCallError, match="this Xen or this kernel does not have it") as caught:
            call(33, True)
        assert caught.value.errno == errno.EOPNOTSUPP


def test_an_isa_interrupt_wants_an_hvm_domain(hypervisor: SimulatedXen | None, domid: int) -> None:
    """It is not tried on this one: for a PVH domain Xen 4.17 panics."""
    with (
        DeviceModel(domid, hypervisor=hypervisor) as model,
        pytest.raises(ValueError, match=r"Xen 4\.17 panics"),
    ):
        model.set_isa_irq_level(5, True, hvm=False)


@pytest.mark.hypervisor("aarch64")
def test_an_interrupt_that_is_not_there_is_refused(hypervisor: SimulatedXen | None, domid: int) -> None:
    with DeviceModel(domid, hypervisor=hypervisor) as model:
        for irq in (31, 5000):  # one that is not shared; none
            with pytest.raises(XenCallError, match=f"raising interrupt {irq}"):
                model.set_irq_level(irq, True)


def waits_for_the_message() -> Program:
    program = Program().set(0x1FF).write(4, SPURIOUS)
    program.write_port(1, DONE)
    program.read(4, REQUESTED).emit(b"\x85\xc0\x74\xf7")  # test eax, eax; jz to the read
    return program.write_port(4, DONE).stop()


@pytest.mark.dom0("pv", "pvh")
@pytest.mark.parametrize("way", ["call", "eventfd"])
def test_a_message_arrives(tmp_path: Path, way: str) -> None:
    """By the call, and by an eventfd: Debian's kernel does not raise it, so that it is ours to deliver."""
    with (
        BareGuest(tmp_path, "message", waits_for_the_message()) as guest,
        IoreqServer(guest.domid) as server,
        DeviceModel(guest.domid) as model,
    ):
        server.map_ports(DONE, 4)
        guest.unpause()
        [ready] = wait_for_writes(server)
        ready.answer()
        assert server.requests() == []
        if way == "call":
            model.inject_msi(LAPIC, VECTOR)
        else:
            assert model.eventfd_support == "nothing"
            with model.msi_fd(LAPIC, VECTOR) as message:
                assert not message.in_kernel
                message.deliver()
                assert server.requests() == []
                os.write(message.fileno(), struct.pack("<Q", 1))
                message.deliver()
        [arrived] = wait_for_writes(server)
        assert (arrived.address, arrived.size, arrived.value) == (DONE, 4, 1 << VECTOR % 32)
        arrived.answer()


def wait_for_writes(server: IoreqServer) -> list[IoRequest]:
    """The next requests that are about ports; others are answered."""
    while requests := server.requests(TIMEOUT):
        ports = [one for one in requests if one.kind == "port"]
        for one in requests:
            if one not in ports:
                one.answer()
        if ports:
            return ports
    raise TimeoutError(f"no request in {TIMEOUT} s")


@pytest.mark.hypervisor("pv", "pvh")
def test_a_kernel_without_eventfds_leaves_kicks_to_us(hypervisor: SimulatedXen | None, domid: int) -> None:
    with IoreqServer(domid, hypervisor=hypervisor) as server:
        assert server.eventfd_support == "nothing"
        kick = os.eventfd(0)
        try:
            assert server.kick_in_kernel(0x200_0000, 0, kick) is False
            server.kick_no_longer(0x200_0000, 0)
        finally:
            os.close(kick)


def test_a_child_does_not_have_it(hypervisor: SimulatedXen | None, domid: int) -> None:
    with DeviceModel(domid, hypervisor=hypervisor) as model:
        child = os.fork()
        if child == 0:
            try:
                model.vcpus()
            except ForkError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
