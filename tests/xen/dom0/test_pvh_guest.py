"""A Python device serves a PVH guest of x86 whose driver polls: no interrupt line reaches such a guest."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from xenvirt import Server
from xenvirt.devices import BlockDevice
from xenvirt.errors import NegotiationError
from xenvirt.xen import ForeignMemory, IoreqServer, XenGuest

from .bare_guest import BASE, BUFFER, FRAMES, HYPERCALLS, RESULTS, SHARED, BareGuest, Program

pytestmark = pytest.mark.dom0("pv", "pvh")

REGISTERS = 0xD000_0000
MAGIC, VERSION, DEVICE_ID = 0x00, 0x04, 0x08
DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x20, 0x24
QUEUE_SEL, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x30, 0x38, 0x44, 0x50
INTERRUPT_STATUS, STATUS = 0x60, 0x70
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x80, 0x90, 0xA0
"""Registers (virtio 1.3, 4.2.2)."""

DESCRIPTORS, AVAILABLE, USED, HEADER, DONE = (BUFFER + 0x100 * part for part in range(5))
WRITTEN, READ_BACK = HYPERCALLS, SHARED
"""What the guest gives to the device, and what it gets; the pages are not used for what their names say."""
ENDED = 0x5600
"""A write to this port ends the session."""
SECTOR = 512
TIMEOUT = 60.0


def drives_a_disk() -> Program:
    """Writes a sector and reads it, without interrupts; keeps magic, version, device id, status, reasons."""
    program = Program()

    def put(register: int, value: int) -> None:
        program.set(value).write(4, REGISTERS + register)

    def store(address: int, content: bytes) -> None:
        for at in range(0, len(content), 4):
            program.set(int.from_bytes(content[at : at + 4], "little")).write(4, address + at)

    def request(kind: int, data: int, flags: int, number: int) -> None:
        """One of a block device (5.2.6), of sector 3, with the data at an address; waits for its end."""
        store(HEADER, struct.pack("<IIQ", kind, 0, 3))
        chain = ((HEADER, 16, 1, 1), (data, SECTOR, 1 | flags, 2), (DONE, 1, 2, 0))
        store(DESCRIPTORS, b"".join(struct.pack("<QIHH", *one) for one in chain))
        # The first descriptor, in each place of the ring; no interrupts (VIRTQ_AVAIL_F_NO_INTERRUPT is 1).
        store(AVAILABLE, struct.pack("<HHHH", 1, number, 0, 0))
        put(QUEUE_NOTIFY, 0)
        # cmp ax, number; jne to the read
        program.read(2, USED + 2).emit(b"\x66\x3d", struct.pack("<H", number), b"\x75\xf4")

    for register in (MAGIC, VERSION, DEVICE_ID):
        program.read(4, REGISTERS + register).keep(4)
    for status in (0, 1, 3):
        put(STATUS, status)
    for word, features in ((0, 0), (1, 1)):  # VIRTIO_F_VERSION_1 is bit 32
        put(DRIVER_FEATURES_SEL, word)
        put(DRIVER_FEATURES, features)
    put(STATUS, 11)
    put(QUEUE_SEL, 0)
    put(QUEUE_NUM, 4)
    for register, address in ((QUEUE_DESC, DESCRIPTORS), (QUEUE_DRIVER, AVAILABLE), (QUEUE_DEVICE, USED)):
        put(register, address)
    put(QUEUE_READY, 1)
    put(STATUS, 15)
    program.read(4, REGISTERS + STATUS).keep(4)
    store(WRITTEN, b"what a PVH guest keeps: " * 4)
    request(1, WRITTEN, 0, 1)
    request(0, READ_BACK, 2, 2)
    program.read(4, REGISTERS + INTERRUPT_STATUS).keep(4)
    return program.write_port(4, ENDED).stop()


def test_a_driver_that_polls_writes_and_reads_a_sector(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with (
        BareGuest(tmp_path, "polls", drives_a_disk()) as guest,
        BlockDevice(image) as device,
        IoreqServer(guest.domid) as end,
        Server() as server,
    ):
        end.map_ports(ENDED, 4)
        disk = server.add(device, XenGuest(guest.domid, base=REGISTERS))
        guest.unpause()
        wait_for_the_end(end)
        assert disk.counters.chains == 2
        with ForeignMemory() as foreign, foreign.map(guest.domid, FRAMES) as memory:
            results = memory.read(RESULTS - BASE, 40)
            back = memory.read(READ_BACK - BASE, SECTOR)
    magic, version, device_id, status, reasons = (value for value, _ in struct.iter_unpack("<II", results))
    assert (magic.to_bytes(4, "little"), version, device_id, status) == (b"virt", 2, 2, 15)
    assert reasons == 0, "nobody was to be interrupted"
    assert back.rstrip(b"\0") == b"what a PVH guest keeps: " * 4
    assert image.read_bytes()[3 * SECTOR : 4 * SECTOR] == back


def wait_for_the_end(end: IoreqServer) -> None:
    while requests := end.requests(TIMEOUT):
        for request in requests:
            if request.kind == "port":
                return
            request.answer()
    raise TimeoutError(f"the guest did not end in {TIMEOUT} s")


def test_an_interrupt_is_refused_before_xen_is_asked_for_it(tmp_path: Path) -> None:
    """A PVH guest has no I/O APIC; what raises interrupts of an HVM guest there is not to be tried on it."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with (
        BareGuest(tmp_path, "refused", Program().stop()) as guest,
        BlockDevice(image) as device,
        Server() as server,
    ):
        for hvm in (False, True):
            with pytest.raises(
                NegotiationError, match=r"irq=40: domain \d+ is a PVH guest and has no I/O APIC"
            ):
                server.add(device, XenGuest(guest.domid, base=REGISTERS, irq=40, hvm=hvm))
