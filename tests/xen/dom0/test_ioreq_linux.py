"""An IOREQ server for a Linux guest on aarch64, moved by devmem; and eventfds that the kernel serves."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable

import pytest

from xenvirt.errors import XenCallError
from xenvirt.xen import DeviceModel, IoreqServer, IoRequest

from .device_tree import MmioDevice
from .linux_guest import LinuxGuest

pytestmark = pytest.mark.dom0("aarch64")

TIMEOUT = 60.0
REGISTERS, SIZE = 0x200_0000, 0x200
INTERRUPT = 33
QUEUE_NOTIFY, INTERRUPT_STATUS = REGISTERS + 0x50, REGISTERS + 0x60


def serve(
    server: IoreqServer, read: Callable[[IoRequest], int], until: Callable[[IoRequest], bool]
) -> list[IoRequest]:
    """Answers what is asked, up to the first request that ends it, which is answered too; gives all."""
    seen: list[IoRequest] = []
    while requests := server.requests(TIMEOUT):
        for request in requests:
            seen.append(request)
            request.answer(read(request) if request.is_read else 0)
        if any(map(until, requests)):
            return seen
    raise TimeoutError(f"no request in {TIMEOUT} s; so far {seen}")


def is_done(request: IoRequest) -> bool:
    return request.address == REGISTERS + 0x1FC and not request.is_read


def memory(requests: list[IoRequest]) -> list[tuple[int, int, int, int | None]]:
    """vCPU, offset, size, and the value of a write."""
    return [
        (one.vcpu, one.address - REGISTERS, one.size, one.value) for one in requests if one.kind == "memory"
    ]


def test_two_vcpus_read_and_write_in_every_size() -> None:
    script = f"""
        for cpu in 0 1; do
            for size in 8 16 32 64; do
                echo "cpu $cpu $size: $(taskset $((1 + cpu)) devmem $(({REGISTERS} + size)) $size)"
                taskset $((1 + cpu)) devmem $(({REGISTERS} + size)) $size 0x8765432112345678
            done
        done
        devmem $(({REGISTERS} + 0x1fc)) 32 1
        echo done
    """
    with LinuxGuest(script, processors=2) as guest, IoreqServer(guest.domid) as server:
        assert server.vcpus == 2
        server.map_memory(REGISTERS, SIZE)
        guest.unpause()
        seen = serve(server, lambda one: 0xFEDC_BA98_7654_3210 + one.vcpu, is_done)
        guest.wait_for("\ndone")
        for vcpu in (0, 1):
            for size in (8, 16, 32, 64):
                value = (0xFEDC_BA98_7654_3210 + vcpu) & (1 << size) - 1
                assert f"cpu {vcpu} {size}: 0x{value:0{size // 4}X}" in guest.console
    wanted = [
        (vcpu, size, size // 8, value)
        for vcpu in (0, 1)
        for size in (8, 16, 32, 64)
        for value in (None, 0x8765_4321_1234_5678 & (1 << size) - 1)
    ]
    assert memory(seen)[:-1] == wanted
    assert all(one.count == 1 and one.data_address is None for one in seen if one.kind == "memory")


def test_the_page_is_not_to_be_had_as_a_frame() -> None:
    with LinuxGuest("true") as guest, pytest.raises(XenCallError, match="asking for the frame"):
        IoreqServer(guest.domid, page="frame")


def test_the_kernel_signals_kicks_of_the_queue_that_was_given_and_no_others() -> None:
    """A kick of queue 0 does not come as a request; one of another queue, or of another size, does."""
    script = f"""
        devmem {QUEUE_NOTIFY} 32 0
        devmem {QUEUE_NOTIFY} 32 1
        devmem {QUEUE_NOTIFY} 16 0
        devmem {QUEUE_NOTIFY} 32 0
        devmem $(({REGISTERS} + 0x1fc)) 32 1
        read line < /dev/hvc0
        devmem {QUEUE_NOTIFY} 32 0
        devmem $(({REGISTERS} + 0x1fc)) 32 2
        echo done
    """
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        with LinuxGuest(script, processors=2) as guest, IoreqServer(guest.domid) as server:
            assert server.eventfd_support == "both"
            server.map_memory(REGISTERS, SIZE)
            assert server.kick_in_kernel(REGISTERS, 0, kick) is True
            guest.unpause()
            seen = memory(serve(server, lambda _: 0, is_done))
            assert [one[1:] for one in seen] == [(0x50, 4, 1), (0x50, 2, 0), (0x1FC, 4, 1)]
            assert os.eventfd_read(kick) == 2
            server.kick_no_longer(REGISTERS, 0)
            guest.send("go on")
            seen = memory(serve(server, lambda _: 0, is_done))
            assert [one[1:] for one in seen] == [(0x50, 4, 0), (0x1FC, 4, 2)]
            with pytest.raises(BlockingIOError):
                os.eventfd_read(kick)
            guest.wait_for("\ndone")
            assert server.kick_in_kernel(REGISTERS, 0, kick) is True  # the server takes it back at the end
    finally:
        os.close(kick)


RANDOM = {0x00: 0x7472_6976, 0x04: 2, 0x08: 4, 0x0C: 0x5845, 0x34: 64, 0xFC: 0}
"""Registers of an entropy device (virtio 1.3, 4.2.2): magic, version, id, vendor, the queue's size."""


class RandomDevice:
    """As much of an entropy device as Linux wants before it waits for its first interrupt."""

    def __init__(self) -> None:
        self.status = 0
        self.features_page = 0
        self.interrupts = 0

    def handle(self, request: IoRequest) -> None:
        offset = request.address - REGISTERS
        if request.value is not None:
            if offset == 0x70:
                self.status = request.value
            elif offset == 0x14:
                self.features_page = request.value
            request.answer()
        elif offset == 0x70:
            request.answer(self.status)
        elif offset == 0x10:
            request.answer(1 if self.features_page else 0)  # VERSION_1
        elif offset == 0x60:
            self.interrupts += 1
            request.answer(1)
        else:
            request.answer(RANDOM.get(offset, 0))


@pytest.mark.parametrize("way", ["eventfd", "call"])
def test_an_interrupt_arrives_when_the_driver_kicks(way: str) -> None:
    """The driver kicks its queue, as our kernel signals, and reads the status when an interrupt arrives."""
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    devices = [MmioDevice(REGISTERS, INTERRUPT)]
    try:
        with (
            LinuxGuest("dd if=/dev/hwrng of=/dev/null bs=16 count=1", devices=devices) as guest,
            IoreqServer(guest.domid) as server,
            DeviceModel(guest.domid) as model,
            model.irq_fd(INTERRUPT) as interrupt,
        ):
            assert interrupt.in_kernel
            server.map_memory(REGISTERS, SIZE)
            assert server.kick_in_kernel(REGISTERS, 0, kick)
            device = RandomDevice()
            guest.unpause()
            kicks = 0
            while not device.interrupts:
                ready, _, _ = select.select([server.fileno(), kick], [], [], TIMEOUT)
                assert ready, f"nothing in {TIMEOUT} s; {kicks} kicks\n{guest.console}"
                for request in server.requests():
                    assert request.address != QUEUE_NOTIFY
                    device.handle(request)
                if kick in ready:
                    kicks += os.eventfd_read(kick)
                    if way == "eventfd":
                        os.write(interrupt.fileno(), struct.pack("<Q", 1))
                    else:
                        model.set_irq_level(INTERRUPT, True)
            assert kicks == 1
    finally:
        os.close(kick)
