"""Where a guest has its RAM, and what mapping costs a dom0: what needs no Xen."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenvirt.xen.placeholders import take_ram
from xenvirt.xen.ram import ram_ranges

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("size", "machine", "ranges"),
    [
        (128 * MIB, "x86_64", (range(128 * MIB),)),
        (8 * GIB, "x86_64", (range(8 * GIB + 256 * MIB),)),
        (128 * MIB, "aarch64", (range(GIB, GIB + 128 * MIB),)),
        (3 * GIB, "aarch64", (range(GIB, 4 * GIB),)),
        (4 * GIB, "aarch64", (range(GIB, 4 * GIB), range(8 * GIB, 9 * GIB))),
    ],
)
def test_ram_is_in_two_banks_on_arm_and_beside_the_devices_on_x86(
    size: int, machine: str, ranges: tuple[range, ...]
) -> None:
    assert ram_ranges(size, machine) == ranges


def put(root: Path, name: str, content: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


WITH = b"0000000000000000 T xen_alloc_unpopulated_pages\t[x]\n"
WITHOUT = b"0000000000000000 T xen_alloc_ballooned_pages\n"


@pytest.mark.parametrize(
    ("files", "takes"),
    [
        ({}, False),
        ({"sys/hypervisor/guest_type": b"PVH\n", "proc/kallsyms": WITH}, False),
        ({"sys/hypervisor/guest_type": b"PVH\n", "proc/kallsyms": WITHOUT}, True),
        ({"sys/hypervisor/guest_type": b"PV\n", "proc/kallsyms": WITHOUT}, False),
        ({"proc/kallsyms": WITHOUT, "proc/iomem": b"1-2 : Xen scratch\n"}, False),
        ({"proc/kallsyms": WITH, "proc/device-tree/hypervisor/reg": bytes(16)}, True),
        ({"proc/kallsyms": WITH, "proc/device-tree/hypervisor/reg": bytes(48)}, False),
    ],
)
def test_dom0_pays_in_ram_where_it_has_no_addresses_without_any(
    tmp_path: Path, files: dict[str, bytes], takes: bool
) -> None:
    for name, content in files.items():
        put(tmp_path, name, content)
    assert take_ram(tmp_path) is takes
