"""ACPI's own compiler reads our table, and makes the same of the source that the documentation shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from xenvirt.xen import acpi_table

pytestmark = pytest.mark.skipif(shutil.which("iasl") is None, reason="no iasl: apt install acpica-tools")

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "hvm.md"


def disassembled(table: bytes, folder: Path) -> str:
    """The source of a table, without comments."""
    (folder / "table.aml").write_bytes(table)
    subprocess.run(["iasl", "-d", "table.aml"], cwd=folder, check=True, capture_output=True)
    source = re.sub(r"/\*.*?\*/|//[^\n]*", "", (folder / "table.dsl").read_text(), flags=re.DOTALL)
    return " ".join(source[source.index("Scope") :].split())


def test_every_device_is_there_with_its_resources(tmp_path: Path) -> None:
    devices = [(0xFEB0_0000 + 0x200 * index, 16 + index) for index in range(32)]
    source = disassembled(acpi_table(devices), tmp_path)
    addresses = re.findall(r"Memory32Fixed \(ReadWrite, 0x(\w+), 0x00000200, \)", source)
    interrupts = re.findall(
        r"Interrupt \(ResourceConsumer, Level, ActiveHigh, Exclusive, ,, \) \{ 0x(\w+), \}", source
    )
    found = [(int(base, 16), int(irq, 16)) for base, irq in zip(addresses, interrupts, strict=True)]
    assert found == devices
    assert source.count('Name (_HID, "LNRO0005")') == 32


def test_the_documented_source_is_the_table(tmp_path: Path) -> None:
    text = DOCUMENTATION.read_text()
    source = re.search(r"```asl\n(.*?)```", text, re.DOTALL)
    assert source is not None
    (tmp_path / "virtio.asl").write_text(source[1])
    subprocess.run(["iasl", "virtio.asl"], cwd=tmp_path, check=True, capture_output=True)
    ours = disassembled(acpi_table([(0xFEB0_0000, 42)]), tmp_path)
    assert disassembled((tmp_path / "virtio.aml").read_bytes(), tmp_path) == ours.replace("0x0000", "Zero", 1)
