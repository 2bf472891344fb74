"""Tells an HVM guest of virtio-mmio devices: an ACPI table, which xl gives it (`acpi_firmware`).

Linux's driver virtio_mmio knows such a device by the id LNRO0005. The encoding is that of ACPI 6.5, sections
5.2.6 (the header), 6.4 (resources) and 20.2 (AML); `docs/hvm.md` has the table's source.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

HARDWARE_ID = "LNRO0005"
"""Linux, drivers/virtio/virtio_mmio.c: virtio_mmio_acpi_match."""
SIZE = 0x200
"""Bytes of registers: those of virtio-mmio, 0x100, and a config space."""
INPUTS = range(16, 48)
"""The inputs of an HVM guest's I/O APIC that take levels of PCI interrupts (Xen, asm/hvm/irq.h)."""

_SCOPE, _DEVICE, _NAME, _BUFFER = b"\x10", b"\x5b\x82", b"\x08", b"\x11"
_STRING, _WORD = b"\x0d", b"\x0b"
_MEMORY_READ_WRITE = bytes([0x86, 9, 0, 1])
_INTERRUPT = bytes([0x89, 6, 0, 0b0001, 1])
"""Consumed, by its level, active high, not shared; one number follows."""
_END = b"\x79\0"


def acpi_table(devices: Sequence[tuple[int, int]]) -> bytes:
    """A secondary system description table (SSDT) with a virtio-mmio device for each address and interrupt.

    Args:
        devices: for each its ``base``, a guest physical address below 4 GiB where neither RAM nor another
            device is (0xfeb00000 and what follows is free), and its ``irq``, an input of the I/O APIC. They
            are those of :class:`XenGuest`.

    Raises:
        ValueError: an address that does not fit or overlaps another one, an interrupt that does not exist or
            is another one's; no devices, or more than there are interrupts.
    """
    if not 0 < len(devices) <= len(INPUTS):
        raise ValueError(f"{len(devices)} devices: 1 to {len(INPUTS)} are wanted")
    seen: list[tuple[int, int]] = []
    for base, irq in devices:
        if base < 0 or base % 4 or base + SIZE > 1 << 32:
            raise ValueError(f"base {base:#x}: a multiple of 4, {SIZE:#x} bytes below 4 GiB, is wanted")
        if irq not in INPUTS:
            raise ValueError(f"irq {irq}: an input of the I/O APIC is wanted, {INPUTS[0]} to {INPUTS[-1]}")
        for other, taken in seen:
            if abs(other - base) < SIZE:
                raise ValueError(f"base {base:#x}: {SIZE:#x} bytes there overlap those at {other:#x}")
            if irq == taken:
                raise ValueError(f"irq {irq} of {base:#x} is that of {other:#x} already")
        seen.append((base, irq))
    body = b"".join(_device(number, base, irq) for number, (base, irq) in enumerate(devices))
    body = _package(_SCOPE, b"\\_SB_" + body)
    header = struct.pack(
        "<4sIBB6s8sI4sI", b"SSDT", 36 + len(body), 2, 0, b"XENVRT", b"VIRTMMIO", 1, b"XENV", 1
    )
    table = bytearray(header + body)
    table[9] = -sum(table) & 0xFF
    return bytes(table)


def _device(number: int, base: int, irq: int) -> bytes:
    resources = (
        _MEMORY_READ_WRITE + struct.pack("<II", base, SIZE) + _INTERRUPT + struct.pack("<I", irq) + _END
    )
    return _package(
        _DEVICE,
        b"VR%02X" % number
        + _name(b"_HID", _STRING + HARDWARE_ID.encode() + b"\0")
        + _name(b"_UID", _WORD + struct.pack("<H", number))
        + _name(b"_CRS", _package(_BUFFER, _WORD + struct.pack("<H", len(resources)) + resources)),
    )


def _name(name: bytes, value: bytes) -> bytes:
    return _NAME + name + value


def _package(operation: bytes, content: bytes) -> bytes:
    """An operation with its content's length, which counts itself: in one byte, two or three."""
    for more in range(3):
        length = 1 + more + len(content)
        if more == 0 and length < 1 << 6:
            return operation + bytes([length]) + content
        if more and length < 1 << (4 + 8 * more):
            rest = (length >> 4).to_bytes(more, "little")
            return operation + bytes([more << 6 | length & 0xF]) + rest + content
    raise AssertionError("as many as there are interrupts fit")
