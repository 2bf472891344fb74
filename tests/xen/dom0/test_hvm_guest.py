"""A Python device serves an HVM guest of x86: Debian's kernel finds it by ACPI, its I/O APIC interrupts."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from xenvirt import Server
from xenvirt.devices import BlockDevice, EntropyDevice
from xenvirt.xen import XenGuest, acpi_table

from .linux_guest import GUEST_MODULES, LinuxGuest

pytestmark = pytest.mark.dom0("pv")

DISK, RANDOM = (0xFEB0_0000, 42), (0xFEB0_0200, 43)
TIMEOUT = 600.0
"""Seconds, for a busy machine; an idle one needs some 100 for all of it."""

SCRIPT = """
    set -e
    dmesg | grep "magic"
    read line < /dev/hvc0
    echo LNRO0005:01 > /sys/bus/platform/drivers/virtio-mmio/bind
    head -c 32 /dev/hwrng | od -An -tx1
    mke2fs /dev/vda > /dev/null
    mount -t ext4 /dev/vda /mnt
    dd if=/dev/urandom of=/mnt/data bs=64k count=32 2> /dev/null
    sync; echo 3 > /proc/sys/vm/drop_caches
    sum=$(sha256sum < /mnt/data)
    umount /mnt
    mount -t ext4 /dev/vda /mnt
    test "$sum" = "$(sha256sum < /mnt/data)" && echo "the same: $sum"
    umount /mnt
    grep virtio /proc/interrupts
    cd /sys/bus/virtio/drivers/virtio_blk
    device=$(ls -d virtio*)
    echo $device > unbind; echo $device > bind
    mount -t ext4 -o ro /dev/vda /mnt
    test "$sum" = "$(sha256sum < /mnt/data)" && echo "again: $sum"
    umount /mnt
    dmesg | grep -i -e "nobody cared" -e "spurious" || true
    echo done
"""


def content(image: Path, folder: Path) -> bytes:
    """What is in the file "data" of an image, by dom0's own kernel."""
    for name in GUEST_MODULES.read_text().split():
        subprocess.run(["insmod", GUEST_MODULES.parent / name], capture_output=True, check=False)
    place = folder / "mounted"
    place.mkdir()
    subprocess.run(["busybox", "mount", "-t", "ext4", "-o", "loop,ro", image, place], check=True)
    try:
        return (place / "data").read_bytes()
    finally:
        subprocess.run(["busybox", "umount", place], check=True)


@pytest.mark.timeout(TIMEOUT + 60)
def test_a_disk_and_entropy_are_served_by_the_inputs_of_the_io_apic(tmp_path: Path) -> None:
    """One boot for all of it, since it takes a minute and more. QEMU is beside us, with its own devices."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 << 20))
    with (
        LinuxGuest(SCRIPT, acpi=acpi_table([DISK, RANDOM]), memory=192) as guest,
        BlockDevice(image) as device,
        Server() as server,
    ):
        disk = server.add(device, XenGuest(guest.domid, base=DISK[0], irq=DISK[1]))
        guest.unpause()
        guest.wait_for("LNRO0005:01: Wrong magic value", TIMEOUT)
        random = server.add(EntropyDevice(), XenGuest(guest.domid, base=RANDOM[0], irq=RANDOM[1]))
        guest.send("go on")
        said = guest.wait_for("(?s).*\ndone", TIMEOUT).group()
        chains = {DISK[1]: disk.counters.chains, RANDOM[1]: random.counters.chains}
    assert "nobody cared" not in said
    assert "purious" not in said
    summed = hashlib.sha256(content(image, tmp_path)).hexdigest()
    assert f"the same: {summed}" in said
    assert f"again: {summed}" in said
    assert len(set(re.findall(r"\b[0-9a-f]{2}\b", said))) > 8
    # Levels: each was taken back, so that none came again and again.
    counts = {int(irq): int(count) for irq, count in re.findall(r"(\d+): +(\d+) .*-level +virtio", said)}
    assert counts.keys() == chains.keys()
    assert all(0 < counts[irq] <= chains[irq] for irq in counts), (counts, chains)
