"""Python devices serve a Linux domU, by foreign memory and by grants: its own drivers are the judge."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from xenvirt import Server
from xenvirt.devices import BlockDevice, EntropyDevice

from .guest_place import BASE, at, place
from .linux_guest import LinuxGuest, xl

pytestmark = pytest.mark.dom0("aarch64")


@pytest.mark.parametrize(
    ("grants", "kernel_kicks"),
    [(False, False), (True, False), (True, True)],
    ids=["foreign", "grants", "kernel kicks"],
)
def test_entropy_reaches_the_guest(grants: bool, kernel_kicks: bool) -> None:
    device = place(grants=grants)
    script = """
        cat /sys/class/misc/hw_random/rng_current
        head -c 32 /dev/hwrng | od -An -tx1
        echo done
        read line < /dev/hvc0
    """
    with LinuxGuest(script, devices=[device]) as guest, Server() as server:
        served = server.add(EntropyDevice(), at(guest, device, kernel_kicks=kernel_kicks))
        guest.unpause()
        said = guest.wait_for("(?s)virtio_rng.*done").group()
        assert len(set(re.findall(r"\b[0-9a-f]{2}\b", said))) > 8
        assert served.counters.chains >= 1
        assert served.counters.bytes_written >= 32
        assert bool(served.features & 1 << 33)
        kicks = "by ioeventfd" if kernel_kicks else "by trapped writes"
        assert served._endpoint.describe_guest() == f"kicks {kicks}, interrupts by irqfd"


def content(image: Path, folder: Path) -> bytes:
    """What is in the file "data" of an image, by dom0's own kernel."""
    place = folder / "mounted"
    place.mkdir()
    subprocess.run(["busybox", "mount", "-t", "ext4", "-o", "loop,ro", image, place], check=True)
    try:
        return (place / "data").read_bytes()
    finally:
        subprocess.run(["busybox", "umount", place], check=True)


@pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])
def test_a_disk_keeps_what_the_guest_writes(grants: bool, tmp_path: Path) -> None:
    device = place(grants=grants)
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 << 20))
    script = """
        set -e
        mkdir -p /mnt
        mke2fs /dev/vda > /dev/null
        mount -t ext4 /dev/vda /mnt
        dd if=/dev/urandom of=/mnt/data bs=64k count=32 2> /dev/null
        sync; echo 3 > /proc/sys/vm/drop_caches
        sum=$(sha256sum < /mnt/data)
        umount /mnt
        mount -t ext4 /dev/vda /mnt
        test "$sum" = "$(sha256sum < /mnt/data)" && echo "the same: $sum"
        umount /mnt
        echo "to the end"
    """
    with LinuxGuest(script, devices=[device]) as guest, BlockDevice(image) as disk, Server() as server:
        served = server.add(disk, at(guest, device))
        guest.unpause()
        digest = guest.wait_for("the same: ([0-9a-f]{64})")[1]
        guest.wait_for("to the end")
        assert served.counters.chains > 32
        assert served.counters.errors == 0
        assert "still in use" not in guest.console
    with image.open("rb") as file:
        file.seek(1024 + 58)
        assert int.from_bytes(file.read(2), "little") == 1, "s_state: not unmounted cleanly"
    data = content(image, tmp_path)
    assert hashlib.sha256(data).hexdigest() == digest


def test_two_devices_of_a_guest_with_two_processors_and_a_driver_that_is_bound_again() -> None:
    first, second = place(0), place(1, grants=True)
    script = """
        cd /sys/bus/virtio/drivers/virtio_rng
        for round in 1 2 3; do
            for device in virtio0 virtio1; do
                echo $device > unbind
                echo $device > bind
                head -c 16 /dev/hwrng > /tmp/bytes && echo "round $round $device $(wc -c < /tmp/bytes)"
            done
        done
        echo "to the end"
    """
    with LinuxGuest(script, devices=[first, second], processors=2) as guest, Server() as server:
        served = [server.add(EntropyDevice(), at(guest, device)) for device in (first, second)]
        guest.unpause()
        guest.wait_for("to the end")
        assert len(re.findall("round . virtio. 16", guest.console)) == 6
        assert "still in use" not in guest.console
        assert all(device.counters.chains for device in served)


def test_every_illegal_access_is_answered() -> None:
    """busybox's devmem reads and writes registers by sizes of 8, 16, 32 and 64 bits, also where none is."""
    device = place()
    script = f"""
        echo virtio0 > /sys/bus/virtio/drivers/virtio_rng/unbind
        for offset in 0x000 0x001 0x004 0x00c 0x014 0x02c 0x034 0x050 0x060 0x07c 0x0c0 0x0fc 0x100 0x1f8; do
            for width in 8 16 32 64; do
                if [ $(( offset % (width / 8) )) = 0 ]; then
                    devmem $(( {BASE} + offset )) $width > /dev/null
                    devmem $(( {BASE} + offset )) $width 0xffffffff
                fi
            done
        done
        devmem {BASE + 0x70} 32 0
        echo virtio0 > /sys/bus/virtio/drivers/virtio_rng/bind
        head -c 16 /dev/hwrng | od -An -tx1
        echo "to the end"
    """
    with LinuxGuest(script, devices=[device]) as guest, Server() as server:
        served = server.add(EntropyDevice(), at(guest, device))
        guest.unpause()
        guest.wait_for("to the end")
        assert served.counters.chains


@pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])
def test_a_guest_that_is_destroyed_under_load_leaves_nothing(grants: bool) -> None:
    device = place(grants=grants)
    with LinuxGuest("cat /dev/hwrng > /dev/null", devices=[device]) as guest, Server() as server:
        served = server.add(EntropyDevice(), at(guest, device))
        guest.unpause()
        while served.counters.chains < 50:
            assert not server.wait(0.2)
        guest.destroy()
        server.stop_with_last()
        assert server.wait(60)
    assert "(null)" not in xl("list")
