"""The ACPI table that tells an HVM guest of virtio-mmio devices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xenvirt.cli import main
from xenvirt.xen import acpi_table

ONE = (
    b"SSDT" + (107).to_bytes(4, "little") + b"\x02\xddXENVRTVIRTMMIO\x01\0\0\0XENV\x01\0\0\0"
    b"\x10\x46\x04\\_SB_\x5b\x82\x3dVR00"
    b"\x08_HID\x0dLNRO0005\0"
    b"\x08_UID\x0b\0\0"
    b"\x08_CRS\x11\x1b\x0b\x17\0"
    b"\x86\x09\0\x01\0\0\xb0\xfe\0\x02\0\0"
    b"\x89\x06\0\x01\x01\x28\0\0\0"
    b"\x79\0"
)
"""ACPI 6.5: header (5.2.6), scope (20.2.5.1), device (20.2.5.2), its resources (6.4.3.4, 6.4.3.6)."""


def test_a_table_has_the_bytes_of_the_specification() -> None:
    assert acpi_table([(0xFEB0_0000, 40)]) == ONE
    assert sum(ONE) % 256 == 0


@pytest.mark.parametrize("count", [1, 2, 20, 32])
def test_lengths_are_right_whatever_they_are(count: int) -> None:
    """A package's length takes one byte, two, or three."""
    table = acpi_table([(0xFEB0_0000 + 0x200 * index, 16 + index) for index in range(count)])
    assert len(table) == int.from_bytes(table[4:8], "little")
    assert sum(table) % 256 == 0
    assert re.findall(rb"VR([0-9A-F]{2})", table) == [b"%02X" % index for index in range(count)]


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([], "0 devices: 1 to 32 are wanted"),
        ([(0xFEB0_0002, 40)], "base 0xfeb00002: a multiple of 4"),
        ([(0xFFFF_FE04, 40)], "0x200 bytes below 4 GiB"),
        ([(-4, 40)], "base -0x4"),
        ([(0xFEB0_0000, 15)], "irq 15: an input of the I/O APIC is wanted, 16 to 47"),
        ([(0xFEB0_0000, 48)], "irq 48"),
        ([(0xFEB0_0000, 40), (0xFEB0_01FC, 41)], "0xfeb001fc: 0x200 bytes there overlap those at 0xfeb00000"),
        ([(0xFEB0_0000, 40), (0xFEB0_0200, 40)], "irq 40 of 0xfeb00200 is that of 0xfeb00000 already"),
    ],
)
def test_what_cannot_be_is_refused_in_words(devices: list[tuple[int, int]], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        acpi_table(devices)


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "virtio.aml"
    assert main(["acpi", "0xfeb00000:40", "-o", str(table)]) == 0
    assert table.read_bytes() == ONE
    assert main(["acpi", "0xfeb00000:4", "-o", str(table)]) == 1
    assert "irq 4: an input of the I/O APIC is wanted" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["acpi", "0xfeb00000", "-o", str(table)])
    assert "0xfeb00000: BASE:IRQ is wanted" in capsys.readouterr().err
