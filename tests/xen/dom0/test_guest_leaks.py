"""Ten thousand requests of a Linux domU by grants: nothing stays mapped or open, in the guest or here."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from xenvirt import Server
from xenvirt.devices import BlockDevice

from .guest_place import at, place
from .held import Held, held
from .linux_guest import LinuxGuest, xl

pytestmark = pytest.mark.dom0("aarch64")

DEVICE = place(grants=True)
MIB = 1 << 20
REQUEST = 4096
SIZE = 20 * MIB
REQUESTS = 2 * SIZE // REQUEST
"""All of the disk, once read and once written."""
assert REQUESTS >= 10_000
RING_PAGES = 16
"""More than the parts of one ring of 256 need."""
# Each step waits for a line, so that nothing is under way while it is counted here what is held.
SCRIPT = f"""
    step() {{
        echo "$1"
        read line < /dev/hvc0
    }}
    echo {REQUEST // 1024} > /sys/block/vda/queue/max_sectors_kb
    step warm
    dd if=/dev/vda of=/dev/null bs=1M iflag=direct 2> /dev/null || echo failed
    dd if=/dev/zero of=/dev/vda bs=1M count={SIZE // MIB} oflag=direct 2> /dev/null || echo failed
    step through
    cd /sys/bus/virtio/drivers/virtio_blk
    echo virtio0 > unbind
    step unbound
    echo virtio0 > bind
    dd if=/dev/vda of=/dev/null bs=1M count=1 iflag=direct 2> /dev/null || echo failed
    echo kernel $(dmesg | grep -c 'still in use')
    step again
"""


def held_now() -> Held:
    """What is held, without what Python has not collected yet."""
    gc.collect()
    return held()


def serve_through(guest: LinuxGuest, image: Path) -> None:
    """Serves the guest to its end, and counts what is held at each step."""
    with BlockDevice(image) as disk, Server() as server:
        served = server.add(disk, at(guest, DEVICE))
        guest.unpause()
        guest.wait_for("warm")
        warm = held_now()
        assert 0 < warm.granted <= RING_PAGES
        guest.send("on")
        guest.wait_for("through")
        assert served.counters.chains >= REQUESTS
        assert held_now() == warm
        guest.send("on")
        guest.wait_for("unbound")
        assert held_now().granted == 0
        guest.send("on")
        guest.wait_for("again")
        assert held_now() == warm
        assert guest.wait_for("kernel ([0-9]+)")[1] == "0"
        assert "failed" not in guest.console
        assert served.counters.errors == 0
        guest.destroy()
        server.stop_with_last()
        assert server.wait(60)


def test_ten_thousand_requests_by_grants_leave_nothing(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"\xff" * SIZE)
    before = held_now()
    with LinuxGuest(SCRIPT, devices=[DEVICE]) as guest:
        serve_through(guest, image)
    assert held_now() == before
    assert "(null)" not in xl("list")
    assert image.read_bytes() == bytes(SIZE)
