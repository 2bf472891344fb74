"""A daemon is killed while a Linux domU works with its device: the guest, its other device and we go on."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from xenvirt import DeviceId, RemoteDevice, Server
from xenvirt.devices import BlockDevice

from .device_tree import MmioDevice
from .guest_place import at, place
from .held import Held
from .linux_guest import LinuxGuest, xl
from .test_guest_leaks import held_now

pytestmark = pytest.mark.dom0("aarch64")
BOTH_MEMORIES = pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])

SIZE = 64 << 10
PATIENCE = 120.0
"""Seconds for a daemon to be there (again): Python's start in an emulated dom0 that has work to do."""

COMMON = f"""
    head -c {SIZE} /dev/urandom > /tmp/data
    write() {{
        dd if=/tmp/data of=/dev/$1 bs=4k oflag=direct 2> /dev/null || echo failed
        dd if=/dev/$1 bs=4k count={SIZE >> 12} iflag=direct 2> /dev/null | cmp - /tmp/data || echo failed
    }}
    work() {{
        round=0
        until test -e /tmp/end; do
            write $1
            round=$((round + 1))
            echo $1 round $round
        done
    }}
    answer() {{
        read line < /dev/hvc0
        echo "heard $line"
    }}
    rebind() {{
        cd /sys/bus/virtio/drivers/$1
        echo virtio0 > unbind
        echo unbound
        answer
        echo virtio0 > bind
    }}
"""
DISKS = f"""{COMMON}
    work vda & work vdb &
    answer
    answer
    touch /tmp/end
    wait
    rebind virtio_blk
    write vda
    echo sum $(dd if=/dev/vda bs=4k iflag=direct 2> /dev/null | sha256sum)
    echo kernel $(dmesg | grep -c 'still in use')
    answer
"""


@contextmanager
def daemon(path: Path, *device: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """One of ours that will listen there, whoever listened there before; it is killed."""
    process = subprocess.Popen([sys.executable, "-m", "xenvirt", "serve", *device, f"--socket={path}"])
    try:
        yield process
        assert process.poll() is None
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL


def wait_for_rounds(guest: LinuxGuest, disk: str) -> None:
    """Waits for a round that began after this was called: the second from now on."""
    for _ in range(2):
        done = guest.console.count(f"{disk} round")
        guest.wait_for(f"{disk} round {done + 1}\n", PATIENCE)


def files_and_threads(expected: Held) -> tuple[int, int]:
    """What is held, once it is as expected, or will not be: a try that just ended may not have let go yet."""
    deadline = time.monotonic() + 10
    while (now := held_now())[:2] != expected[:2] and time.monotonic() < deadline:
        time.sleep(0.1)
    return now.files, now.threads


def ask(guest: LinuxGuest, word: str) -> None:
    """Types a word on the guest's console, and waits until the guest repeats it."""
    guest.send(word)
    guest.wait_for(f"heard {word}\n", PATIENCE)


def serve_a_disk(guest: LinuxGuest, places: Sequence[MmioDevice], theirs: Path, ours: Path) -> str:
    """Serves two disks to the guest's end, one by daemons that die. Gives the digest of what it read."""
    path = theirs.with_suffix(".sock")
    remote = RemoteDevice(path, DeviceId.BLOCK, timeout=PATIENCE)
    with BlockDevice(ours) as disk, Server() as server:
        with daemon(path, "blk", theirs):
            served = server.add(remote, at(guest, places[0]))
            beside = server.add(disk, at(guest, places[1]))
            guest.unpause()
            wait_for_rounds(guest, "vda")
            wait_for_rounds(guest, "vdb")
            warm = held_now()
        ask(guest, "killed")
        wait_for_rounds(guest, "vdb")
        with daemon(path, "blk", theirs):
            wait_for_rounds(guest, "vda")
            wait_for_rounds(guest, "vdb")
            assert files_and_threads(warm) == warm[:2]
        with daemon(path, "blk", theirs):
            ask(guest, "end")
            guest.wait_for("unbound", PATIENCE)
            ask(guest, "bind")
            digest = guest.wait_for("sum ([0-9a-f]{64})", PATIENCE)[1]
            assert guest.wait_for("kernel ([0-9]+)", PATIENCE)[1] == "0"
        assert "failed" not in guest.console
        assert (served.counters.errors, beside.counters.errors) == (0, 0)
        # The daemon is dead again, and looked for.
        guest.destroy()
        server.stop_with_last()
        assert server.wait(60)
    return digest


@BOTH_MEMORIES
def test_a_disk_goes_on_with_the_daemon_that_was_started_again(grants: bool, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.img", tmp_path / "ours.img"
    for image in (theirs, ours):
        image.write_bytes(bytes(SIZE))
    places = [place(0, grants=grants), place(1)]
    before = held_now()
    with LinuxGuest(DISKS, devices=places) as guest:
        digest = serve_a_disk(guest, places, theirs, ours)
    assert held_now() == before
    assert hashlib.sha256(theirs.read_bytes()).hexdigest() == digest
    assert "(null)" not in xl("list")
