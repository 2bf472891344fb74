"""``xenvirt attach`` serves Linux guests of real Xen: disks of xl.cfg, announced by the toolstack itself."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from xenvirt.errors import XenvirtError
from xenvirt.xen import ForeignMapping, ForeignMemory
from xenvirt.xen.xenstore import XenStore

from .guest_place import BASE, place
from .linux_guest import LinuxGuest, xl

pytestmark = pytest.mark.dom0("aarch64")

MIB = 1 << 20
DISK = "format=raw, vdev={vdev}, access=rw, backendtype=standalone, specification=virtio, target={path}"
RULES = """
[[device]]
type = "block"
class = "xenvirt.devices:BlockDevice"
arguments = { image = "{target}" }
"""


class Attach:
    """An attach process for all guests by these rules, or with these arguments; and what it has said."""

    def __init__(self, folder: Path, rules: str, *arguments: str) -> None:
        path = folder / "attach.toml"
        path.write_text(rules)
        self._process = subprocess.Popen(
            ["python3", "-m", "xenvirt", "attach", "-vv", *(arguments or ("--watch", "--map", str(path)))],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.wait_for("ready")

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self.said += line
                self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.said, 120), f"no {text!r} in:\n{self.said}"

    def kill(self) -> None:
        """With the daemons that it has started, as systemd does."""
        started = children(self._process.pid)
        self._process.kill()
        for pid in started:
            os.kill(pid, signal.SIGKILL)
        self._join()

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._join()

    def ended(self) -> int:
        """Its status, once it has ended of itself."""
        return self._join()

    def _join(self) -> int:
        status = self._process.wait(60)
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
        return status


def children(pid: int) -> list[int]:
    """The processes that one has started, and that live (proc(5), /proc/pid/stat)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


@contextmanager
def attached(folder: Path, rules: str = RULES, *arguments: str) -> Iterator[Attach]:
    process = Attach(folder, rules, *arguments)
    try:
        yield process
        assert process.end() == 0, process.said
        assert "Traceback" not in process.said, process.said
    except BaseException as error:
        process.kill()
        error.add_note(f"attach said:\n{process.said}")
        raise


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    made.write_bytes(os.urandom(4 * MIB))
    return made


def disks(*images: Path) -> str:
    names = [
        f'"{DISK.format(vdev=f"xvd{letter}", path=path)}"'
        for letter, path in zip("abcd", images, strict=False)
    ]
    return f"disk = [{', '.join(names)}]\n"


def state(guest: LinuxGuest, devid: int = 51712) -> str | None:
    with XenStore() as store:
        return store.get(f"/local/domain/0/backend/virtio_disk/{guest.domid}/{devid}/state")


def test_a_guest_that_is_made_later_gets_its_disk(tmp_path: Path, image: Path) -> None:
    script = """
        dd if=/dev/vda of=/tmp/read bs=64k 2>/dev/null
        echo "sum $(md5sum < /tmp/read)"
        dd if=/dev/urandom of=/tmp/new bs=64k count=16 2>/dev/null
        dd if=/tmp/new of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null
        echo "new $(md5sum < /tmp/new)"
        read line < /dev/hvc0
    """
    before = subprocess.run(["md5sum", image], check=True, capture_output=True, text=True).stdout.split()[0]
    with attached(tmp_path) as attach, LinuxGuest(script, configuration=disks(image)) as guest:
        assert state(guest) == "2"  # xl create has waited for it
        guest.unpause()
        assert guest.wait_for("sum ([0-9a-f]+)")[1] == before
        written = guest.wait_for("new ([0-9a-f]+)")[1]
        part = image.read_bytes()[MIB : 2 * MIB]
        (tmp_path / "part").write_bytes(part)
        sums = subprocess.run(["md5sum", tmp_path / "part"], check=True, capture_output=True, text=True)
        assert sums.stdout.split()[0] == written
        assert state(guest) == "4"
        guest.destroy()
        attach.wait_for("the toolstack takes it away")
        assert state(guest) is None
    assert "(null)" not in xl("list")


def test_a_slot_that_nobody_serves_does_not_keep_a_guest_from_booting(tmp_path: Path, image: Path) -> None:
    with (
        attached(tmp_path, RULES + "devid = 51728\n") as attach,
        LinuxGuest("ls /sys/block; echo end", configuration=disks(image, image)) as guest,
    ):
        guest.unpause()
        said = guest.wait_for("(?s).*\nend").group()
        assert "vda" in said
        assert "vdb" not in said
        attach.wait_for("nothing: an empty slot")


def test_a_guest_is_destroyed_under_load(tmp_path: Path, image: Path) -> None:
    script = """
        while true; do dd if=/dev/vda of=/dev/null bs=4k 2>/dev/null; echo round; done
    """
    with attached(tmp_path):
        for _ in range(2):
            with LinuxGuest(script, configuration=disks(image)) as guest:
                guest.unpause()
                guest.wait_for("round")
        assert "(null)" not in xl("list")


STATUS = BASE + 0x70
"""The device status register (virtio 1.3, section 4.2.2)."""
LOAD = f"""
    until test -e /tmp/end; do
        devmem {STATUS} 32 > /tmp/status; grep -q 0x0000000F /tmp/status || cat /tmp/status
    done &
    dd if=/dev/urandom of=/tmp/data bs=4k count=16 2>/dev/null
    round=0
    until test -e /tmp/end; do
        dd if=/tmp/data of=/dev/vda bs=4k oflag=direct 2>/dev/null || echo failed
        dd if=/dev/vda bs=4k count=16 iflag=direct 2>/dev/null | cmp - /tmp/data || echo failed
        round=$((round + 1))
        echo "round $round."
    done &
    read line < /dev/hvc0
    touch /tmp/end
    wait
    echo "sum $(sha256sum < /tmp/data)"
    echo "kernel $(dmesg | grep -c "still in use")"
    read line < /dev/hvc0
"""


@pytest.mark.parametrize(
    ("grants", "daemon"), [(False, False), (True, False), (False, True)], ids=["foreign", "grants", "daemon"]
)
def test_attach_dies_under_load_and_the_next_one_goes_on(
    grants: bool, daemon: bool, tmp_path: Path, image: Path
) -> None:
    """It is killed, told to end, and killed again; each time a vCPU waits in Xen for the next one."""
    device = place(grants=grants)
    with LinuxGuest(LOAD, devices=[device], processors=2) as guest:
        where = ["--domid", str(guest.domid), "--base", hex(device.address), "--irq", str(device.interrupt)]
        where += ["--type", "block", *["--grants"] * grants]
        served = ("--class", "xenvirt.devices:BlockDevice", "--set", f"image={image}")
        started = ("--daemon", f"{sys.executable} -m xenvirt serve blk {image} --socket={{socket}}")
        again = partial(Attach, tmp_path, RULES, *where, *(started if daemon else served))
        attach = again()
        attach.wait_for("(block at")
        attach, digest = die_under_load(guest, attach, again)
        guest.destroy()
        assert attach.ended() == 0, attach.said
    assert sha256(image.read_bytes()[: 64 << 10]).hexdigest() == digest
    assert "(null)" not in xl("list")
    assert list(Path("/run/xenvirt/guests").iterdir()) == []


def test_attach_dies_and_all_that_the_toolstack_announced_goes_on(tmp_path: Path, image: Path) -> None:
    beside = tmp_path / "beside.img"
    beside.write_bytes(bytes(MIB))
    again = partial(Attach, tmp_path, RULES)
    attach = again()
    try:
        with LinuxGuest(LOAD, configuration=disks(image, beside), processors=2) as guest:
            attach, digest = die_under_load(guest, attach, again)
            guest.destroy()
            attach.wait_for("the toolstack takes it away")
    finally:
        assert attach.end() == 0, attach.said
    assert sha256(image.read_bytes()[: 64 << 10]).hexdigest() == digest
    assert "(null)" not in xl("list")
    assert list(Path("/run/xenvirt/guests").iterdir()) == []


def die_under_load(guest: LinuxGuest, attach: Attach, again: Callable[[], Attach]) -> tuple[Attach, str]:
    """Runs a guest with the script LOAD; the attach process ends three times, and is there again.

    Gives the last one, and the digest of what the guest has written.
    """
    try:
        guest.unpause()
        with ForeignMemory() as foreign:
            for leave in (Attach.kill, Attach.end, Attach.kill):
                wait_for_rounds(guest)
                (server,) = servers(foreign, guest.domid)
                leave(attach)
                wait_for_request(foreign, guest.domid, server)
                attach = again()
                attach.wait_for("taken over from a process that is gone")
            wait_for_rounds(guest)
            guest.send("end")
            digest = guest.wait_for("sum ([0-9a-f]+)")[1]
            assert guest.wait_for("kernel ([0-9]+)")[1] == "0"
            assert "failed" not in guest.console
            assert not re.search("^0x", guest.console, re.MULTILINE)  # a status
            assert len(servers(foreign, guest.domid)) == 1
    except BaseException as error:
        error.add_note(f"attach said:\n{attach.said}")
        attach.kill()
        raise
    return attach, digest


def wait_for_rounds(guest: LinuxGuest) -> None:
    """Until a round has begun and ended after this was called."""
    for _ in range(2):
        done = guest.console.count("round ")
        guest.wait_for(f"round {done + 1}[.]")


def wait_for_request(foreign: ForeignMemory, domid: int, server: int) -> None:
    """Until a vCPU waits for an answer."""
    with foreign.map_resource(domid, "ioreq_server", server, first=1) as page:
        deadline = time.monotonic() + 120
        while not WAITING & set(states_of_requests(page)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert WAITING & set(states_of_requests(page)), "no vCPU wants anything"


WAITING = {1, 2}
"""STATE_IOREQ_READY and STATE_IOREQ_INPROCESS (xen/include/public/hvm/ioreq.h)."""


def states_of_requests(page: ForeignMapping) -> list[int]:
    """Of the first two vCPUs."""
    return [page.read(32 * vcpu + 30, 1)[0] & 0xF for vcpu in range(2)]


def servers(foreign: ForeignMemory, domid: int) -> list[int]:
    """The numbers of the IOREQ servers that a domain has."""
    found = []
    for number in range(8):
        with contextlib.suppress(XenvirtError, OSError):
            foreign.map_resource(domid, "ioreq_server", number, first=1).close()
            found.append(number)
    return found
