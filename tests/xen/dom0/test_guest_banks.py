"""A domU with so much memory that Arm splits it: rings and buffers in the second, in process and remote."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenvirt import Device, DeviceId, RemoteDevice, Server, VhostUserSocket, VirtQueue
from xenvirt.xen.ram import ARM_BANKS

from .guest_place import at, place
from .linux_guest import LinuxGuest

pytestmark = pytest.mark.dom0("aarch64")

FIRST, SECOND = ARM_BANKS
MEMORY = 3136
"""MiB: the whole first bank, and 64 in the second."""
SENT = bytes(range(32))
# Linux is told of the first bank alone, so the second is free for a driver made of devmem, which has its
# rings and its buffer there (registers: virtio 1.3, section 4.2.2; rings: section 2.7). Before that Linux's
# own had the devices, in the first bank.
SCRIPT = f"""
    set_register() {{ devmem $(($base + $1)) 32 $2; }}
    drive() {{
        base=$1 ring=$2 buffer=$(($2 + 0x3000))
        set_register 0x70 0
        set_register 0x70 3
        set_register 0x24 1
        set_register 0x20 1
        set_register 0x70 11
        set_register 0x38 8
        for part in 0 1 2; do
            set_register $((0x80 + 0x10 * part)) $(((ring + 0x1000 * part) & 0xffffffff))
            set_register $((0x84 + 0x10 * part)) $(((ring + 0x1000 * part) >> 32))
        done
        devmem $ring 64 $buffer
        devmem $((ring + 8)) 64 $((2 << 32 | {len(SENT)}))
        devmem $((ring + 0x1000)) 64 $((1 << 16))
        devmem $((ring + 0x2000)) 32 0
        set_register 0x44 1
        set_register 0x70 15
        set_register 0x50 0
        until [ $(devmem $((ring + 0x2000)) 32) = 0x00010000 ]; do :; done
        echo "$3 used $(devmem $((ring + 0x2008)) 32)"
        for word in 0 8 16 24; do echo "$3 word $(devmem $((buffer + word)) 64)"; done
        set_register 0x70 0
    }}
    cd /sys/bus/virtio/drivers/virtio_rng
    for number in 0 1; do echo virtio$number > unbind; done
    drive {place(0).address} {SECOND.start} local
    drive {place(1).address} $(({SECOND.start} + 0x10000)) remote
    echo "to the end"
"""


class Counting(Device):
    """Gives the same bytes again and again."""

    device_id = DeviceId.ENTROPY
    queue_sizes = (1024,)

    def process(self, queue: VirtQueue) -> None:
        for chain in queue:
            chain.write(SENT[: chain.writable])
            chain.complete()


def test_both_banks_are_reached_in_process_and_by_a_daemon(tmp_path: Path) -> None:
    devices, path = [place(0), place(1)], tmp_path / "socket"
    with (
        LinuxGuest(SCRIPT, devices=devices, memory=MEMORY, words=f"mem={len(FIRST)}") as guest,
        Server() as server,
    ):
        served = server.add(Counting(), at(guest, devices[0]))
        daemon = server.add(Counting(), VhostUserSocket(path))
        server.add(RemoteDevice(path, DeviceId.ENTROPY, timeout=60), at(guest, devices[1]))
        guest.unpause()
        guest.wait_for("to the end")
        words = [int.from_bytes(SENT[at : at + 8], "little") for at in range(0, len(SENT), 8)]
        for which in ("local", "remote"):
            assert f"{which} used 0x{len(SENT):08X}\n" in guest.console
            assert "".join(f"{which} word 0x{word:016X}\n" for word in words) in guest.console
        assert all(one.counters.chains > 1 for one in (served, daemon)), "Linux's own driver had them, too"
        assert [one.counters.errors for one in (served, daemon)] == [0, 0]
