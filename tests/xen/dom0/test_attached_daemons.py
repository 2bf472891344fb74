"""``xenvirt attach`` with daemons: started and watched by it, or somebody else's; real guests of real Xen."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.vhost_user.fake_backend import MQ, FakeBackend
from tests.xenstore.toolstack import Toolstack
from xenvirt import Daemon
from xenvirt.xen.xenstore import XenStore

from . import daemons
from .device_tree import MmioDevice
from .linux_guest import LinuxGuest, xl
from .test_attach import Attach, attached, disks, state

pytestmark = pytest.mark.dom0("aarch64")

BASE, IRQ = 0x200_0000, 33
MIB = 1 << 20


@pytest.fixture
def root(request: pytest.FixtureRequest) -> Path:
    return request.config.rootpath


def toml(**values: object) -> str:
    """A rule."""
    return "[[device]]\n" + "".join(f"{name} = {value!r}\n" for name, value in values.items())


def processes(*words: str) -> list[int]:
    """Those with these words in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            line = Path("/proc", pid, "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(pid))
    return found


def test_a_disk_of_xl_by_a_daemon_that_somebody_runs(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 * MIB))
    script = """
        dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null
        dd if=/tmp/data of=/dev/vda bs=64k oflag=direct 2>/dev/null
        echo wrote $(sha256sum < /tmp/data)
        echo read $(dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | sha256sum)
        read line < /dev/hvc0
    """
    serve = (sys.executable, "-m", "xenvirt", "serve", "blk", image, "--socket={socket}")
    with (
        Daemon(*serve, timeout=300) as daemon,
        attached(tmp_path, toml(type="block", socket=daemon.socket)) as attach,
        LinuxGuest(script, configuration=disks(image)) as guest,
    ):
        assert state(guest) == "2"
        guest.unpause()
        wrote = guest.wait_for("wrote ([0-9a-f]{64})")[1]
        assert guest.wait_for("read ([0-9a-f]{64})")[1] == wrote
        assert wrote == hashlib.sha256(image.read_bytes()[:MIB]).hexdigest()
        assert state(guest) == "4"
        guest.destroy()
        attach.wait_for("the toolstack takes it away")
        assert state(guest) is None
    assert "(null)" not in xl("list")


@pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])
def test_rust_vmms_entropy_for_a_device_that_the_toolstack_announces(
    tmp_path: Path, root: Path, grants: bool
) -> None:
    """libxl 4.17 announces disks alone, so the test writes what later ones write for `virtio = [...]`."""
    program = str(daemons.program("vhost-device-rng", root))
    rule = toml(type="entropy", command=[program, "--socket-path={socket}"], socket_suffix="0")
    script = """
        cat /sys/class/misc/hw_random/rng_current
        echo got $(head -c 512 /dev/hwrng | wc -c)
        read line < /dev/hvc0
    """
    with (
        attached(tmp_path, rule) as attach,
        XenStore() as store,
        LinuxGuest(script, devices=[MmioDevice(BASE, IRQ, grants=grants)]) as guest,
    ):
        tools = Toolstack(store)
        path = tools.add(guest.domid, grant_usage=str(int(grants)))
        try:
            attach.wait_for("vhost-device-rng")
            wait_for_state(store, path, 2)
            guest.unpause()
            guest.wait_for("(?s)virtio_rng.*got 512")
            wait_for_state(store, path, 4)
            (daemon,) = processes(program)
            assert daemon > 0
            guest.destroy()
            attach.wait_for("is gone")
        finally:
            tools.remove(path)
    assert processes(program) == []
    assert "(null)" not in xl("list")


def wait_for_state(store: XenStore, path: str, wanted: int) -> None:
    with store.watch(f"{path}/state") as watch:
        while store.get(f"{path}/state") != str(wanted):
            assert watch.wait(120), store.get(f"{path}/state")


def test_a_slot_of_which_the_xenstore_says_nothing_by_somebody_elses_daemon(
    tmp_path: Path, root: Path
) -> None:
    script = "cat /sys/class/misc/hw_random/rng_current; echo got $(head -c 64 /dev/hwrng | wc -c)"
    with (
        daemons.rng(root) as daemon,
        LinuxGuest(script, devices=[MmioDevice(BASE, IRQ)]) as guest,
    ):
        words = f"--domid {guest.domid} --base {BASE:#x} --irq {IRQ} --type entropy --socket {daemon.socket}"
        assert "got 64" in served_until_it_ends(tmp_path, guest, words, daemon.socket)


def served_until_it_ends(folder: Path, guest: LinuxGuest, words: str, backend: str) -> str:
    """What the guest says while attach, with these arguments, serves it; both end with the script."""
    attach = Attach(folder, "", *shlex.split(words))
    try:
        attach.wait_for(backend)
        guest.unpause()
        guest.wait_for("(?s)virtio_rng.*got [0-9]+")
        attach.wait_for("is gone")  # it powers off
        assert attach.ended() == 0
    finally:
        attach.kill()
    return guest.console


def test_a_slot_of_which_the_xenstore_says_nothing_ends_with_its_guest(tmp_path: Path) -> None:
    script = "cat /sys/class/misc/hw_random/rng_current; echo got $(head -c 64 /dev/hwrng | wc -c)"
    with LinuxGuest(script, devices=[MmioDevice(BASE, IRQ, grants=True)]) as guest:
        words = (
            f"--domid {guest.domid} --base {BASE:#x} --irq {IRQ} --grants "
            "--class xenvirt.devices:EntropyDevice"
        )
        assert "got 64" in served_until_it_ends(tmp_path, guest, words, "EntropyDevice")


def test_a_daemon_that_cannot_map_a_guests_memory_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "plain.sock"
    rule = toml(type="block", socket=str(path))
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    with (
        FakeBackend(path, protocol_features=MQ),
        attached(tmp_path, rule) as attach,
        LinuxGuest("ls /sys/block; echo end", configuration=disks(image)) as guest,
    ):
        assert state(guest) == "2"
        guest.unpause()
        assert "vda" not in guest.wait_for("(?s).*\nend").group()
        attach.wait_for("the daemon does not offer the protocol feature XEN_MMAP")
        attach.wait_for("nothing: an empty slot")
