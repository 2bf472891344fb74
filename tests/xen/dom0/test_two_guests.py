"""Two Linux domUs with two processors and two devices each, at once, served by one process."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from xenvirt import Server
from xenvirt.devices import BlockDevice, EntropyDevice

from .guest_place import at, place
from .linux_guest import LinuxGuest, xl

pytestmark = pytest.mark.dom0("aarch64")

ROUNDS = 1
"""Before the other is destroyed, and as many after it."""
REBIND = """
    rebind() {
        echo virtio1 > /sys/bus/virtio/drivers/virtio_rng/unbind
        echo virtio1 > /sys/bus/virtio/drivers/virtio_rng/bind
        head -c 16 /dev/hwrng > /tmp/bytes && test $(wc -c < /tmp/bytes) = 16
    }
"""
LOAD = f"""{REBIND}
    while dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2> /dev/null; do :; done &
    rebind && echo working
    while rebind; do :; done
    echo failed
"""
CHECKED = f"""{REBIND}
    round() {{
        rebind && echo "bound again" &
        head -c 131072 /dev/urandom > /tmp/data
        dd if=/tmp/data of=/dev/vda bs=16k oflag=direct 2> /dev/null
        dd if=/dev/vda bs=16k count=8 iflag=direct 2> /dev/null | cmp - /tmp/data && echo "the same"
        wait
    }}
    for round in $(seq {ROUNDS}); do round; done
    echo beside
    read line < /dev/hvc0
    for round in $(seq {ROUNDS}); do round; done
    echo kernel $(dmesg | grep -c 'still in use')
    echo "to the end"
"""


def test_one_goes_on_when_the_other_is_destroyed_under_load(tmp_path: Path) -> None:
    """Each binds a driver again beside its disk's work; one device of each gives grants, one does not.

    The kernel takes the kicks, as whoever serves loaded guests may have it.
    """
    images = [tmp_path / "load.img", tmp_path / "checked.img"]
    for image in images:
        image.write_bytes(bytes(4 << 20))
    loaded_devices = [place(0, grants=True), place(1)]
    checked_devices = [place(0), place(1, grants=True)]
    with (
        LinuxGuest(LOAD, devices=loaded_devices, processors=2) as loaded,
        LinuxGuest(CHECKED, devices=checked_devices, processors=2) as checked,
        BlockDevice(images[0]) as load_disk,
        BlockDevice(images[1]) as disk,
        Server() as server,
    ):
        load = [
            server.add(device, at(loaded, where, kernel_kicks=True))
            for device, where in zip((load_disk, EntropyDevice()), loaded_devices, strict=True)
        ]
        served = [
            server.add(device, at(checked, where, kernel_kicks=True))
            for device, where in zip((disk, EntropyDevice()), checked_devices, strict=True)
        ]
        for guest in (loaded, checked):
            guest.unpause()
        loaded.wait_for("working", 240)  # its disk has no pause
        before = [device.counters.chains for device in load]
        checked.wait_for("beside")
        deadline = time.monotonic() + 120
        while not all(device.counters.chains > count for device, count in zip(load, before, strict=True)):
            assert time.monotonic() < deadline, "the loaded one works no more"
            time.sleep(0.05)
        loaded.destroy()
        checked.send("go on")
        checked.wait_for("to the end")
        assert len(re.findall("the same", checked.console)) == 2 * ROUNDS
        assert len(re.findall("bound again", checked.console)) == 2 * ROUNDS
        assert checked.wait_for("kernel ([0-9]+)")[1] == "0"
        assert "failed" not in loaded.console
        assert [device.counters.errors for device in load + served] == [0, 0, 0, 0]
        checked.destroy()
        server.stop_with_last()
        assert server.wait(60)
    assert "(null)" not in xl("list")
